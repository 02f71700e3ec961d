"""Scores and tables of heads: which one is chosen, under which names it is told, how far heads differ.

Letters: M tiles; H heads.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.data.synthetic import NUCLEI
from histo_ssl.heads.maps import divergence, likeness
from histo_ssl.tasks.base import Score
from histo_ssl.tasks.bootstrap import Asked
from histo_ssl.tasks.head_looks import HAEMATOXYLIN, Seen
from histo_ssl.tasks.head_scores import (
    AUC,
    CHANCE,
    CORRELATION,
    Named,
    Trait,
    best_head,
    mean_over_tiles,
    measures,
    score_of,
)

Floats = NDArray[np.float64]
Measured = Mapping[str, Floats]  # metric -> (M, H)
Row = dict[str, str | float | bool]

BEST, MEAN = "best_head", "mean_of_heads"  # protocols
DIVERGENCE = "divergence_in_bits"


def primary_metric(seen: Seen | None) -> str:
    """What stands for the task: how well nuclei are attended to, or haematoxylin where none are known."""
    has_nuclei = seen is not None and NUCLEI in [trait.name for trait in seen.traits]
    return f"{NUCLEI}_{AUC}" if has_nuclei else f"{HAEMATOXYLIN}_{CORRELATION}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """How well heads pick out one phenotype."""

    name: str
    before: Measured  # where heads are chosen; empty where there is nobody to choose on
    after: Measured  # where they are scored
    mean: Measured  # of the mean of heads, there
    best: int | None  # the chosen head

    def values(self, protocol: str) -> dict[str, Floats]:
        """Each metric (M,) of the chosen head, or of the mean of heads; none without a chosen head."""
        if protocol == MEAN:
            return {metric: value_M1[:, 0] for metric, value_M1 in self.mean.items()}
        return {} if self.best is None else {m: value_MH[:, self.best] for m, value_MH in self.after.items()}

    def scores(self, protocol: str, group_M: NDArray[np.int64], asked: Asked) -> Iterator[Score]:
        """Scores by the phenotype's label; of nuclei and haematoxylin under a name of their own, too.

        A report shows the latter above those of single classes.
        """
        of_protocol = replace(asked, protocol=protocol)
        for metric, value_M in self.values(protocol).items():
            names = [(metric, self.name)]
            if self.name in (NUCLEI, HAEMATOXYLIN):
                names.append((f"{self.name}_{metric}", ""))
            for name, label in names:
                named = Named(metric=name, label=label, chance=CHANCE[metric])
                yield score_of(value_M, group_M, named, asked=of_protocol)

    def columns(self) -> dict[str, Floats]:
        """What the chosen head scores in each tile, by the name of a column."""
        return {f"{self.name}_{metric}": value_M for metric, value_M in self.values(BEST).items()}

    def rows(self) -> Iterator[Row]:
        """A row per head, and one for their mean: what it scores where heads are chosen, and elsewhere."""
        chosen = {f"{metric}_choosing": mean_over_tiles(value_MH) for metric, value_MH in self.before.items()}
        scored = {metric: mean_over_tiles(value_MH) for metric, value_MH in self.after.items()}
        for h in range(len(next(iter(scored.values())))):
            numbers = {name: float(value_H[h]) for name, value_H in (*scored.items(), *chosen.items())}
            yield self._row(str(h + 1), numbers, is_best=h == self.best)
        means = {metric: float(mean_over_tiles(value_M1)[0]) for metric, value_M1 in self.mean.items()}
        yield self._row("mean", means, is_best=False)

    def _row(self, head: str, numbers: Mapping[str, float], *, is_best: bool) -> Row:
        n_tiles = max(int((~np.isnan(value_MH)).any(axis=1).sum()) for value_MH in self.after.values())
        return {"head": head, "phenotype": self.name, "is_best": is_best, **numbers, "n_tiles": n_tiles}


def judge(trait: Trait, choosing: Seen | None, scoring: Seen) -> Judged:
    """Choose a head for a phenotype by its AUC, or its correlation where it has none, and measure all heads.

    Args:
        trait: of the tiles that heads are scored on.
        choosing: tiles of other patients, that the head is chosen on; None: there are none.
        scoring: tiles that all heads are scored on.
    """
    found = {one.name: one for one in choosing.traits} if choosing else {}
    before = measures(choosing.maps_MHL, found[trait.name]) if choosing else {}
    return Judged(
        name=trait.name,
        before=before,
        after=measures(scoring.maps_MHL, trait),
        mean=measures(scoring.maps_MHL.mean(axis=1, keepdims=True), trait),
        best=best_head(before[AUC if AUC in before else CORRELATION]) if before else None,
    )


def diversity(seen: Seen) -> pd.DataFrame:
    """How far heads differ, and how much of their attention stays outside the patches: means over tiles."""
    alike = likeness(seen.maps_MHL)
    known = alike[~np.isnan(alike)]
    return pd.DataFrame(
        {
            "n_heads": [seen.maps_MHL.shape[1]],
            DIVERGENCE: [divergence(seen.maps_MHL).mean()],
            CORRELATION: [known.mean() if len(known) else np.nan],
            "prefix_share": [seen.prefix_MH.mean()],
        }
    )
