"""Scores beside their floors, and what they amount to in words.

The floors say what a score is worth: colour statistics alone, the same backbone with random weights, and one
that learned from photographs where `method=imagenet` was scored on the same tiles. An encoder that lies under
one of them has shown nothing yet, however high its score.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from histo_ssl.report.runs import ENCODER, IMAGENET, Estimate, Result, Run

FLOORS = {  # subject -> its name for readers
    "colour": "colour floor",
    "random": "random-weights floor",
    IMAGENET: "ImageNet-weights floor",
}
ABOVE, UNCLEAR, BELOW, UNKNOWN = "above", "unclear", "below", "unknown"  # standings
LESS_IS_BETTER = frozenset({"mse", "mae"})
ABBREVIATIONS = {"auc": "AUC", "f1": "F1"}
NAMES = {  # of metrics that are more than the words of their name
    "mse": "MSE (less is better)",
    "mae": "MAE (less is better)",
    "kendall_tau_b": "Kendall's tau-b",
    "spearman": "Spearman's rho",
    "c_index": "C-index",
    "fold_mean_c_index": "fold mean C-index",
    "icc_2_1": "ICC(2,1)",
    "icc_3_1": "ICC(3,1)",
}
SMALL, LARGE = 0.01, 1000  # where three decimals are too few digits, or too many


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One metric under one protocol: the encoder beside its floors."""

    protocol: str
    metric: str
    label: str  # class, "" over all classes
    is_primary: bool
    encoder: Estimate | None
    floors: dict[str, Estimate]  # by subject, those that were measured
    chance: float

    @property
    def standing(self) -> str:
        """`above` all floors, `unclear` if intervals overlap, `below` (or level with) one, or `unknown`."""
        if self.encoder is None or not self.floors:
            return UNKNOWN
        if self.winners:
            return BELOW
        return UNCLEAR if any(map(self._overlaps, self.floors)) else ABOVE

    @property
    def winners(self) -> list[str]:
        """The floors that score as well as the encoder or better."""
        return [subject for subject in self.floors if self._lead(subject) <= 0]

    @property
    def verdict(self) -> str:
        """The standing in words, such as `below colour floor` or `above both floors, not clearly`.

        Of an error `better than` and `worse than`, since the lower one is the better.
        """
        if self.standing == UNKNOWN:
            return "no floors to compare with" if self.encoder else "not scored"
        over, under = ("better than", "worse than") if self.metric in LESS_IS_BETTER else ("above", "below")
        if not self.winners:
            return f"{over} {self._all_floors}{', not clearly' if self.standing == UNCLEAR else ''}"
        below = [subject for subject in self.winners if self._lead(subject) < 0]
        if 1 < len(self.floors) == len(below):
            return f"{under} {self._all_floors}"
        places = {subject: under if subject in below else "level with" for subject in self.winners}
        return ", ".join(f"{place} {FLOORS[subject]}" for subject, place in places.items())

    @property
    def is_share(self) -> bool:
        """Whether 1 is the best score, so that it can be drawn on an axis up to 1."""
        return self.metric not in LESS_IS_BETTER

    @property
    def _all_floors(self) -> str:
        names = [FLOORS[subject] for subject in self.floors]
        return {1: names[0], 2: "both floors"}.get(len(names), "all floors")

    def _lead(self, subject: str) -> float:
        """By how much the encoder is better than a floor."""
        if self.encoder is None:
            return math.nan
        lead = self.encoder.value - self.floors[subject].value
        return -lead if self.metric in LESS_IS_BETTER else lead

    def _overlaps(self, subject: str) -> bool:
        floor = self.floors[subject]
        return self.encoder is not None and self.encoder.low <= floor.high and floor.low <= self.encoder.high


def measured_floors(results: Iterable[Result]) -> dict[str, str]:
    """The floors that any of the results stands beside, with their names; colour and random at the least."""
    subjects = {key[0] for result in results for key in result.scores}
    return {subject: name for subject, name in FLOORS.items() if subject != IMAGENET or subject in subjects}


def score_rows(result: Result) -> list[ScoreRow]:
    """Scores over all classes: a row per protocol and metric, in the order they were written."""
    return [row for row in _rows(result) if not row.label]


def class_rows(result: Result) -> list[ScoreRow]:
    """Scores of single classes: a row per protocol, metric and class, in the order they were written."""
    return [row for row in _rows(result) if row.label]


def primary_row(result: Result) -> ScoreRow | None:
    """The row that stands for the task in the overview, if it was scored."""
    return next((row for row in score_rows(result) if row.is_primary), None)


def number(value: float) -> str:
    """Three decimals, fewer or more where an error is very large or small, or a dash for NaN.

    >>> number(0.98765), number(float("nan")), number(0.000123), number(12345.6)
    ('0.988', '–', '0.00012', '12,346')
    """
    if math.isnan(value):
        return "–"
    if 0 < abs(value) < SMALL:
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= LARGE else f"{value:.3f}"


def interval(estimate: Estimate) -> str:
    """The 95 % interval in brackets, empty where there is none.

    >>> interval(Estimate(value=0.5, low=0.41, high=0.6, chance=0.5))
    '[0.410, 0.600]'
    """
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    return f"[{number(estimate.low)}, {number(estimate.high)}]"


def words(name: str) -> str:
    """A name of the configuration as a reader says it.

    >>> words("macro_f1"), words("weighted_k20"), words("icc_2_1")
    ('macro F1', 'weighted k20', 'ICC(2,1)')
    """
    return NAMES.get(name) or " ".join(ABBREVIATIONS.get(word, word) for word in name.split("_"))


def headline(runs: list[Run]) -> str:
    """How many results lie above every floor, and how many of them clearly, in one sentence."""
    rows = [primary_row(result) for run in runs for result in run.results]
    standings = [row.standing for row in rows if row]
    n_above, n_clear = sum(standing in (ABOVE, UNCLEAR) for standing in standings), standings.count(ABOVE)
    if not standings:
        return "Nothing has been scored yet."
    return f"{n_above} of {len(standings)} primary scores lie above every floor, {n_clear} of them clearly."


def axis_low(rows: Iterable[ScoreRow]) -> float:
    """Left end, a multiple of a tenth, of an axis up to 1 with room for all that can be drawn on it.

    >>> axis_low([])
    0.0
    """
    values = [
        x
        for row in rows
        if row.is_share
        for e in _estimates(row)
        for x in (e.value, e.low, row.chance)
        if not math.isnan(x)
    ]
    return math.floor(min(min(values, default=0.0), 0.9) * 10) / 10


def _estimates(row: ScoreRow) -> list[Estimate]:
    return [*row.floors.values(), *([row.encoder] if row.encoder else [])]


def _rows(result: Result) -> list[ScoreRow]:
    keys = dict.fromkeys(key[1:] for key in result.scores)
    return [_row(result, protocol=p, metric=m, label=label) for p, m, label in keys]


def _row(result: Result, *, protocol: str, metric: str, label: str) -> ScoreRow:
    scores = {subject: e for (subject, *key), e in result.scores.items() if key == [protocol, metric, label]}
    measured = {subject: e for subject, e in scores.items() if not math.isnan(e.value)}
    return ScoreRow(
        protocol=protocol,
        metric=metric,
        label=label,
        is_primary=(protocol, metric) == result.primary,
        encoder=measured.get(ENCODER),
        floors={subject: measured[subject] for subject in FLOORS if subject in measured},
        chance=next(iter(scores.values())).chance,
    )
