"""The command line: find `conf/`, compose, run; explain mistakes in one sentence.

Hydra lives here and in `stages`. Nothing heavy is imported before a job starts, so that `--help` is quick.
"""

import contextlib
import difflib
import logging
import os
import re
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from histo_ssl import signals
from histo_ssl.config.targets import check_configuration
from histo_ssl.folders import disk
from histo_ssl.folders.redaction import RedactingFilter, redact

PACKAGE = Path(__file__).resolve().parent
GIVEN_FEATURES = "features"  # choice of the method
FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own switch for tracebacks
HIDDEN_KEYS = ("_target_", "_partial_", "_convert_", "hydra")  # of the machinery, not for users to set
CONFIG_NAME = "config"  # conf/config.yaml
USER_ERRORS = (ValueError, OSError, FloatingPointError, HydraException, OmegaConfBaseException)


class JobFailedError(Exception):
    """A job of a sweep failed, and has said why; the jobs after it still run."""


class GuardedLoader(ConfigLoaderImpl):
    """Hydra's loader, through which every configuration passes before Hydra builds its own parts of it."""

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """The composed configuration, if it asks for nothing that only a person may ask for."""
        found = with_variant(overrides)
        cfg = super().load_configuration(config_name, found, run_mode, from_shell, validate_sweep_overrides)
        plain: Any = OmegaConf.to_container(cfg, resolve=False)
        check_configuration(plain, plain.pop("hydra"), overrides)
        return cfg


def conf_dir() -> Path:
    """The folder of YAML files: inside the package when installed from a wheel, beside it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def with_variant(overrides: list[str]) -> list[str]:
    """The arguments, with a method's own form of an experiment where the experiment has one.

    `experiment=table1 method=dino` means `experiment=table1/dino method=dino`, since Hydra can't choose a
    recipe, which chooses groups itself, by what another group is.
    """
    chosen = dict(override.split("=", 1) for override in overrides if "=" in override)
    name, method = chosen.get("experiment", ""), chosen.get("method", "")
    if not (conf_dir() / "experiment" / name / f"{method}.yaml").is_file():
        return overrides
    return [f"experiment={name}/{method}" if one == f"experiment={name}" else one for one in overrides]


def main() -> None:
    """Run what the command line says; exit 1 with one sentence when that can't be done.

    A signal ends the program with one line, and by its own exit status: 130, 138 or 143.
    """
    warnings.filterwarnings("ignore", module="lightning")  # on its own use of torch: not the user's to act on
    wants_traceback = os.environ.get(FULL_ERROR) == "1"
    if not wants_traceback:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # else a lost rank costs pages of C++ frames
    as_asked = _hydra_raises("1" if wants_traceback else "0")  # also by the processes that a job starts
    words = _one_sentence(wants_traceback=wants_traceback, also=(JobFailedError,))
    with _hydra_raises("1"), words, signals.answered_by(signals.stop):
        hydra._internal.hydra.ConfigLoaderImpl = GuardedLoader  # type: ignore[attr-defined] # it has no hook for that
        # this file words the message inside of the job, else Hydra adds a line of its own
        job = _one_sentence(wants_traceback=wants_traceback)(as_asked(_job))
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=CONFIG_NAME)(job)()


@contextlib.contextmanager
def _hydra_raises(switch: str) -> Iterator[None]:
    """Whether Hydra raises, "1", or words errors itself, "0"."""
    before = os.environ.get(FULL_ERROR, "0")
    os.environ[FULL_ERROR] = switch
    try:
        yield
    finally:
        os.environ[FULL_ERROR] = before


@contextlib.contextmanager
def _one_sentence(*, wants_traceback: bool, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Ends the program with a sentence where the user's input was at fault."""
    caught: tuple[type[Exception], ...] = (*USER_ERRORS, *also)
    try:
        yield
    except caught as error:
        if wants_traceback:
            raise
        sys.exit(f"error: {redact(explain(error))}")
    except signals.Stopped as stopped:
        print(stopped, file=sys.stderr)  # noqa: T201 (the program's last line)
        sys.exit(stopped.status)


def _job(cfg: DictConfig) -> None:
    """One job: in this process, or in a fresh one if it is part of a sweep."""
    job = HydraConfig.get()
    has_none = job.runtime.choices.get("method") == GIVEN_FEATURES  # features have no backbone
    for group in ("method", "backbone"):  # not mandatory in the YAML, so that --help composes without them
        if group not in cfg and not (group == "backbone" and has_none):
            raise ValueError(f"{group}=... is missing; choose one of {', '.join(_choices(group))}")
    if job.mode == RunMode.MULTIRUN:
        command = [sys.executable, "-m", "histo_ssl", *_sources(job), *job.overrides.task]
        status = _run(command)
        if status - signals.SHELL_BASE in signals.HANDLED:
            sys.exit(status)  # the job has said so; those after it shall not start
        if status:
            raise JobFailedError(f"a job of the sweep failed: {' '.join(job.overrides.task)}")
        return
    # Threads that spin while they wait slow a step 3 to 10 times where a core is shared; read as torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for handler in logging.getLogger().handlers:
        handler.addFilter(RedactingFilter())
    from histo_ssl import stages  # noqa: PLC0415 (torch and Lightning take seconds to import)
    from histo_ssl.config.plan import Plan  # noqa: PLC0415

    choices = {str(group): str(choice) for group, choice in job.runtime.choices.items()}
    if has_none:
        choices["backbone"] = re.sub(
            r"[^\w.]+", "_", Path(str(cfg.method.path)).name
        )  # stands in names of folders
    stages.run(Plan(cfg=cfg, choices=choices))


def _sources(job: Any) -> list[str]:
    """Arguments that say where a sweep's configuration comes from, for its jobs."""
    arguments = [word for word in job.overrides.hydra if word.startswith("hydra.searchpath")]
    if job.job.config_name != CONFIG_NAME:
        arguments += ["--config-name", job.job.config_name]
    for source in job.runtime.config_sources:
        if source.provider == "command-line":
            arguments += ["--config-dir", source.path]
    return arguments


def _run(command: list[str]) -> int:
    """Exit status of a process that is told of signals and then waited for: it has a checkpoint to write.

    Ctrl-C reaches it from the terminal already; passed on, it would count as a second one.
    """
    with subprocess.Popen(command) as process:

        def pass_on(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 (a handler's arguments)
            if signum != signal.SIGINT:
                process.send_signal(signum)

        with signals.answered_by(pass_on):
            return process.wait()


def explain(error: BaseException) -> str:
    """One sentence on what was wrong with a command, with the valid choices where there are any."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice}: no such choice; {_valid(choice, error.options, of=group)}"
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return explain(error.__cause__)
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return _explain_key(error, cause)
    unread = _unread_override(error)
    if unread:
        return _explain_override(unread)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_group(error)
    return (isinstance(error, OSError) and disk.sentence(error)) or str(error) + _hint(error)


def _unread_override(error: BaseException) -> str:
    """The argument that Hydra's grammar does not take as it stands, if that is what the error is about."""
    if isinstance(error, OverrideParseException):
        return str(error.override)
    return _quoted(error) if str(error).startswith("Ambiguous value for argument") else ""


def _explain_override(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override}: key=value is expected"
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return (
        f"{override}: {value} can't be read as a value; if it is one text, put it into two pairs of quotes, "
        f"""'{key}="{quoted}"'; if it is a list, into brackets, '{key}=[a,b]'; several jobs need -m"""
    )


def _explain_key(error: BaseException, cause: OmegaConfBaseException) -> str:
    key = str(cause.full_key or _quoted(error))
    parent, _, last = key.rpartition(".")
    node = cause.parent_node
    if not isinstance(node, DictConfig):
        return f"{key}: {_first_line(cause)}"
    keys = {str(name) for name in node if name not in HIDDEN_KEYS}
    if not parent:
        return f"{key}: no such key; {_valid(last, keys | set(_groups()), of='the configuration')}"
    return f"{key}: no such key; {_valid(last, keys, of=parent)}"


def _explain_group(error: BaseException) -> str:
    """Mistakes in the name of a group or no choice of it, and whatever else Hydra says on its first line."""
    name = _quoted(error)
    if isinstance(error, InterpolationKeyError) and _choices(name.replace(".", "/")):
        group = name.replace(".", "/")  # nothing was chosen of it, so that it is not there
        return f"{group}=[]: one or more are expected; choose among {', '.join(_choices(group))}"
    if "No match in the defaults list" in str(error):
        return f"{name}: no such group; {_valid(name, _groups(), of='the configuration')}"
    return _first_line(error)


def _groups() -> list[str]:
    return sorted(path.name for path in conf_dir().iterdir() if path.is_dir())


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _valid(wrong: str, options: Iterable[str], *, of: str) -> str:
    options = sorted(options)
    close = difflib.get_close_matches(wrong, options, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}{of} has {', '.join(options)}"


def _quoted(error: BaseException) -> str:
    found = re.search(r"'([^']+)'", str(error))
    return found[1] if found else ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _hint(error: BaseException) -> str:
    """Where to look when the sentence is another library's rather than ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and Path(frames[-1].filename).is_relative_to(PACKAGE)
    return "" if ours or not frames else f" ({type(error).__name__}; {FULL_ERROR}=1 shows where)"
