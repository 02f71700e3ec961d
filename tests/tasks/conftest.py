"""Embeddings of made-up patients, and drawn tiles with an encoder that learns from them in no time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from histo_ssl.data.base import Part
from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.encode import Card, Encoder
from histo_ssl.tasks.tuning import Tuning

Tiles = Callable[..., EmbeddingSet]
SIDE = 16
N_TRAIN = 64  # of 96 drawn tiles


@pytest.fixture
def tiles() -> Tiles:
    """Builds an EmbeddingSet from the fields that matter; the rest is empty."""
    return _tiles


def _tiles(
    *, label: list[str], features: NDArray[np.float32] | None = None, **fields: list[str]
) -> EmbeddingSet:
    n = len(label)
    texts = {
        name: np.array(fields.get(name, [""] * n), dtype=str)
        for name in ("slide", "patient", "site", "split")
    }
    return EmbeddingSet(
        features=np.zeros((n, 2), np.float32) if features is None else features.astype(np.float32),
        coords=np.stack([np.arange(n), 2 * np.arange(n)], axis=1),
        row=np.arange(n),
        label=np.array(label, dtype=str),
        **texts,
    )


class DrawnTiles:
    """Tiles of noise, of patients of four tiles and one class each; the last third is the test."""

    tile_px, mpp = SIDE, None

    def __init__(
        self, *, told: bool, n: int = 96, broken: tuple[int, ...] = (), **columns: dict[int, str]
    ) -> None:
        """Bright tiles for class b and dark ones for a, where they shall tell; some columns by row."""
        self.n, self.told, self.broken, self.columns = n, told, broken, columns

    def __len__(self) -> int:
        return self.n

    def read(self, i: int) -> NDArray[np.uint8]:
        """A tile."""
        if i in self.broken:
            raise ValueError(f"tile {i} is broken")
        level = 60 * ((i // 4) % 2) if self.told else 0
        rng = np.random.default_rng(i)
        return rng.integers(60 + level, 120 + level, (SIDE, SIDE, 3)).astype(np.uint8)

    def table(self) -> pd.DataFrame:
        """What is known of the tiles."""
        i = np.arange(self.n)
        table = pd.DataFrame(
            {
                **{"slide": [f"s{k // 4}" for k in i], "x": i, "y": 0, "patient": [f"p{k // 4}" for k in i]},
                **{"site": "", "split": np.where(i < 2 * self.n // 3, "train", "test")},
                **{"label": np.where((i // 4) % 2 == 1, "b", "a"), "version": ""},
            }
        ).astype(dict.fromkeys(("label", "patient", "split"), object))
        for name, values in self.columns.items():
            table.loc[list(values), name] = list(values.values())
        return table

    def coords(self) -> NDArray[np.int64]:
        """Of no meaning here, as is the rest."""
        return np.zeros((self.n, 2), dtype=np.int64)

    def training_rows(self) -> NDArray[np.int64]:
        """All."""
        return np.arange(self.n)

    def parts(self) -> list[Part]:
        """One."""
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
        features: Tensor = self.net(x_B3SS).mean(dim=(2, 3))
        return features


def encoder_of(backbone: nn.Module, **changes: Any) -> Encoder:
    """A backbone with a card."""
    card = Card(
        architecture={},
        dim=backbone.num_features,  # type: ignore[arg-type]
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.2, 0.3),
        tile_px=SIDE,
        mpp=None,
        method="test",
        fingerprint="f",
    )
    return Encoder(backbone.eval(), replace(card, **changes))


@pytest.fixture
def small() -> Encoder:
    """An encoder that trains in no time."""
    torch.manual_seed(0)
    return encoder_of(Small())


def tuning_of(**changes: Any) -> Tuning:
    """A short recipe."""
    values: dict[str, Any] = {
        **{"lrs": [1e-2], "layer_decay": 0.75, "weight_decay": 0.05, "label_smoothing": 0.1},
        **{"drop_path": None, "epochs": 6, "warmup": 0.05, "batch_size": 16, "n_folds": 5},
    }
    return Tuning(**{**values, **changes})
