"""Each protocol of the configuration: 1 for embeddings that tell all, chance for those that tell nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from histo_ssl.config.choices import conf_dir
from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.tasks.tiles import TileTask

Tiles = Callable[..., EmbeddingSet]
NUMBERS = {"least_squares", "ridge"}  # these don't tell classes: test_regression.py
PROTOCOLS = sorted(
    path.stem for path in (conf_dir() / "task" / "protocols").glob("*.yaml") if path.stem not in NUMBERS
)


@pytest.fixture(params=PROTOCOLS)
def task(request: pytest.FixtureRequest, compose: Any) -> TileTask:
    """A task with one protocol, as configured, that also stands for the task."""
    chosen = compose("method=dino", "backbone=vit_t", "task=labelled", f"task/protocols=[{request.param}]")
    made: TileTask = instantiate(chosen.group("task.protocol"))
    return made


def _data(tiles: Tiles, *, n_patients: int, tiles_each: int, distance: float) -> EmbeddingSet:
    n, classes = n_patients * tiles_each, "aab"
    labels = [classes[i % 3] for i in range(n)]
    centres = {"a": [distance, 0, 0, 0], "b": [0, distance, 0, 0]}
    noise = np.random.default_rng(0).normal(size=(n, 4))
    features = np.array([centres[label] for label in labels]) + noise
    return tiles(label=labels, patient=[f"P{i // tiles_each}" for i in range(n)], features=features)


def test_separable_embeddings_score_one(task: TileTask, tiles: Tiles) -> None:
    result = task.evaluate(_data(tiles, n_patients=30, tiles_each=12, distance=25), subject="encoder")
    assert {score.protocol for score in result.scores} == set(task.protocols)
    assert {score.value for score in result.scores} == {1.0}
    assert {(score.low, score.high) for score in result.scores} == {(1.0, 1.0)}
    assert (result.predictions["label"] == result.predictions["predicted"]).all()


def test_random_embeddings_score_chance(task: TileTask, tiles: Tiles) -> None:
    result = task.evaluate(_data(tiles, n_patients=100, tiles_each=60, distance=0), subject="encoder")
    for score in result.scores:
        # 1,800 test tiles: the standard error of each is about .012
        assert score.value < score.chance + 0.04, score
        assert score.low <= score.value <= score.high
        if score.metric in ("auc", "balanced_accuracy") or score.metric.startswith(
            ("acc_at", "map_at", "mvacc_at")
        ):
            assert score.value == pytest.approx(score.chance, abs=0.04), score


def test_the_last_protocol_stands_for_the_task_where_nothing_else_is_said(task: TileTask) -> None:
    metric = "acc_at_1" if "retrieval" in task.protocols else "auc"
    assert task.primary == (list(task.protocols)[-1], metric)


def test_a_gpu_that_may_not_be_used_is_not(
    task: TileTask, tiles: Tiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("to use a GPU fails only where there is none")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = _data(tiles, n_patients=6, tiles_each=12, distance=25)
    result = task.evaluate(data, subject="encoder", accelerator="cpu")
    assert {score.value for score in result.scores} == {1.0}


@pytest.mark.parametrize("row", [0, -1])
def test_embeddings_of_an_encoder_that_diverged_are_refused(task: TileTask, tiles: Tiles, row: int) -> None:
    data = _data(tiles, n_patients=6, tiles_each=12, distance=5)
    data.features[row, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 72 embeddings are not finite: the encoder has diverged"):
        task.evaluate(data, subject="encoder")
