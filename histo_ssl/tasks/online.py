"""Scores while training goes on: nearest neighbours among labelled tiles, and the shape of their embeddings.

Neither weights nor the random numbers of the training are touched: the losses are the same without it.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn

from histo_ssl.data.base import TileSource
from histo_ssl.data.loading import Loading
from histo_ssl.data.reading import read_tiles
from histo_ssl.parallel.distributed import gather, gather_objects, rank, world_size
from histo_ssl.stain.base import Restained
from histo_ssl.tasks.base import check_finite
from histo_ssl.tasks.chosen import ChosenTiles, DrawSpec
from histo_ssl.tasks.cloud import alignment
from histo_ssl.tasks.metrics import auc, mean_over_defined
from histo_ssl.tasks.tiles import Lesson, TileProtocol

log = logging.getLogger(__name__)

MakeViews = Callable[[Tensor, Tensor], list[Tensor]]  # from restained tiles (B, 3, S, S), their numbers (B,)
Measure = Callable[[Tensor], Tensor]  # from embeddings (N, D) to a number
Scores = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class OnlineSpec:
    """How often which tiles are scored (see `conf/online/knn.yaml` for what each value means).

    Raises:
        ValueError: a value has no meaning.
    """

    draw: DrawSpec
    n_pairs: int
    times: int
    budget: float
    batch_size: int
    protocol: TileProtocol

    def __post_init__(self) -> None:
        for name in ("n_pairs", "times", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"online.{name}={getattr(self, name)}: a count of 1 or more is expected")

    def n_times(self, *, n_trained: int, n_embedded: int) -> int:
        """How often a training is scored: as often as the budget allows, once at least.

        Args:
            n_trained: tiles that the whole training sees, each as often as it is seen.
            n_embedded: tiles and views that are embedded each time.

        Returns:
            A training on 60,000 tiles may embed 3,000 with a budget of 0.05: twice 1,500.
        """
        return max(1, min(self.times, int(self.budget * n_trained / n_embedded)))


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the scores are made from, and where they go.

    Args:
        source: reads the tiles.
        loading: how they are read.
        mean: subtracted from RGB in 0-1.
        std: divides it afterwards.
        restained: normalises the stain of tiles before that.
        views: makes the views that the method trains on; None where it has fewer than two.
        measures: name -> number of the asked tiles' embeddings.
        metrics: file of one JSON object per line.
        best: where `keep` writes.
        keep: writes an encoder, with its step and scores.
    """

    source: TileSource
    loading: Loading
    mean: tuple[float, ...]
    std: tuple[float, ...]
    restained: Callable[[Tensor], Restained]
    views: MakeViews | None
    measures: Mapping[str, Measure]
    metrics: Path
    best: Path
    keep: Callable[[nn.Module, Scores], None]


class Encoding(Protocol):
    """What is asked of a method: the backbone that it would export."""

    def encoder(self) -> nn.Module:
        """The backbone."""


class OnlineScores(Callback):
    """Embeds the chosen tiles every so often, on all ranks together, and scores them on the first."""

    def __init__(self, spec: OnlineSpec, tiles: ChosenTiles, around: Surroundings, *, times: int) -> None:
        """Score a training `times` times."""
        self.spec, self.tiles, self.around, self.times = spec, tiles, around, times
        self.n_pairs = min(spec.n_pairs, tiles.n_asked) if around.views else 0
        self.is_read = np.ones(len(tiles), dtype=bool)
        self.best_auc = -1.0
        self._done_at = -1
        self._row = self._pixels = torch.zeros(0)

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, so that a resumed run replaces its encoder by a better one only."""
        return {"best_auc": self.best_auc}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again, unless the encoder that had it is gone."""
        self.best_auc = state_dict["best_auc"] if self.around.best.exists() else -1.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Read and restain this rank's share of the tiles, once: they stay in memory as 8-bit pixels."""
        place = np.arange(_share(len(self.tiles))) * world_size() + rank()
        # the last ranks repeat the last tile, so that all shares are equal
        row = self.tiles.row[np.minimum(place, len(self.tiles) - 1)]
        pixels, failed = read_tiles(self.around.source, row, loading=self.around.loading)
        few = torch.split(torch.from_numpy(pixels).permute(0, 3, 1, 2), self.spec.batch_size)
        alike = [self.around.restained(tiles.to(pl_module.device)).tiles.cpu() for tiles in few]
        self._row, self._pixels = torch.from_numpy(row), torch.cat(alike)
        self._leave_out({row: reason for part in gather_objects(failed) for row, reason in part.items()})

    def _leave_out(self, failed: Mapping[int, str]) -> None:
        """Do without the tiles that no rank could read; without scores where too few are left."""
        self.is_read = ~np.isin(self.tiles.row, list(failed))
        if not failed:
            return
        goes_on = self.tiles.subset(self.is_read).can_tell
        log.warning(
            "online: %d of %d tiles can't be read, %s; the first: %s",
            len(failed),
            len(self.tiles),
            "they are left out" if goes_on else "too many to score this training",
            next(iter(failed.values())),
        )
        self.times = self.times if goes_on else 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002 (Lightning names the arguments)
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Score, if this step is due and was not scored yet (accumulated batches share a step)."""
        step = trainer.global_step
        if step == self._done_at or not is_due(step, total=trainer.max_steps, times=self.times):
            return
        self._done_at = step
        started = time.monotonic()
        encoder = cast(Encoding, pl_module).encoder()
        with evaluating(encoder):
            scores = self._scores(encoder, device=pl_module.device)
        if trainer.is_global_zero:
            self._write(trainer, encoder, {**scores, "online_s": time.monotonic() - started})

    def _scores(self, encoder: nn.Module, *, device: torch.device) -> Scores:
        """All numbers, on rank 0; each rank embeds its share, every tile counts once."""
        clean = (
            encoder(self._clean(tiles, device).to(_dtype(encoder)))
            for _, tiles in self._batches(len(self._row))
        )
        is_read = torch.from_numpy(self.is_read)
        z_ND = _together(clean, n=len(self.tiles)).cpu()[is_read]
        views = [
            _together(z, n=self.n_pairs).cpu()[is_read[: self.n_pairs]]
            for z in self._embedded_views(encoder, device)
        ]
        if rank() > 0:
            return {}
        check_finite(z_ND.detach().numpy())
        tiles = self.tiles.subset(self.is_read)
        asked = z_ND[: tiles.n_asked]
        measured = {f"online_{name}": float(measure(asked)) for name, measure in self.around.measures.items()}
        aligned = {"online_alignment": float(alignment(*views))} if views and len(views[0]) else {}
        return self._neighbours(z_ND.numpy(), tiles, accelerator=device.type) | measured | aligned

    def _neighbours(self, z_ND: NDArray[np.float32], tiles: ChosenTiles, *, accelerator: str) -> Scores:
        n, truth = tiles.n_asked, tiles.class_of
        lesson = Lesson(
            features_ND=z_ND[n:],
            class_N=truth[n:],
            group_N=tiles.group[n:],
            n_classes=tiles.n_classes,
            accelerator=accelerator,
        )
        score_MC, _ = self.spec.protocol.classify(lesson, z_ND[:n])
        equal_1M = np.ones((1, n))
        per_class = [auc(score_M, truth[:n] == c, equal_1M) for c, score_M in enumerate(score_MC.T)]
        return {
            "online_knn_auc": float(mean_over_defined(np.stack(per_class, axis=1))[0]),
            "online_knn_accuracy": float((score_MC.argmax(axis=1) == truth[:n]).mean()),
        }

    def _embedded_views(self, encoder: nn.Module, device: torch.device) -> list[list[Tensor]]:
        """Two views of this rank's share of the first asked tiles, in batches; nothing without views."""
        if not self.n_pairs or self.around.views is None:
            return []
        made = [
            self.around.views(tiles.to(device), rows.to(device))[:2]
            for rows, tiles in self._batches(_share(self.n_pairs))
        ]
        return [[encoder(pair[i].to(_dtype(encoder))) for pair in made] for i in range(2)]

    def _batches(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers and pixels of the first n tiles of this rank."""
        for start in range(0, n, self.spec.batch_size):
            few = slice(start, min(start + self.spec.batch_size, n))
            yield self._row[few], self._pixels[few]

    def _clean(self, tiles: Tensor, device: torch.device) -> Tensor:
        mean, std = (
            torch.tensor(v, device=device).view(3, 1, 1) for v in (self.around.mean, self.around.std)
        )
        return (tiles.to(device).float() / 255 - mean) / std

    def _write(self, trainer: Trainer, encoder: nn.Module, scores: Scores) -> None:
        line = {"step": trainer.global_step, **scores}
        with self.around.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics(scores, step=trainer.global_step)
        if scores["online_knn_auc"] > self.best_auc:
            self.best_auc = scores["online_knn_auc"]
            self.around.keep(encoder, line)


def is_due(step: int, *, total: int, times: int) -> bool:
    """Whether a step ends one of `times` equal parts of a training, as the last of all does.

    >>> [step for step in range(11) if is_due(step, total=10, times=3)]
    [4, 7, 10]
    """
    return step > 0 and step * times // total > (step - 1) * times // total


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; every part's own mode again afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _share(n: int) -> int:
    """How many of n tiles each rank takes, the last ones perhaps a tile that others have."""
    return -(-n // world_size())


def _together(parts: Iterator[Tensor] | list[Tensor], *, n: int) -> Tensor:
    """Rows of all ranks in the order of the tiles, without those that were repeated: (n, D) float32."""
    z = gather(torch.cat(list(parts)).float())
    return z.reshape(world_size(), -1, z.shape[1]).transpose(0, 1).reshape(-1, z.shape[1])[:n]


def _dtype(encoder: nn.Module) -> torch.dtype:
    return next(encoder.parameters()).dtype
