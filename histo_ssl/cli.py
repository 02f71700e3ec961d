"""The command line: find `conf/`, compose, run; explain mistakes in one sentence.

Hydra lives here and in `stages`. Nothing heavy is imported before a job starts, so that `--help` is quick.
"""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import hydra
import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.errors import (
    HydraException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from histo_ssl import signals, sweeps
from histo_ssl.config.choices import choices_of, conf_dir
from histo_ssl.config.mistakes import FULL_ERROR, explain
from histo_ssl.config.targets import check_configuration
from histo_ssl.folders.redaction import RedactingFilter, redact

if TYPE_CHECKING:
    from histo_ssl.config.plan import Plan

GIVEN_FEATURES = "features"  # choice of the method
TASKS = re.compile(r"task=\[(.+)\]")  # several of one job
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
        found = with_tasks(with_variant(overrides))
        cfg = super().load_configuration(config_name, found, run_mode, from_shell, validate_sweep_overrides)
        plain: Any = OmegaConf.to_container(cfg, resolve=False)
        check_configuration(plain, plain.pop("hydra"), overrides)
        return cfg

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """Choices of a group, for the help: Hydra would copy all that it knows for each of 90 groups."""
        if config_name is None and not overrides:
            return self.repository.get_group_options(group_name, results_filter)
        return super().get_group_options(group_name, results_filter, config_name, overrides)


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


def with_tasks(overrides: list[str]) -> list[str]:
    """The arguments, with several tasks of one job as one that comes first and others that come after it.

    Hydra would lay the choices of a list over each other.

    >>> with_tasks(["method=dino", "task=[knn,umap]"])
    ['method=dino', 'task=knn', 'also_tasks=[umap]']
    """
    found = []
    for override in overrides:
        several = TASKS.fullmatch(override)
        first, *others = dict.fromkeys(re.split(r"\s*,\s*", several[1].strip())) if several else [""]
        found += [f"task={first}", f"also_tasks=[{','.join(others)}]"] if several else [override]
    return found


def main() -> None:
    """Run what the command line says; exit 1 with one sentence when that can't be done.

    A signal ends the program with one line, and by its own exit status: 130, 138 or 143.
    """
    warnings.filterwarnings("ignore", module="lightning")  # on its own use of torch: not the user's to act on
    wants_traceback = os.environ.get(FULL_ERROR) == "1"
    if not wants_traceback:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # else a lost rank costs pages of C++ frames
    words = _one_sentence(wants_traceback=wants_traceback, also=(JobFailedError,))
    with _hydra_raises("1"), words, sweeps.told(), signals.answered_by(signals.stop):
        hydra._internal.hydra.ConfigLoaderImpl = GuardedLoader  # type: ignore[attr-defined] # it has no hook for that
        job = _job_with_traceback if wants_traceback else _job_in_words
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
        is_told = isinstance(error, JobFailedError)  # by the job itself; a launcher's frames are no hint
        reason = redact(str(error) if is_told else explain(error))
        if not is_told:
            sweeps.say(reason=reason)
        sys.exit(f"error: {reason}")
    except signals.Stopped as stopped:
        sweeps.say(reason=str(stopped))
        print(stopped, file=sys.stderr)  # noqa: T201 (the program's last line)
        sys.exit(stopped.status)


def _job_in_words(cfg: DictConfig) -> float | None:
    """The job, whose mistakes are worded here: Hydra would add a line of its own.

    What the job starts sees the switch as the user left it. (A function of its own, not a partial one,
    so that launchers can send it to other processes.)
    """
    with _one_sentence(wants_traceback=False), _hydra_raises("0"):
        return _job(cfg)


def _job_with_traceback(cfg: DictConfig) -> float | None:
    with _one_sentence(wants_traceback=True), _hydra_raises("1"):
        return _job(cfg)


def _job(cfg: DictConfig) -> float | None:
    """One job: in this process, or in a fresh one if it is part of a sweep, whose score is returned."""
    job = HydraConfig.get()
    has_none = job.runtime.choices.get("method") == GIVEN_FEATURES  # features have no backbone
    for group in ("method", "backbone"):  # not mandatory in the YAML, so that --help composes without them
        if group not in cfg and not (group == "backbone" and has_none):
            raise ValueError(f"{group}=... is missing; choose one of {', '.join(choices_of(group))}")
    if job.mode == RunMode.MULTIRUN:
        return _job_of_sweep(job)
    # Threads that spin while they wait slow a step 3 to 10 times where a core is shared; read as torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for handler in logging.getLogger().handlers:
        handler.addFilter(RedactingFilter())
    _warm_up(cfg)
    from histo_ssl import stages  # noqa: PLC0415 (torch and Lightning take seconds to import)

    plans = [_plan(cfg, job), *(_plan_of(task, job) for task in cfg.also_tasks)]
    stages.run(*plans)
    sweeps.say(results=[str(plan.result_folder.resolve()) for plan in plans])
    return None


def _warm_up(cfg: DictConfig) -> None:
    """Let the server of processes for slides import what it needs while this process imports torch."""
    is_rank_0 = os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("SLURM_PROCID", "0") == "0"
    if "tile" in cfg.stages and cfg.n_processes and is_rank_0:
        from histo_ssl.executors.processes import start_server  # noqa: PLC0415 (the help needs none)

        start_server()


def _plan_of(task: str, job: Any) -> "Plan":
    """The same run with another task."""
    others = [word for word in job.overrides.task if not word.startswith(("task=", "also_tasks="))]
    cfg = hydra.compose(job.job.config_name, [*others, f"task={task}"], return_hydra_config=True)
    with open_dict(cfg):
        own = cfg.pop("hydra")
    return _plan(cfg, own)


def _plan(cfg: DictConfig, job: Any) -> "Plan":
    from histo_ssl.config.plan import Plan  # noqa: PLC0415

    choices = {str(group): str(choice) for group, choice in job.runtime.choices.items()}
    if choices.get("method") == GIVEN_FEATURES:
        # stands in names of folders
        choices["backbone"] = re.sub(r"[^\w.]+", "_", Path(str(cfg.method.path)).name)
    return Plan(cfg=cfg, choices=choices)


def _job_of_sweep(job: Any) -> float | None:
    """The score that stands for the first task of a job that ran in a fresh process; None without one.

    Raises:
        JobFailedError: it failed.
    """
    command = [sys.executable, "-m", "histo_ssl", *_sources(job), *job.overrides.task]
    with sweeps.recorded() as variables:
        status = _run(command, variables)
        variables["status"] = str(status)
    if signals.ended_by(status) in signals.HANDLED:
        sys.exit(signals.exit_status(signals.ended_by(status)))  # those after it shall not start
    if status:
        raise JobFailedError(f"a job of the sweep failed: {' '.join(job.overrides.task)}")
    return sweeps.score_of(Path(job.runtime.output_dir))


def _sources(job: Any) -> list[str]:
    """Arguments that say where a sweep's configuration comes from, for its jobs."""
    arguments = [word for word in job.overrides.hydra if word.startswith("hydra.searchpath")]
    if job.job.config_name != CONFIG_NAME:
        arguments += ["--config-name", job.job.config_name]
    for source in job.runtime.config_sources:
        if source.provider == "command-line":
            arguments += ["--config-dir", source.path]
    return arguments


def _run(command: list[str], variables: Mapping[str, str]) -> int:
    """Exit status of a process that is told of signals and then waited for: it has a checkpoint to write.

    Ctrl-C reaches it from the terminal already; passed on, it would count as a second one.
    """
    with subprocess.Popen(command, env={**os.environ, **variables}) as process:

        def pass_on(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 (a handler's arguments)
            if signum != signal.SIGINT:
                process.send_signal(signum)

        with signals.answered_by(pass_on):
            return process.wait()
