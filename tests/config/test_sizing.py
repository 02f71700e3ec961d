"""What a YAML leaves open is filled by the number of tiles; what a person says stays."""

from typing import Any

import pytest

from histo_ssl.config.sizing import sized

TABLE = {0: {"queue": 1024, "head": {"k": 512}}, 20_000: {"queue": 4096, "head": {"k": 1024}}}


@pytest.mark.parametrize(("n_tiles", "k"), [(0, 512), (19_999, 512), (20_000, 1024), (10**8, 1024)])
def test_a_row_holds_from_its_number_of_tiles_on(n_tiles: int, k: int) -> None:
    config, filled = sized({"queue": None, "head": {"k": None, "n": 3}, "by_tiles": TABLE}, n_tiles=n_tiles)
    assert config == {"queue": 2 * k if k == 512 else 4096, "head": {"k": k, "n": 3}}
    assert filled == {"queue": config["queue"], "head.k": k}


def test_what_a_person_sets_stays_also_where_it_is_zero_or_false() -> None:
    config, filled = sized({"queue": 0, "head": {"k": False}, "by_tiles": TABLE}, n_tiles=50_000)
    assert config == {"queue": 0, "head": {"k": False}}
    assert filled == {}


def test_a_configuration_without_a_table_comes_back_as_it_is() -> None:
    assert sized({"a": None}, n_tiles=5) == ({"a": None}, {})


@pytest.mark.parametrize(
    ("n_tiles", "n_outputs", "momentum", "temp"),
    [(1_769, 512, 0.95, 0.02), (20_000, 1024, 0.99, 0.02), (2_055_742, 65536, 0.996, 0.07)],
)
def test_dino_takes_more_prototypes_and_a_slower_softer_teacher_with_more_tiles(
    compose: Any, n_tiles: int, n_outputs: int, momentum: float, temp: float
) -> None:
    config, filled = sized(compose("method=dino", "backbone=vit_t").group("method"), n_tiles=n_tiles)
    assert config["head"]["n_outputs"] == n_outputs
    assert (config["teacher"]["momentum"], config["teacher"]["temp"]) == (momentum, temp)
    assert {"head.n_outputs", "teacher.momentum", "teacher.temp"} <= filled.keys()


def test_a_sentence_says_what_was_filled_in_and_why(compose: Any) -> None:
    config, why = compose("method=dino", "backbone=vit_t", "method.teacher.momentum=0.9").method(
        n_tiles=1_769
    )
    assert config["teacher"]["momentum"] == 0.9
    assert "by_tiles" not in config
    assert why == (
        "for 1,769 tiles freeze_last_layer_epochs=0, head.n_outputs=512, teacher.first_temp=0.02, "
        "teacher.temp=0.02, teacher.n_sinkhorn=3, optim.lr_per_256=0.004 "
        "(from method.by_tiles; set one by its name to overrule it)"
    )
