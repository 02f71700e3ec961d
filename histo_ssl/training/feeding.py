"""Whether a training waits for its tiles, and what would help."""

import logging
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from histo_ssl.data.base import Costly
from histo_ssl.data.datamodule import StreamLoader, TileDataModule

log = logging.getLogger(__name__)

# Batches: those that are left out, in which workers start and kernels are chosen; those that are judged by.
N_FIRST, N_WATCHED = 10, 50
MOST = 0.05  # of a step that waiting for tiles may take without a word


class Feeding(Callback):
    """Says once, early in a training, that it waits for tiles for more than 5 % of its time."""

    def __init__(self, data: TileDataModule) -> None:
        self.data = data
        self.n_batches = 0
        self.started, self.waited_s = 0.0, 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin to watch, or tell what was seen."""
        self.n_batches += 1
        if self.n_batches not in (N_FIRST, N_FIRST + N_WATCHED) or not trainer.is_global_zero:
            return
        loader = trainer.train_dataloader
        assert isinstance(loader, StreamLoader)
        now = time.monotonic()
        if self.n_batches == N_FIRST:
            self.started, self.waited_s = now, loader.waited_s
            return
        waited_s, seconds = loader.waited_s - self.waited_s, now - self.started
        if waited_s > MOST * seconds:
            log.info("pretrain: %s", self._told(waited_s, seconds, n_ranks=trainer.world_size))

    def _told(self, waited_s: float, seconds: float, *, n_ranks: int) -> str:
        n_tiles = N_WATCHED * self.data.batch_size
        source, loading = self.data.source, self.data.loading
        other = source.faster(self.data.rows) if isinstance(source, Costly) else ""
        n_workers, n_busy = loading.n_workers, n_ranks * (1 + loading.n_workers)
        said = (
            f"reading takes {waited_s / seconds:.0%} of the step: {n_tiles / seconds:,.0f} tiles/s come, "
            f"{n_tiles / (seconds - waited_s):,.0f} could be used; more than loader.n_workers={n_workers} "
            f"help on more than {n_busy} cores"
        )
        return f"{said}, and {other}" if other else said
