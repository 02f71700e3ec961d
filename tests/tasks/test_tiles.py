"""Every protocol: 1 for embeddings that tell all, chance for those that tell nothing, errors for bad data."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate

from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.tasks.base import Score
from histo_ssl.tasks.knn import Knn
from histo_ssl.tasks.tiles import TileTask

Tiles = Callable[..., EmbeddingSet]
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auc")


@pytest.fixture
def configured(compose: Any) -> Callable[[str], TileTask]:
    """A choice of the group `task`, as configured."""
    return lambda name: instantiate(
        compose("method=dino", "backbone=vit_t", f"task={name}").group("task.protocol")
    )


@pytest.fixture
def task(configured: Callable[[str], TileTask]) -> TileTask:
    """With every protocol."""
    return configured("labelled")


def _scores(task: TileTask, embeddings: EmbeddingSet) -> dict[tuple[str, str, str], Score]:
    result = task.evaluate(embeddings, subject="encoder")
    return {(score.protocol, score.metric, score.label): score for score in result.scores}


def _patients(n: int, *, tiles_each: int, classes: str) -> tuple[list[str], list[str]]:
    patients = [f"P{i // tiles_each}" for i in range(n * tiles_each)]
    return patients, [classes[i % len(classes)] for i in range(n * tiles_each)]


def test_the_configured_protocols_are_dinos_and_the_studys(
    task: TileTask, configured: Callable[[str], TileTask]
) -> None:
    knn = configured("knn")
    assert knn.protocols == {
        "weighted_k20": Knn(k=20, metric="cosine", weighting="softmax", temperature=0.07, chunk_rows=512),
        "euclidean_k5": Knn(k=5, metric="euclidean", weighting="uniform", temperature=None, chunk_rows=512),
    }
    assert knn.primary == ("weighted_k20", "auc")
    assert list(task.protocols) == ["weighted_k20", "euclidean_k5", "logistic"]


def test_separable_embeddings_score_one_under_every_protocol(task: TileTask, tiles: Tiles) -> None:
    patients, labels = _patients(30, tiles_each=20, classes="abc")
    centres = {"a": [9, 0, 0], "b": [0, 9, 0], "c": [0, 0, 9]}
    noise = np.random.default_rng(0).normal(size=(600, 3))
    features = np.array([centres[label] for label in labels]) + noise
    scores = _scores(task, tiles(label=labels, patient=patients, features=features))
    assert len(scores) == 3 * (4 + 3)
    assert {score.value for score in scores.values()} == {1.0}
    assert {(score.low, score.high) for score in scores.values()} == {(1.0, 1.0)}


def test_random_embeddings_score_chance_under_every_protocol(task: TileTask, tiles: Tiles) -> None:
    patients, labels = _patients(100, tiles_each=100, classes="aab")
    features = np.random.default_rng(0).normal(size=(10_000, 16))
    scores = _scores(task, tiles(label=labels, patient=patients, features=features))
    for protocol in task.protocols:
        # 3,000 test tiles: the standard error of both is about .01.
        assert scores[protocol, "auc", ""].value == pytest.approx(0.5, abs=0.03)
        assert scores[protocol, "balanced_accuracy", ""].value == pytest.approx(0.5, abs=0.03)
        for metric in METRICS:
            score = scores[protocol, metric, ""]
            assert score.value < score.chance + 0.03
            assert score.low <= score.value <= score.high  # all equal where one class is always guessed
        assert scores[protocol, "accuracy", ""].chance == pytest.approx(2 / 3, abs=0.01)


def test_predictions_and_confusion_tell_the_same_as_the_scores(task: TileTask, tiles: Tiles) -> None:
    patients, labels = _patients(30, tiles_each=20, classes="abc")
    labels[::7] = [""] * len(labels[::7])
    features = np.random.default_rng(0).normal(size=(600, 3)) + [
        [ord(name[0]) if name else 0] for name in labels
    ]
    data = tiles(label=labels, patient=patients, features=features)
    result = task.evaluate(data, subject="colour")
    assert result.classes == ["a", "b", "c"]
    assert set(result.predictions["protocol"]) == set(task.protocols) == set(result.confusion)
    for protocol, rows in result.predictions.groupby("protocol"):
        accuracy = next(s.value for s in result.scores if s.protocol == protocol and s.metric == "accuracy")
        assert (rows["label"] == rows["predicted"]).mean() == pytest.approx(accuracy)
        assert len(rows) == result.counts["n_test"]
        for i, name in enumerate("abc"):
            given = rows.loc[rows["label"] == name, "predicted"]
            assert result.confusion[protocol][i] == [int((given == other).sum()) for other in "abc"]
    tile = result.predictions["tile"].to_numpy()
    np.testing.assert_array_equal(data.label[tile], result.predictions["label"])
    np.testing.assert_array_equal(data.coords[tile, 1], result.predictions["y"])
    np.testing.assert_allclose(result.predictions[["score_a", "score_b", "score_c"]].sum(axis=1), 1)
    assert {score.subject for score in result.scores} == {"colour"} == set(result.predictions["subject"])


def test_counts_add_up_to_the_labelled_tiles_and_their_patients(task: TileTask, tiles: Tiles) -> None:
    patients, labels = _patients(10, tiles_each=20, classes="ab")
    counts = task.evaluate(tiles(label=labels, patient=patients), subject="encoder").counts
    assert counts == {"n_train": 140, "n_test": 60, "n_train_groups": 7, "n_test_groups": 3}


def test_data_without_labels_give_no_scores_and_a_note(task: TileTask, tiles: Tiles) -> None:
    result = task.evaluate(tiles(label=[""] * 5), subject="encoder")
    assert result.scores == []
    assert result.predictions.empty
    assert result.notes == ["no tile of this data set has a label: nothing to score"]
    assert result.counts["n_test"] == 0


def test_fewer_training_tiles_than_neighbours_is_noted(task: TileTask, tiles: Tiles) -> None:
    result = task.evaluate(tiles(label=list("ab") * 6, patient=list("PPPPQQQQRRRR")), subject="encoder")
    assert "weighted_k20 asks for 20 neighbours, train has 8 tiles: all of them vote" in result.notes
    assert not any(note.startswith("euclidean_k5") for note in result.notes)


def test_a_class_that_train_lacks_is_refused_by_name(task: TileTask, tiles: Tiles) -> None:
    data = tiles(label=["a", "b", "fat"], patient=["P1", "P2", "P3"], split=["train", "train", "test"])
    for act in (task.check, partial(task.evaluate, subject="encoder")):
        with pytest.raises(
            ValueError, match=r"the test has tiles of class fat, train has none \(it has a, b\)"
        ):
            act(data)


def test_a_single_class_gives_no_scores_and_a_note_that_names_it(task: TileTask, tiles: Tiles) -> None:
    data = tiles(label=["tumour"] * 7 + [""], patient=list("PPQQRRSS"))
    task.check(data)
    result = task.evaluate(data, subject="encoder")
    assert result.scores == []
    assert result.notes == ["all labelled tiles are of one class, tumour: nothing to score"]


def test_a_single_class_to_learn_from_is_refused_by_name(task: TileTask, tiles: Tiles) -> None:
    data = tiles(label=list("aab"), patient=list("PQR"), split=["train", "test", "valid"])
    for act in (task.check, partial(task.evaluate, subject="encoder")):
        with pytest.raises(ValueError, match="all labelled tiles in train are of class a"):
            act(data)


def test_a_leak_of_patients_is_refused_also_before_there_are_embeddings(task: TileTask, tiles: Tiles) -> None:
    data = tiles(label=list("abab"), patient=list("PQPR"), split=["train", "train", "test", "test"])
    for act in (task.check, partial(task.evaluate, subject="encoder")):
        with pytest.raises(ValueError, match="patient P"):
            act(data)


@pytest.mark.parametrize("primary", [("k7", "auc"), ("weighted_k20", "kappa")])
def test_a_primary_score_that_is_never_computed_is_refused(task: TileTask, primary: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"expected a protocol \(weighted_k20, euclidean_k5, logistic\)"):
        TileTask(protocols=task.protocols, primary=primary, test_share=0.3, n_bootstrap=10, seed=0)
