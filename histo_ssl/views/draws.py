"""Random numbers that depend on what they are for and on nothing else.

A number is a hash of its address (seed, tile id, epoch, view, place), so the same tile gets the same views
in any batch, worker or rank, and no generator has a state to save. The hash is SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17): every field of the address
picks an output of the stream that the fields before it have seeded. Torch's 64-bit integers are signed, but
wrap around as unsigned ones do; only the shift needs care.

N: views to make, D: numbers per view.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # the stream's step: 2^64 / golden ratio, made odd
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # multipliers of Stafford's 13th mixer
N_BITS = 24  # of the 64; all that a float32 in [0, 1) can hold evenly


def wrapped(n: int) -> int:
    """The signed 64-bit integer that is congruent to `n` modulo 2^64.

    >>> wrapped(2**63)
    -9223372036854775808
    """
    return (n + 2**63) % 2**64 - 2**63


def logical_shift(x: Tensor, n_bits: int) -> Tensor:
    """Int64 `x` moved right by `n_bits` with zeros coming in, whatever its sign.

    >>> logical_shift(torch.tensor([-1, 256]), 60).tolist()
    [15, 0]
    """
    return (x >> n_bits) & ((1 << (64 - n_bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's bijection on 64-bit integers: one bit of `x` changes half of the bits of the result."""
    x = (x ^ logical_shift(x, 30)) * wrapped(FIRST)
    x = (x ^ logical_shift(x, 27)) * wrapped(SECOND)
    return x ^ logical_shift(x, 31)


def output(seed: Tensor | int, index: Tensor) -> Tensor:
    """Output number `index` (from 0) of the SplitMix64 stream that starts at `seed`, as int64.

    >>> hex(output(0, torch.tensor([0])).item() % 2**64)
    '0xe220a8397b1dcdaf'
    """
    start = wrapped(seed) if isinstance(seed, int) else seed
    return mix((index + 1) * wrapped(GOLDEN) + start)


def uniforms(ids: Tensor, *, epoch: Tensor, view: Tensor, seed: int, n_draws: int) -> Tensor:
    """Independent numbers for every (seed, tile id, epoch, view).

    Args:
        ids: int64 tile ids, any value and shape; `epoch` and `view` broadcast against it.
        epoch: int64, the epoch in which the tile is seen.
        view: int64, which of the tile's views is made.
        seed: of the run; any integer.
        n_draws: how many numbers each view needs.

    Returns:
        (..., n_draws) float32 with the broadcast shape in front, uniform on the 2^24 multiples of 2^-24 in
        [0, 1). Number d is the same whatever `n_draws` is.
    """
    state = output(output(output(seed, ids), epoch), view)
    bits = output(state[..., None], torch.arange(n_draws, device=ids.device))
    return logical_shift(bits, 64 - N_BITS).float() * 2.0**-N_BITS


def between(u: Tensor, low: float, high: float) -> Tensor:
    """`u` of [0, 1) spread evenly over [low, high)."""
    return low + (high - low) * u


def columns(widths: Mapping[str, int]) -> dict[str, slice | int]:
    """Which of a view's numbers go under which name: a column, or a slice where the width is over 1.

    >>> columns({"hue": 1, "stain": 3, "grey": 1})
    {'hue': 0, 'stain': slice(1, 4, None), 'grey': 4}
    """
    ends = itertools.accumulate(widths.values())
    return {
        name: end - 1 if width == 1 else slice(end - width, end)
        for (name, width), end in zip(widths.items(), ends, strict=True)
    }


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of N views, by name."""

    u_ND: Tensor  # uniform in [0, 1)
    columns: Mapping[str, slice | int]

    def __getitem__(self, name: str) -> Tensor:
        """The numbers under a name: (N,) for a single column, (N, width) for a slice."""
        return self.u_ND[:, self.columns[name]]

    def of(self, rows: Tensor) -> "Draws":
        """The numbers of some of the views."""
        return Draws(u_ND=self.u_ND[rows], columns=self.columns)
