"""Names of splits: what is not one must not slip into pretraining."""

import pytest

from histo_ssl.data.base import named_splits


def test_splits_go_by_the_names_of_the_house() -> None:
    assert named_splits(["Test", "val", "validation", " train", ""], source="x.csv") == [
        "test",
        "valid",
        "valid",
        "train",
        "",
    ]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^x\.csv: split tset: train, valid, test or nothing is expected$"):
        named_splits(["train", "tset"], source="x.csv")
