"""What the page shows of each run and tile set, ready for layout: pictures made small, tables cut short."""

import itertools
import json
import math
import statistics
from dataclasses import dataclass
from typing import Any

from histo_ssl.report.maps import TileMap, figures, read_map
from histo_ssl.report.plots import Picture, curves, photograph
from histo_ssl.report.runs import ENCODER, Result, Run, TileSet
from histo_ssl.report.scatter import scatters
from histo_ssl.report.scores import FLOORS, ScoreRow, class_rows, primary_row, score_rows, words
from histo_ssl.report.survival import survival_curves

# Together under 400 kB of page per run, base64 included, so that a sweep of ten can still be sent by mail.
VIEWS_SIDE_PX, VIEWS_BYTES = 1400, 110_000
OVERLAY_SIDE_PX, OVERLAYS_BYTES = 560, 120_000
MAX_OVERLAYS = 12
LOOK_SIDE_PX, LOOKS_BYTES, MAX_LOOKS = 1200, 400_000, 4
MAX_STATUS_ROWS = 200
STATUS_COLUMNS = {  # column of status.csv -> heading
    **{
        "slide_id": "slide",
        "path": "file",
        "reason": "failed because",
        "patient_id": "patient",
        "site": "site",
        "label": "label",
    },
    **{
        "split": "split",
        "width_px": "width, px",
        "height_px": "height, px",
        "mpp": "µm/px",
        "n_levels": "levels",
    },
    **{"tissue_mm2": "tissue, mm²", "n_tiles": "tiles", "seconds": "time, s"},
}
DECIMALS = {"mpp": 3, "tissue_mm2": 2, "seconds": 1}  # of the columns that are measured


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A confusion matrix with the share of each cell in its true class, 0-1."""

    subject: str
    protocol: str
    is_primary: bool
    rows: list[tuple[str, list[tuple[int, float]]]]  # true class, (count, share) per predicted class


@dataclass(frozen=True, kw_only=True)
class ResultSection:
    """One task of a run."""

    result: Result
    primary: ScoreRow | None
    rows: list[tuple[str, list[ScoreRow]]]  # by protocol
    class_rows: list[tuple[str, list[ScoreRow]]]  # by protocol and metric
    confusions: list[Confusion]
    scatters: list[Picture]  # predicted against true, where labels are numbers
    tile_map: TileMap | None
    maps: list[Picture]
    map_page: str  # beside the report
    folds: list["FoldRow"]  # of a cross-validation
    looks: list[Picture]  # attention over slides
    survival: list[Picture]  # curves of high and low risk


@dataclass(frozen=True, kw_only=True)
class FoldRow:
    """The AUCs of one model on one set of embeddings, over folds."""

    protocol: str
    subject: str
    mean: float
    sd: float  # ddof 1, NaN of one fold
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """One run."""

    run: Run
    anchor: str
    results: list[ResultSection]
    curves: list[Picture]
    views: Picture | None
    facts: list[tuple[str, str]]  # provenance, as name and value


@dataclass(frozen=True, kw_only=True)
class TileSection:
    """One tile set."""

    tile_set: TileSet
    anchor: str
    facts: list[tuple[str, str]]
    headings: list[str]
    rows: list[list[str]]
    overlays: list[Picture]


def run_section(run: Run, *, place: int) -> RunSection:
    """The run with its curves and views as pictures; `place` makes its anchor."""
    return RunSection(
        run=run,
        anchor=f"run-{place}",
        results=[result_section(result) for result in run.results],
        curves=curves(run.metrics),
        views=_views(run),
        facts=_provenance_facts(run.provenance),
    )


def result_section(result: Result) -> ResultSection:
    """The result's rows, grouped for its tables, and its confusion matrices, the most telling one first."""
    by_protocol = itertools.groupby(score_rows(result), key=lambda row: words(row.protocol))
    by_metric = itertools.groupby(
        class_rows(result), key=lambda row: f"{words(row.metric)}, {words(row.protocol)}"
    )
    tile_map = read_map(result)
    return ResultSection(
        result=result,
        primary=primary_row(result),
        rows=[(title, list(rows)) for title, rows in by_protocol],
        class_rows=[(title, list(rows)) for title, rows in by_metric],
        confusions=sorted(_confusions(result), key=lambda confusion: not confusion.is_primary),
        scatters=scatters(result),
        tile_map=tile_map,
        maps=figures(tile_map) if tile_map else [],
        map_page=f"{result.folder.name}.html" if tile_map else "",
        folds=_fold_rows(result),
        looks=_looks(result),
        survival=survival_curves(result),
    )


def tile_section(tile_set: TileSet, *, place: int) -> TileSection:
    """The tile set with its first overlays as pictures and its status table, failed slides first."""
    columns = [name for name in STATUS_COLUMNS if any(row.get(name) for row in tile_set.status)]
    if "slide_id" in columns and "path" in columns:
        columns.remove("path")  # a page that is sent around need not tell where on whose disk a slide lies
    rows = tile_set.status[:MAX_STATUS_ROWS]
    return TileSection(
        tile_set=tile_set,
        anchor=f"tiles-{place}",
        facts=[(name.replace("_", " "), _plain(value)) for name, value in tile_set.source.items()],
        headings=[STATUS_COLUMNS[name] for name in columns],
        rows=[[tidy(row.get(name) or "", column=name) for name in columns] for row in rows],
        overlays=_overlays(tile_set),
    )


def tidy(text: str, *, column: str) -> str:
    """A cell of status.csv with as many decimals as a reader needs.

    >>> tidy("0.4990234", column="mpp"), tidy("CMU-1", column="slide_id"), tidy("", column="mpp")
    ('0.499', 'CMU-1', '')
    """
    if not text or column not in DECIMALS:
        return text
    return f"{float(text):.{DECIMALS[column]}f}"


def _views(run: Run) -> Picture | None:
    if run.views is None:
        return None
    return photograph(
        run.views,
        title="Views of a few tiles, as the method saw them in pretraining",
        alt=f"Contact sheet: views of a few tiles as {run.title} saw them in pretraining.",
        max_side_px=VIEWS_SIDE_PX,
        budget_bytes=VIEWS_BYTES,
    )


def _overlays(tile_set: TileSet) -> list[Picture]:
    n_tiles = {row.get("slide_id", ""): row.get("n_tiles", "") for row in tile_set.status}
    shown = tile_set.overlays[:MAX_OVERLAYS]
    return [
        photograph(
            path,
            title=f"{path.stem}: {n_tiles.get(path.stem) or 'unknown number of'} tiles",
            alt=f"Slide {path.stem} with the outline of its tissue and the grid of its tiles.",
            max_side_px=OVERLAY_SIDE_PX,
            budget_bytes=OVERLAYS_BYTES // len(shown),
        )
        for path in shown
    ]


def _fold_rows(result: Result) -> list[FoldRow]:
    rows = []
    for subject, by_protocol in result.folds.items():
        for protocol, by_fold in by_protocol.items():
            aucs = [auc for auc in by_fold.values() if not math.isnan(auc)]
            if aucs:
                rows.append(_fold_row(aucs, protocol=words(protocol), subject=FLOORS.get(subject, subject)))
    return sorted(rows, key=lambda row: row.protocol)


def _fold_row(aucs: list[float], *, protocol: str, subject: str) -> FoldRow:
    return FoldRow(
        protocol=protocol,
        subject=subject,
        mean=statistics.fmean(aucs),
        sd=statistics.stdev(aucs) if len(aucs) > 1 else math.nan,
        low=min(aucs),
        high=max(aucs),
        n=len(aucs),
    )


def _looks(result: Result) -> list[Picture]:
    """Maps of attention and the tiles that drew most and least of it, of the first few slides."""
    folder = result.folder / "attention"
    slides = sorted(path for path in folder.glob("*.png") if not path.stem.endswith("_tiles"))[:MAX_LOOKS]
    return [
        photograph(
            path,
            title=f"{slide.stem}: {what}",
            alt=f"Slide {slide.stem}, {what}.",
            max_side_px=side_px,
            budget_bytes=LOOKS_BYTES // (2 * len(slides)),
        )
        for slide in slides
        for path, what, side_px in (
            (slide, "attention of its tiles", LOOK_SIDE_PX),
            (
                slide.with_name(f"{slide.stem}_tiles.png"),
                "tiles with the highest and the lowest",
                LOOK_SIDE_PX,
            ),
        )
        if path.exists()
    ]


def _confusions(result: Result) -> list[Confusion]:
    return [
        Confusion(
            subject=FLOORS.get(subject, subject),
            protocol=words(protocol),
            is_primary=subject == ENCODER and protocol == result.primary[0],
            rows=[(name, _shares(row)) for name, row in zip(result.classes, matrix, strict=True)],
        )
        for subject, matrices in result.confusion.items()
        for protocol, matrix in matrices.items()
    ]


def _shares(counts: list[int]) -> list[tuple[int, float]]:
    return [(count, count / max(1, sum(counts))) for count in counts]


def _provenance_facts(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    names = ("command", "started", "seconds", "git_commit", "hardware", "versions")
    return [(name.replace("_", " "), _plain(provenance[name])) for name in names if provenance.get(name)]


def _plain(value: Any) -> str:
    """A value of a JSON file as a line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value)
