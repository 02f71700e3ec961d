"""What a configuration may name: `_target_` and the like import and call whatever stands there.

A YAML that someone hands over is data, not code. It may name what `ALLOWED` lists; a person who wants more
says `allowed_targets=[my_package]` on the command line: a list that a file may extend protects from no file.

A name counts by where the object lives, not by how it is spelt: `histo_ssl.data.slides.np.load` is numpy's.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object

from histo_ssl.folders.redaction import has_credentials, refuse_credentials

ALLOWED = (
    "histo_ssl.data",
    "histo_ssl.executors",
    "histo_ssl.slides",
    "histo_ssl.stain",
    "histo_ssl.views",
    "histo_ssl.backbones",
    "histo_ssl.methods",
    "histo_ssl.optim",
    "histo_ssl.tasks",
    "histo_ssl.folds",
    "histo_ssl.mil",
    "histo_ssl.parallel.sharding",
    "histo_ssl.report.quiet",
    "histo_ssl.report.wandb",
    "lightning.Trainer",
    "lightning.pytorch.trainer",
    "lightning.pytorch.strategies",
    "lightning.pytorch.plugins",
    "torch.optim",
)
# Hydra builds these itself, before any code of ours runs.
ALLOWED_OF_HYDRA = (
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "histo_ssl.sweeps.Sweep",
    "hydra_plugins.hydra_joblib_launcher",
    "hydra_plugins.hydra_submitit_launcher",
    "hydra_plugins.hydra_optuna_sweeper",
    "optuna.samplers",
    "logging.StreamHandler",
    "logging.NullHandler",
    "logging.Formatter",
)
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
KEY = "allowed_targets"
NAMING_KEYS = ("_target_", "class", "()")  # the last two in Python's configuration of logging
EMPTY = ("job.env_set", "sweeper.params")  # of Hydra: each would be a command line of its own


def check_configuration(config: Mapping[str, Any], hydra: Mapping[str, Any], overrides: list[str]) -> None:
    """Stop at what only a person may say, and at what Hydra would call; imports nothing.

    Args:
        config: the run's whole configuration, plain values, interpolations as they are.
        hydra: Hydra's own part of it.
        overrides: the arguments of the command line.

    Raises:
        ValueError: a file extends the list, Hydra is made to call something that is not on it, or an address
            holds credentials.
    """
    for override in overrides:
        if has_credentials(override):
            refuse_credentials(override, where="the command line")
    stated = _stated(overrides)
    if (config.get(KEY) or []) != stated:
        raise ValueError(
            f"{KEY} is set by a file; only the command line may extend it: say {KEY}=[my_package] there"
        )
    for path, value in _values(config, ""):
        if isinstance(value, str):
            refuse_credentials(value, where=path)
    _check_hydra(hydra, (*ALLOWED_OF_HYDRA, *stated))


def check_targets(config: Any, path: str, *, more: Iterable[str]) -> None:
    """Stop at the first `_target_` that is not on the list; nothing of another package gets imported.

    Args:
        config: a group of the configuration, plain values.
        path: where it stands, such as "data".
        more: packages that the command line adds to the list.

    Raises:
        ValueError: names the target and how to allow it.
    """
    for place, value in _values(config, path):
        if place.rpartition(".")[2] == "_target_" and not is_allowed(value, (*ALLOWED, *more)):
            raise ValueError(_refusal(place, value))


def is_allowed(target: Any, allowed: Iterable[str]) -> bool:
    """Whether `target` is a class or function that lives in one of the allowed packages, and is public."""
    allowed = tuple(allowed)
    if not isinstance(target, str) or not _is_within(target, allowed) or "._" in target:
        return False
    home = getattr(get_object(target), "__module__", None)
    return isinstance(home, str) and _is_within(home, allowed)


def _stated(overrides: list[str]) -> list[str]:
    """The packages that the command line allows."""
    parsed = OverridesParser.create().parse_overrides(overrides=overrides)
    stated: Any = [override.value() for override in parsed if override.get_key_element() == KEY]
    if stated and not isinstance(stated[-1], list):
        raise ValueError(f"{KEY}={stated[-1]}: a list is expected, {KEY}=[my_package]")
    return [str(name) for name in stated[-1]] if stated else []


def _check_hydra(hydra: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    for place, value in _values(hydra, "hydra"):
        is_named = place.rpartition(".")[2] in NAMING_KEYS
        if is_named and not (isinstance(value, str) and _is_within(value, allowed)):
            raise ValueError(_refusal(place, value))
        if isinstance(value, str) and value.startswith(("ext://", "cfg://")) and value not in STREAMS:
            raise ValueError(f"{place}={value}: only {' and '.join(STREAMS)} may stand there")
        if value and place.startswith(tuple(f"hydra.{key}" for key in EMPTY)):
            raise ValueError(f"{place}={value}: not in a configuration; say it in the shell or as arguments")


def _values(config: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every value below, with its path; of lists too."""
    if isinstance(config, Mapping):
        rows: Iterable[tuple[Any, Any]] = config.items()
    elif isinstance(config, list | tuple):
        rows = enumerate(config)
    else:
        yield path, config
        return
    for key, value in rows:
        yield from _values(value, f"{path}.{key}" if path else str(key))


def _is_within(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _refusal(place: str, value: Any) -> str:
    package = str(value).partition(".")[0]
    return (
        f"{place}={value}: a configuration may not name this; if you trust it, say {KEY}=[{package}] "
        "on the command line"
    )
