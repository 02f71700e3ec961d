"""Which tiles a step sees, and that the way they are read changes nothing."""

from collections.abc import Callable
from itertools import chain, pairwise

import numpy as np
import pytest
import torch

from histo_ssl.data.base import TileSource
from histo_ssl.data.datamodule import ReplacedTiles, StepSampler, TileDataModule
from histo_ssl.data.loading import Loading
from histo_ssl.data.rows import InRuns
from histo_ssl.views.compose import Views

Source = Callable[[int], TileSource]


def _module(
    source: TileSource, views: Views, *, n_workers: int = 0, start_method: str = "fork", **changes: int
) -> TileDataModule:
    values = {"batch_size": 4, "epochs": 2, "accumulate": 1, "seed": 0, **changes}
    loading = Loading(n_workers=n_workers, start_method=start_method, timeout_s=60 if n_workers else 0)
    rows = np.arange(len(source))
    return TileDataModule(source=source, rows=rows, views=views, loading=loading, **values)


RUN_LENGTH = 1  # of the sampler's tiles


def _sampler(**changes: int) -> StepSampler:
    values = {
        "batch_size": 4,
        "steps_per_epoch": 5,
        "n_steps": 10,
        "first_step": 0,
        "rank": 0,
        "n_ranks": 1,
        "seed": 0,
    }
    rows = np.arange(22) + 100
    return StepSampler(rows=InRuns(rows, RUN_LENGTH) if RUN_LENGTH > 1 else rows, **{**values, **changes})


@pytest.fixture(params=["short", "long", "runs of 2", "runs of 3"])
def length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All holds for lists that are shuffled whole, for those that are too long for it, and in runs."""
    if request.param == "long":
        monkeypatch.setattr("histo_ssl.data.datamodule.N_SHUFFLED_WHOLE", 0)
    if request.param.startswith("runs"):
        monkeypatch.setattr("tests.data.test_datamodule.RUN_LENGTH", int(request.param[-1]))


@pytest.mark.usefixtures("length")
def test_an_epoch_sees_no_tile_twice_and_drops_less_than_a_batch() -> None:
    steps = list(_sampler())
    for epoch, part in ((0, steps[:5]), (1, steps[5:])):
        rows = [row for row, _ in chain.from_iterable(part)]
        assert len(rows) == len(set(rows)) == 20
        assert set(rows) <= set(range(100, 122))
        assert {epoch} == {e for _, e in chain.from_iterable(part)}
    assert steps[:5] != [[(row, 0) for row, _ in step] for step in steps[5:]]  # shuffled anew


@pytest.mark.usefixtures("length")
def test_every_tile_is_seen_in_some_epoch() -> None:
    rows = {row for row, _ in chain.from_iterable(_sampler(n_steps=100))}
    assert rows == set(range(100, 122))


@pytest.mark.usefixtures("length")
@pytest.mark.parametrize("first_step", [0, 1, 4, 5, 7])
def test_a_stream_that_starts_in_the_middle_is_the_rest_of_the_whole(first_step: int) -> None:
    assert list(_sampler(first_step=first_step)) == list(_sampler())[first_step:]


@pytest.mark.usefixtures("length")
@pytest.mark.parametrize("n_ranks", [2, 4])
def test_ranks_together_see_what_one_rank_sees(n_ranks: int) -> None:
    shares = [list(_sampler(rank=rank, n_ranks=n_ranks)) for rank in range(n_ranks)]
    together = [list(chain.from_iterable(step)) for step in zip(*shares, strict=True)]
    assert together == list(_sampler())


@pytest.mark.parametrize("run_length", [2, 4])
def test_neighbours_of_a_run_are_drawn_together_and_in_other_runs_the_next_time(
    monkeypatch: pytest.MonkeyPatch, run_length: int
) -> None:
    monkeypatch.setattr("tests.data.test_datamodule.RUN_LENGTH", run_length)
    steps = list(_sampler())
    pairs = [{(a, b) for (a, _), (b, _) in pairwise(step) if b == a + 1} for step in steps]
    assert all(
        len(found) >= len(step) - len(step) // run_length - 1
        for found, step in zip(pairs, steps, strict=True)
    )
    first, second = (set().union(*pairs[5 * epoch : 5 * epoch + 5]) for epoch in (0, 1))
    assert first != second


def test_the_variance_of_a_batch_grows_as_runs_that_resemble_each_other_say() -> None:
    """Half of a tile's variance is its slide's: runs of L give a batch's mean 1 + (L - 1) / 2 times it.

    2,000 epochs of one batch of 64: a variance is known to 3 %, so their ratio to 5 %; the rest of the
    tolerance is for runs over the border of two slides, 1 of 25 (L = 4) or 1 of 12 (L = 8).
    """
    random = np.random.default_rng(0)
    n_slides, n_tiles = 100, 100
    slide = np.arange(n_slides).repeat(n_tiles)
    values = random.normal(size=n_slides)[slide] + random.normal(size=n_slides * n_tiles)
    found, n_of_slides = {}, {}
    for run_length in (1, 4, 8):
        sampler = StepSampler(
            rows=InRuns(np.arange(len(values)), run_length),
            batch_size=64,
            steps_per_epoch=1,
            n_steps=2000,
            first_step=0,
            rank=0,
            n_ranks=1,
            seed=0,
        )
        rows = np.array([[row for row, _ in step] for step in sampler])
        found[run_length] = values[rows].mean(axis=1).var()
        n_of_slides[run_length] = np.mean([len(set(slide[batch])) for batch in rows])
    assert found[1] * 64 == pytest.approx(values.var(), rel=0.1)
    assert found[4] / found[1] == pytest.approx(2.5, rel=0.15)
    assert found[8] / found[1] == pytest.approx(4.5, rel=0.15)
    # of 64 draws, of 16 runs and of 8, as many different slides of 100 as balls hit boxes
    for run_length, n in n_of_slides.items():
        n_stretches = 64 / run_length * (1 + (run_length - 1) / n_tiles)  # some runs lie on two slides
        assert n == pytest.approx(100 * (1 - 0.99**n_stretches), rel=0.03)


def test_accumulated_batches_together_are_the_batch(image_source: Source, views: Views) -> None:
    source = image_source(20)
    whole = list(_module(source, views).sampler(first_step=0, rank=0, n_ranks=1))
    halves = list(_module(source, views, accumulate=2).sampler(first_step=0, rank=0, n_ranks=1))
    assert [first + second for first, second in zip(halves[::2], halves[1::2], strict=True)] == whole


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning")
@pytest.mark.parametrize(
    ("n_workers", "start_method"),
    [
        (1, "fork"),
        (4, "fork"),
        pytest.param(1, "spawn", marks=pytest.mark.slow),
        pytest.param(2, "forkserver", marks=pytest.mark.slow),
    ],
)
def test_workers_change_no_byte_and_no_view(
    image_source: Source, views: Views, n_workers: int, start_method: str
) -> None:
    source = image_source(16)
    plain = _module(source, views)
    worked = _module(source, views, n_workers=n_workers, start_method=start_method)
    batches = [
        [
            m.on_after_batch_transfer(b, 0) | {"tiles": b["tiles"]}
            for b in m.loader(m.sampler(first_step=0, rank=0, n_ranks=1))
        ]
        for m in (plain, worked)
    ]
    assert len(batches[0]) == len(batches[1]) == 8
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a["tiles"], b["tiles"])
        assert torch.equal(a["ids"], b["ids"])
        assert all(torch.equal(x, y) for x, y in zip(a["views"], b["views"], strict=True))


def test_tiles_arrive_as_they_lie_in_their_files(image_source: Source, views: Views) -> None:
    source = image_source(8)
    module = _module(source, views, batch_size=8)
    batch = next(iter(module.loader(module.sampler(first_step=0, rank=0, n_ranks=1))))
    for tile, row in zip(batch["tiles"], batch["ids"], strict=True):
        np.testing.assert_array_equal(tile.numpy(), source.read(int(row)))


def test_a_batch_larger_than_the_data_is_refused(image_source: Source, views: Views) -> None:
    with pytest.raises(ValueError, match=r"training.batch_size=64, but there are only 3 tiles"):
        _module(image_source(3), views, batch_size=64)


def test_a_batch_that_ranks_cannot_share_is_refused(image_source: Source, views: Views) -> None:
    module = _module(image_source(8), views)
    with pytest.raises(ValueError, match="a batch of 4 tiles can't be shared equally among 3 ranks"):
        module.sampler(first_step=0, rank=0, n_ranks=3)


class Torn:
    """Tiles of which some can't be read."""

    tile_px, mpp = 2, None

    def __init__(self, n: int, torn: set[int]) -> None:
        self.n, self.torn = n, torn

    def __len__(self) -> int:
        return self.n

    def read(self, i: int) -> np.ndarray:
        if i in self.torn:
            raise ValueError(f"slide_{i}.svs: torn")
        return np.full((2, 2, 3), i, dtype=np.uint8)


def test_a_tile_that_cannot_be_read_is_replaced_by_the_same_other_one_each_time() -> None:
    tiles = ReplacedTiles(Torn(50, {7}), np.arange(10, 50), seed=3)
    replacement = tiles.replacements(7)[0]
    for wanted, place in (([(7, 0)], 0), ([(12, 1), (7, 1)], 1)):
        batch = tiles.__getitems__(wanted)
        assert batch["ids"][place] == replacement
        assert batch["tiles"][place].unique().tolist() == [replacement]  # the id is of what was read
        assert batch["failed"] == {7: "slide_7.svs: torn"}
        assert batch["epoch"].tolist() == [epoch for _, epoch in wanted]
    assert tiles.__getitems__([(12, 1)])["failed"] == {}


def test_replacements_come_from_the_training_tiles_and_depend_on_tile_and_seed() -> None:
    rows = np.arange(10, 50)
    drawn = {
        (row, seed): tuple(ReplacedTiles(Torn(50, set()), rows, seed).replacements(row))
        for row in range(20)
        for seed in range(5)
    }
    assert {other for others in drawn.values() for other in others} == set(rows.tolist())
    assert len(set(drawn.values())) == 100


def test_a_replacement_that_fails_too_is_replaced_and_named() -> None:
    rows = np.arange(10, 50)
    first, second = ReplacedTiles(Torn(50, set()), rows, seed=3).replacements(7)[:2]
    batch = ReplacedTiles(Torn(50, {7, first}), rows, seed=3).__getitems__([(7, 0)])
    assert batch["ids"].tolist() == [second]
    assert batch["failed"] == {7: "slide_7.svs: torn", first: f"slide_{first}.svs: torn"}


def test_where_no_tile_can_be_read_the_first_is_named() -> None:
    tiles = ReplacedTiles(Torn(50, set(range(50))), np.arange(50), seed=3)
    with pytest.raises(ValueError, match=r"slide_7\.svs: torn; and 5 other tiles tried in its place fail"):
        tiles.__getitems__([(7, 0)])
