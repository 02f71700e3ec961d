"""Where everything that a run asks for belongs on disk: folders named by what they depend on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from histo_ssl.config.sizing import sized
from histo_ssl.folders.artifacts import file_fingerprint, fingerprint
from histo_ssl.folders.changes import LISTING

# Whole numbers of the configuration's top level, and the smallest that makes sense.
LEAST = {
    "training.epochs": 1,
    "training.batch_size": 1,
    "training.run_length": 1,
    "embedding.batch_size": 1,
    "checkpoint_every": 1,
    "log_every": 1,
    "n_processes": 0,
    "slide_timeout_s": 1,
    "loader.n_workers": 0,
    "loader.timeout_s": 0,
    "store.block_kb": 1,
    "store.cache_mb": 0,
    "store.timeout_s": 1,
    "store.n_tries": 1,
    "max_nonfinite": 1,
    "seed": 0,
}
MOST = 2**32 - 1  # what random generators take as a seed
EXACT = {"dtype": "float32", "precision": "32-true"}  # how embeddings are computed and kept as they are
FROZEN = "histo_ssl.methods.frozen."  # targets of the methods that train nothing
GIVEN = f"{FROZEN}GivenFeatures"
FOLDER = "local-dir:"  # before the path of a folder of weights
SWITCHES = ("compile", "grad_checkpointing")
CHOICES = {
    "embedding.dtype": (EXACT["dtype"], "float16"),
    "embedding.precision": (EXACT["precision"], "bf16-mixed"),
    "loader.start_method": ("fork", "spawn", "forkserver"),
    "on_nonfinite": ("stop", "skip"),
}
TASK_FILES = ("labels", "folds")  # parts of a task that may read a file or folder, by their `path`
PROTOCOL_FILES = ("input", "nuclei", "tissues")  # what a protocol may read, likewise
TABLE = ".csv"  # an input that lists tiles of the run, rather than being an image
SHARES = ("max_failed_tiles",)
PACK = "pack"  # of data: read tiles from packs. The pixels are the same, so nothing but packs depends on it
DATA = "data"


@dataclass(frozen=True)
class Listed:
    """What a data set listed when the run began: its files, as far as results depend on them."""

    content: Mapping[str, Any]
    fingerprint: str  # of the content; "" where there is none to depend on

    @property
    def config(self) -> dict[str, str]:
        """Its part in the configuration of a stage."""
        return {LISTING: self.fingerprint} if self.fingerprint else {}


def listed(content: Mapping[str, Any]) -> Listed:
    """A listing with its fingerprint."""
    return Listed(content, fingerprint(content) if content else "")


NOTHING = listed({})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A composed configuration, and where on disk everything that it asks for belongs."""

    cfg: DictConfig
    choices: Mapping[str, str]  # group -> choice, such as "backbone" -> "vit_s"; names of folders
    listing: Listed = NOTHING  # of the data; a folder's name depends on the files, not only on their place
    task_listing: Listed = NOTHING  # of the task's data

    def group(self, path: str) -> Any:
        """A group of the configuration as plain, resolved values; of data without `pack`."""
        node = OmegaConf.select(self.cfg, path)
        plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        return _without_pack(plain, is_data=path.rpartition(".")[2] == DATA)

    def method(self, *, n_tiles: int) -> tuple[dict[str, Any], str]:
        """The method's group for so many training tiles; a sentence on what follows from them, or none."""
        config, filled = sized(self.group("method"), n_tiles=n_tiles)
        if not filled:
            return config, ""
        values = ", ".join(f"{path}={value:g}" for path, value in filled.items())
        why = "from method.by_tiles; set one by its name to overrule it"
        return config, f"for {n_tiles:,} tiles {values} ({why})"

    def check(self) -> None:
        """Stop at a value of the top level that no run could be made with.

        Raises:
            ValueError: names the value, and what is expected.
        """
        self._check_kinds()
        for key, least in LEAST.items():
            value = self.group(key)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
                raise ValueError(f"{key}={value}: a whole number, {least} or more, is expected")
        for key in SWITCHES + ((f"{DATA}.{PACK}",) if PACK in self.cfg.data else ()):
            if not isinstance(self.group(key), bool):
                raise ValueError(f"{key}={self.group(key)}: true or false is expected")
        for key, choices in CHOICES.items():
            if self.group(key) not in choices:
                raise ValueError(f"{key}={self.group(key)}: choose one of {', '.join(choices)}")
        for key in SHARES:
            value = self.group(key)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
                raise ValueError(f"{key}={value}: a share, from 0 to 1, is expected")

    def _check_kinds(self) -> None:
        if not isinstance(self.cfg.runs_dir, str) or not self.cfg.runs_dir:
            raise ValueError(
                f"runs_dir={self.cfg.runs_dir}: a folder is expected; a number in quotes: 'runs_dir=\"2024\"'"
            )
        if not isinstance(self.group("store.cache_dir"), str | None):
            raise ValueError(
                f"store.cache_dir={self.group('store.cache_dir')}: a folder, or null, is expected"
            )
        if not isinstance(self.group("stages"), list):
            raise ValueError(f"stages={self.cfg.stages}: a list is expected, such as stages=[tile,pretrain]")

    @property
    def runs_dir(self) -> Path:
        """Where every stage writes."""
        return Path(self.cfg.runs_dir)

    @property
    def tile_config(self) -> dict[str, Any]:
        """What the tiles for pretraining depend on."""
        return {"data": self.group("data"), "tiling": self.group("tiling"), **self.listing.config}

    @property
    def task_tile_config(self) -> dict[str, Any]:
        """What the tiles of the task depend on; the same tiles where the task takes the run's own data."""
        groups = {name: self.group(f"task.{name}") for name in ("data", "tiling")}
        return {**groups, **self.task_listing.config}

    @property
    def pretrain_config(self) -> dict[str, Any]:
        """What the encoder depends on beside the tiles that it is trained on."""
        if self.is_given:
            return {"method": {**self.group("method"), "path": _sizes(self.group("method.path"))}}
        if self.is_frozen:
            method = _by_content(self.group("method"), key="path")
            return {"backbone": self._backbone, "method": method, **self.stain_config}
        groups = {name: self.group(name) for name in ("views", "method", "training", "seed")}
        if groups["training"]["run_length"] == 1:  # as trainings were before there were runs
            del groups["training"]["run_length"]
        return {**groups, "backbone": self._backbone, **self.stain_config}

    @property
    def stain_config(self) -> dict[str, Any]:
        """How tiles are stain-normalised before the encoder sees them; empty where they are not."""
        stain = self.group("stain")
        return {"stain": _by_content(stain, key="target")} if stain else {}

    @property
    def _backbone(self) -> dict[str, Any]:
        """The backbone's group; a folder that an architecture is read from counts by its content."""
        backbone: dict[str, Any] = self.group("backbone")
        is_folder = str(backbone.get("name")).startswith(FOLDER)
        return _by_content(backbone, key="name") if is_folder else backbone

    @property
    def is_frozen(self) -> bool:
        """Whether the method trains nothing: its encoder then depends on no tiles, views or epochs."""
        return str(self.group("method._target_")).startswith(FROZEN)

    @property
    def is_given(self) -> bool:
        """Whether there is no encoder at all: another program has made the features."""
        return str(self.group("method._target_")) == GIVEN

    @property
    def has_images(self) -> bool:
        """Whether the task is asked for images of the user's own, so that it takes no tiles."""
        given = str(self.group("task.protocol").get("input") or "")
        return bool(given) and not given.endswith(TABLE)

    @property
    def tile_folder(self) -> Path:
        """Folder of the tiles for pretraining."""
        return self._tiles(self.tile_config, name=f"{self.choices['data']}-{self.choices['tiling']}")

    @property
    def task_tile_folder(self) -> Path:
        """Folder of the tiles of the task."""
        own = self.task_tile_config == self.tile_config
        return self.tile_folder if own else self._tiles(self.task_tile_config, name=self.choices["task"])

    @property
    def encoder_fingerprint(self) -> str:
        """Fingerprint of the encoder: all that it was made of."""
        inputs = () if self.is_frozen else (fingerprint(self.tile_config),)
        return fingerprint(self.pretrain_config, *inputs)

    @property
    def pretrain_folder(self) -> Path:
        """Folder of the encoder."""
        groups = ("method", "backbone") if self.is_frozen else ("method", "backbone", "data")
        names = [self.choices[group] for group in groups]
        return self.runs_dir / "pretrain" / "-".join([*names, self.encoder_fingerprint])

    @property
    def task_config(self) -> dict[str, Any]:
        """The task's group; files of labels and of folds count by their content, wherever they are named."""
        found: dict[str, Any] = _contents(self.group("task"))
        for key in PROTOCOL_FILES:
            found["protocol"] = _by_content(found["protocol"], key=key)
        return found

    @property
    def embedding_config(self) -> dict[str, Any]:
        """What embeddings depend on beside their encoder: tiles, and what rounds them."""
        rounding = {name: self.group(f"embedding.{name}") for name in EXACT}
        rounded = {name: value for name, value in rounding.items() if value != EXACT[name]}
        return {**self.task_tile_config, **rounded}

    @property
    def result_config(self) -> dict[str, Any]:
        """What the scores depend on."""
        inputs = {"encoder": self.encoder_fingerprint, **self.embedding_config}
        return {**self.task_config, **inputs}

    @property
    def result_folder(self) -> Path:
        """Folder of the scores."""
        inputs = self.encoder_fingerprint, fingerprint(self.embedding_config)
        name = "-".join(self.choices[group] for group in ("method", "backbone", "task"))
        return self.runs_dir / "results" / f"{name}-{fingerprint(self.task_config, *inputs)}"

    def embedding_folder(self, encoder_fingerprint: str) -> Path:
        """Folder of the embeddings that an encoder makes of the task's tiles."""
        name = f"{encoder_fingerprint}-{fingerprint(self.embedding_config)}"
        return self.runs_dir / "embeddings" / name

    @property
    def is_packed(self) -> bool:
        """Whether pretraining reads its tiles from packs."""
        return bool(self.group(f"{DATA}.{PACK}"))

    def pack_folder(self, of_tiles: str) -> Path:
        """Folder of the packs of the tiles for pretraining, whose slides have that fingerprint."""
        name = f"{self.choices['data']}-{self.choices['tiling']}"
        return self.runs_dir / "packs" / f"{name}-{fingerprint(self.tile_config, of_tiles)}"

    def _tiles(self, config: dict[str, Any], *, name: str) -> Path:
        return self.runs_dir / "tiles" / f"{name}-{fingerprint(config)}"


def _without_pack(plain: Any, *, is_data: bool) -> Any:
    """Values without those of `pack` in a data set's own, wherever it stands in them."""
    if not isinstance(plain, dict):
        return plain
    kept = {key: value for key, value in plain.items() if not (is_data and key == PACK)}
    return {key: _without_pack(value, is_data=key == DATA) for key, value in kept.items()}


def _contents(group: Any) -> Any:
    """A group with the content of what its parts called `labels` and `folds` read, not with their paths."""
    if not isinstance(group, dict):
        return group
    parts = {
        name: _by_content(part, key="path") if name in TASK_FILES else part for name, part in group.items()
    }
    return {name: _contents(part) for name, part in parts.items()}


def _sizes(folder: str | None) -> dict[str, int]:
    """Names and sizes of the files in a folder, which are too large to be hashed."""
    path = Path(folder or "")
    found = sorted(file for file in path.rglob("*") if folder and file.is_file())
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in found}


def _by_content(group: dict[str, Any], *, key: str) -> dict[str, Any]:
    """A group with what is in the file or folder that it reads, in place of the name."""
    if not isinstance(group.get(key), str):
        return group
    path = Path(group[key].removeprefix(FOLDER))
    files = sorted(path.rglob("*") if key in PROTOCOL_FILES else path.iterdir()) if path.is_dir() else [path]
    contents = [file_fingerprint(file) for file in files if file.is_file()]
    return {**group, key: contents} if contents else group
