"""Sets up the scores that are taken while a plan's training goes on: on whose tiles, and where they go."""

import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from lightning import Callback
from torch import Tensor, nn

from histo_ssl.config.plan import Plan
from histo_ssl.data.base import TileSource
from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.data.sources import open_source
from histo_ssl.embed import known_of
from histo_ssl.encode import Card, Encoder, check_scale, save_encoder
from histo_ssl.folders import artifacts
from histo_ssl.folders.artifacts import fingerprint, write_json
from histo_ssl.methods.monitors import rankme
from histo_ssl.tasks.base import BagTask, Task
from histo_ssl.tasks.chosen import ChosenTiles, choose_tiles
from histo_ssl.tasks.cloud import feature_sd, uniformity
from histo_ssl.tasks.online import OnlineScores, OnlineSpec, Surroundings
from histo_ssl.tasks.splits import TILE

log = logging.getLogger(__name__)

BEST = "encoder_best.safetensors"
BEST_FACTS = "encoder_best.json"  # its step, its scores, and the patients that it was chosen on


def online_scores(
    plan: Plan, data: TileDataModule, *, card: Card, folder: Path, metrics: Path
) -> Callback | None:
    """The callback that scores a training on labelled tiles outside the task's test; None without any.

    Args:
        plan: with the task whose tiles are taken.
        data: what is trained on.
        card: of the encoder that training will export.
        folder: receives the best encoder.
        metrics: file that lines are appended to.
    """
    spec: OnlineSpec | None = instantiate(plan.group("online")) or None
    if spec is None:
        return None
    if not artifacts.is_done(plan.task_tile_folder):
        log.info("online: off, since the task's tiles are not there; the stage 'tile' cuts them")
        return None
    source = open_source(plan.task_tile_folder)
    try:
        tiles = _tiles(plan, source, card=card, spec=spec)
    except ValueError as error:
        log.info("online: off (%s)", error)
        return None
    n_embedded = len(tiles) + 2 * spec.n_pairs
    n_trained = data.total_steps * data.batch_size * data.accumulate
    times = spec.n_times(n_trained=n_trained, n_embedded=n_embedded)
    log.info(
        "online: %d tiles asked of %d known, none of the task's test, scored %d times",
        tiles.n_asked,
        len(tiles) - tiles.n_asked,
        times,
    )
    around = Surroundings(
        source=source,
        loading=data.loading,
        mean=data.views.mean,
        std=data.views.std,
        restained=data.views.restained,
        views=partial(_views, data) if data.views.n_views > 1 else None,
        measures={"rankme": rankme, "uniformity": uniformity, "feature_sd": feature_sd},
        metrics=metrics,
        best=folder / BEST,
        keep=partial(_keep, folder, card, tiles),
    )
    return OnlineScores(spec, tiles, around, times=times)


def _tiles(plan: Plan, source: TileSource, *, card: Card, spec: OnlineSpec) -> ChosenTiles:
    tiles = known_of(source.table(), features=np.zeros((len(source), 0), np.float32)).labelled()
    if not len(tiles):
        raise ValueError("the task's data have no labelled tile")
    any_mpp = plan.cfg.embedding.any_mpp
    check_scale(source.mpp, trained_mpp=card.mpp, who="an encoder of this run", any_mpp=any_mpp)
    task: Task | BagTask = instantiate(plan.group("task.protocol"))
    if isinstance(task, BagTask):
        raise ValueError("the task's labels are of slides, and neighbours vote on tiles")
    if not task.labels_are_classes:
        raise ValueError("the task's labels are numbers, and neighbours vote on classes")
    return choose_tiles(tiles, task.split(tiles), spec=spec.draw)


def _views(data: TileDataModule, tiles: Tensor, rows: Tensor) -> list[Tensor]:
    """Views as in training, the same every time."""
    return data.views.of_restained(tiles, ids=rows, epoch=0, seed=data.seed)


def _keep(folder: Path, card: Card, tiles: ChosenTiles, encoder: nn.Module, scores: dict[str, float]) -> None:
    """Write the best encoder, with a fingerprint of its own, and what it was chosen by."""
    named = [name for name in tiles.names if not name.startswith(TILE)]  # a number says nothing elsewhere
    own = replace(card, fingerprint=fingerprint([card.fingerprint, scores["step"]]), chosen_on=tuple(named))
    save_encoder(folder / BEST, Encoder(encoder, own))
    write_json(folder / BEST_FACTS, {**scores, "card": asdict(own)})
