from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from histo_ssl.views.compose import Views

CONF = Path(__file__).resolve().parents[2] / "conf" / "views"


def views_of(name: str, *overrides: str) -> Views:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose(name, overrides=list(overrides)))


@pytest.fixture
def recipe() -> Callable[..., Views]:
    """Makes the views that a file of conf/views describes, with overrides."""
    return views_of


@pytest.fixture
def tiles() -> Tensor:
    """Seven 64 px tiles of smooth colours with noise on top, so that every operation has something to do."""
    noise = torch.Generator().manual_seed(0)
    coarse = torch.rand(7, 3, 5, 5, generator=noise)
    smooth = torch.nn.functional.interpolate(coarse, size=64, mode="bicubic").clamp(0, 1)
    return (255 * (0.8 * smooth + 0.2 * torch.rand(smooth.shape, generator=noise))).to(torch.uint8)


@pytest.fixture
def images(tiles: Tensor) -> Tensor:
    """The same as float images in [0, 1]."""
    return tiles.float() / 255
