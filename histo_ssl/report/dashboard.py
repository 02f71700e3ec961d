"""What Weights & Biases shows beside the curves, in its own kinds: tables, charts, pictures, artifacts."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb
from PIL import Image

from histo_ssl.report.photographs import allowance
from histo_ssl.report.plots import Picture
from histo_ssl.report.run_page import ResultPictures, run_pictures
from histo_ssl.report.scores import FLOORS, ScoreRow
from histo_ssl.report.sections import Confusion, ResultSection, RunSection
from histo_ssl.report.tile_sets import TileSection

ENCODER, CARD = "encoder.safetensors", "card.json"  # of a pretraining's folder
BOUNDS = ("low", "high")
TABLE_COLUMNS: list[str | int] = [
    *("protocol", "metric", "class", "encoder", *BOUNDS),
    *(column for floor in FLOORS for column in (floor, *(f"{floor} {bound}" for bound in BOUNDS))),
    *("chance", "verdict"),
]


def content_of(run: RunSection, *, tiles: list[TileSection]) -> dict[str, Any]:
    """What is logged of an encoder, by name: tables and charts of each task, and all pictures."""
    content: dict[str, Any] = {}
    shown = run_pictures(run, allowance(1), sheet_bytes=0)
    for part, pictures in zip(run.results, shown.results, strict=True):
        task = part.result.task
        content[f"{task}/scores"] = _table(part)
        content |= {f"{task}/confusion/{c.subject}/{c.protocol}": _chart(c) for c in part.confusions}
        content |= {
            f"{task}/{group}/{picture.title}": _image(picture) for group, picture in _pictures(pictures)
        }
    if shown.views:
        content["views"] = _image(shown.views)
    for section in tiles:
        name = section.tile_set.name
        content |= {f"{name}/overlays/{picture.title}": _image(picture) for picture in section.overlays}
    return content


def summary_of(run: RunSection) -> dict[str, float]:
    """The primary scores, by which the site sorts and filters runs."""
    rows = [(part.result.task, part.primary) for part in run.results if part.primary]
    estimates = {task: {"encoder": row.encoder, **row.floors} for task, row in rows}
    return {f"{task}/{name}": e.value for task, named in estimates.items() for name, e in named.items() if e}


def encoder_of(folder: Path) -> wandb.Artifact:
    """The encoder's file with its card as metadata; of a folder `dino-vit_t-synthetic-ab12` by that name."""
    card = json.loads((folder / CARD).read_text())
    artifact = wandb.Artifact(folder.name, type="encoder", metadata=card)
    artifact.add_file(str(folder / ENCODER), policy="immutable", skip_cache=True)  # else it would be copied
    return artifact


def _pictures(shown: ResultPictures) -> Iterator[tuple[str, Picture]]:
    """Pictures of a task, each with the word that it is filed under."""
    named = {"predicted": shown.scatters, "attention": shown.looks, "survival": shown.survival}
    for group, pictures in [*named.items(), *shown.figures]:
        yield from ((group, picture) for picture in pictures)


def _table(part: ResultSection) -> wandb.Table:
    rows = [row for _, group in part.rows + part.class_rows for row in group]
    return wandb.Table(columns=TABLE_COLUMNS, data=[_cells(row) for row in rows])


def _cells(row: ScoreRow) -> list[str | float | None]:
    estimates = [row.encoder, *(row.floors.get(subject) for subject in FLOORS)]
    numbers = [value for e in estimates for value in ((e.value, e.low, e.high) if e else (None,) * 3)]
    return [row.protocol, row.metric, row.label, *numbers, row.chance, row.verdict]


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
