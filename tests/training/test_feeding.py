"""Who waits for tiles is told of it once, with what would help."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from histo_ssl.data.base import TileSource
from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.training.feeding import N_FIRST, N_WATCHED, Feeding
from histo_ssl.views.compose import Views
from tests.training.tiny import IN_PROCESS


class Packable:
    """A source of which something is known that makes it faster."""

    def __init__(self, source: TileSource) -> None:
        self.source, self.tile_px, self.mpp = source, source.tile_px, source.mpp

    def __len__(self) -> int:
        return len(self.source)

    def faster(self, rows: Any) -> str:
        return f"data.pack=true would store {len(rows)} tiles"


def _data(source: TileSource, views: Views) -> TileDataModule:
    """Two batches an epoch, read by the process itself."""
    return TileDataModule(
        source=source,
        rows=np.arange(8),
        views=views,
        batch_size=4,
        epochs=1,
        accumulate=1,
        seed=0,
        loading=IN_PROCESS,
    )


@pytest.mark.parametrize(
    ("waited_s", "told"),
    [
        (0.02, None),  # 4 % of half a second
        (0.125, "reading takes 25% of the step: 400 tiles/s come, 533 could be used"),
    ],
)
def test_waiting_for_more_than_a_twentieth_of_the_time_is_told_of(
    image_source: Callable[[int], TileSource],
    views: Views,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    waited_s: float,
    told: str | None,
) -> None:
    source = image_source(8)
    data = _data(Packable(source), views)  # type: ignore[arg-type]
    loader = data.loader(data.sampler(first_step=0, rank=0, n_ranks=1))
    trainer: Any = SimpleNamespace(is_global_zero=True, world_size=1, train_dataloader=loader)
    now = 0.0
    monkeypatch.setattr("histo_ssl.training.feeding.time", SimpleNamespace(monotonic=lambda: now))
    feeding = Feeding(data)
    caplog.set_level("INFO", logger="histo_ssl")
    for batch in range(N_FIRST + N_WATCHED + 100):
        now += 0.01
        loader.waited_s += 1.0 if batch < N_FIRST else waited_s / N_WATCHED
        feeding.on_train_batch_end(trainer, None, None, None, batch)  # type: ignore[arg-type]
    lines = [record.getMessage() for record in caplog.records]
    assert lines == (
        []
        if told is None
        else [
            f"pretrain: {told}; more than loader.n_workers=0 help on more than 1 cores, and "
            "data.pack=true would store 8 tiles"
        ]
    )


def test_a_loader_counts_what_its_user_waits(
    image_source: Callable[[int], TileSource], views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, now = image_source(8), 0.0

    def slow(i: int) -> np.ndarray:
        nonlocal now
        now += 1.0
        return np.zeros((32, 32, 3), np.uint8)

    monkeypatch.setattr(source, "read", slow)
    monkeypatch.setattr("histo_ssl.data.loading.time", SimpleNamespace(monotonic=lambda: now))
    data = _data(source, views)
    loader = data.loader(data.sampler(first_step=0, rank=0, n_ranks=1))
    for _ in loader:
        now += 100.0  # what the step takes does not count
    assert loader.waited_s == 8.0
