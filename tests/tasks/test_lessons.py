"""Batches of turned tiles: a pure function of tile, epoch and seed; what can't be read is counted."""

import numpy as np
import pytest
import torch

from histo_ssl.data.loading import Loading
from histo_ssl.progress import Progress
from histo_ssl.tasks.lessons import N_TURNS, Lessons, Lost, Order, turn_of, turned

from .conftest import DrawnTiles

ROWS = np.arange(0, 40, 2)
CLASS_OF = {int(row): int(row) % 7 for row in ROWS}


def _lessons(
    source: DrawnTiles, *, n_workers: int = 0, max_failed: float = 1.0, batch_size: int = 6, epochs: int = 3
) -> Lessons:
    return Lessons(
        source=source,
        order=Order(rows=ROWS, batch_size=batch_size, epochs=epochs, seed=3),
        class_of=CLASS_OF,
        loading=Loading(n_workers=n_workers, start_method="fork", timeout_s=60),
        lost=Lost(what="training", fate="gives its place to another", n_tiles=20, max_failed=max_failed),
        progress=Progress("test", n_items=1, noun="tiles"),
    )


def test_the_eight_positions_are_numpys_turns_of_a_tile_and_of_its_mirror() -> None:
    tile = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    expected = [np.rot90(one, k) for one in (tile, tile[:, ::-1]) for k in range(4)]
    positions = turned(torch.from_numpy(np.stack([tile] * 8)), np.arange(N_TURNS)).numpy()
    np.testing.assert_array_equal(positions, expected)
    assert len({position.tobytes() for position in positions}) == 8


def test_turns_are_drawn_alike_and_depend_on_tile_epoch_and_seed() -> None:
    drawn = np.array([turn_of(row, 0, seed=0) for row in range(4000)])
    np.testing.assert_allclose(np.bincount(drawn, minlength=8), 500, atol=90)  # 4 SD of a count
    for other in (
        [turn_of(row, 1, seed=0) for row in range(4000)],
        [turn_of(row, 0, seed=1) for row in range(4000)],
    ):
        assert np.mean(drawn == other) == pytest.approx(1 / 8, abs=0.03)


def test_each_epoch_is_a_shuffle_of_turned_tiles_with_their_classes() -> None:
    source = DrawnTiles(told=True)
    pairs = [
        (tile.permute(1, 2, 0).numpy(), int(label))
        for tiles, labels in _lessons(source)
        for tile, label in zip(tiles, labels, strict=True)
    ]
    # three batches of 6 of the 20, three times
    orders = [np.random.default_rng([3, epoch]).permutation(ROWS)[:18] for epoch in range(3)]
    wanted = [(int(row), epoch) for epoch, order in enumerate(orders) for row in order]
    for (tile, label), (row, epoch) in zip(pairs, wanted, strict=True):
        turn = turn_of(row, epoch, seed=3)
        whole = source.read(row)
        np.testing.assert_array_equal(tile, np.rot90(whole[:, ::-1] if turn > 3 else whole, turn % 4))
        assert label == row % 7
    assert len({tuple(order) for order in orders}) == 3


def test_they_come_again_the_same_whoever_reads() -> None:
    source = DrawnTiles(told=True)
    alone, helped = (list(_lessons(source, n_workers=n)) for n in (0, 2))
    assert len(alone) == len(_lessons(source)) == 9
    for (tiles, labels), (same_tiles, same_labels) in zip(alone, helped, strict=True):
        assert torch.equal(tiles, same_tiles)
        assert torch.equal(labels, same_labels)


def test_a_tile_that_can_not_be_read_gives_its_place_to_another_with_its_own_class(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = DrawnTiles(told=True, broken=(0, 10))
    lessons = _lessons(source, batch_size=20, epochs=1)
    ((tiles, labels),) = lessons
    assert sorted(lessons.lost.reasons) == [0, 10]
    assert [record.message for record in caplog.records if "is broken" in record.message].count(
        "evaluate: a training tile gives its place to another: tile 10 is broken"
    ) == 1
    known = {source.read(int(row)).astype(int).sum(): row % 7 for row in ROWS if row not in (0, 10)}
    for tile, label in zip(tiles, labels, strict=True):  # a turn keeps the sum
        assert known[int(tile.long().sum())] == label


def test_too_many_of_them_are_an_error_as_soon_as_they_are_too_many() -> None:
    lessons = _lessons(DrawnTiles(told=True, broken=(0, 10, 20)), max_failed=0.1)
    with pytest.raises(ValueError, match=r"3 of 20 training tiles can't be read.* newest: tile \d+ is brok"):
        list(lessons)
    list(_lessons(DrawnTiles(told=True, broken=(0, 10)), max_failed=0.1))  # two are allowed
