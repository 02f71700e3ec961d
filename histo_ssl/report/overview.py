"""The overview: a row for each run and task, the best of those that can be compared marked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from histo_ssl.report.scores import ABOVE, BELOW, LESS_IS_BETTER, UNCLEAR, ScoreRow
from histo_ssl.report.sections import ResultSection, RunSection

RANKS = {ABOVE: 3, UNCLEAR: 2, BELOW: 1}  # of standings, when the table is sorted by them
Question = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OverviewRow:
    """A run on a task; a run that was not scored has a row without one."""

    section: RunSection
    result: ResultSection | None
    n_alike: int  # encoders that were scored on the same tiles in the same way, this one with them
    is_best: bool  # of those, where there are two or more

    @property
    def address(self) -> str:
        """Where the run's page tells of it."""
        anchor = f"#{self.result.anchor}" if self.result else ""
        return f"runs/{self.section.page}{anchor}"

    @property
    def names(self) -> tuple[str, str, str]:
        """Method, backbone and data; the folder's name where no result tells them."""
        if self.result is None:
            return self.section.run.title, "", ""
        result = self.result.result
        return result.method, result.backbone, result.data

    @property
    def rank(self) -> int:
        """How well it stands against its floors: 3 clearly above, 2, 1 below, 0 where that is not known."""
        primary = self.result.primary if self.result else None
        return RANKS.get(primary.standing, 0) if primary else 0


def overview(sections: Sequence[RunSection]) -> list[OverviewRow]:
    """A row for each result of each run, in their order."""
    scores: dict[Question, list[float]] = {}
    for section in sections:
        for result in section.results:
            if not math.isnan(_merit(result.primary)):
                scores.setdefault(_question(result), []).append(_merit(result.primary))
    rows = []
    for section in sections:
        for result in section.results:
            rows.append(_row(section, result, alike=scores.get(_question(result), [])))
        if not section.results:
            rows.append(_row(section, None, alike=[]))
    return rows


def _row(section: RunSection, result: ResultSection | None, *, alike: list[float]) -> OverviewRow:
    """`alike` holds the scores of all that were asked the same, this one's among them."""
    merit = _merit(result.primary) if result else math.nan
    is_best = len(alike) > 1 and merit == max(alike)
    return OverviewRow(section=section, result=result, n_alike=len(alike), is_best=is_best)


def _question(section: ResultSection) -> Question:
    """What was asked: equal for results whose scores can be held against each other."""
    result = section.result
    return (result.question, result.task_title, *result.primary)


def _merit(row: ScoreRow | None) -> float:
    """The encoder's score, turned so that more is better; NaN where it has none."""
    if row is None or row.encoder is None:
        return math.nan
    return -row.encoder.value if row.metric in LESS_IS_BETTER else row.encoder.value
