"""Which labelled tiles may be looked at while training goes on: none of a patient in the task's test.

The best encoder is chosen by them, and what is chosen on a test flatters the score on it.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.tasks.splits import N_NAMED, PATIENT, SLIDE, VALID, Split, draw_test, group_keys

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class DrawSpec:
    """How many tiles are drawn.

    Args:
        n_known: labelled tiles whose embeddings vote, at most.
        n_asked: tiles of other patients that are asked for, at most.
        asked_share: share of each class that is asked for, 0-1, where the data name no `valid` split.
        seed: of the draw.

    Raises:
        ValueError: a value has no meaning.
    """

    n_known: int
    n_asked: int
    asked_share: float
    seed: int

    def __post_init__(self) -> None:
        if self.n_known < 1 or self.n_asked < 1 or not 0 < self.asked_share < 1:
            raise ValueError(
                f"online.draw.n_known={self.n_known}, n_asked={self.n_asked}, "
                f"asked_share={self.asked_share}: counts of 1 or more, a share between 0 and 1 are expected"
            )


@dataclass(frozen=True, kw_only=True)
class ChosenTiles:
    """Labelled tiles: first those that are asked for, then those that are known."""

    row: Ints  # (N,) numbers in their source
    class_of: Ints  # (N,) 0 to C - 1
    group: Ints  # (N,) equal numbers are the same patient (or slide)
    n_asked: int
    n_classes: int  # C
    names: list[str]  # of the patients (or slides) among them

    def __len__(self) -> int:
        return len(self.row)

    @property
    def can_tell(self) -> bool:
        """Whether they can be scored: some are known, and those asked for are of two classes or more."""
        n_asked_classes = len(np.unique(self.class_of[: self.n_asked]))
        return n_asked_classes > 1 and len(self) > self.n_asked

    def subset(self, mask: Mask) -> "ChosenTiles":
        """Those where `mask` (N,) is true, in their order."""
        kept = {name: getattr(self, name)[mask] for name in ("row", "class_of", "group")}
        return replace(self, **kept, n_asked=int(mask[: self.n_asked].sum()))


def choose_tiles(tiles: EmbeddingSet, split: Split, *, spec: DrawSpec) -> ChosenTiles:
    """A bounded draw of labelled tiles; those asked for and those known share no patient.

    Args:
        tiles: all labelled tiles, whatever their features. Those of the split `valid`, if any, are asked for.
        split: the task's own division of them.
        spec: how many.

    Raises:
        ValueError: there are not two classes on both sides, or no patients to part.
    """
    is_open = ~np.isin(split.group, split.group[split.test])
    asked = is_open & (tiles.split == VALID)
    known = is_open & split.train & ~np.isin(split.group, split.group[asked])
    if not asked.any():
        asked = _drawn_patients(tiles, split, known, spec)
        known &= ~asked
    classes = np.unique(tiles.label[known])
    asked &= np.isin(tiles.label, classes)  # nobody could know the others
    if min(len(classes), len(np.unique(tiles.label[asked]))) < 2:
        raise ValueError("the labelled tiles outside the task's test are of fewer than two classes")
    rng = np.random.default_rng(spec.seed)
    chosen_asked, chosen_known = _some(asked, spec.n_asked, rng), _some(known, spec.n_known, rng)
    chosen = np.concatenate([chosen_asked, chosen_known])
    return ChosenTiles(
        row=tiles.row[chosen],
        class_of=np.searchsorted(classes, tiles.label[chosen]),
        group=split.group[chosen],
        n_asked=len(chosen_asked),
        n_classes=len(classes),
        names=sorted(set(group_keys(tiles)[0][chosen].tolist())),
    )


def flattery(chosen_on: Collection[str], tested: pd.DataFrame) -> list[str]:
    """What a reader must know of the scores of an encoder that was chosen by labels of the test's patients.

    Args:
        chosen_on: patients and slides that it was chosen by, as its card names them.
        tested: predictions of a task, with the columns `patient` and `slide`.
    """
    if tested.empty or not chosen_on:
        return []
    names = (PATIENT + tested["patient"]).where(tested["patient"] != "", SLIDE + tested["slide"])
    shared = sorted(set(names) & set(chosen_on))
    if not shared:
        return []
    few = ", ".join(shared[:N_NAMED]) + (", ..." if len(shared) > N_NAMED else "")
    return [
        f"the encoder was chosen among those of its training by the labels of {len(shared)} of the "
        f"{names.nunique()} patients or slides of this test ({few}): its scores are flattered"
    ]


def _drawn_patients(tiles: EmbeddingSet, split: Split, pool: Mask, spec: DrawSpec) -> Mask:
    """Tiles of some patients of the pool, near `asked_share` of every class."""
    if not pool.any():
        raise ValueError("every labelled tile belongs to the task's test")
    asked = np.zeros(len(tiles), dtype=bool)
    drawn = draw_test(tiles.label[pool], split.group[pool], test_share=spec.asked_share, seed=spec.seed)
    asked[pool] = drawn
    return asked


def _some(mask: Mask, n: int, rng: np.random.Generator) -> Ints:
    """Up to n of the rows where the mask is true, in their order."""
    rows = np.flatnonzero(mask)
    return np.sort(rng.choice(rows, size=min(n, len(rows)), replace=False)).astype(np.int64)
