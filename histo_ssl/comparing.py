"""Which encoder is better on the same patients: pairs of finished results of slide tasks, for the report."""

import itertools
import logging
from collections.abc import Iterator, Sequence

import pandas as pd

from histo_ssl.report.comparisons import ComparisonRow
from histo_ssl.report.runs import ENCODER, Result, read_predictions
from histo_ssl.report.scores import FLOORS
from histo_ssl.tasks.comparison import IS_HIGH, RISK, SCORE, compare, compare_risks
from histo_ssl.tasks.lifetimes import EVENT, TIME

log = logging.getLogger(__name__)

N_BOOTSTRAP, SEED = 1000, 0  # of the paired resamples
MAX_PAIRED = 8  # encoders of one question that are compared with each other: 28 pairs


def comparisons(results: Sequence[Result]) -> list[ComparisonRow]:
    """Each encoder against its floors, and against every other that was asked the same.

    Of classes and of survival, by models of bags, whose predictions are of whole slides.
    """
    of_bags = [result for result in results if result.folds.get(ENCODER)]
    by_question: dict[str, list[Result]] = {}
    for result in of_bags:
        by_question.setdefault(result.question, []).append(result)
    return [row for asked in by_question.values() for row in _of_question(asked)]


def _of_question(results: Sequence[Result]) -> Iterator[ComparisonRow]:
    tables = [_predictions(result) for result in results]
    for result, table in zip(results, tables, strict=True):
        # `method=random` is a floor itself, and differs from that one by the seed at most.
        for subject in (one for one in FLOORS if one in set(table["subject"]) - {result.method}):
            yield from _pair((result, table), (result, table), name=FLOORS[subject], subject=subject)
    if len(results) > MAX_PAIRED:
        log.warning(
            "report: %d encoders were asked %s; the first %d by the names of their folders are compared with "
            "each other, the others with their floors alone",
            *(len(results), results[0].task_title, MAX_PAIRED),
        )
    paired = list(zip(results, tables, strict=True))[:MAX_PAIRED]
    for one, other in itertools.combinations(paired, 2):
        yield from _pair(one, other, name=other[0].title, subject=ENCODER)


def _predictions(result: Result) -> pd.DataFrame:
    table = pd.DataFrame(read_predictions(result))
    numbers = [name for name in table if str(name).startswith(SCORE) or name in (RISK, TIME)]
    flags = {name: table[name] == "True" for name in (EVENT, IS_HIGH) if name in table}
    return table.assign(**flags).astype(dict.fromkeys(numbers, float))


def _pair(
    one: tuple[Result, pd.DataFrame], other: tuple[Result, pd.DataFrame], *, name: str, subject: str
) -> Iterator[ComparisonRow]:
    """The pooled AUC or C-index and the folds' mean of an encoder beside another's, or a floor's."""
    (result, first), (against, second) = one, other
    compared = compare_risks if RISK in first else compare
    for protocol in first["protocol"].unique():
        ours, theirs = (
            table[(table["subject"] == who) & (table["protocol"] == protocol)]
            for table, who in ((first, ENCODER), (second, subject))
        )
        for found in compared(ours, theirs, n_bootstrap=N_BOOTSTRAP, seed=SEED):
            yield ComparisonRow(
                task=result.task_title,
                protocol=str(protocol),
                metric=found.metric,
                first=result.title,
                second=name,
                values=(found.first, found.second),
                difference=found.paired.difference,
                low=found.paired.low,
                high=found.paired.high,
                p=found.paired.p,
                test=found.test,
                results=(result.folder.name, against.folder.name),
            )
