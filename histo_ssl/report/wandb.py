"""Weights & Biases: one run per encoder, which goes on where it stopped, on this machine or on the server.

It is a courtesy to the user and never a reason to stop or to wait: whatever goes wrong there becomes one
warning. What is sent beside the curves is made in `dashboard`; no other file imports W&B.
"""

import json
import netrc
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from histo_ssl.folders.artifacts import write_json
from histo_ssl.folders.redaction import redacted
from histo_ssl.report.dashboard import content_of, encoder_of, summary_of
from histo_ssl.report.photographs import allowance
from histo_ssl.report.runs import read_runs, read_tile_sets
from histo_ssl.report.sections import RunSection, run_section
from histo_ssl.report.tile_sets import TileSection, tile_section

Mode = Literal["online", "offline", "disabled", "shared"]
STEP = "trainer/global_step"  # Lightning's name of the axis
START_S = 20.0  # to wait for the server before a run goes on offline
FINISH_S = 60.0  # to wait for it once the program has ended; the rest is on the disk for `wandb sync`
FLUSH_S = 1.0  # between two writings of W&B's file: what a kill of its own process may cost
# What W&B raises of its server, of its settings, and of its own process, which may have been killed.
TROUBLE = (wandb.errors.Error, OSError, RuntimeError, ValueError)


class Curves(WandbLogger):
    """Lightning's logger, of a run that may have been killed and started again.

    A resumed training makes the steps since its checkpoint once more, with the same numbers. Those that were
    sent before are not sent again; names and steps of what was are kept in a file, since neither an offline
    run nor a server tells. After trouble nothing more is sent.
    """

    def __init__(self, run: Any, *, sent: Path, **words: Any) -> None:
        super().__init__(experiment=run, **words)
        self.sent = sent
        self._before: Mapping[str, int] = _read(sent)
        self._steps = dict(self._before)
        self.is_off = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send the numbers of one step, but for those that were sent before the start."""
        assert step is not None
        new = {name: value for name, value in metrics.items() if self._before.get(name, -1) < step}
        if new:
            self.send(lambda: self._log(new, step))

    @rank_zero_only
    def send(self, how: Callable[[], Any]) -> None:
        """Do it, unless there was trouble; trouble is a warning."""
        if self.is_off:
            return
        try:
            how()
        except TROUBLE as error:
            self.is_off = True
            _warn(f"W&B takes no more of this run ({error}); the report has it all")

    def _log(self, new: Mapping[str, float], step: int) -> None:
        if not self.experiment.disabled:
            self._steps |= dict.fromkeys(new, step)
            write_json(self.sent, self._steps)  # first, so that a kill costs a point rather than doubling it
        self.experiment.log({**new, STEP: step})


def wandb_logger(
    *,
    project: str,
    group: str | None,
    folder: Path,
    run_id: str,
    name: str,
    tags: list[str],
    config: Mapping[str, Any],
) -> Curves | None:
    """A logger whose W&B run goes on where a run of the same `run_id` stopped, or None where W&B can't start.

    Args:
        project: name of the W&B project.
        group: runs that the site shows together, such as a sweep's; None: those of the same tags.
        folder: W&B keeps its files in a folder `wandb` in it; they grow until the process ends.
        run_id: stable name of the run, such as a fingerprint.
        name: what the run is called on the site.
        tags: words to filter runs by.
        config: plain values; nothing secret.

    Returns:
        None on ranks other than 0, too.
    """
    if rank_zero_only.rank:  # type: ignore[attr-defined] # set by Lightning
        return None
    folder.mkdir(parents=True, exist_ok=True)
    words = {"project": project, "id": run_id, "name": name, "tags": tags, "dir": folder}
    words |= {"group": group or "-".join(tags), "config": redacted(dict(config))}
    try:
        run = _live_run(run_id) or _start(words)
    except TROUBLE as error:
        reason = " ".join(str(error).split())
        _warn(f"W&B is off for this run: {reason}; the report shows the same, logger=none silences this")
        return None
    sent = folder / "wandb" / f"sent-{run_id}.json"
    return Curves(run, sent=sent, project=project, id=run_id, name=name, save_dir=folder)


def wanted_mode() -> Mode | None:
    """None where WANDB_MODE is set, which W&B obeys by itself; else `online` if logged in, or `offline`."""
    if os.environ.get("WANDB_MODE"):
        return None
    return "online" if is_logged_in() else "offline"


def is_logged_in() -> bool:
    """Whether WANDB_API_KEY or the user's netrc file has a key for the W&B server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(wandb.setup().settings.base_url).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def log_results(logger: Logger | None, *, runs_dir: Path, encoder_folder: Path) -> None:
    """Send what the report shows of one encoder: tables, confusion matrices, maps, views and overlays.

    Args:
        logger: any other than W&B's is left alone.
        runs_dir: where the finished folders lie.
        encoder_folder: the run's folder in `pretrain/`.
    """
    if not isinstance(logger, Curves):
        return
    runs = [run_section(run) for run in read_runs(runs_dir) if run.folder.name == encoder_folder.name]
    names = {part.result.tile_folder for run in runs for part in run.results}
    tiles = [tile_section(tiles, allowance(1)) for tiles in read_tile_sets(runs_dir) if tiles.name in names]
    for run in runs:
        logger.send(partial(_send_results, logger.experiment, run, tiles))


def log_encoder(logger: Logger | None, *, folder: Path) -> None:
    """Send a trained encoder as an artifact with its card as metadata; `wandb sync` takes it along later.

    Args:
        logger: any other than W&B's is left alone.
        folder: of the encoder, which stays where it is: it is not copied.
    """
    if isinstance(logger, Curves):
        logger.send(lambda: logger.experiment.log_artifact(encoder_of(folder)))


def _send_results(to: Any, run: RunSection, tiles: list[TileSection]) -> None:
    to.log(content_of(run, tiles=tiles))
    to.summary.update(summary_of(run))


def _start(words: dict[str, Any]) -> Any:
    """A new W&B run; offline where the server can't be reached, as on many a cluster's nodes."""
    settings = wandb.Settings(
        console="off",  # the terminal stays the progress bar's
        quiet=True,
        init_timeout=START_S,
        finish_timeout=FINISH_S,
        x_transaction_log_flush_interval=FLUSH_S,
    )
    try:
        run = wandb.init(**words, mode=wanted_mode(), resume="allow", settings=settings)
    except (wandb.errors.CommError, TimeoutError) as error:
        reason = str(error).splitlines()[0]
        _warn(f"W&B is not to be reached ({reason}): logging offline, `wandb sync` sends it later")
        wandb.teardown()  # else its own process would call the run's name taken
        run = wandb.init(**words, mode="offline", resume="allow", settings=settings)
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    return run


def _live_run(run_id: str) -> Any:
    """This process's W&B run if it is the one asked for; another one is other work's, and is closed."""
    if wandb.run is not None and wandb.run.id != run_id:
        wandb.finish()
    return wandb.run


def _read(sent: Path) -> dict[str, int]:
    """The last step that was sent of each name; none where the file is not there or not whole."""
    try:
        return {str(name): int(step) for name, step in json.loads(sent.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
