"""Methods small enough to be trained in a test, and a trainer that prints and warns of nothing."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch import Trainer
from torch import Tensor, nn

from histo_ssl.methods.base import SSLMethod
from histo_ssl.methods.dino import DINO, HeadSpec, TeacherSpec
from histo_ssl.methods.monitors import MonitorSpec
from histo_ssl.optim.spec import OptimSpec

N_TILES, N_OUTPUTS = 4, 8


class TinyBackbone(nn.Module):
    """Mean and spread of each channel, mixed by a layer with BatchNorm."""

    num_features = 5

    def __init__(self, *, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.mix = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.norm(self.mix(torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], 1)))


def tiny_backbone(*, drop_path: float = 0.1) -> TinyBackbone:
    return TinyBackbone(drop_path=drop_path)


class Batches:
    """A fixed list of batches of views, 2 large and 2 small ones, without a DataLoader's warnings."""

    def __init__(self, n: int, *, n_tiles: int = N_TILES, sides: Sequence[int] = (16, 16, 8, 8)) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            {
                "views": [torch.randn(n_tiles, 3, s, s, generator=generator) for s in sides],
                "ids": torch.arange(n_tiles) + i * n_tiles,
            }
            for i in range(n)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)


@pytest.fixture
def build_dino() -> Callable[..., DINO]:
    """Builds a tiny DINO of 10 steps, 5 to the epoch; named values change its specifications."""

    def build(*, length: tuple[int, int] = (10, 5), freeze: float = 1, **changes: Any) -> DINO:
        torch.manual_seed(0)
        head = {"n_outputs": N_OUTPUTS, "n_hidden": 12, "n_bottleneck": 6, "norm_last_layer": True}
        teacher = {
            "momentum": 0.9,
            "final_momentum": 1.0,
            "first_temp": 0.04,
            "temp": 0.06,
            "temp_warmup": 0.5,
            "centre_momentum": 0.9,
            "n_sinkhorn": 0,
        }
        monitors = {"margin": 0.02, "patience": 0.5, "rankme_rows": 16}
        optim = {
            "optimizer": partial(torch.optim.AdamW, betas=(0.9, 0.999)),
            "lr_per_256": 0.64,
            "final_lr": 1e-4,
            "warmup": 0.2,
            "weight_decay": 0.04,
            "final_weight_decay": 0.4,
            "clip_norm": 3.0,
        }
        for values in (head, teacher, monitors, optim):
            values.update({k: v for k, v in changes.items() if k in values})
        dino = DINO(
            backbone=tiny_backbone,
            optim=OptimSpec(**optim),
            head=HeadSpec(**head),
            teacher=TeacherSpec(**teacher),
            monitors=MonitorSpec(**monitors),
            student_temp=0.1,
            freeze_last_layer_epochs=freeze,
        )
        dino.total_steps, dino.steps_per_epoch = length
        dino.log_every = 1
        return dino

    return build


SIDES = {"simclr": (32, 32), "moco": (32, 32), "mocov3": (32, 32), "byol": (32, 32), "mae": (32,)}


@pytest.fixture
def build(tiny_method: Callable[..., dict[str, Any]]) -> Callable[..., tuple[SSLMethod, list[Tensor]]]:
    """Builds the method of a YAML around a tiny backbone, for 10 steps, and a batch of its views."""

    def built(name: str, *overrides: str, backbone: str = "test_vit") -> tuple[SSLMethod, list[Tensor]]:
        torch.manual_seed(0)
        config = tiny_method(name, *overrides, backbone=backbone)["method"]
        method: SSLMethod = instantiate(config, _convert_="all")
        method.total_steps, method.steps_per_epoch, method.log_every = 10, 5, 1
        return method, Batches(1, sides=SIDES[name]).batches[0]["views"]

    return built


@pytest.fixture
def fit() -> Callable[..., Trainer]:
    """Trains a method on the first batches of a fixed list."""

    def run(
        method: SSLMethod,
        *,
        max_steps: int,
        accumulate: int = 1,
        callbacks: Any = (),
        **batches: Any,
    ) -> Trainer:
        trainer = Trainer(
            max_steps=max_steps,
            max_epochs=1,
            accumulate_grad_batches=accumulate,
            callbacks=list(callbacks),
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with warnings.catch_warnings():
            # lightning 2.6 asks torch 2.15 an outdated question about its own trees
            warnings.filterwarnings(
                "ignore", message=r"`isinstance\(treespec, LeafSpec\)", category=FutureWarning
            )
            trainer.fit(method, train_dataloaders=Batches(max_steps * accumulate, **batches))
        return trainer

    return run


@pytest.fixture
def batches() -> Callable[..., list[dict[str, Any]]]:
    """The same batches that `fit` trains on."""
    return lambda n, **options: Batches(n, **options).batches
