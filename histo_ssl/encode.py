"""Encoders: a trained backbone with its card, in one file."""

import copy
import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from histo_ssl.backbones.depths import layer_depths
from histo_ssl.backbones.weights import fit_positions
from histo_ssl.folders.artifacts import write_bytes
from histo_ssl.stain.base import Restained, StainNormaliser, from_facts, restained

MPP_TOLERANCE = 0.05  # a nominal 20x scan may be 0.504 um/px
LONGEST_REASON = 200  # characters of another library's message
EXACT = "32-true"  # the precision of a forward pass that rounds no more than its weights do
ARCHITECTURES = "histo_ssl.backbones."  # nothing else is ever imported at a card's word


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
    # what normalises the stain of tiles before all else: `_target_` names it, the rest its numbers
    stain: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Encoder:
    """A backbone that is fed as its card says."""

    backbone: nn.Module
    card: Card
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __call__(self, tiles_B3SS: Tensor) -> Tensor:
        """Embeddings (B, D) float32 of tiles (B, 3, S, S) uint8 as they were scanned."""
        return self.of_restained(self.restained(tiles_B3SS).tiles)

    @cached_property
    def stain(self) -> StainNormaliser | None:
        """What normalises the stain of its tiles, if its card names anything."""
        return from_facts(self.card.stain)

    def restained(self, tiles_B3SS: Tensor) -> Restained:
        """The tiles on the encoder's device, in the colours that it was trained on."""
        return restained(self.stain, tiles_B3SS.to(self.device, non_blocking=True))

    @torch.inference_mode()
    def of_restained(self, tiles_B3SS: Tensor, *, precision: str = EXACT) -> Tensor:
        """Embeddings (B, D) float32 of tiles that went through `restained`.

        Args:
            tiles_B3SS: on any device.
            precision: of the backbone's products: 32-true or bf16-mixed.
        """
        fed = self.fed(tiles_B3SS)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=precision != EXACT):
            features: Tensor = self.backbone(fed)
        return features.float()

    def fed(self, tiles_B3SS: Tensor) -> Tensor:
        """What the backbone is fed with: float32 tiles of the card's mean and SD, from uint8 ones."""
        mean_3, std_3 = self._normalisation
        # one array, changed in place, not four
        fed_B3SS = tiles_B3SS.to(self.device, non_blocking=True).to(torch.float32, copy=True)
        fed_BSS3 = fed_B3SS.permute(0, 2, 3, 1)
        if fed_BSS3.is_contiguous():  # as tiles are read: by whole rows, not three colours at a time
            n = fed_BSS3.shape[2]
            rows = fed_BSS3.view(-1, 3 * n)
            rows.div_(255).sub_(mean_3.repeat(n)).div_(std_3.repeat(n))
        else:
            fed_BSS3.div_(255).sub_(mean_3).div_(std_3)
        return fed_B3SS

    @cached_property
    def _normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and SD, (3,) each; to copy them anew for each batch would wait for the one before."""
        with torch.inference_mode(mode=False):  # others train on what they normalise
            mean, std = (torch.tensor(v, device=self.device) for v in (self.card.mean, self.card.std))
        return mean, std

    def depths(self) -> dict[str, int]:
        """How deep in the backbone each parameter lies, by its name."""
        return layer_depths(self.backbone)

    def backbone_copy(self, *, drop_path: float | None) -> nn.Module:
        """The same backbone again, in training mode, whose weights another training may change.

        Args:
            drop_path: probability that its last residual branch is left out in training, 0-1; None: as it was
                made.

        Raises:
            ValueError: the architecture can't drop paths.
        """
        if drop_path is None:
            return copy.deepcopy(self.backbone).train().requires_grad_(True)
        backbone = _build(
            {**self.card.architecture, "drop_path": drop_path}, path=Path(f"the {self.card.method} encoder")
        )
        weights = self.backbone.state_dict()
        fit_positions(backbone, weights)
        backbone.load_state_dict(weights)
        return backbone.train().requires_grad_(True)

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
        who = f"the {self.card.method} encoder {self.card.fingerprint}"
        check_scale(mpp, trained_mpp=self.card.mpp, who=who, any_mpp=any_mpp)


def check_scale(mpp: float | None, *, trained_mpp: float | None, who: str, any_mpp: bool) -> None:
    """The same for an encoder that need not be there yet.

    Args:
        mpp: um/px of the tiles that it is to embed, None where unknown (which passes).
        trained_mpp: um/px of the tiles that it is trained on, likewise.
        who: what to call it.
        any_mpp: let it pass all the same.

    Raises:
        ValueError: the scales differ by more than `MPP_TOLERANCE`.
    """
    if any_mpp or mpp is None or trained_mpp is None or abs(mpp / trained_mpp - 1) <= MPP_TOLERANCE:
        return
    raise ValueError(
        f"{who} was trained at {trained_mpp:g} um/px, these tiles have {mpp:g}: cut slides at "
        f"tiling.mpp={trained_mpp:g}, or say embedding.any_mpp=true"
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
        card = Card(**{**values, **lists})
        from_facts(card.stain)
        return card
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: its encoder's card can't be read ({error}); export it again") from error


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
