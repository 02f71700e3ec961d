"""Weights & Biases: curves as they come, then the report's tables and pictures. No other file imports it.

It is a courtesy to the user and never a reason to stop: whatever goes wrong there becomes one warning.
"""

import io
import netrc
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from histo_ssl.folders.redaction import redacted
from histo_ssl.report.plots import Picture
from histo_ssl.report.runs import read_runs, read_tile_sets
from histo_ssl.report.scores import FLOORS, ScoreRow
from histo_ssl.report.sections import (
    Confusion,
    ResultSection,
    RunSection,
    TileSection,
    run_section,
    tile_section,
)

Mode = Literal["online", "offline", "disabled", "shared"]
TABLE_COLUMNS: list[str | int] = [
    "protocol",
    "metric",
    "class",
    "encoder",
    "low",
    "high",
    *FLOORS,
    "chance",
    "verdict",
]


def wandb_logger(
    *,
    project: str,
    folder: Path,
    run_id: str,
    name: str,
    group: str,
    tags: list[str],
    config: Mapping[str, Any],
) -> WandbLogger | None:
    """A logger whose W&B run goes on where a run of the same `run_id` stopped, or None where W&B can't start.

    Args:
        project: name of the W&B project.
        folder: W&B keeps its files in a folder `wandb` in it; they grow until the process ends.
        run_id: stable name of the run, such as a fingerprint.
        name: what the run is called on the site.
        group: runs that the site shows together.
        tags: words to filter runs by.
        config: plain values; nothing secret.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = {
        "project": project,
        "id": run_id,
        "name": name,
        "group": group,
        "tags": tags,
        "config": redacted(dict(config)),
    }
    try:
        run = _live_run(run_id) or _start(words | {"dir": folder})
    except wandb.errors.Error as error:
        _warn(f"W&B is off for this run: {error}; the report shows the same, logger=none silences this")
        return None
    return WandbLogger(project=project, id=run_id, name=name, save_dir=folder, experiment=run)


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


@rank_zero_only
def log_results(logger: Logger | None, *, runs_dir: Path, encoder_folder: Path) -> None:
    """Send what the report shows of one encoder: tables, confusion matrices, views and overlays.

    Args:
        logger: any other than W&B's is left alone.
        runs_dir: where the finished folders lie.
        encoder_folder: the run's folder in `pretrain/`.
    """
    if not isinstance(logger, WandbLogger):
        return
    runs = [
        run_section(run, place=0) for run in read_runs(runs_dir) if run.folder.name == encoder_folder.name
    ]
    names = {part.result.tile_folder for run in runs for part in run.results}
    tiles = [tile_section(tiles, place=0) for tiles in read_tile_sets(runs_dir) if tiles.name in names]
    try:
        for run in runs:
            logger.experiment.log(_content(run, tiles=tiles))
            logger.experiment.summary.update(_summary(run))
    except wandb.errors.Error as error:
        _warn(f"W&B did not take the results ({error}); the report has them all")


@rank_zero_only
def _start(words: dict[str, Any]) -> Any:
    """A new W&B run on rank 0; offline where the server can't be reached, as on many a cluster's nodes."""
    settings = wandb.Settings(console="off", quiet=True)  # the terminal stays the progress bar's
    try:
        run = wandb.init(**words, mode=wanted_mode(), resume="allow", settings=settings)
    except wandb.errors.CommError as error:
        _warn(f"W&B is not to be reached ({error}): logging offline, `wandb sync` sends it later")
        run = wandb.init(**words, mode="offline", resume="allow", settings=settings)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


def _content(run: RunSection, *, tiles: list[TileSection]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for part in run.results:
        task = part.result.task
        content[f"{task}/scores"] = _table(part)
        content |= {f"{task}/confusion/{c.subject}/{c.protocol}": _chart(c) for c in part.confusions}
        content |= {f"{task}/predicted/{picture.title}": _image(picture) for picture in part.scatters}
    if run.views:
        content["views"] = _image(run.views)
    for section in tiles:
        name = section.tile_set.name
        content |= {f"{name}/overlays/{picture.title}": _image(picture) for picture in section.overlays}
    return content


def _summary(run: RunSection) -> dict[str, float]:
    """The primary scores, by which the site sorts and filters runs."""
    rows = [(part.result.task, part.primary) for part in run.results if part.primary]
    estimates = {task: {"encoder": row.encoder, **row.floors} for task, row in rows}
    return {f"{task}/{name}": e.value for task, named in estimates.items() for name, e in named.items() if e}


def _table(part: ResultSection) -> wandb.Table:
    rows = [row for _, group in part.rows + part.class_rows for row in group]
    return wandb.Table(columns=TABLE_COLUMNS, data=[_cells(row) for row in rows])


def _cells(row: ScoreRow) -> list[str | float | None]:
    encoder = [row.encoder.value, row.encoder.low, row.encoder.high] if row.encoder else [None] * 3
    floors = [row.floors[subject].value if subject in row.floors else None for subject in FLOORS]
    return [row.protocol, row.metric, row.label, *encoder, *floors, row.chance, row.verdict]


def _chart(confusion: Confusion) -> Any:
    """W&B's own chart; it counts pairs by itself, so each cell is spread out into its tiles."""
    cells = [(i, j, count) for i, (_, row) in enumerate(confusion.rows) for j, (count, _) in enumerate(row)]
    return wandb.plot.confusion_matrix(
        y_true=[i for i, _, count in cells for _ in range(count)],
        preds=[j for _, j, count in cells for _ in range(count)],
        class_names=[name for name, _ in confusion.rows],
        title=f"{confusion.subject}, {confusion.protocol}",
    )


def _image(picture: Picture) -> wandb.Image:
    pixels = Image.open(io.BytesIO(picture.content)).convert("RGB")
    return wandb.Image(pixels, caption=picture.title, file_type="jpg")


def _live_run(run_id: str) -> Any:
    """This process's W&B run if it is the one asked for; another one is other work's, and is closed."""
    if wandb.run is not None and wandb.run.id != run_id:
        wandb.finish()
    return wandb.run


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
