"""What tests of several rooms share: real data where it is at hand, and slides whose pixels are known."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import tifffile
from hydra.utils import instantiate
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from omegaconf import OmegaConf, open_dict
from PIL import Image

from histo_ssl.config.choices import conf_dir
from histo_ssl.config.plan import Plan
from histo_ssl.data.base import TileSource
from histo_ssl.data.images import ImageData
from histo_ssl.data.sources import open_source
from histo_ssl.slides.grid import Tiling
from histo_ssl.views.compose import Views

# The same examples in every run, however slow the machine is at the moment.
settings.register_profile(
    "house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")

Pixels = NDArray[np.uint8]
WriteSlide = Callable[..., str]
REPOSITORY = Path(__file__).resolve().parents[1]
START_S = 60.0  # for the process that imports the heavy libraries


class Warm:
    """Python programs in forks of a process that has imported the heavy libraries (see `warm.py`)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.n_started = folder, 0
        self.settings = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self.settings["TORCH_CPP_LOG_LEVEL"] = "FATAL"  # as the program sets it before it imports torch
        command = [sys.executable, str(Path(__file__).with_name("warm.py"))]
        pipe = subprocess.PIPE
        self.server = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=self.settings)
        self._lines, self._statuses = b"", dict[int, int]()
        assert self._said(START_S) == ["ready"]

    def start(self, *arguments: object, cwd: Path, **environment: str) -> "Program":
        """`python *arguments`, in a session of its own."""
        self.n_started += 1
        streams = {name: str(self.folder / f"{self.n_started}.{name}") for name in ("stdout", "stderr")}
        asked = {"arguments": [*map(str, arguments)], "cwd": str(cwd), "env": self.settings | environment}
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(asked | streams).encode() + b"\n")
        self.server.stdin.flush()
        while (said := self._said(START_S))[0] != "started":
            self._note(said)
        return Program(self, int(said[1]), streams)

    def run(self, *arguments: object, cwd: Path, **environment: str) -> "Program":
        """The same, once it has ended."""
        started = self.start(*arguments, cwd=cwd, **environment)
        started.wait(300)
        return started

    def status(self, pid: int, *, within_s: float) -> int | None:
        """Exit status of a program that has ended; None if it has not, in that time."""
        give_up_at = time.monotonic() + within_s
        while pid not in self._statuses:
            said = self._said(give_up_at - time.monotonic())
            if not said:
                return None
            self._note(said)
        return self._statuses[pid]

    def end(self) -> None:
        """Start no more."""
        self.server.communicate()

    def _note(self, said: list[str]) -> None:
        word, pid, status = said
        assert word == "ended"
        self._statuses[int(pid)] = int(status)

    def _said(self, within_s: float) -> list[str]:
        """The next line's words; none if there is none in time."""
        assert self.server.stdout is not None
        give_up_at = time.monotonic() + within_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.server.stdout, selectors.EVENT_READ)
            while b"\n" not in self._lines:
                if not selector.select(max(0.0, give_up_at - time.monotonic())):
                    return []
                read = os.read(self.server.stdout.fileno(), 1 << 16)
                assert read, "the process that programs are forks of has ended"
                self._lines += read
        line, _, self._lines = self._lines.partition(b"\n")
        return line.decode().split()


class Program:
    """A program that `Warm` has started, in the words of `subprocess.Popen`."""

    def __init__(self, warm: Warm, pid: int, streams: Mapping[str, str]) -> None:
        self.warm, self.pid, self.streams = warm, pid, streams
        self.returncode: int | None = None

    @property
    def stdout(self) -> str:
        return Path(self.streams["stdout"]).read_text()

    @property
    def stderr(self) -> str:
        return Path(self.streams["stderr"]).read_text()

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.warm.status(self.pid, within_s=0.0)
        return self.returncode

    def wait(self, timeout: float = 120.0) -> int:
        if self.returncode is None:
            self.returncode = self.warm.status(self.pid, within_s=timeout)
        assert self.returncode is not None, f"not ended within {timeout} s: {self.stdout}{self.stderr}"
        return self.returncode

    def communicate(self, timeout: float = 60.0) -> tuple[str, str]:
        self.wait(timeout)
        return self.stdout, self.stderr

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Starts programs; what is still running when the tests end is not waited for."""
    started = Warm(tmp_path_factory.mktemp("warm"))
    yield started
    started.end()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides and tiles beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not at hand: there is no folder {folder}")
    return folder


@pytest.fixture
def write_slide(tmp_path: Path) -> WriteSlide:
    """A function that writes arrays as the levels of a tiled TIFF slide, without loss, and gives its path."""

    def write(
        levels: Sequence[Pixels],
        *,
        mpp: float | tuple[float, float] | None,
        name: str = "slide.tif",
        compression: str | None = "deflate",
    ) -> str:
        path = tmp_path / name
        options: dict[str, object] = {"tile": (64, 64), "compression": compression, "metadata": None}
        options["photometric"] = "minisblack" if levels[0].ndim == 2 else "rgb"
        if mpp is not None:
            x, y = mpp if isinstance(mpp, tuple) else (mpp, mpp)
            options |= {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
        with tifffile.TiffWriter(path) as tiff:
            tiff.write(levels[0], subifds=len(levels) - 1, **options)
            for level in levels[1:]:
                tiff.write(level, subfiletype=1, **options)
        return str(path)

    return write


@pytest.fixture
def coordinate_slide(write_slide: WriteSlide) -> str:
    """700 x 600 px at 0.5 um/px, each pixel its coordinates: (x % 256, y % 256, 16 (x // 256) + y // 256)."""
    y, x = np.mgrid[:600, :700]
    return write_slide(
        [np.stack([x % 256, y % 256, 16 * (x // 256) + y // 256], axis=2).astype(np.uint8)], mpp=0.5
    )


@pytest.fixture(scope="session")
def image_data() -> Callable[..., ImageData]:
    """A function that makes `ImageData` of the values in `conf/data/kind/images.yaml` but for those given."""

    def make(**changes: Any) -> ImageData:
        values = OmegaConf.load(conf_dir() / "data" / "kind" / "images.yaml")
        data: ImageData = instantiate(values, **changes)
        return data

    return make


@pytest.fixture(scope="session")
def image_source(
    tmp_path_factory: pytest.TempPathFactory, image_data: Callable[..., ImageData]
) -> Callable[[int], TileSource]:
    """A function that makes a source of n random 32 px tiles, as image files, half class A and half B."""

    def make(n_tiles: int) -> TileSource:
        root, folder = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("tiles")
        pixels = np.random.default_rng(0).integers(0, 256, (n_tiles, 32, 32, 3), dtype=np.uint8)
        for i, tile in enumerate(pixels):
            path = root / "AB"[i % 2] / f"{i:03}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(tile).save(path)
        data = image_data(root=str(root), max_failed=0.0)
        tiling = Tiling(size_px=None, mpp=0.5, stride_px=None, min_tissue=0.0, tissue=None)
        data.tile(tiling, folder=folder, home=folder, n_processes=0, slide_timeout_s=60)
        return open_source(folder)

    return make


@pytest.fixture(scope="session")
def compose() -> Callable[..., Plan]:
    """A function that composes the configuration as the command line does, from overrides to a plan."""

    def composed(*overrides: str) -> Plan:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
        choices = dict(cfg.hydra.runtime.choices)
        with open_dict(cfg):
            del cfg.hydra
        return Plan(cfg=cfg, choices=choices)

    return composed


@pytest.fixture
def views(compose: Callable[..., Plan]) -> Views:
    """Of `conf/views/multicrop.yaml`."""
    made: Views = instantiate(compose().group("views"))
    return made


PROJECTOR = ["method.projector.n_hidden=16", "method.projector.n_outputs=8"]
TINY: dict[str, list[str]] = {
    "dino": ["method.head.n_outputs=32", "method.head.n_hidden=32", "method.head.n_bottleneck=16"],
    "simclr": PROJECTOR,
    "moco": [*PROJECTOR, "method.queue.n_keys=16", "method.norm_tiles=2"],
    "mocov3": PROJECTOR,
    "byol": PROJECTOR,
    "mae": ["method.decoder.width=16", "method.decoder.n_layers=1"],
}


@pytest.fixture(scope="session")
def tiny_method(compose: Callable[..., Plan]) -> Callable[..., dict[str, Any]]:
    """A function that gives a method of a few thousand weights, to be instantiated, and its views' group.

    Named overrides come last; the backbone is one of timm's smallest.
    """

    def configured(name: str, *overrides: str, backbone: str = "test_vit") -> dict[str, Any]:
        chosen = ["backbone=timm", f"backbone.name={backbone}"]
        plan = compose(f"method={name}", *chosen, *TINY[name], *overrides)
        method, _ = plan.method(n_tiles=17)
        return {"method": {**method, "backbone": plan.group("backbone")}, "views": plan.group("views")}

    return configured


@pytest.fixture
def tiny_dino(tiny_method: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """DINO with the smallest ViT and head, to be instantiated: a step takes some ten milliseconds."""
    method: dict[str, Any] = tiny_method("dino")["method"]
    return method
