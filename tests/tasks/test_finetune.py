"""Finetuning: 1 where tiles tell their class, chance where they don't; rates by depth; the same twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from torch import Tensor, nn

from histo_ssl.backbones.depths import layer_depths
from histo_ssl.backbones.timm import timm_backbone
from histo_ssl.data.base import Part
from histo_ssl.data.loading import Loading
from histo_ssl.encode import Card, Encoder
from histo_ssl.tasks.base import TaskResult, Workplace
from histo_ssl.tasks.finetune import FineTuneTask
from histo_ssl.tasks.floors import ColorStatistics
from histo_ssl.tasks.tuning import Tuned, Tuning, rate_groups, turned

SIDE = 16


class DrawnTiles:
    """Tiles with bars along rows or along columns, the class, or noise; of patients of four tiles each."""

    tile_px, mpp = SIDE, None

    def __init__(self, *, n: int, told: bool, broken: tuple[int, ...] = ()) -> None:
        self.n, self.told, self.broken = n, told, broken

    def __len__(self) -> int:
        return self.n

    def read(self, i: int) -> NDArray[np.uint8]:
        """Bright for class b, dark for a, where tiles tell."""
        if i in self.broken:
            raise ValueError(f"tile {i} is broken")
        level = 60 * ((i // 4) % 2) if self.told else 0
        rng = np.random.default_rng(i)
        return rng.integers(60 + level, 120 + level, (SIDE, SIDE, 3)).astype(np.uint8)

    def table(self) -> pd.DataFrame:
        """Patients of one class each; the last third is the test."""
        i = np.arange(self.n)
        return pd.DataFrame(
            {
                **{"slide": [f"s{k // 4}" for k in i], "x": i, "y": 0, "patient": [f"p{k // 4}" for k in i]},
                **{"site": "", "split": np.where(i < 2 * self.n // 3, "train", "test")},
                **{"label": np.where((i // 4) % 2 == 1, "b", "a"), "version": ""},
            }
        )

    def coords(self) -> NDArray[np.int64]:
        """Of no meaning here."""
        return np.zeros((self.n, 2), dtype=np.int64)

    def training_rows(self) -> NDArray[np.int64]:
        """Of no meaning here."""
        return np.arange(self.n)

    def parts(self) -> list[Part]:
        """Of no meaning here."""
        return [Part(name="all", start=0, stop=self.n)]

    def slides(self) -> pd.DataFrame:
        """None."""
        return pd.DataFrame()


class Small(nn.Module):
    """Two convolutions."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())

    def forward(self, x_B3SS: Tensor) -> Tensor:
        """(B, 8)."""
        return self.net(x_B3SS).mean(dim=(2, 3))


def _encoder(backbone: nn.Module, *, dim: int) -> Encoder:
    card = Card(
        architecture={},
        dim=dim,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        tile_px=SIDE,
        mpp=None,
        method="test",
        fingerprint="f",
    )
    return Encoder(backbone.eval(), card)


@pytest.fixture
def small() -> Encoder:
    """An encoder that trains in no time."""
    torch.manual_seed(0)
    return _encoder(Small(), dim=8)


@pytest.fixture
def configured(compose: Any) -> Callable[..., FineTuneTask]:
    """The task as configured, short."""

    def task(*overrides: str) -> FineTuneTask:
        short = ("task.protocol.tuning.epochs=6", "task.protocol.tuning.batch_size=16")
        values = (*short, "task.protocol.tuning.lrs=[1e-2]", "task.protocol.n_bootstrap=100", *overrides)
        plan = compose("method=dino", "backbone=vit_t", "task=pcam", "task/protocol=finetune", *values)
        made: FineTuneTask = instantiate(plan.group("task.protocol"))
        return made

    return task


def _tune(task: FineTuneTask, encoder: Encoder, source: Any, folder: Path) -> TaskResult:
    loading = Loading(n_workers=0, start_method="fork", timeout_s=60)
    place = Workplace(folder=folder, accelerator="cpu", precision="32-true", loading=loading, max_failed=0.05)
    return task.tune(encoder, source, subject="encoder", place=place)


def _auc(result: TaskResult) -> Any:
    return next(score for score in result.scores if (score.metric, score.label) == ("auc", ""))


def test_tiles_that_tell_their_class_score_one(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    result = _tune(configured(), small, DrawnTiles(n=96, told=True), tmp_path)
    assert _auc(result).value == 1.0
    assert result.counts == {"n_train": 64, "n_test": 32, "n_train_groups": 16, "n_test_groups": 8}
    assert result.confusion["finetune"] == [[16, 0], [0, 16]]


def test_tiles_that_tell_nothing_score_chance(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    score = _auc(_tune(configured(), small, DrawnTiles(n=192, told=False), tmp_path))
    assert score.low <= 0.5 <= score.high


def test_the_same_twice_and_the_encoder_stays_as_it_is(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in small.backbone.state_dict().items()}
    source = DrawnTiles(n=96, told=False)
    first, second = (_tune(configured(), small, source, tmp_path).predictions for _ in range(2))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    after = small.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_rate_is_chosen_on_patients_that_are_set_aside(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    task = configured("task.protocol.tuning.lrs=[1e-7,1e-2,1e-1]")
    result = _tune(task, small, DrawnTiles(n=96, told=True), tmp_path)
    assert _auc(result).value == 1.0  # at 1e-7 nothing is learned


def test_a_tile_that_can_not_be_read_is_left_out_and_told(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    result = _tune(configured(), small, DrawnTiles(n=96, told=True, broken=(3, 95)), tmp_path)
    assert len(result.predictions) == 31
    assert "finetune left out 1 of 32 test tiles that could not be read" in result.notes
    with pytest.raises(ValueError, match=r"4 of 32 test tiles can't be read, more than max"):
        _tune(configured(), small, DrawnTiles(n=96, told=True, broken=(70, 80, 90, 95)), tmp_path)


def test_an_encoder_without_weights_has_no_scores(
    configured: Callable[..., FineTuneTask], tmp_path: Path
) -> None:
    colour = _encoder(ColorStatistics(), dim=ColorStatistics.num_features)
    result = _tune(configured(), colour, DrawnTiles(n=96, told=True), tmp_path)
    assert result.scores == []
    assert result.notes == ["encoder has no weights that could be tuned: nothing to score"]


def test_rates_fall_by_a_factor_from_layer_to_layer() -> None:
    encoder = _encoder(timm_backbone(name="vit_tiny_patch16_224", drop_path=0.0), dim=192)
    tuning = Tuning(
        **{"lrs": [1.0], "layer_decay": 0.5, "weight_decay": 0.1, "label_smoothing": 0.0, "epochs": 1},
        **{"warmup": 0.0, "batch_size": 1, "n_folds": 2},
    )
    tuned = Tuned(encoder, n_classes=2, lr=1.0, tuning=tuning, n_steps=1)
    groups = rate_groups(tuned, lr=1.0, decay=0.5, weight_decay=0.1)
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    names = dict(tuned.named_parameters())
    assert rate[id(names["head.weight"])] == (1.0, 0.1)
    assert rate[id(names["head.bias"])] == (1.0, 0.0)
    assert rate[id(names["backbone.blocks.11.attn.qkv.weight"])] == (0.5, 0.1)
    assert rate[id(names["backbone.blocks.0.attn.qkv.weight"])] == (0.5**12, 0.1)
    assert rate[id(names["backbone.patch_embed.proj.weight"])] == (0.5**13, 0.1)
    assert len(rate) == len(names)


@pytest.mark.parametrize(("name", "n_depths"), [("vit_tiny_patch16_224", 13), ("resnet18", 9)])
def test_depths_rise_from_the_input_to_the_output(name: str, n_depths: int) -> None:
    depths = list(layer_depths(timm_backbone(name=name, drop_path=0.0)).values())
    assert sorted(set(depths)) == list(range(n_depths))
    assert depths[0] == 0
    assert depths == sorted(depths)


def test_the_eight_positions_of_a_square_are_all_different() -> None:
    tile = torch.arange(12, dtype=torch.uint8).view(1, 2, 2, 3).repeat(8, 1, 1, 1)
    positions = turned(tile, np.arange(8))
    assert len({tuple(one.flatten().tolist()) for one in positions}) == 8
    assert torch.equal(positions[0], tile[0])


def test_values_without_meaning_are_refused(configured: Callable[..., FineTuneTask]) -> None:
    for override, message in (
        ("task.protocol.tuning.lrs=[]", "rates above 0"),
        ("task.protocol.tuning.layer_decay=2", "up to 1"),
        ("task.protocol.tuning.n_folds=1", "n_folds=1"),
    ):
        with pytest.raises(Exception, match=message):
            configured(override)
