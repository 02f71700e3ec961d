"""Which cases are shown with what a model looked at, and the attention that their tiles drew.

Letters: N tiles of a slide, M tested cases, C classes.
"""

from collections.abc import Sequence

import numpy as np

from histo_ssl.mil.bags import Bags
from histo_ssl.tasks.base import Look
from histo_ssl.tasks.crossvalidation import FoldRun
from histo_ssl.tasks.scores import Predictions


def looks(
    runs: Sequence[FoldRun], found: Sequence[Predictions], bags: Bags, *, model: str, n: int
) -> list[Look]:
    """The slides of so many cases: in turn the surest right and the surest wrong ones of each class.

    Args:
        runs: a model's folds.
        found: what each said of its test cases.
        bags: all cases.
        model: its name.
        n: how many cases; fewer where fewer are tested, none where the model has no attention.
    """
    return [
        look
        for fold, place in _telling(found, n=n)
        for look in _of_case(runs[fold], found[fold], bags, place=place, model=model)
    ]


def _telling(found: Sequence[Predictions], *, n: int) -> list[tuple[int, int]]:
    """Fold and place among its tested of each chosen case; a case that several folds test comes once."""
    cases = [
        (is_right, int(truth), -float(score), fold, place)
        for fold, one in enumerate(found)
        for place, (truth, said, score) in enumerate(
            zip(one.truth_M, one.predicted_M, one.score_MC.max(axis=1), strict=True)
        )
        for is_right in [bool(truth == said)]
    ]
    kinds = sorted({case[:2] for case in cases}, reverse=True)  # right ones first
    queues = [sorted(case[2:] for case in cases if case[:2] == kind) for kind in kinds]
    turns = [queue[turn] for turn in range(len(cases)) for queue in queues if turn < len(queue)]
    return [(fold, place) for _, fold, place in turns[:n]]


def _of_case(run: FoldRun, found: Predictions, bags: Bags, *, place: int, model: str) -> list[Look]:
    """A look at each slide of a case, by the attention for the class that it was given."""
    said, truth = int(found.predicted_M[place]), int(found.truth_M[place])
    verdict = "right" if said == truth else f"wrong: it is {found.classes[truth]}"
    title = f"{model}: {found.classes[said]} {found.score_MC[place, said]:.2f} ({verdict})"
    return looks_of(run, bags, row=int(run.rows.test[place]), title=title, model=model, column=said)


def looks_of(
    run: FoldRun, bags: Bags, *, row: int, title: str, model: str, column: int | None = None
) -> list[Look]:
    """A look at each slide of a bag; none where the model has no attention.

    Args:
        run: the fold whose model looks.
        bags: all cases.
        row: number of the bag.
        title: of the map.
        model: its name.
        column: of the attention, where it has several; None: their mean.
    """
    attention = run.model.attention(bags, row)
    if attention is None:
        return []
    if attention.ndim == 2:
        attention = attention.mean(axis=1) if column is None else attention[:, column]
    coords, slides = bags.coords(row), bags.slides(row)
    return [
        Look(
            slide=str(slide),
            model=model,
            fold=run.rows.name,
            title=title,
            coords=coords[slides == slide],
            attention=attention[slides == slide],
        )
        for slide in np.unique(slides)
    ]
