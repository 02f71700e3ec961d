"""What is written of scores: results.json, predictions, tables, figures, and where models looked."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.config.plan import Plan
from histo_ssl.data.base import TileSource
from histo_ssl.data.loading import Loading
from histo_ssl.data.thumbnails import thumbnails
from histo_ssl.folders.artifacts import Counts, write_bytes, write_image, write_json, write_text
from histo_ssl.folders.cells import csv_text
from histo_ssl.looking import draw_sheet, write_looks
from histo_ssl.tasks.base import Figure, TaskResult

THUMBNAILS = "thumbnails.png"
FIGURES, FIGURE_LIST = "figures", "figures.json"
RESULTS_SCHEMA = 1  # of results.json; to be raised when a reader of the old one would misread the new


def write_results(
    plan: Plan, results: Mapping[str, TaskResult], folder: Path, *, source: TileSource | None
) -> Counts:
    """Write what a task found out about the encoder and its floors; how many scores there are comes back.

    Args:
        plan: of the run.
        results: by subject.
        folder: receives the files.
        source: of the tiles; None where there are none.
    """
    of_encoder = results["encoder"]
    write_json(folder / "results.json", _summary(plan, results))
    _write_tables(results, folder)
    drawn = [draw_sheet(sheet, source) for sheet in of_encoder.sheets] if source else []
    for name, arrays in of_encoder.arrays.items():
        _write_arrays(folder / f"{name}.npz", arrays)
    _write_figures([*of_encoder.figures, *drawn], folder)
    if source:
        _write_thumbnails(plan, of_encoder, source, folder)
        write_looks(of_encoder.looks, source, folder)
    tables = [result.predictions.assign(subject=subject) for subject, result in results.items()]
    write_text(folder / "predictions.csv", csv_text(pd.concat(tables)))
    return {"scores": sum(len(result.scores) for result in results.values())}


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    path.parent.mkdir(exist_ok=True)
    content, named = io.BytesIO(), cast(dict[str, Any], dict(arrays))
    np.savez_compressed(content, **named)
    write_bytes(path, content.getvalue())


def _write_figures(figures: Sequence[Figure], folder: Path) -> None:
    """`figures/<name>.png`, and what is to be said of each in `figures/figures.json`."""
    if not figures:
        return
    (folder / FIGURES).mkdir(exist_ok=True)
    listed = []
    for figure in figures:
        name = f"{figure.name}.png"
        image = figure.image() if callable(figure.image) else figure.image
        write_image(folder / FIGURES / name, image)
        if figure.is_listed:
            words = {"title": figure.title, "alt": figure.alt, "group": figure.group}
            listed.append({"file": name, **words})
    write_json(folder / FIGURES / FIGURE_LIST, listed)


def _write_tables(results: Mapping[str, TaskResult], folder: Path) -> None:
    """What a task keeps beside scores and predictions, all subjects in one file each."""
    for name in results["encoder"].tables:
        tables = [result.tables[name].assign(subject=who) for who, result in results.items()]
        write_text(folder / f"{name}.csv", csv_text(pd.concat(tables)))


def _write_thumbnails(plan: Plan, result: TaskResult, source: TileSource, folder: Path) -> None:
    """The pictures of the tiles that a result wants to be shown, in the order of its predictions."""
    if result.thumbnail_px:
        rows = result.predictions["tile"].to_numpy(dtype=np.int64)
        loading = Loading(**plan.group("loader"))
        write_image(
            folder / THUMBNAILS, thumbnails(source, rows, side_px=result.thumbnail_px, loading=loading)
        )


def _summary(plan: Plan, results: Mapping[str, TaskResult]) -> dict[str, Any]:
    """Content of results.json; what all subjects share is taken from the encoder's."""
    shared = results["encoder"]
    # such as a floor without weights, beside an encoder that was finetuned
    unscored = [note for one in results.values() if shared.scores and not one.scores for note in one.notes]
    no_data = plan.is_given or (plan.is_frozen and plan.task_tile_folder != plan.tile_folder)
    relative = {
        "encoder_folder": plan.pretrain_folder.relative_to(plan.runs_dir).as_posix(),
        "tile_folder": plan.task_tile_folder.relative_to(plan.runs_dir).as_posix(),
    }
    return {
        "schema": RESULTS_SCHEMA,
        **{group: plan.choices[group] for group in ("method", "backbone", "task")},
        "data": "" if no_data else plan.choices["data"],
        **relative,
        "primary": list(shared.primary),
        "classes": shared.classes,
        "counts": shared.counts,
        "notes": list(dict.fromkeys([*shared.notes, *unscored])),
        "thumbnail_px": shared.thumbnail_px,
        "scores": [_defined(asdict(score)) for result in results.values() for score in result.scores],
        "confusion": {subject: result.confusion for subject, result in results.items()},
        "label_fraction": shared.label_fraction,
        "folds": {
            subject: {protocol: _defined(aucs) for protocol, aucs in result.folds.items()}
            for subject, result in results.items()
            if result.folds
        },
    }


def _defined(score: dict[str, Any]) -> dict[str, Any]:
    """The score with null for NaN, which JSON has no word for."""
    is_nan = {name: isinstance(value, float) and math.isnan(value) for name, value in score.items()}
    return {name: None if is_nan[name] else value for name, value in score.items()}
