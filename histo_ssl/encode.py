"""Encoders: a trained backbone with its card in one file, and the embeddings that it makes of tiles."""

import importlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from histo_ssl.artifacts import atomic_path
from histo_ssl.data.base import Part, TileSource
from histo_ssl.data.datamodule import Batch, Loading, Tiles, as_it_is
from histo_ssl.embeddings import EmbeddingSet, read_embeddings, write_embeddings
from histo_ssl.progress import Progress

MPP_TOLERANCE = 0.05  # a nominal 20x scan may be 0.504 um/px
ARCHITECTURES = "histo_ssl."  # only our own code is ever imported at a card's word


@dataclass(frozen=True, kw_only=True)
class Card:
    """What one must know of an encoder to use it rightly."""

    architecture: Mapping[
        str, Any
    ]  # `_target_` names the function that builds the backbone; the rest its arguments
    dim: int  # width D of an embedding
    mean: tuple[float, ...]  # one per channel, subtracted from RGB in 0-1
    std: tuple[float, ...]  # divides it afterwards
    tile_px: int  # side of the tiles it was trained on
    mpp: float | None  # their um/px; None where nobody knew
    method: str
    fingerprint: str


@dataclass(frozen=True)
class Encoder:
    """A backbone that is fed as its card says."""

    backbone: nn.Module
    card: Card
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @torch.inference_mode()
    def __call__(self, tiles_B3SS: Tensor) -> Tensor:
        """Embeddings (B, D) float32 of tiles (B, 3, S, S) uint8."""
        mean, std = (
            torch.tensor(v, device=self.device).view(3, 1, 1) for v in (self.card.mean, self.card.std)
        )
        rgb = tiles_B3SS.to(self.device).float() / 255
        features: Tensor = self.backbone((rgb - mean) / std)
        return features.float()

    def on(self, device: torch.device) -> "Encoder":
        """The same encoder in evaluation mode on another device."""
        return Encoder(self.backbone.eval().to(device), self.card, device)

    def check_scale(self, mpp: float | None, *, any_mpp: bool) -> None:
        """Refuse tiles of another scale than the encoder was trained on.

        Args:
            mpp: um/px of the tiles, None where unknown (which passes).
            any_mpp: let it pass all the same.

        Raises:
            ValueError: the scales differ by more than `MPP_TOLERANCE`.
        """
        trained = self.card.mpp
        if any_mpp or mpp is None or trained is None or abs(mpp / trained - 1) <= MPP_TOLERANCE:
            return
        raise ValueError(
            f"the {self.card.method} encoder {self.card.fingerprint} was trained at {trained:g} um/px, "
            f"these tiles have {mpp:g}: cut them at tiling.mpp={trained:g}, or say embedding.any_mpp=true"
        )


def save_encoder(path: Path, encoder: Encoder) -> None:
    """Weights and card as one safetensors file, atomically."""
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in encoder.backbone.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata={"card": json.dumps(asdict(encoder.card))})


def load_encoder(path: Path) -> Encoder:
    """The encoder in a file that `save_encoder` wrote, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no card, or its weights don't fit the architecture that the card names.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such encoder")
    card = read_card(path)
    backbone = _build(card.architecture)
    backbone.load_state_dict(load_file(path))
    return Encoder(backbone.eval(), card)


def read_card(path: Path) -> Card:
    """The card in the metadata of an encoder's file."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "card" not in metadata:
        raise ValueError(f"{path}: a safetensors file without an encoder's card; export it with histo_ssl")
    values = json.loads(metadata["card"])
    return Card(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def embed_tiles(
    encoder: Encoder, source: TileSource, *, folder: Path, batch_size: int, loading: Loading, any_mpp: bool
) -> dict[str, int]:
    """Write one file of embeddings per slide (or stretch of images) into `folder`; those already there stay.

    Args:
        encoder: makes them.
        source: all its tiles are embedded, each once.
        folder: receives `<slide>.h5`.
        batch_size: tiles per forward pass.
        loading: how tiles are read.
        any_mpp: embed tiles of another scale than the encoder's, too.

    Returns:
        How many tiles and files the folder holds afterwards.
    """
    encoder.check_scale(source.mpp, any_mpp=any_mpp)
    missing = [part for part in source.parts() if not (folder / f"{part.name}.h5").exists()]
    coords = source.coords()
    features = _features(encoder, source, missing, batch_size=batch_size, loading=loading)
    for part, features_ND in features:
        attributes = _attributes(encoder.card, source)
        path = folder / f"{part.name}.h5"
        write_embeddings(
            path, features=features_ND, coords=coords[part.start : part.stop], attributes=attributes
        )
    return {"tiles": len(source), "files": len(source.parts())}


def load_embeddings(folder: Path, source: TileSource) -> EmbeddingSet:
    """The embeddings of all tiles of a source, in its order, with what is known of each tile.

    Raises:
        ValueError: a file holds other tiles than the source lists.
    """
    table = source.table()
    read = [read_embeddings(folder / f"{part.name}.h5") for part in source.parts()]
    coords = np.concatenate([coords for _, coords, _ in read])
    if not np.array_equal(coords, table[["x", "y"]].to_numpy()):
        raise ValueError(
            f"{folder}: the embeddings are of other tiles than the index lists; delete the folder"
        )
    texts = {name: table[name].to_numpy(dtype=str) for name in ("slide", "patient", "site", "split", "label")}
    return EmbeddingSet(
        features=np.concatenate([features for features, _, _ in read]), coords=coords, **texts
    )


def _build(architecture: Mapping[str, Any]) -> nn.Module:
    """The backbone that a card names, with random weights."""
    arguments = dict(architecture)
    target = str(arguments.pop("_target_"))
    if not target.startswith(ARCHITECTURES):
        raise ValueError(f"an encoder's card asks for {target}: only architectures of histo_ssl are built")
    module, _, name = target.rpartition(".")
    backbone: nn.Module = getattr(importlib.import_module(module), name)(**arguments)
    return backbone


def _features(
    encoder: Encoder, source: TileSource, parts: list[Part], *, batch_size: int, loading: Loading
) -> Iterator[tuple[Part, NDArray[np.float32]]]:
    """Features (N, D) of one part after the other; workers read ahead across the borders of parts."""
    cuts = [_cuts(part, batch_size) for part in parts]
    wanted = [[(row, 0) for row in cut] for part_cuts in cuts for cut in part_cuts]
    loader = DataLoader(Tiles(source), batch_sampler=wanted, collate_fn=as_it_is, **loading.arguments())
    batches = iter(loader)
    with Progress("embed", n_items=sum(map(len, wanted)), noun="tiles") as progress:
        for part, part_cuts in zip(parts, cuts, strict=True):
            done = [_next_features(encoder, batches, progress) for _ in part_cuts]
            yield part, np.concatenate(done or [np.zeros((0, encoder.card.dim), np.float32)])


def _cuts(part: Part, batch_size: int) -> list[range]:
    """The rows of a part in batches; the last may be smaller."""
    return [range(i, min(i + batch_size, part.stop)) for i in range(part.start, part.stop, batch_size)]


def _next_features(encoder: Encoder, batches: Iterator[Batch], progress: Progress) -> NDArray[np.float32]:
    started = time.monotonic()
    tiles = next(batches)["tiles"]
    data_s = time.monotonic() - started
    features: NDArray[np.float32] = encoder(tiles.permute(0, 3, 1, 2)).cpu().numpy()
    progress.advance(len(tiles), data_s=data_s)
    return features


def _attributes(card: Card, source: TileSource) -> dict[str, str | int | float]:
    """What travels with embeddings: who made them, of tiles of which size and scale (NaN where unknown)."""
    mpp = float("nan") if source.mpp is None else source.mpp
    return {"encoder": card.fingerprint, "method": card.method, "tile_px": source.tile_px, "mpp": mpp}
