"""Embeddings of made-up patients."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from histo_ssl.embeddings import EmbeddingSet

Tiles = Callable[..., EmbeddingSet]


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
