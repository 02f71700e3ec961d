"""The log says what differs from the nearest work: few words, the right ones."""

import logging
from pathlib import Path

import pytest

from histo_ssl.folders import artifacts
from histo_ssl.folders.changes import difference

BASE = {"training": {"epochs": 3, "batch_size": 32}, "seed": 0, "views": {"mean": [0.5, 0.5]}}


def test_the_nearest_is_the_one_with_the_fewest_settings_changed() -> None:
    far = {"training": {"epochs": 5, "batch_size": 64}, "seed": 2, "views": {"mean": [0.1, 0.5]}}
    near = {"training": {"epochs": 5, "batch_size": 32}, "seed": 1, "views": {"mean": [0.5, 0.5]}}
    others = {"a-far": {"config": far}, "b-near": {"config": near}}
    assert difference(BASE, {}, others) == "nearest is b-near: training.epochs 5 -> 3, seed 1 -> 0"


def test_a_setting_that_only_one_of_them_has_counts_and_a_list_is_one_value() -> None:
    other = {"training": {"epochs": 3, "batch_size": 32}, "seed": 0, "views": {"mean": [0.7, 0.5]}, "x": None}
    said = difference(BASE, {}, {"o": {"config": other}})
    assert said == "nearest is o: views.mean [0.7, 0.5] -> [0.5, 0.5], x null -> nothing"


def test_many_changes_are_counted() -> None:
    old, new = ({f"k{i}": i + step for i in range(5)} for step in (0, 1))
    assert difference(new, {}, {"o": {"config": old}}) == (
        "nearest is o: k0 0 -> 1, k1 1 -> 2, k2 2 -> 3 and 2 more"
    )


def test_what_is_said_again_further_in_is_one_change() -> None:
    old, new = ({"task": {"labels": {"path": p}, "n": 1}, "labels": {"path": p}} for p in "ab")
    assert difference(new, {}, {"o": {"config": old}}) == "nearest is o: labels.path a -> b"
    apart = {"task": {"labels": {"path": "c"}, "n": 1}, "labels": {"path": "b"}}
    assert (
        difference(apart, {}, {"o": {"config": old}})
        == "nearest is o: task.labels.path a -> c, labels.path a -> b"
    )


def test_changed_files_are_said_in_words_instead_of_their_fingerprint() -> None:
    old = {"a": {"bytes": 1}, "b": {"bytes": 2, "label": "x"}, "c": {"bytes": 3}, "d": {"bytes": 4}}
    new = {"a": {"bytes": 9}, "b": {"bytes": 2, "label": "y"}, "c": {"bytes": 3}, "e": {"bytes": 5}}
    others = {"o": {"config": {"s": 1, "listing": "0"}, "listing": {"slides": old}}}
    assert difference({"s": 1, "listing": "1"}, {"slides": new}, others) == (
        "nearest is o: slides: 1 added, 1 gone, 1 of another size, 1 described otherwise"
    )


def test_garbage_beside_it_is_no_neighbour_and_nothing_is_said_without_any() -> None:
    assert difference(BASE, {}, {}) == ""


def _build(folder: Path) -> dict[str, int]:
    artifacts.write_text(folder / "x", "x")
    return {}


def _stop(folder: Path) -> dict[str, int]:
    raise RuntimeError


def test_a_new_folder_names_the_nearest_even_if_that_was_never_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    other_work = {"config": {"seed": 4}, "label": "embed"}
    artifacts.complete(tmp_path / "c", build=_build, **other_work)  # of another kind: no neighbour
    with pytest.raises(RuntimeError):
        artifacts.complete(tmp_path / "a", build=_stop, label="pretrain", config={"seed": 0, "e": 3})
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / artifacts.CONFIG).write_text("garbage")
    assert "new folder" not in caplog.text
    artifacts.complete(tmp_path / "b", build=_build, label="pretrain", config={"seed": 4, "e": 3})
    assert "pretrain: a new folder; nearest is a: seed 0 -> 4" in caplog.text
    caplog.clear()
    artifacts.complete(tmp_path / "a", build=_build, label="pretrain", config={"seed": 0, "e": 3})
    assert "new folder" not in caplog.text  # it goes on with what was begun
