"""What a stain normaliser is, how it meets tiles, and how a card brings one back.

B: tiles; S: side of a tile; P: pixels of an image.
"""

import importlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

NOT_RESTAINED = "tiles not restained"  # name of their count
HOME = "histo_ssl.stain."  # nothing else is ever imported at a card's word
DEVICE_TILES = 64  # worked on at once on an accelerator: bounds the memory; a CPU takes one at a time


@dataclass(frozen=True)
class Restained:
    """Tiles after their stain was normalised."""

    tiles: Tensor  # (B, 3, S, S) uint8
    is_left_B: Tensor  # bool: whose dyes could not be told, hence left bit for bit as it came


class StainNormaliser(Protocol):
    """Gives tiles the colours of a target."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(self, tiles_B3P: Tensor) -> Restained:
        """Tiles uint8, each by itself; those that are left may hold anything, `restained` puts them right."""

    def fitted(self, image_13P: Tensor) -> Self:
        """The same with another target.

        Raises:
            ValueError: that one's dyes can't be told; says why, without its name.
        """


@torch.no_grad()
def restained(normaliser: StainNormaliser | None, tiles: Tensor) -> Restained:
    """Tiles (B, 3, S, S) in the colours of the target; themselves where there is no normaliser.

    The same for each tile whatever the others are: bit for bit on a CPU, which takes one at a time; elsewhere
    but for values that lie within the rounding of 32-bit numbers of two 8-bit ones.

    Raises:
        ValueError: the tiles are no batch of 8-bit RGB images.
    """
    if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tiles.shape[1] != 3:
        raise ValueError(
            f"stain: got tiles {tuple(tiles.shape)} of {tiles.dtype}; expected (B, 3, S, S) uint8"
        )
    if normaliser is None or not len(tiles):
        return Restained(tiles, torch.zeros(len(tiles), dtype=torch.bool, device=tiles.device))
    # as they are read their channels come last, which is slower by a third
    flat = tiles.flatten(2).contiguous()
    with torch.autocast(tiles.device.type, enabled=False):
        n_once = 1 if tiles.device.type == "cpu" else DEVICE_TILES
        made = [normaliser(few) for few in torch.split(flat, n_once)]
    is_left_B = torch.cat([few.is_left_B for few in made])
    pixels = torch.where(is_left_B[:, None, None], flat, torch.cat([few.tiles for few in made]))
    return Restained(pixels.view_as(tiles), is_left_B)


def facts_of(normaliser: StainNormaliser | None) -> dict[str, Any] | None:
    """All that makes a normaliser again, in plain values, for a card; None for none."""
    if normaliser is None:
        return None
    kind = type(normaliser)
    facts = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **asdict(normaliser)}
    return dict(json.loads(json.dumps(facts)))


def from_facts(facts: Mapping[str, Any] | None) -> StainNormaliser | None:
    """The normaliser of a card; the card may be a stranger's word.

    Raises:
        ValueError: it names none of ours, or gives it values that it can't be made with.
    """
    if facts is None:
        return None
    values = dict(facts)
    target = str(values.pop("_target_", None))
    module, _, name = target.rpartition(".")
    refusal = f"stain: a card asks for {target} with {values}: only normalisers of {HOME[:-1]} are made"
    if not target.startswith(HOME):
        raise ValueError(refusal)
    try:
        kind = getattr(importlib.import_module(module), name)
        if not (isinstance(kind, type) and kind.__module__.startswith(HOME) and hasattr(kind, "fitted")):
            raise ValueError(refusal)
        made: StainNormaliser = kind(**values)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"{refusal} ({error})") from error
    return made


def note(n_left: int, n_tiles: int) -> list[str]:
    """A sentence on tiles that were left as they came, for a reader of scores; none where there are none."""
    why = "whose dyes can't be told (glass, one dye, too little tissue)"
    return [f"{n_left} of {n_tiles} tiles, {why}, kept their colours"] if n_left else []


def check_numbers(normaliser: StainNormaliser, **shapes: tuple[int, ...]) -> None:
    """Stop at a number that no tile could be normalised with.

    Args:
        normaliser: whose numbers are all checked to be above 0 but for `means`, shares to be below 1.
        shapes: of its lists of numbers, by name; the others are single.

    Raises:
        ValueError: names it.
    """
    for name, value in asdict(normaliser).items():
        shape = shapes.get(name, ())
        try:
            array = torch.tensor(value, dtype=torch.float64)
        except (TypeError, ValueError):
            array = torch.tensor(math.nan)
        if tuple(array.shape) != shape or not array.isfinite().all():
            raise ValueError(f"stain: {name}={value}: numbers of the shape {shape or 1} are expected")
        limit = 1.0 if name.endswith(("_tail", "_tissue")) else math.inf
        if name != "means" and not ((array > 0) & (array < limit)).all():
            raise ValueError(f"stain: {name}={value}: above 0 is expected, and below 1 for a share")
