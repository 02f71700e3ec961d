"""Whatever sees tiles sees them in the target's colours: views, encoders, floors, scores during training."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning import LightningModule
from PIL import Image
from torch import Tensor, nn

from histo_ssl import stages
from histo_ssl.config.plan import Plan
from histo_ssl.config.preflight import prepared
from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.data.loading import Loading
from histo_ssl.data.sources import open_source
from histo_ssl.embed import load_embeddings
from histo_ssl.embeddings import UNREADABLE
from histo_ssl.encode import load_encoder
from histo_ssl.export import ENCODER
from histo_ssl.folders.artifacts import counts, fingerprint, read_json
from histo_ssl.scoring import subjects_of
from histo_ssl.stain.base import NOT_RESTAINED, facts_of, restained
from histo_ssl.tasks.chosen import ChosenTiles
from histo_ssl.tasks.floors import ColorStatistics
from histo_ssl.tasks.online import OnlineScores, Surroundings
from histo_ssl.views.compose import Views

from .conftest import DYES, stained_tile

Make = Callable[..., Any]
VIT = ["backbone=timm", "backbone.name=test_vit"]
DINO = ["method=dino", "method.head.n_outputs=32", "method.head.n_hidden=32", "method.head.n_bottleneck=16"]
N_TILES, N_GLASS, SIDE_PX = 24, 4, 32


def _tiles() -> Tensor:
    """Tiles (N, 3, S, S) of two laboratories, and glass at the end."""
    other = DYES.roll(1, dims=1)
    made = [stained_tile(SIDE_PX, seed=i, dyes=(DYES, other)[i % 2]) for i in range(N_TILES - N_GLASS)]
    return torch.cat([*made, torch.full((N_GLASS, 3, SIDE_PX, SIDE_PX), 238, dtype=torch.uint8)])


@pytest.fixture
def planned(compose: Callable[..., Plan], tmp_path: Path) -> Callable[..., Plan]:
    """A function from overrides to a plan on these tiles, of two classes."""
    for i, tile in enumerate(_tiles()):
        path = tmp_path / "images" / "AB"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile.permute(1, 2, 0).numpy()).save(path)
    small = ["data=images", f"data.root={tmp_path}/images", "tiling.mpp=0.5", f"runs_dir={tmp_path}/runs"]
    small += ["training.epochs=2", "training.batch_size=8", "task.protocol.n_bootstrap=10", *VIT]
    small += ["loader.n_workers=0", "n_processes=1", "trainer=cpu", "logger=none"]
    return lambda *overrides: prepared(compose(*overrides, *small), known=stages.STAGES)


def test_views_are_those_of_restained_tiles(views: Views, normaliser: Make) -> None:
    tiles, spec = _tiles(), normaliser("macenko")
    with_stain = Views(kinds=views.kinds, mean=views.mean, std=views.std, stain=spec)
    ids = torch.arange(N_TILES)
    expected = views(restained(spec, tiles).tiles, ids=ids, epoch=1, seed=2)
    made = with_stain(tiles, ids=ids, epoch=1, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    assert not torch.equal(made[0], views(tiles, ids=ids, epoch=1, seed=2)[0])


def test_training_sees_views_of_restained_tiles_and_names_those_that_were_left(
    views: Views, normaliser: Make, image_source: Make
) -> None:
    tiles, spec = _tiles(), normaliser("macenko")
    source = image_source(N_TILES)
    data = TileDataModule(
        source=source,
        rows=np.arange(N_TILES),
        views=Views(kinds=views.kinds, mean=views.mean, std=views.std, stain=spec),
        batch_size=4,
        epochs=1,
        accumulate=1,
        seed=3,
        loading=Loading(n_workers=0, start_method="fork", timeout_s=0),
    )
    ids = torch.arange(N_TILES) + 100
    batch = {"tiles": tiles.permute(0, 2, 3, 1), "ids": ids, "epoch": torch.zeros_like(ids), "failed": {}}
    made = data.on_after_batch_transfer(batch, 0)
    expected = views(restained(spec, tiles).tiles, ids=ids, epoch=0, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(made["views"], expected, strict=True))
    assert [*made["not_restained"]] == ids[-N_GLASS:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["macenko", "reinhard"])
def test_a_run_feeds_everything_alike_and_counts_what_it_left(
    planned: Callable[..., Plan], normaliser: Make, kind: str
) -> None:
    plan, spec = planned(*DINO, f"stain={kind}"), normaliser(kind)
    stages.run(plan)
    assert counts(plan.pretrain_folder)[NOT_RESTAINED] == N_GLASS
    assert read_json(plan.pretrain_folder / "card.json")["stain"] == facts_of(spec)
    source = open_source(plan.task_tile_folder)
    rows = torch.from_numpy(np.stack([source.read(i) for i in range(N_TILES)])).permute(0, 3, 1, 2)
    alike = restained(spec, rows).tiles
    trained = load_encoder(plan.pretrain_folder / ENCODER)
    bare = replace(trained, card=replace(trained.card, stain=None))
    assert torch.equal(trained(rows), bare(alike))
    expected = {"encoder": bare(alike), "colour": ColorStatistics()(alike / 255)}
    for subject, encoder in subjects_of(plan, source).items():
        folder = plan.embedding_folder(encoder.card.fingerprint)
        assert counts(folder)[NOT_RESTAINED] == N_GLASS
        if subject in expected:
            made = load_embeddings(folder, source).features
            np.testing.assert_allclose(made, expected[subject].numpy(), rtol=2e-3, atol=2e-3)  # float16
    (sentence,) = [
        note
        for note in read_json(plan.result_folder / "results.json")["notes"]
        if "kept their colours" in note
    ]
    assert sentence.startswith(f"{N_GLASS} of {N_TILES} tiles")


@pytest.mark.slow
def test_an_encoder_is_fed_as_its_card_says_wherever_it_is_taken(
    planned: Callable[..., Plan], normaliser: Make
) -> None:
    trained = planned(*DINO, "stain=macenko", "stages=[tile,pretrain]")
    stages.run(trained)
    path = trained.pretrain_folder / ENCODER
    again = planned("method=checkpoint", f"method.path={path}", "stages=[pretrain]")
    other = planned("method=checkpoint", f"method.path={path}", "stages=[pretrain]", "stain=reinhard")
    cards = []
    for plan in (trained, again, other):
        stages.run(plan)
        cards.append(load_encoder(plan.pretrain_folder / ENCODER).card.stain)
    assert cards == [facts_of(normaliser(kind)) for kind in ("macenko", "macenko", "reinhard")]


@pytest.mark.slow
def test_without_a_normalisation_nothing_is_counted_or_hashed_anew(planned: Callable[..., Plan]) -> None:
    plan = planned("method=random", "stages=[tile,pretrain,embed]")
    stages.run(plan)
    source = open_source(plan.task_tile_folder)
    floors = subjects_of(plan, source)
    assert floors["colour"].card.fingerprint == "5bce1acf44"  # before there was any normalisation
    names = ("architecture", "dim", "mean", "std", "tile_px", "mpp", "method", "chosen_on")
    values = {name: getattr(floors["random"].card, name) for name in names}
    assert floors["random"].card.fingerprint == fingerprint({"floor": "random", "seed": 0, **values})
    assert counts(plan.embedding_folder("5bce1acf44")).keys() == {"tiles", "files", UNREADABLE}


def test_scores_while_training_goes_on_are_of_restained_tiles(
    image_source: Make, normaliser: Make, tmp_path: Path, compose: Callable[..., Plan]
) -> None:
    source, spec = image_source(9), normaliser("reinhard")
    row = np.arange(9)
    tiles = ChosenTiles(row=row, class_of=row % 2, group=row, n_asked=4, n_classes=2, names=[])
    around = Surroundings(
        source=source,
        loading=Loading(n_workers=0, start_method="fork", timeout_s=0),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        restained=partial(restained, spec),
        views=None,
        measures={},
        metrics=tmp_path / "metrics.jsonl",
        best=tmp_path / "best",
        keep=lambda encoder, scores: None,
    )
    scores = OnlineScores(instantiate(compose().group("online")), tiles, around, times=1)
    module = LightningModule()
    module.backbone = nn.Identity()
    scores.on_train_start(None, module)  # type: ignore[arg-type]
    pixels = torch.from_numpy(np.stack([source.read(i) for i in range(9)])).permute(0, 3, 1, 2)
    assert torch.equal(scores._pixels, restained(spec, pixels).tiles)
    assert not torch.equal(scores._pixels, pixels)
