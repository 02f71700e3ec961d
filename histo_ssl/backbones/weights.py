"""Other people's checkpoints as weights of our backbones.

A file is recognised by the names of its tensors; what belongs to the encoder is renamed, the rest is listed.
Pickles are opened by torch's unpickler of tensors, which runs no code of theirs.
"""

import argparse
import json
import logging
import math
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from histo_ssl.backbones.families import OURS, Family, Rgb, recognised

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]

WRAPPERS = ("module.", "_orig_mod.")  # put before every name by DistributedDataParallel and torch.compile
CONTAINERS = ("teacher", "state_dict", "model")  # where a checkpoint keeps its tensors
CARD = "card"  # in the metadata of an encoder of this framework
# what torch's unpickler and safetensors make of bytes that are no tensors
NOT_A_FILE_OF_TENSORS = (SafetensorError, RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError)
N_NAMED = 4  # names that a message lists
UNUSED = "num_batches_tracked"  # counts batches; missing from old files, and nothing that we do reads it
FORBIDDEN = re.compile(r"GLOBAL (\S+)")  # how torch names what it refuses


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors of an encoder, and what their file says of how to feed it; None where it says nothing.

    Args:
        tensors: by the names that the encoder gave them.
        origin: where they come from, for messages.
        left_out: names of tensors in the file that are not the encoder's, such as a student or a queue.
        n_heads: width of a ViT -> its attention heads; empty: unknown.
        normalisation: mean and SD of the RGB that the encoder takes.
        tile_px: side of the tiles that it was trained on.
        mpp: their um/px.
        chosen_on: patients or slides by whose labels it was chosen among those of its training.
        stain: as of the encoder's card.
    """

    tensors: Tensors
    origin: str
    left_out: tuple[str, ...] = ()
    n_heads: Mapping[int, int] = field(default_factory=dict)
    normalisation: tuple[Rgb, Rgb] | None = None
    tile_px: int | None = None
    mpp: float | None = None
    chosen_on: tuple[str, ...] = ()
    stain: Mapping[str, Any] | None = None


def read_weights(path: Path) -> Weights:
    """The encoder's weights in a checkpoint, by whichever program it was written.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no checkpoint, holds more than tensors, or no tensors.
    """
    tensors, container = _tensors_in(read_file(path), path=path)
    family = recognised(tensors, container)
    cut = len(family.prefix)
    own = {name[cut:]: tensor for name, tensor in tensors.items() if name.startswith(family.prefix)}
    found = Weights(
        tensors=own,
        origin=f"{path} (recognised as {family.name})",
        left_out=tuple(name for name in tensors if not name.startswith(family.prefix)),
        n_heads=family.n_heads,
        normalisation=family.normalisation,
    )
    return replace(found, **_card(path, family))


def read_file(path: Path) -> Mapping[str, Any]:
    """Content of a safetensors file, or of a pickle that holds nothing but tensors and plain values.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is none of these; nothing of it was run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights; give the path of a checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = _unpickled(path)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except NOT_A_FILE_OF_TENSORS as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: not a readable checkpoint ({first_line}); fetch it again") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected named tensors, a state dict")
    return content


def load_weights(backbone: nn.Module, weights: Weights) -> None:
    """Fill a backbone with weights that fit it, all of it; what is left over is logged.

    A head, or a stage that was cut off, may be left over: what belongs where the backbone has an identity.
    Position embeddings are taken as they are, for whichever size of view they were trained.

    Raises:
        ValueError: something else is missing or left over, has another shape, or another number of heads.
    """
    fit_positions(backbone, weights.tensors)
    _check_heads(backbone, weights)
    wanted = backbone.state_dict()
    missing = [name for name in wanted if name not in weights.tensors and not name.endswith(UNUSED)]
    spare = [name for name in weights.tensors if name not in wanted]
    surprising = [name for name in spare if not _is_cut_off(backbone, name)]
    kept = {name: tensor for name, tensor in weights.tensors.items() if name in wanted}
    unlike = [
        f"{name} {_shape(kept[name])} for {_shape(wanted[name])}"
        for name in kept
        if kept[name].shape != wanted[name].shape
    ]
    if missing or surprising or unlike:
        found = {"missing": missing, "left over": surprising, "of another shape": unlike}
        listed = "; ".join(f"{len(names)} {what} ({_named(names)})" for what, names in found.items() if names)
        raise ValueError(
            f"{weights.origin} does not fit {_name(backbone)}: {listed}; choose the backbone that it was "
            f"trained with"
        )
    backbone.load_state_dict(kept, strict=False)
    spare += weights.left_out
    log.info("weights: %d tensors of %s, left out: %s", len(kept), weights.origin, _named(spare) or "none")


def fit_positions(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a ViT as many position embeddings as the weights have, which tell the views they were trained on.

    Views of another size have them resampled as they pass through; to resample them here would do it twice.
    """
    positions, own = tensors.get("pos_embed"), getattr(backbone, "pos_embed", None)
    if positions is None or not isinstance(own, Tensor) or not hasattr(backbone, "set_input_size"):
        return
    vit = cast(_Vit, backbone)
    n_own = vit.patch_embed.grid_size[0] * vit.patch_embed.grid_size[1]
    side = math.isqrt(positions.shape[1] - (own.shape[1] - n_own))
    patch = vit.patch_embed.patch_size
    if positions.shape[1] != own.shape[1] and side:
        vit.set_input_size(img_size=(side * patch[0], side * patch[1]))


class _Patches(Protocol):
    grid_size: tuple[int, int]
    patch_size: tuple[int, int]


class _Vit(Protocol):
    patch_embed: _Patches

    def set_input_size(self, img_size: tuple[int, int]) -> None: ...


def _unpickled(path: Path) -> Any:
    # DINO's checkpoints keep their command line in this class, which has no behaviour of its own
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on the age of a pickle, which nobody can change
        return torch.load(path, map_location="cpu", weights_only=True)


def _tensors_in(content: Mapping[str, Any], *, path: Path) -> tuple[Tensors, str | None]:
    """The tensors of a checkpoint by their names without wrappers, and the key that they were kept under."""
    container = next((key for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
    held = content[container] if container else content
    tensors = {_unwrapped(str(name)): value for name, value in held.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"{path}: no tensors in it, only {_named([str(key) for key in content])}; expected a state dict, "
            f"or one under {', '.join(CONTAINERS)}"
        )
    return tensors, container


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def _card(path: Path, family: Family) -> dict[str, Any]:
    """What the card of an encoder of this framework says of how to feed it; nothing for other files."""
    beside = path.with_name(f"{CARD}.json")  # of last.ckpt, once its run is done
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(CARD)
    else:
        text = beside.read_text() if family.name == OURS and beside.is_file() else None
    if text is None:
        return {}
    card = json.loads(text)
    normalisation = tuple(card["mean"]), tuple(card["std"])
    said = {"tile_px": card["tile_px"], "mpp": card["mpp"], "stain": card.get("stain")}
    said["chosen_on"] = tuple(card.get("chosen_on", ()))
    return {"normalisation": normalisation, **said}


def _check_heads(backbone: nn.Module, weights: Weights) -> None:
    own, width = attention_heads(backbone), cast(int, backbone.num_features)
    expected = weights.n_heads.get(width)
    if own and expected and own != expected:
        hint = "backbone=vit_s_12heads" if (width, expected) == (384, 12) else f"{expected} heads"
        raise ValueError(
            f"{weights.origin} was trained with {expected} attention heads of {width // expected}, "
            f"{_name(backbone)} has {own}: the shapes fit and the features would be wrong; use {hint}"
        )


def attention_heads(backbone: nn.Module) -> int | None:
    """Attention heads of a ViT's first block; None for other architectures."""
    attention = (module for module in backbone.modules() if hasattr(module, "qkv"))
    return getattr(next(attention, None), "num_heads", None)


def _is_cut_off(backbone: nn.Module, name: str) -> bool:
    """Whether a tensor belongs to a place where the backbone lets everything pass."""
    passing = (nn.Identity, nn.Sequential)
    return any(
        isinstance(module, passing) and not [*module.children()] for module in _on_the_way(backbone, name)
    )


def _on_the_way(backbone: nn.Module, name: str) -> Iterator[nn.Module]:
    module = backbone
    for part in name.split("."):
        children = dict(module.named_children())
        if part not in children:
            return
        module = children[part]
        yield module


def _refusal(path: Path, message: str) -> str:
    forbidden = FORBIDDEN.search(message)
    what = f"asks for {forbidden[1]}" if forbidden else "is no plain list of tensors"
    return (
        f"{path}: refused and not run, since it {what}; a checkpoint may hold tensors and plain values only: "
        f"save its state dict alone, with the program that wrote it"
    )


def _name(backbone: nn.Module) -> str:
    cfg = getattr(backbone, "pretrained_cfg", None) or {}
    return str(cfg.get("architecture") or type(backbone).__name__)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _named(names: list[str]) -> str:
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return ", ".join(names[:N_NAMED]) + more
