"""A value of the wrong type is refused with its place and what is expected there."""

from typing import Any

import pytest

from histo_ssl.config.signatures import check_types

TILING = {
    "_target_": "histo_ssl.slides.grid.Tiling",
    "size_px": 64,
    "mpp": 1,
    "stride_px": None,
    "min_tissue": 0.5,
    "tissue": None,
}


def test_whole_numbers_pass_as_numbers_and_null_where_it_may_stand() -> None:
    check_types(TILING, "tiling")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size_px": "abc"}, r"^tiling\.size_px='abc': a whole number or null is expected$"),
        ({"size_px": 64.5}, r"^tiling\.size_px=64\.5: a whole number or null is expected$"),
        ({"size_px": True}, r"^tiling\.size_px=True: a whole number or null is expected$"),
        ({"min_tissue": None}, r"^tiling\.min_tissue=None: a number is expected$"),
    ],
)
def test_a_wrong_type_names_its_place(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_types(TILING | change, "tiling")


def test_a_value_too_many_is_named_where_it_is_set() -> None:
    folds = {"_target_": "histo_ssl.folds.given.Given", "path": "x", "allow_leaks": True}
    whole = folds | {"allow_missing": True}
    check_types(whole, "task.folds")
    with pytest.raises(
        ValueError, match=r"^task\.folds\.n: Given takes no such value, but path, .*'~task\.folds\.n'$"
    ):
        check_types({"cohort": {"folds": whole | {"n": 0}}, "folds": whole | {"n": 0}}, "task")


def test_a_value_deep_inside_of_foreign_targets_is_found() -> None:
    config = {"_target_": "torch.nn.Module", "inner": {"tiling": TILING | {"mpp": "x"}}}
    with pytest.raises(ValueError, match=r"^task\.inner\.tiling\.mpp='x': a number or null"):
        check_types(config, "task")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.epochs=0", "training.epochs=0: a whole number, 1 or more, is expected"),
        ("training.batch_size=2.5", "training.batch_size=2.5: a whole number, 1 or more, is expected"),
        ("loader.n_workers=-1", "loader.n_workers=-1: a whole number, 0 or more, is expected"),
        ("seed=x", "seed=x: a whole number, 0 or more, is expected"),
        ("embedding.dtype=bfloat16", "embedding.dtype=bfloat16: choose one of float32, float16"),
        ("embedding.precision=16", "embedding.precision=16: choose one of 32-true, bf16-mixed"),
        ("loader.start_method=foo", "loader.start_method=foo: choose one of fork, spawn, forkserver"),
    ],
)
def test_a_senseless_value_of_the_top_level_is_refused(compose: Any, override: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        compose("method=dino", "backbone=vit_t", override).check()
