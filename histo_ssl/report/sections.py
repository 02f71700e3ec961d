"""What the report tells of each run in numbers, grouped for its tables; pictures come from elsewhere."""

import itertools
import math
import re
import statistics
from dataclasses import dataclass

from histo_ssl.folders.artifacts import fingerprint
from histo_ssl.report.runs import ENCODER, Result, Run
from histo_ssl.report.scores import FLOORS, ScoreRow, class_rows, primary_row, score_rows, words

UNPLAIN = re.compile(r"[^A-Za-z0-9_.-]+")
NAME_LETTERS = 80  # of a page: with folder and ending well below what any disk takes


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A confusion matrix with the share of each cell in its true class, 0-1."""

    subject: str
    protocol: str
    is_primary: bool
    rows: list[tuple[str, list[tuple[int, float]]]]  # true class, (count, share) per predicted class


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
class ResultSection:
    """One task of a run."""

    result: Result
    anchor: str  # on the run's page
    primary: ScoreRow | None
    rows: list[tuple[str, list[ScoreRow]]]  # by protocol
    class_rows: list[tuple[str, list[ScoreRow]]]  # by protocol and metric
    confusions: list[Confusion]
    folds: list[FoldRow]  # of a cross-validation


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """One run."""

    run: Run
    page: str  # file below `report/runs`
    results: list[ResultSection]


def run_section(run: Run) -> RunSection:
    """The run with all its tables."""
    sections = [result_section(result, place=place) for place, result in enumerate(run.results, start=1)]
    return RunSection(run=run, page=page_name(run.name), results=sections)


def result_section(result: Result, *, place: int) -> ResultSection:
    """The result's rows, grouped for its tables, and its confusion matrices, the most telling one first."""
    by_protocol = itertools.groupby(score_rows(result), key=lambda row: words(row.protocol))
    by_metric = itertools.groupby(
        class_rows(result), key=lambda row: f"{words(row.metric)}, {words(row.protocol)}"
    )
    return ResultSection(
        result=result,
        anchor=f"result-{place}",
        primary=primary_row(result),
        rows=[(title, list(rows)) for title, rows in by_protocol],
        class_rows=[(title, list(rows)) for title, rows in by_metric],
        confusions=sorted(_confusions(result), key=lambda confusion: not confusion.is_primary),
        folds=_fold_rows(result),
    )


def page_name(folder: str) -> str:
    """Name of the file that tells of a folder; with its fingerprint where letters had to be left out.

    >>> page_name("pretrain/dino-vit_t-slides-0123456789")
    'dino-vit_t-slides-0123456789.html'
    >>> page_name("pretrain/a b")
    'a_b-6d0851619f.html'
    """
    name = folder.rpartition("/")[2]
    plain = UNPLAIN.sub("_", name).lstrip(".")[:NAME_LETTERS]
    is_whole = plain == name and folder.count("/") == 1
    return f"{plain}.html" if is_whole else f"{plain}-{fingerprint(folder)}.html"


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
