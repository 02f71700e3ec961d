"""Encoders: a trained backbone with its card in one file, and the embeddings that it makes of tiles."""

import importlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from histo_ssl.backbones.weights import fit_positions
from histo_ssl.data.base import Part, TileSource
from histo_ssl.data.datamodule import Batch, Tiles
from histo_ssl.data.loading import Loading, TileLoader
from histo_ssl.embeddings import EmbeddingSet, read_embeddings, write_embeddings
from histo_ssl.folders.artifacts import fingerprint, write_bytes
from histo_ssl.progress import Progress

MPP_TOLERANCE = 0.05  # a nominal 20x scan may be 0.504 um/px
LONGEST_REASON = 200  # characters of another library's message
ARCHITECTURES = "histo_ssl.backbones."  # nothing else is ever imported at a card's word
TILES = "tiles"  # attribute of a file of embeddings: a hash of its tiles' names and places


@dataclass(frozen=True, kw_only=True)
class Card:
    """What one must know of an encoder to use it rightly."""

    architecture: Mapping[
        str, Any
    ]  # `_target_` names the function that builds the backbone; the rest its arguments
    dim: int  # width D of an embedding
    mean: tuple[float, ...]  # one per channel, subtracted from RGB in 0-1
    std: tuple[float, ...]  # divides it afterwards
    tile_px: int | None  # side of the tiles it was trained on; None where nobody knows
    mpp: float | None  # their um/px; None where nobody knew
    method: str
    fingerprint: str
    # patients or slides ("patient P7") by whose labels it was chosen among those of its training
    chosen_on: tuple[str, ...] = ()


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
    write_bytes(path, save(weights, metadata={"card": json.dumps(asdict(encoder.card))}))


def load_encoder(path: Path) -> Encoder:
    """The encoder in a file that `save_encoder` wrote, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no card, or its weights don't fit the architecture that the card names.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such encoder")
    card = read_card(path)
    backbone = _build(card.architecture, path=path)
    try:
        weights = load_file(path)
        fit_positions(backbone, weights)
        backbone.load_state_dict(weights)
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise ValueError(f"{path}: its weights don't fit its card's architecture ({reason})") from error
    return Encoder(backbone.eval(), card)


def read_card(path: Path) -> Card:
    """The card in the metadata of an encoder's file.

    Raises:
        ValueError: it is no safetensors file, or has no card that we can read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); make or fetch it again") from error
    if "card" not in metadata:
        raise ValueError(f"{path}: a safetensors file without an encoder's card; export it with histo_ssl")
    try:
        values = json.loads(metadata["card"])
        values["architecture"] = dict(values["architecture"])
        lists = {name: tuple(values[name]) for name in ("mean", "std", "chosen_on") if name in values}
        return Card(**{**values, **lists})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: its encoder's card can't be read ({error}); export it again") from error


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

    Raises:
        ValueError: a tile can't be read; no other one may stand for it.
    """
    encoder.check_scale(source.mpp, any_mpp=any_mpp)
    tiles = _tile_names(source)
    missing = [part for part in source.parts() if not _is_embedded(part, folder, tiles)]
    coords = source.coords()
    features = _features(encoder, source, missing, batch_size=batch_size, loading=loading)
    attributes = _attributes(encoder.card, source)
    for part, features_ND in features:
        write_embeddings(
            folder / f"{part.name}.h5",
            features=features_ND,
            coords=coords[part.start : part.stop],
            attributes={**attributes, TILES: tiles[part.name]},
        )
    return {"tiles": len(source), "files": len(source.parts())}


def load_embeddings(folder: Path, source: TileSource) -> EmbeddingSet:
    """The embeddings of all tiles of a source, in its order, with what is known of each tile.

    Raises:
        ValueError: a file holds other tiles than the source lists.
    """
    table, tiles = source.table(), _tile_names(source)
    read = [read_embeddings(folder / f"{part.name}.h5") for part in source.parts()]
    coords = np.concatenate([coords for _, coords, _ in read])
    stated = {part.name: found.get(TILES) for part, (_, _, found) in zip(source.parts(), read, strict=True)}
    if stated != tiles or not np.array_equal(coords, table[["x", "y"]].to_numpy()):
        raise ValueError(
            f"{folder}: the embeddings are of other tiles than the index lists; delete the folder"
        )
    texts = {name: table[name].to_numpy(dtype=str) for name in ("slide", "patient", "site", "split", "label")}
    return EmbeddingSet(
        features=np.concatenate([features for features, _, _ in read]), coords=coords, **texts
    )


def _build(architecture: Mapping[str, Any], *, path: Path) -> nn.Module:
    """The backbone that a card names, with random weights; the card is a stranger's word.

    A name counts by where its function lives: a module's own imports are within its reach, too.
    """
    arguments = dict(architecture)
    target = str(arguments.pop("_target_", None))
    module, _, name = target.rpartition(".")
    refusal = f"{path}: its card asks for {target}: only architectures of {ARCHITECTURES[:-1]} are built"
    if not target.startswith(ARCHITECTURES) or name.startswith("_"):
        raise ValueError(refusal)
    try:
        function = getattr(importlib.import_module(module), name)
        if not isinstance(function, FunctionType) or not function.__module__.startswith(ARCHITECTURES):
            raise ValueError(refusal)
        backbone = function(**arguments)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"{refusal} ({error})") from error
    if not isinstance(backbone, nn.Module):
        raise ValueError(refusal)
    return backbone


def _tile_names(source: TileSource) -> dict[str, str]:
    """A hash of the tiles of each part: of their slides (or images) and places, in order."""
    table = source.table()
    names = [f"{slide} {x} {y}" for slide, x, y in zip(table["slide"], table["x"], table["y"], strict=True)]
    return {part.name: fingerprint(names[part.start : part.stop]) for part in source.parts()}


def _is_embedded(part: Part, folder: Path, tiles: Mapping[str, str]) -> bool:
    """Whether an earlier start has left a whole file of this part's tiles."""
    try:
        _, _, attributes = read_embeddings(folder / f"{part.name}.h5")
    except (FileNotFoundError, ValueError):
        return False
    return attributes.get(TILES) == tiles[part.name]


def _features(
    encoder: Encoder, source: TileSource, parts: list[Part], *, batch_size: int, loading: Loading
) -> Iterator[tuple[Part, NDArray[np.float32]]]:
    """Features (N, D) of one part after the other; workers read ahead across the borders of parts."""
    cuts = [_cuts(part, batch_size) for part in parts]
    wanted = [[(row, 0) for row in cut] for part_cuts in cuts for cut in part_cuts]
    batches = iter(TileLoader(Tiles(source), wanted, loading))
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
