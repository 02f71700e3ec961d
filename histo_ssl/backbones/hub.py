"""Models of the Hugging Face hub (https://huggingface.co) in timm's layout: `config.json` beside the weights.

Files that lie in the local cache are taken from there without a question to the hub, so that a name means the
same weights as long as the cache stands. Folders of the same layout need no hub at all.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from timm.models import PretrainedCfg
from torch import nn

from histo_ssl.backbones.families import Rgb
from histo_ssl.backbones.timm import LOADING, check_name, timm_variant
from histo_ssl.backbones.weights import Weights, attention_heads, read_file

HUB, FOLDER = "hf-hub:", "local-dir:"  # as timm spells them
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in this order
REACH_S = 5.0  # how long the hub may take to answer at all, before anything is asked of it


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A model in timm's layout: which architecture, changed how, fed how, and where its weights are.

    Args:
        name: where it was found, for messages.
        architecture: as timm calls it.
        options: arguments of the architecture.
        facts: timm's `pretrained_cfg`: mean, SD, size of the input, classes.
    """

    name: str
    architecture: str
    options: Mapping[str, Any]
    facts: Mapping[str, Any]

    def weights(self, file: Path) -> Weights:
        """The weights in a file of this repository, read as timm reads them.

        Raises:
            ValueError: they don't fit the architecture, or the file is no checkpoint.
        """
        facts = {**self.facts, "state_dict": dict(read_file(file)), "custom_load": False, "source": None}
        options = {**self.options, "num_classes": facts.get("num_classes", 0)}
        try:
            # with its own number of classes timm takes all tensors or none
            model: Any = timm.create_model(
                self.architecture, pretrained=True, pretrained_cfg=facts, **options
            )
        except (RuntimeError, TypeError) as error:
            said = str(error).strip().replace("\n\t", " ")
            raise ValueError(
                f"{self.name}: timm can't load {file.name} as {self.architecture}: {said}"
            ) from error
        n_heads = attention_heads(model)
        width = int(model.num_features)
        return Weights(
            tensors=model.state_dict(),
            origin=self.name,
            n_heads={width: n_heads} if n_heads else {},
            normalisation=(_rgb(self.facts["mean"]), _rgb(self.facts["std"])),
            tile_px=int(self.facts["input_size"][-1]),
        )


def is_repository(name: str) -> bool:
    """Whether a name is that of a hub repository or of a folder of its layout."""
    return name.startswith((HUB, FOLDER))


def hub_backbone(*, name: str, drop_path: float) -> nn.Module:
    """The architecture that a repository's config.json names, with random weights: (B, 3, s, s) to (B, D).

    Args:
        name: `hf-hub:<owner>/<repository>`, with `@<revision>` if wished, or `local-dir:<folder>`.
        drop_path: probability that the last residual branch is left out in training, 0-1.

    Raises:
        FileNotFoundError: the repository is neither in the cache nor to be reached.
        ValueError: it is not in timm's layout.
    """
    found = open_repository(name)
    return timm_variant(name=found.architecture, drop_path=drop_path, options=found.options)


def self_contained(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """A backbone's configuration that needs no hub to be built again, for an encoder's card."""
    name, drop_path = str(architecture.get("name")), architecture.get("drop_path")
    if not is_repository(name):
        return dict(architecture)
    found = open_repository(name)
    target = f"{timm_variant.__module__}.{timm_variant.__name__}"
    return {
        "_target_": target,
        "name": found.architecture,
        "drop_path": drop_path,
        "options": dict(found.options),
    }


def repository_weights(name: str) -> Weights:
    """The weights of a repository.

    Raises:
        FileNotFoundError: they are neither in the cache nor to be reached.
        ValueError: they don't fit the architecture that the repository names.
    """
    return open_repository(name).weights(_first_file(name, WEIGHTS))


def supervised_weights(backbone: nn.Module, tags: Mapping[str, str]) -> Weights:
    """The weights that timm itself has for the architecture of a backbone, from the hub or its cache.

    Args:
        backbone: a model of timm, or what is left of one.
        tags: architecture -> which of timm's weights; timm's default for architectures that are not listed.

    Raises:
        FileNotFoundError: the weights are neither in the cache nor to be reached.
        ValueError: timm has no weights of that tag.
    """
    architecture = str(getattr(backbone, "pretrained_cfg", {}).get("architecture"))
    check_name(architecture)
    tag = tags.get(architecture)
    name = f"{architecture}.{tag}" if tag else architecture
    offered = timm.list_pretrained(f"{architecture}.*")
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=False) if not tag or name in offered else None
    if cfg is None or not cfg.hf_hub_id:
        raise ValueError(
            f"method.tags.{architecture}={tag}: timm {timm.__version__} has no such weights; it has "
            f"{', '.join(offered) or 'none for this architecture: choose another backbone'}"
        )
    place = HUB + cfg.hf_hub_id
    file = _first_file(place, (cfg.hf_hub_filename,) if cfg.hf_hub_filename else WEIGHTS)
    return _repository(cfg, name=place, architecture=architecture, options={}).weights(file)


def open_repository(name: str) -> Repository:
    """What a repository's config.json says.

    Raises:
        FileNotFoundError: it is neither in the cache nor to be reached.
        ValueError: it is none, or none of timm's layout.
    """
    if not is_repository(name):
        raise ValueError(f"backbone.name={name}: expected {HUB}owner/name or {FOLDER}folder")
    config = json.loads(_first_file(name, ("config.json",)).read_text())
    if "architecture" not in config:
        kind = config.get("model_type", "unknown")
        raise ValueError(
            f"{name}: its config.json names no architecture of timm (model_type {kind}), so it is made for "
            f"another library; use a repository that timm loads"
        )
    check_name(config["architecture"])
    # older repositories keep all in one mapping
    stated = config.get("pretrained_cfg", config)
    known = {k: v for k, v in stated.items() if k in PretrainedCfg.__dataclass_fields__}
    known["num_classes"] = config.get("num_classes", known.get("num_classes", 0))
    options = {
        k: v for k, v in (config.get("model_args") or {}).items() if k not in LOADING | {"num_classes"}
    }
    return _repository(
        PretrainedCfg(**known), name=name, architecture=config["architecture"], options=options
    )


def _repository(
    cfg: PretrainedCfg, *, name: str, architecture: str, options: Mapping[str, Any]
) -> Repository:
    facts = {key: value for key, value in asdict(cfg).items() if value is not None}
    return Repository(name=name, architecture=architecture, options=options, facts=facts)


def _first_file(name: str, files: tuple[str, ...]) -> Path:
    """The first of some files that a repository has."""
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER))
        found = next((folder / file for file in files if (folder / file).is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"{name}: no {' or '.join(files)} in that folder; save a timm model there"
            )
        return found
    repository, _, revision = name.removeprefix(HUB).partition("@")
    for file in files:
        cached = try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    _check_reachable(name, files)
    return _download(name, repository=repository, revision=revision or None, files=files)


def _download(name: str, *, repository: str, revision: str | None, files: tuple[str, ...]) -> Path:
    for file in files:
        try:
            return Path(hf_hub_download(repository, file, revision=revision))
        except LocalEntryNotFoundError as error:  # the hub went away meanwhile
            raise FileNotFoundError(_absent(name, files, reason=str(error))) from error
        except EntryNotFoundError:
            continue
        except OSError as error:  # no such repository, or one behind a licence
            raise FileNotFoundError(_absent(name, files, reason=str(error))) from error
    raise FileNotFoundError(f"{name}: the repository has no {' or '.join(files)}; use one that timm loads")


def _check_reachable(name: str, files: tuple[str, ...]) -> None:
    """Ask the hub for one sign of life: its own client would try for most of a minute, file by file."""
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(_absent(name, files, reason="HF_HUB_OFFLINE is set"))
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=REACH_S)
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError as error:
        raise FileNotFoundError(
            _absent(name, files, reason=f"{constants.ENDPOINT} can't be reached: {error}")
        ) from error


def _absent(name: str, files: tuple[str, ...], *, reason: str) -> str:
    repository, _, revision = name.removeprefix(HUB).partition("@")
    wanted = f"{repository} --revision {revision}" if revision else repository
    first_line = reason.strip().partition("\n")[0]
    return (
        f"{name}: no {files[0]} in the cache {constants.HF_HUB_CACHE} ({first_line}); with a network "
        f"run 'hf download {wanted}' (after 'hf auth login' if a licence asks for it) and copy the folder "
        f"models--{repository.replace('/', '--')} into that cache, which HF_HUB_CACHE names, or give a "
        f"downloaded file by method=checkpoint method.path=FILE"
    )


def _rgb(values: Any) -> Rgb:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
