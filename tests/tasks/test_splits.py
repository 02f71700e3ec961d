"""No patient trains and tests, every class keeps its share, and what can't be promised is said."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.tasks.splits import draw_test, split_tiles

Tiles = Callable[..., EmbeddingSet]


def _patients(n: int, *, seed: int = 0) -> tuple[list[str], list[str]]:
    """Patient and label of tiles: 10 to 100 each, classes a and b in any mix, c in the first five alone."""
    rng = np.random.default_rng(seed)
    patients, labels = [], []
    for p in range(n):
        size, share = rng.integers(10, 100), rng.random()
        patients += [f"P{p:02d}"] * size
        labels += ["c" if p < 5 and i < 4 else ("a" if rng.random() < share else "b") for i in range(size)]
    return patients, labels


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("test_share", [0.2, 0.3, 0.5])
def test_a_drawn_split_keeps_patients_whole_and_classes_at_their_share(
    tiles: Tiles, seed: int, test_share: float
) -> None:
    patients, labels = _patients(40)
    data = tiles(label=labels, patient=patients)
    split = split_tiles(data, test_share=test_share, seed=seed)
    assert not set(data.patient[split.train]) & set(data.patient[split.test])
    assert (split.train ^ split.test).all()
    for name, tolerance in (("a", 0.05), ("b", 0.05), ("c", 0.11)):  # c is in five patients: steps of .2
        share = split.test[data.label == name].mean()
        assert share == pytest.approx(test_share, abs=tolerance), name


def test_a_drawn_split_depends_on_the_seed_alone(tiles: Tiles) -> None:
    patients, labels = _patients(40)
    data = tiles(label=labels, patient=patients)
    tests = [split_tiles(data, test_share=0.3, seed=seed).test for seed in (0, 0, 1)]
    assert (tests[0] == tests[1]).all()
    assert (tests[0] != tests[2]).any()
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = split_tiles(data.subset(order), test_share=0.3, seed=0)
    assert (shuffled.test == tests[0][order]).all()


def test_the_only_patient_with_a_class_stays_in_train() -> None:
    label = np.array(["a", "b"] * 10 + ["rare"])
    group = np.array([i // 4 for i in range(20)] + [2])
    for seed in range(20):
        test = draw_test(label, group, test_share=0.3, seed=seed)
        assert not test[group == 2].any()
        assert test.any()


def test_a_share_smaller_than_every_patient_still_gives_a_test() -> None:
    label, group = np.array(["a", "b"] * 15), np.repeat([0, 1, 2], [16, 10, 4])
    test = draw_test(label, group, test_share=0.01, seed=0)
    assert np.flatnonzero(test).tolist() == [26, 27, 28, 29]  # the smallest is nearest to 1 %


def test_patients_of_whom_none_can_be_spared_are_refused() -> None:
    label, group = np.array(["a", "a", "b", "b"]), np.array([0, 0, 1, 1])
    with pytest.raises(
        ValueError, match=r"no test can be drawn from 2 patients .* each alone has one of the 2 classes"
    ):
        draw_test(label, group, test_share=0.3, seed=0)


def test_a_given_split_is_used_as_it_is_and_valid_is_left_out(tiles: Tiles) -> None:
    splits = ["train", "valid", "test", "train", "", "test"]
    data = tiles(label=list("abaabb"), split=splits, patient=["P1", "P1", "P2", "P3", "P2", "P4"])
    split = split_tiles(data, test_share=0.3, seed=0)
    assert split.train.tolist() == [name == "train" for name in splits]
    assert split.test.tolist() == [name == "test" for name in splits]
    assert split.notes == ["2 labelled tiles that are neither in train nor in test were left out"]
    assert (split.n_groups(split.train), split.n_groups(split.test)) == (2, 2)


def test_valid_tiles_are_never_drawn_for_the_test(tiles: Tiles) -> None:
    patients, labels = _patients(20)
    valid = ["valid" if int(patient[1:]) % 2 else "" for patient in patients]
    data = tiles(label=labels, patient=patients, split=valid)
    split = split_tiles(data, test_share=0.3, seed=0)
    assert set(data.split[split.test]) == {""} == set(data.split[split.train])
    with pytest.raises(ValueError, match="every labelled tile has the split 'valid'"):
        split_tiles(data.subset(data.split == "valid"), test_share=0.3, seed=0)


def test_a_patient_in_train_and_test_is_refused_by_name(tiles: Tiles) -> None:
    patients = [f"P{i % 5}" for i in range(20)]  # each patient is in both
    data = tiles(label=list("ab") * 10, patient=patients, split=["train"] * 10 + ["test"] * 10)
    with pytest.raises(ValueError, match="5 of the 5 groups in test are in train too") as error:
        split_tiles(data, test_share=0.3, seed=0)
    assert "(first patient P0, patient P1, patient P2)" in str(error.value)


def test_a_slide_in_train_and_test_is_refused_where_no_patient_is_known(tiles: Tiles) -> None:
    data = tiles(label=list("abab"), slide=["S1", "S2", "S2", "S3"], split=["train", "train", "test", "test"])
    with pytest.raises(ValueError, match=r"1 of the 2 groups in test are in train too \(first slide S2\)"):
        split_tiles(data, test_share=0.3, seed=0)


def test_slides_of_one_patient_count_as_one_group(tiles: Tiles) -> None:
    data = tiles(
        label=list("ab") * 6, slide=[f"S{i}" for i in range(12)], patient=[f"P{i // 4}" for i in range(12)]
    )
    split = split_tiles(data, test_share=0.3, seed=0)
    assert split.unit == "patient"
    assert split.n_groups(split.test) == 1
    assert split.test.sum() == 4


@pytest.mark.parametrize(
    ("fields", "unit", "sentence"),
    [
        ({"slide": ["S1", "S1", "S2", "S2", "S3", "S3"]}, "slide", "a slide stands for its patient"),
        ({"slide": [f"{i}.png" for i in range(6)]}, "tile", "neither patients nor slides are known"),
        ({}, "tile", "neither patients nor slides are known"),
        ({"patient": ["P1", "P1", "P2", "P2", "", ""]}, "patient", "2 labelled tiles have no patient"),
    ],
)
def test_what_is_not_known_of_patients_is_said(tiles: Tiles, fields: dict, unit: str, sentence: str) -> None:
    split = split_tiles(tiles(label=list("ababab"), **fields), test_share=0.34, seed=0)
    assert split.unit == unit
    assert sentence in split.notes[-1]
    assert split.notes[0].startswith("no train and test split is given: ")


def test_single_tiles_are_drawn_at_the_exact_share_of_each_class(tiles: Tiles) -> None:
    data = tiles(label=["a"] * 700 + ["b"] * 200 + ["c"] * 10)
    test = split_tiles(data, test_share=0.3, seed=0).test
    assert {name: int(test[data.label == name].sum()) for name in "abc"} == {"a": 210, "b": 60, "c": 3}


def test_where_only_the_test_is_named_the_rest_is_there_to_learn_from() -> None:
    names = np.array(["a", "b", "c", "d"])
    tiles = EmbeddingSet(
        features=np.zeros((4, 2), np.float32),
        coords=np.zeros((4, 2), np.int64),
        row=np.arange(4),
        slide=names,
        patient=names,
        site=names,
        split=np.array(["", "test", "", "test"]),
        label=np.array(["x", "x", "y", "y"]),
    )
    split = split_tiles(tiles, test_share=0.5, seed=0)
    assert split.test.tolist() == [False, True, False, True]
    assert split.train.tolist() == [True, False, True, False]


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["", "P1", "P2", "P3", "P4"]),  # patient
        st.sampled_from(["S1", "S2", "S3", "S4", "S5"]),  # slide
        st.sampled_from(["a", "b", "c"]),  # label
        st.sampled_from(["", "", "train", "valid", "test"]),
    ),
    min_size=2,
    max_size=40,
)


@settings(max_examples=500)
@given(rows=ROWS, test_share=st.floats(0.05, 0.95), seed=st.integers(0, 2**32 - 1), has_splits=st.booleans())
def test_whatever_is_known_of_tiles_no_group_is_on_both_sides_or_the_data_are_refused(
    rows: list[tuple[str, str, str, str]], test_share: float, seed: int, has_splits: bool
) -> None:
    patient, slide, label, split = (np.array(column) for column in zip(*rows, strict=True))
    split = split if has_splits else np.full(len(rows), "")
    n = len(rows)
    data = EmbeddingSet(
        features=np.zeros((n, 1), np.float32),
        coords=np.zeros((n, 2), np.int64),
        row=np.arange(n),
        **{"slide": slide, "patient": patient, "site": np.full(n, ""), "split": split, "label": label},
    )
    try:
        made = split_tiles(data, test_share=test_share, seed=seed)
    except ValueError:
        return
    assert made.train.any()
    assert made.test.any()
    assert not (made.train & made.test).any()
    for names in (patient, made.group):
        both = set(names[made.train]) & set(names[made.test]) - {""}
        assert not both
    unknown = patient == ""
    assert not set(slide[unknown & made.train]) & set(slide[unknown & made.test])
    if "test" not in split:
        assert not (made.test | made.train)[split == "valid"].any()
        assert (made.test | made.train)[split != "valid"].all()
        assert set(label[made.test]) <= set(label[made.train])  # each class is left to learn from


def test_labels_that_are_numbers_are_hinted_at_regression() -> None:
    group = np.arange(6)
    with pytest.raises(ValueError, match="if these labels are amounts and no classes, say task=regression"):
        draw_test(np.array(["0.1", "0.25", "0.3", "0.4", "0.5", "0.9"]), group, test_share=0.3, seed=0)
    with pytest.raises(ValueError, match=r"\(train, test\)$"):
        draw_test(np.array(list("abcdef")), group, test_share=0.3, seed=0)
