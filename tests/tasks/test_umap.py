"""A map keeps neighbours together, is the same every time, and is of the same tiles for all."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.tasks.umap import UmapTask

pytestmark = pytest.mark.slow  # umap compiles for seconds

Tiles = Callable[..., EmbeddingSet]


def task(*, max_tiles: int = 100, n_neighbors: int = 5) -> UmapTask:
    return UmapTask(
        n_neighbors=n_neighbors,
        min_dist=0.1,
        metric="euclidean",
        max_tiles=max_tiles,
        thumbnail_px=16,
        seed=0,
    )


def places(tiles: EmbeddingSet, umap: UmapTask) -> NDArray[np.float64]:
    return umap.evaluate(tiles, subject="encoder").predictions[["map_x", "map_y"]].to_numpy()


def groups(n_each: int) -> NDArray[np.float32]:
    """Three clouds of 8 dimensions, 50 SD apart."""
    rng = np.random.default_rng(0)
    centre = 50 * np.eye(8)[:3].repeat(n_each, axis=0)
    return (centre + rng.normal(size=(3 * n_each, 8))).astype(np.float32)


def test_each_tile_s_nearest_on_the_map_is_of_its_own_group_and_the_map_is_the_same_again(
    tiles: Tiles,
) -> None:
    label = [name for name in "abc" for _ in range(15)]
    data = tiles(label=label, features=groups(15))
    xy = places(data, task())
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2) + 1e9 * np.eye(len(xy))
    assert [label[i] for i in distance.argmin(axis=1)] == label
    np.testing.assert_array_equal(places(data, task()), xy)


def test_a_map_of_fewer_tiles_is_of_the_same_ones_whoever_embedded_them(tiles: Tiles) -> None:
    first = tiles(label=["a"] * 45, features=groups(15))
    second = tiles(label=["a"] * 45, features=groups(15)[::-1].copy())
    results = [task(max_tiles=20).evaluate(each, subject="x") for each in (first, second)]
    drawn = [result.predictions["tile"].tolist() for result in results]
    assert drawn[0] == drawn[1] == sorted(set(drawn[0]))
    assert len(drawn[0]) == results[0].counts["n_tiles"] == 20
    assert "20 of 45 tiles are on the map" in results[0].notes


def test_neighbours_that_a_map_cannot_keep_lower_its_trustworthiness(tiles: Tiles) -> None:
    rng = np.random.default_rng(0)
    noise = tiles(label=["a"] * 60, features=rng.normal(size=(60, 40)).astype(np.float32))
    line = tiles(label=["a"] * 60, features=np.arange(60.0)[:, None] * np.ones(40, np.float32))
    noted = [task().evaluate(data, subject="x").notes[0] for data in (noise, line)]
    trust = [float(note.split("map ")[1].split(":")[0]) for note in noted]
    assert trust[0] < 0.9 < trust[1]


@pytest.mark.parametrize("n_tiles", [0, 3])
def test_of_fewer_than_four_tiles_there_is_no_map_but_a_sentence(tiles: Tiles, n_tiles: int) -> None:
    result = task().evaluate(tiles(label=["a"] * n_tiles), subject="encoder")
    assert result.notes == [f"{n_tiles} tiles: a map needs 4 or more"]
    assert (result.thumbnail_px, len(result.predictions)) == (0, 0)


@pytest.mark.parametrize("n_tiles", [4, 5, 7])
def test_a_handful_of_tiles_has_a_map_although_there_are_fewer_than_neighbours_asked_for(
    tiles: Tiles, n_tiles: int
) -> None:
    data = tiles(label=[""] * n_tiles, features=groups(3)[:n_tiles])
    xy = places(data, task(n_neighbors=15))
    assert xy.shape == (n_tiles, 2)
    assert np.isfinite(xy).all()


def test_a_map_leaves_torch_s_threads_as_they_were(tiles: Tiles) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        places(tiles(label=["a"] * 45, features=groups(15)), task())
        assert (
            torch.get_num_threads() == 1
        )  # a pool of more is lost to a fork, which then waits for it for ever
    finally:
        torch.set_num_threads(before)
