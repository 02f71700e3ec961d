"""An atlas: clusters are the groups that there are, scored beside chance, shown by typical tiles."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score

from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.tasks.atlas import CLASSES, CLUSTERS, SLIDES, AtlasTask

Tiles = Callable[..., EmbeddingSet]
SIZES = (60, 30, 10)  # tiles of three groups


def task(**values: Any) -> AtlasTask:
    usual = {
        "n_clusters": 3,
        "n_typical": 4,
        "n_of_slide": 2,
        "max_tiles": 1000,
        "n_bootstrap": 20,
        "seed": 0,
    }
    return AtlasTask(**{**usual, **values})


def clouds() -> NDArray[np.float32]:
    """Three groups of tiles, 50 SD apart."""
    rng = np.random.default_rng(0)
    centre = 50 * np.eye(8)[:3].repeat(SIZES, axis=0)
    return (centre + rng.normal(size=(sum(SIZES), 8))).astype(np.float32)


def known(tiles: Tiles, label: list[str], features: NDArray[np.float32] | None = None) -> EmbeddingSet:
    slide = [f"s{i % 5}" for i in range(len(label))]
    return tiles(label=label, features=clouds() if features is None else features, slide=slide, patient=slide)


def test_groups_far_apart_are_the_clusters_the_largest_first(tiles: Tiles) -> None:
    label = [name for name, n in zip("abc", SIZES, strict=True) for _ in range(n)]
    result = task().evaluate(known(tiles, label), subject="encoder")
    np.testing.assert_array_equal(result.predictions["cluster"], np.repeat([0, 1, 2], SIZES))
    assert result.tables[CLUSTERS]["share"].tolist() == [0.6, 0.3, 0.1]
    (score,) = result.scores
    assert (score.value, score.low, score.high, score.chance) == (1.0, 1.0, 1.0, 0.0)


def test_labels_that_have_nothing_to_do_with_clusters_score_chance(tiles: Tiles) -> None:
    label = np.random.default_rng(1).choice(["a", "b"], sum(SIZES)).tolist()
    result = task().evaluate(known(tiles, label), subject="encoder")
    (score,) = result.scores
    assert score.value == adjusted_mutual_info_score(label, np.repeat([0, 1, 2], SIZES))
    assert abs(score.value) < 0.05  # its SD over draws of labels is .013
    assert score.low <= score.value <= score.high


def test_shares_sum_to_one_in_each_slide_and_class(tiles: Tiles) -> None:
    label = ["a"] * 60 + ["b"] * 40
    tables = task().evaluate(known(tiles, label), subject="encoder").tables
    for name, column in ((SLIDES, "slide"), (CLASSES, "label")):
        np.testing.assert_allclose(tables[name].groupby(column)["share"].sum(), 1.0)
    of_b = tables[CLASSES].set_index(["label", "cluster"])["share"]
    assert of_b["b", 1] == pytest.approx(0.75)
    assert of_b["a", 0] == 1.0


def test_the_tiles_that_are_shown_are_nearest_to_the_centre_and_not_all_of_one_slide(tiles: Tiles) -> None:
    result = task().evaluate(known(tiles, ["a"] * sum(SIZES)), subject="encoder")
    (sheet,) = result.sheets
    assert [len(rows) for _, rows, _ in sheet.rows] == [4, 4, 4]
    found = result.predictions.set_index("tile")
    for cluster, (title, rows, captions) in enumerate(sheet.rows):
        assert title.startswith(f"cluster {cluster}: ")
        assert (found.loc[rows, "cluster"] == cluster).all()
        nearest = found[found["cluster"] == cluster].sort_values("distance")
        allowed = nearest.groupby("slide").head(2).head(4)
        assert rows.tolist() == allowed.index.tolist()
        assert max(found.loc[rows, "slide"].value_counts()) <= 2
        assert [slide for slide, _ in captions] == found.loc[rows, "slide"].tolist()


def test_floors_are_scored_and_not_shown_and_tiles_without_labels_are_clustered_too(tiles: Tiles) -> None:
    colour = task().evaluate(known(tiles, ["a"] * 60 + ["b"] * 40), subject="colour")
    assert len(colour.scores) == 1
    assert (colour.sheets, colour.figures) == ([], [])
    unlabelled = task().evaluate(known(tiles, [""] * sum(SIZES)), subject="encoder")
    assert unlabelled.scores == []
    assert len(unlabelled.sheets) == 1


def test_fewer_tiles_than_clusters_are_refused(tiles: Tiles) -> None:
    with pytest.raises(ValueError, match="2 tiles can't be 3 clusters: take fewer"):
        task().check(tiles(label=["a", "b"]))
    with pytest.raises(ValueError, match="n_clusters=1"):
        task(n_clusters=1)


def test_not_finite_embeddings_are_refused(tiles: Tiles) -> None:
    features = clouds()
    features[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 100 embeddings are not finite"):
        task().evaluate(known(tiles, ["a"] * 100, features), subject="encoder")
