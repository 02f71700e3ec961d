"""Tiles of two dyes of which everything is known, and the normalisers of the configuration."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from histo_ssl.config.plan import Plan

WHITE = 240.0
DYES = torch.tensor([[0.60, 0.68, 0.42], [0.20, 0.88, 0.43]], dtype=torch.float64)
DYES /= DYES.norm(dim=1, keepdim=True)
LARGEST = (1.6, 1.2)


def amounts(side_px: int, seed: int = 0) -> Tensor:
    """Amounts (2, P) of both dyes: 5 % of pixels hold one alone, 3 % its largest, the rest are mixed."""
    n = side_px**2
    noise = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([[0.75], [0.75]]), torch.tensor(LARGEST)[:, None]
    amount_2P = (low + (high - low) * torch.rand(2, n, generator=noise)).double()
    amount_2P[1, : n // 20] = 0
    amount_2P[0, n // 20 : n // 10] = 0
    amount_2P[0, : n * 3 // 100] = LARGEST[0]
    amount_2P[1, n // 10 : n * 13 // 100] = LARGEST[1]
    return amount_2P


def light(amount_2P: Tensor, *, dyes: Tensor = DYES, white: float = WHITE) -> Tensor:
    """Values (1, 3, P) of pixels that hold these amounts, not rounded."""
    return white * torch.exp(-(dyes.T @ amount_2P))[None]


def stained_tile(side_px: int, *, dyes: Tensor = DYES, strength: float = 1.0, seed: int = 0) -> Tensor:
    """Such a tile (1, 3, S, S) of 8 bits."""
    values = light(strength * amounts(side_px, seed), dyes=dyes).round().clamp(0, 255)
    return values.to(torch.uint8).view(1, 3, side_px, side_px)


@pytest.fixture(scope="session")
def normaliser(compose: Callable[..., Plan]) -> Callable[..., Any]:
    """A function that makes a normaliser of the configuration, with overrides below `stain.normaliser`."""

    def made(name: str, **values: Any) -> Any:
        overrides = [f"stain.normaliser.{key}={value}" for key, value in values.items()]
        return instantiate(compose(f"stain={name}", *overrides).group("stain"))

    return made
