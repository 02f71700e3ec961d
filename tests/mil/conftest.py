"""Bags and models that tests of several files share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from histo_ssl.mil.base import BagModel

CONF = Path(__file__).resolve().parents[2] / "conf" / "task" / "models"
Build = Callable[..., BagModel]


@pytest.fixture
def build() -> Build:
    """A model of `conf/task/models/`, in double precision, so that tolerances can be tight."""

    def built(name: str, *, dim: int = 6, n_classes: int = 2, seed: int = 0, **values: Any) -> BagModel:
        torch.manual_seed(seed)
        config = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml")[name], values)
        model: BagModel = instantiate(config)(dim=dim, n_classes=n_classes)
        return model.double()

    return built


@pytest.fixture
def bags() -> list[Tensor]:
    """Seven bags, some of one tile, some smaller than 2 x 8, some larger."""
    generator = torch.Generator().manual_seed(1)
    lengths = (20, 1, 2, 3, 7, 40, 15)
    return [torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in lengths]
