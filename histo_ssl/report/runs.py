"""What lies finished under `runs_dir`, as the report sees it: runs with their results, and tile sets.

A run is one encoder (a folder of `pretrain/`) with the results of every task that it was scored on. Folders
without a valid done mark are left out; a file that is missing from a finished folder leaves its place empty.
"""

import csv
import io
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from histo_ssl.folders.artifacts import CONFIG, PROVENANCE, counts, fingerprint, is_done, read_json
from histo_ssl.folders.cells import exact

ENCODER, IMAGENET = "encoder", "imagenet"  # subjects; the second is also the method that gives it
ScoreKey = tuple[str, str, str, str]  # subject, protocol, metric, class ("" over all classes)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score with its 95 % interval and the score of guessing; NaN where there is none."""

    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """One encoder on one task: the content of a `results/*/results.json`."""

    folder: Path
    method: str
    backbone: str
    data: str
    task: str
    encoder_folder: str  # relative to runs_dir
    tile_folder: str  # relative to runs_dir
    primary: tuple[str, str]  # protocol and metric that stand for the task in the overview
    classes: list[str]
    counts: dict[str, int]
    notes: list[str]
    scores: dict[ScoreKey, Estimate]
    confusion: dict[str, dict[str, list[list[int]]]]  # subject -> protocol -> rows: truth, columns: predicted
    thumbnail_px: int = 0  # side of the tiles' pictures, where the task is a map of them
    folds: dict[str, dict[str, dict[str, float]]] = field(
        default_factory=dict
    )  # subject, protocol, fold: AUC
    label_fraction: float = 1.0  # share of the training labels that was learned from
    question: str = ""  # what it was scored on and how: equal for encoders that can be compared

    @property
    def title(self) -> str:
        """Who was scored: "dino, vit_s on slides"; without the data where it was not trained here."""
        return f"{self.method}, {self.backbone}{f' on {self.data}' if self.data else ''}"

    @property
    def task_title(self) -> str:
        """What it was scored on: "tcga_brca_subtype, 25 % of the labels"; where it is all, without."""
        share = "" if self.label_fraction == 1 else f", {self.label_fraction:.0%} of the labels"
        return self.task + share.replace("%", " %")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One encoder: how it was trained, and what it scored."""

    name: str  # folder relative to runs_dir
    folder: Path
    results: list[Result]
    metrics: list[dict[str, float]]  # one row per logged step, in order
    configuration: str
    provenance: dict[str, Any]
    views: Path | None

    @property
    def tile_config(self) -> dict[str, Any]:
        """The part of its configuration that made the tiles it was trained on."""
        config = self.provenance.get("config") or {}
        return {name: config[name] for name in ("data", "tiling", "listing") if name in config}

    @property
    def title(self) -> str:
        """Name of the folder without the fingerprint: `dino-vit_t-synthetic`."""
        return self.folder.name.rpartition("-")[0] or self.folder.name


@dataclass(frozen=True, kw_only=True)
class TileSet:
    """One data set, tiled: which slides gave how many tiles, and which failed."""

    name: str  # folder relative to runs_dir
    config: Any  # what it was made of
    counts: dict[str, int]  # such as {"slides": 12, "failed": 0, "tiles": 2710}
    source: dict[str, Any]
    status: list[dict[str, str]]  # failed first
    overlays: list[Path]

    @property
    def n_failed(self) -> int:
        """Slides (or images) that could not be read or cut."""
        return sum(bool(row.get("reason")) for row in self.status)


def read_runs(runs_dir: Path) -> list[Run]:
    """Every finished pretraining and every encoder that a finished result names, by name."""
    by_encoder: dict[str, list[Result]] = {
        f"pretrain/{path.name}": [] for path in finished(runs_dir / "pretrain")
    }
    for result in read_results(runs_dir):
        by_encoder.setdefault(result.encoder_folder, []).append(result)
    return [_run(runs_dir, name=name, results=by_encoder[name]) for name in sorted(by_encoder)]


def read_results(runs_dir: Path) -> list[Result]:
    """Every finished result, by name; beside ImageNet's weights where these were asked the same question."""
    results = [_result(folder) for folder in finished(runs_dir / "results")]
    transferred = [result for result in results if result.method == IMAGENET]
    return [result if result in transferred else _beside(result, transferred) for result in results]


def read_predictions(result: Result) -> list[dict[str, str]]:
    """Rows of the result's `predictions.csv`, whose texts are as they were before they were made harmless."""
    return _table(result.folder / "predictions.csv")


def read_tile_sets(runs_dir: Path) -> list[TileSet]:
    """Every finished tile folder, by name."""
    return [_tile_set(folder) for folder in finished(runs_dir / "tiles")]


def finished(parent: Path) -> list[Path]:
    """Finished folders directly below `parent`, by name; none where `parent` does not exist."""
    return [path for path in sorted(parent.glob("*")) if path.is_dir() and is_done(path)]


def _beside(result: Result, transferred: list[Result]) -> Result:
    """The result with ImageNet's weights as a floor: those of its own backbone, if they are there."""
    peers = [other for other in transferred if other.question == result.question]
    if not peers:
        return result
    floor = next((other for other in peers if other.backbone == result.backbone), peers[0])
    scores = {(IMAGENET, p, m, c): e for (subject, p, m, c), e in floor.scores.items() if subject == ENCODER}
    note = f"the ImageNet-weights floor is {floor.backbone} as timm has it, scored on the same tiles"
    return replace(result, scores={**result.scores, **scores}, notes=[*result.notes, note])


def _run(runs_dir: Path, *, name: str, results: list[Result]) -> Run:
    folder = runs_dir / name
    is_there = is_done(folder)
    made_by = _json(folder / PROVENANCE) if is_there else {}
    return Run(
        name=name,
        folder=folder,
        results=results,
        metrics=_metrics(folder / "metrics.jsonl") if is_there else [],
        configuration=json.dumps(made_by["config"], indent=2) if made_by else "",
        provenance=made_by,
        views=folder / "views.png" if is_there and (folder / "views.png").exists() else None,
    )


def _result(folder: Path) -> Result:
    content, asked = read_json(folder / "results.json"), _json(folder / CONFIG).get("config") or {}
    protocol, metric = content["primary"]
    return Result(
        folder=folder,
        method=content["method"],
        backbone=content["backbone"],
        data=content["data"],
        task=content["task"],
        encoder_folder=content["encoder_folder"],
        tile_folder=content["tile_folder"],
        primary=(protocol, metric),
        classes=content["classes"],
        counts=content["counts"],
        notes=content["notes"],
        scores=dict(_score(row) for row in content["scores"]),
        confusion=content["confusion"],
        thumbnail_px=content.get("thumbnail_px", 0),
        folds=_folds(content.get("folds", {})),
        label_fraction=content.get("label_fraction", 1.0),
        question=fingerprint({**asked, "encoder": "", "tiles": content["tile_folder"]}),
    )


def _folds(stored: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """AUC of each fold, NaN where its test has no two classes."""
    return {
        subject: {
            protocol: {fold: _number(auc) for fold, auc in aucs.items()} for protocol, aucs in of.items()
        }
        for subject, of in stored.items()
    }


def _score(row: dict[str, Any]) -> tuple[ScoreKey, Estimate]:
    numbers = {name: _number(row[name]) for name in ("value", "low", "high", "chance")}
    return (row["subject"], row["protocol"], row["metric"], row["label"]), Estimate(**numbers)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _tile_set(folder: Path) -> TileSet:
    return TileSet(
        name=f"tiles/{folder.name}",
        config=_json(folder / PROVENANCE).get("config"),
        counts=counts(folder),
        source=_json(folder / "source.json"),
        status=sorted(_table(folder / "status.csv"), key=lambda row: not row.get("reason")),
        overlays=sorted((folder / "overlays").glob("*.png")),
    )


def _metrics(path: Path) -> list[dict[str, float]]:
    """Logged rows by step: its losses and, from a line of its own, its scores; of two values the last."""
    rows: dict[float, dict[str, float]] = {}
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # a line cut short when the run was killed
            continue
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        rows[numbers["step"]] = rows.get(numbers["step"], {}) | numbers
    return [rows[step] for step in sorted(rows)]


def _table(path: Path) -> list[dict[str, str]]:
    rows = csv.DictReader(io.StringIO(_text(path), newline=""))
    return [{exact(name): exact(cell or "") for name, cell in row.items()} for row in rows]


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(_text(path) or "{}"))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
