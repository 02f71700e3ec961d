"""What is looked at before the test holds nothing of the test."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.tasks.chosen import ChosenTiles, DrawSpec, choose_tiles, flattery
from histo_ssl.tasks.splits import split_tiles

Tiles = Callable[..., EmbeddingSet]
SPEC = {"n_known": 1000, "n_asked": 500, "asked_share": 0.3, "seed": 0}


def choose(tiles: EmbeddingSet, *, task_seed: int = 0, **changes: float) -> ChosenTiles:
    split = split_tiles(tiles, test_share=0.3, seed=task_seed)
    spec = DrawSpec(**(SPEC | changes))
    return choose_tiles(replace(tiles, row=100 + np.arange(len(tiles))), split, spec=spec)


@pytest.fixture
def many(tiles: Tiles) -> EmbeddingSet:
    """20 patients with 10 tiles each, two classes in every one."""
    patient = [f"P{i // 10:02}" for i in range(200)]
    return tiles(label=["A", "B"] * 100, patient=patient)


@pytest.mark.parametrize("task_seed", range(5))
def test_no_patient_of_the_test_is_looked_at_and_none_is_on_both_sides(
    many: EmbeddingSet, task_seed: int
) -> None:
    chosen = choose(many, task_seed=task_seed)
    test = split_tiles(many, test_share=0.3, seed=task_seed).test
    patient = many.patient[chosen.row - 100]
    asked, known = set(patient[: chosen.n_asked]), set(patient[chosen.n_asked :])
    assert not (asked | known) & set(many.patient[test])
    assert not asked & known
    assert asked | known == set(many.patient[~test])
    assert chosen.names == sorted(f"patient {name}" for name in asked | known)


def test_a_valid_split_is_what_is_asked_for(tiles: Tiles) -> None:
    split = ["train"] * 8 + ["valid"] * 6 + ["test"] * 6
    patient = [f"P{i // 2}" for i in range(20)]
    chosen = choose(tiles(label=["A", "B"] * 10, patient=patient, split=split))
    assert (chosen.row - 100).tolist() == [*range(8, 14), *range(8)]
    assert chosen.n_asked == 6
    assert chosen.class_of.tolist() == [0, 1] * 7


def test_a_patient_of_valid_and_train_does_not_answer_for_itself(tiles: Tiles) -> None:
    split = ["train"] * 6 + ["valid"] * 4 + ["test"] * 2
    patient = ["P0", "P0", "P1", "P1", "P2", "P2", "P0", "P0", "P3", "P3", "P4", "P4"]
    chosen = choose(tiles(label=["A", "B"] * 6, patient=patient, split=split))
    assert (chosen.row - 100).tolist() == [6, 7, 8, 9, 2, 3, 4, 5]


def test_the_draw_is_bounded_and_the_same_every_time(many: EmbeddingSet) -> None:
    few = choose(many, n_known=30, n_asked=11)
    again = choose(many, n_known=30, n_asked=11)
    other = choose(many, n_known=30, n_asked=11, seed=1)
    assert (len(few), few.n_asked) == (41, 11)
    assert few.row.tolist() == again.row.tolist() != other.row.tolist()
    assert len(set(few.row)) == 41


def test_one_class_outside_the_test_is_not_enough(tiles: Tiles) -> None:
    split = ["train"] * 6 + ["test"] * 4
    patient = [f"P{i // 2}" for i in range(10)]
    with pytest.raises(ValueError, match="outside the task's test are of fewer than two classes"):
        choose(tiles(label=["A"] * 6 + ["A", "B"] * 2, patient=patient, split=split))


def test_counts_below_1_are_refused() -> None:
    with pytest.raises(ValueError, match=r"online.draw.n_known=0, .*counts of 1 or more"):
        DrawSpec(**(SPEC | {"n_known": 0}))


def test_a_valid_tile_of_a_patient_in_the_test_is_not_asked_for(tiles: Tiles) -> None:
    split = ["train"] * 4 + ["valid"] * 4 + ["test"] * 4
    patient = ["P0", "P0", "P1", "P1", "P2", "P2", "P3", "P3", "P3", "P3", "P4", "P4"]
    chosen = choose(tiles(label=["A", "B"] * 6, patient=patient, split=split))
    assert (chosen.row - 100).tolist() == [4, 5, 0, 1, 2, 3]


def test_an_encoder_that_was_chosen_by_the_tests_labels_is_said_to_be_flattered() -> None:
    tested = pd.DataFrame({"patient": ["P1", "P1", "P2", ""], "slide": ["S1", "S2", "S3", "S4"]})
    assert flattery((), tested) == flattery(["patient P9", "slide S1"], tested) == []
    assert flattery(["patient P9"], pd.DataFrame()) == []
    (said,) = flattery(["patient P1", "slide S4", "patient P9"], tested)
    assert "by the labels of 2 of the 3 patients or slides of this test (patient P1, slide S4)" in said
