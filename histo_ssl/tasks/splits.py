"""Who trains the classifier and who tests it, so that no patient does both.

Letters: N labelled tiles, C classes, G groups. A group is a patient; where no patient is known, a slide;
where no slide has two tiles either, a tile.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histo_ssl.embeddings import EmbeddingSet

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

TRAIN, VALID, TEST = "train", "valid", "test"
PATIENT, SLIDE, TILE = "patient ", "slide ", "tile "  # before a group's name, by what it is
N_NAMED = 3  # groups that an error message names
ROUNDING = 1e-9  # of a sum of a million shares


@dataclass(frozen=True, kw_only=True)
class Split:
    """A division of tiles by groups."""

    train: Mask  # (N,)
    test: Mask  # (N,), no group in common with `train`
    group: Ints  # (N,), 0 to G - 1
    unit: str  # what a group is: "patient", "slide" or "tile"
    notes: list[str]

    def n_groups(self, part: Mask) -> int:
        """Number of groups in `train` or `test`."""
        return len(np.unique(self.group[part]))


def split_tiles(tiles: EmbeddingSet, *, test_share: float, seed: int) -> Split:
    """The data set's own train and test if it has them, else groups drawn so that classes spread alike.

    Args:
        tiles: labelled tiles; those whose split is `valid` are never drawn.
        test_share: share of each class to draw for the test, 0-1; a given split overrides it.
        seed: of the draw.

    Raises:
        ValueError: a patient is in both parts of the given split, or there is nothing to draw a test from.
    """
    keys, unit = group_keys(tiles)
    group = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    if TEST in tiles.split:
        test = tiles.split == TEST
        # Where only the test is named, the rest is there to learn from.
        train = tiles.split == (TRAIN if TRAIN in tiles.split else "")
        if not train.any():
            raise ValueError(
                f"every labelled tile has the split '{TEST}' or '{VALID}': none is left for train"
            )
        _check_disjoint(keys[train], keys[test])
        notes: list[str] = []
    else:
        free = tiles.split != VALID
        if not free.any():
            raise ValueError(f"every labelled tile has the split '{VALID}': none is left for train and test")
        test = np.zeros(len(tiles), dtype=bool)
        test[free] = draw_test(tiles.label[free], group[free], test_share=test_share, seed=seed)
        train = free & ~test
        notes = [_drawn(group[test], group[free], n_test=int(test.sum()), n_tiles=int(free.sum()), unit=unit)]
    notes += _left_out(~train & ~test) + _unknown(tiles.patient, unit)
    return Split(train=train, test=test, group=group, unit=unit, notes=notes)


def group_keys(tiles: EmbeddingSet) -> tuple[NDArray[np.str_], str]:
    """A name (N,) of each tile's group, such as "patient P7", and what most of them are."""
    tile = np.char.add(TILE, np.arange(len(tiles)).astype(str))
    slide = np.where(tiles.slide != "", np.char.add(SLIDE, tiles.slide), tile)
    keys = np.where(tiles.patient != "", np.char.add(PATIENT, tiles.patient), slide)
    if (tiles.patient != "").any():
        return keys, "patient"
    return keys, "slide" if len(np.unique(keys)) < len(keys) else "tile"


def draw_test(label: NDArray[np.str_], group: Ints, *, test_share: float, seed: int) -> Mask:
    """Tiles (N,) for the test: whole groups, near `test_share` of every class, every class left in train.

    Groups take turns in random order, those with a rare class first. One goes to the test, or back, if that
    brings the shares of the classes there closer to `test_share` (sum of squares) and leaves each class a
    tile in train; until no turn changes anything.

    Raises:
        ValueError: no group can be spared, since each is the only one with some class.
    """
    class_of = np.unique(label, return_inverse=True)[1]
    group_of = np.unique(group, return_inverse=True)[1]
    n_GC = np.zeros((group_of.max() + 1, class_of.max() + 1))
    np.add.at(n_GC, (group_of, class_of), 1)
    share_GC = n_GC / n_GC.sum(axis=0)
    if not (share_GC < 1 - ROUNDING).all(axis=1).any():
        raise ValueError(
            f"no test can be drawn from {len(n_GC)} patients (or slides): each alone has one of the "
            f"{n_GC.shape[1]} classes; label more of them, or give every tile a split ({TRAIN}, {TEST})"
            f"{_hint(label)}"
        )
    order_G = _rarest_first(n_GC, seed=seed)
    test: Mask = _choose_groups(share_GC, test_share=test_share, order_G=order_G)[group_of]
    return test


def _hint(label: NDArray[np.str_]) -> str:
    """What else labels may be that are all numbers."""
    try:
        np.asarray(label, dtype=np.float64)
    except ValueError:
        return ""
    return "; if these labels are amounts and no classes, say task=regression"


def _choose_groups(share_GC: Floats, *, test_share: float, order_G: Ints) -> Mask:
    """Groups (G,) whose shares of the classes add up to about `test_share`, one at least."""
    chosen_G = np.zeros(len(share_GC), dtype=bool)
    taken_C = np.zeros(share_GC.shape[1])
    is_better = True
    while is_better:
        is_better = False
        for g in order_G:
            after_C = taken_C + (-share_GC[g] if chosen_G[g] else share_GC[g])
            gain = _off(taken_C, test_share) - _off(after_C, test_share)
            if gain > ROUNDING and (after_C < 1 - ROUNDING).all():
                taken_C, chosen_G[g], is_better = after_C, not chosen_G[g], True
    if not chosen_G.any():
        spare_G = np.flatnonzero((share_GC < 1 - ROUNDING).all(axis=1))
        chosen_G[spare_G[np.argmin(_off(share_GC[spare_G], test_share))]] = True
    return chosen_G


def _off(share_C: Floats, test_share: float) -> Floats:
    """Squared distance of shares (..., C) from the share asked for, summed over classes."""
    total: Floats = np.square(share_C - test_share).sum(axis=-1)
    return total


def _rarest_first(n_GC: Floats, *, seed: int) -> Ints:
    """Groups ordered by how many groups share their rarest class, in random order where that is equal."""
    n_groups_C = (n_GC > 0).sum(axis=0)
    rarest_G = np.where(n_GC > 0, n_groups_C, len(n_GC)).min(axis=1)
    order_G: Ints = np.lexsort((np.random.default_rng(seed).random(len(n_GC)), rarest_G))
    return order_G


def _check_disjoint(train_keys: NDArray[np.str_], test_keys: NDArray[np.str_]) -> None:
    leaks = np.intersect1d(train_keys, test_keys)
    if len(leaks):
        n_test, named = len(np.unique(test_keys)), ", ".join(leaks[:N_NAMED])
        raise ValueError(
            f"{len(leaks)} of the {n_test} groups in test are in train too (first {named}): this flatters "
            "scores; give all tiles of a patient (or slide) the same split"
        )


def _drawn(test_group: Ints, free_group: Ints, *, n_test: int, n_tiles: int, unit: str) -> str:
    n_drawn, n_all = len(np.unique(test_group)), len(np.unique(free_group))
    return (
        f"no train and test split is given: {n_drawn} of {n_all} {unit}s were drawn for the test "
        f"({n_test:,} of {n_tiles:,} labelled tiles)"
    )


def _left_out(neither: Mask) -> list[str]:
    n = int(neither.sum())
    return [f"{n:,} labelled tiles that are neither in train nor in test were left out"] if n else []


def _unknown(patient: NDArray[np.str_], unit: str) -> list[str]:
    """What can't be promised where patients are not known."""
    n_unknown = int((patient == "").sum())
    if unit == "tile":
        return [
            "neither patients nor slides are known: tiles of one patient may be in train and in test, "
            "and the intervals resample tiles, so scores may be flattered and intervals too narrow"
        ]
    if unit == "slide":
        return ["no patient is known: a slide stands for its patient in the split and in the intervals"]
    return [f"{n_unknown:,} labelled tiles have no patient: their slide stands for it"] if n_unknown else []
