"""What a training bears and counts: tiles that can't be read or restained, steps that are not finite."""

import logging
from typing import Any

from lightning import Callback, LightningModule, Trainer

from histo_ssl.data.base import Part, TileSource
from histo_ssl.methods.base import SSLMethod
from histo_ssl.parallel.distributed import gather_objects

log = logging.getLogger(__name__)

N_NAMED = 8  # tiles that a sentence names


class CountedTiles(Callback):
    """Counts the tiles that a batch names under a word, each once, over all ranks and restarts."""

    word: str  # of the batch, and the flag by which a rank tells the others

    def __init__(self) -> None:
        self.reasons: dict[int, str] = {}  # by number of the tile

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the reduction that every step makes."""
        _flags(pl_module)[self.word] = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Tell the other ranks how many tiles are named for the first time."""
        _flags(pl_module)[self.word] = float(len(self._new(batch)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count them, the same on all ranks."""
        assert isinstance(pl_module, SSLMethod)
        if not pl_module.flag_means[self.word]:
            return
        new = {row: reason for part in gather_objects(self._new(batch)) for row, reason in part.items()}
        self.reasons |= new
        self.tell(new)

    def tell(self, new: dict[int, str]) -> None:
        """What to say of those that are new; nothing, unless a kind of tile wants it."""

    def state_dict(self) -> dict[str, Any]:
        """What was counted so far."""
        return {"reasons": self.reasons}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there."""
        self.reasons = dict(state_dict["reasons"])

    def _new(self, batch: Any) -> dict[int, str]:
        return {row: reason for row, reason in batch.get(self.word, {}).items() if row not in self.reasons}


class NotRestainedTiles(CountedTiles):
    """Counts the tiles whose stain could not be normalised."""

    word = "not_restained"


class FailedTiles(CountedTiles):
    """Counts the tiles that could not be read and were replaced."""

    word = "failed"

    def __init__(self, *, n_tiles: int, max_failed_tiles: float) -> None:
        """Bear at most a share `max_failed_tiles`, 0-1, of the `n_tiles` that training sees."""
        super().__init__()
        self.n_tiles, self.max_failed_tiles = n_tiles, max_failed_tiles

    def tell(self, new: dict[int, str]) -> None:
        """Log them.

        Raises:
            ValueError: too many; names the newest.
        """
        for reason in new.values():
            log.warning("pretrain: a tile is replaced by another one: %s", reason)
        if len(self.reasons) > self.max_failed_tiles * self.n_tiles:
            raise ValueError(
                f"{len(self.reasons)} of {self.n_tiles} training tiles can't be read, more than "
                f"max_failed_tiles={self.max_failed_tiles:g} allows; the newest: {list(new.values())[-1]}"
            )


class SkippedSteps(Callback):
    """Allows the method to skip so many steps that are not finite; the count outlives a restart."""

    def __init__(self, max_skipped: int) -> None:
        self.max_skipped = max_skipped
        self._method: SSLMethod | None = None
        self._n_before = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand both numbers over."""
        assert isinstance(pl_module, SSLMethod)
        self._method = pl_module
        pl_module.max_skipped, pl_module.n_skipped = self.max_skipped, self._n_before

    def state_dict(self) -> dict[str, Any]:
        """How many were skipped so far."""
        return {"n_skipped": self._method.n_skipped if self._method else self._n_before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there."""
        self._n_before = state_dict["n_skipped"]


def named_tiles(source: TileSource, ids: list[int]) -> str:
    """Tiles by number and slide, such as "tile 5 (slide a), tile 9 (slide b) and 30 more"."""
    rows = {row: source.table(Part(name="", start=row, stop=row + 1)) for row in ids[:N_NAMED]}
    words = [f"tile {row} ({tile['slide'].item()})" for row, tile in rows.items()]
    rest = f" and {len(ids) - N_NAMED} more" if len(ids) > N_NAMED else ""
    return ", ".join(words) + rest


def _flags(pl_module: LightningModule) -> dict[str, float]:
    assert isinstance(pl_module, SSLMethod)
    return pl_module.flags
