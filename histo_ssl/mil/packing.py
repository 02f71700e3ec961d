"""Mini-batches of bags without padding: all tiles in one matrix, and what is summed bag by bag.

All of it is index arithmetic on whole tensors, in an order that is fixed on a CPU, forward and backward, so
that a run can be repeated to the last digit. A bag gives the same alone and in a pack, to float rounding.

N: tiles of all bags of a pack; B: bags; P: parts of bags; D: features; A: columns of attention scores, 1 or
one per class; K: tiles that were chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

PART = 512  # tiles of a bag that are summed one after the other; sums of such parts are then summed


@dataclass(frozen=True)
class Packed:
    """Bags end to end; the tiles of bag b are rows offsets[b] to offsets[b + 1].

    Args:
        features_ND: embeddings, any float dtype.
        offsets_B1: int64, from 0 to N, rising: no bag is empty.
    """

    features_ND: Tensor
    offsets_B1: Tensor

    @property
    def n_bags(self) -> int:
        """B."""
        return len(self.offsets_B1) - 1

    @cached_property
    def n_tiles_B(self) -> Tensor:
        """Tiles of each bag, int64."""
        return self.offsets_B1.diff()

    @cached_property
    def bag_N(self) -> Tensor:
        """The bag of each tile, int64: 0 0 0 1 1 for bags of 3 and 2 tiles."""
        bags_B = torch.arange(self.n_bags, device=self.offsets_B1.device)
        return bags_B.repeat_interleave(self.n_tiles_B, output_size=len(self.features_ND))

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor]:
        """Where parts of `PART` tiles begin (P,), and which part is the first of each bag (B,).

        The last part of a bag is shorter where its tiles don't fill it.
        """
        n_parts_B = (self.n_tiles_B + PART - 1) // PART
        first_B = n_parts_B.cumsum(0) - n_parts_B
        bags_B = torch.arange(self.n_bags, device=first_B.device)
        bag_P = bags_B.repeat_interleave(n_parts_B)
        place_P = torch.arange(len(bag_P), device=first_B.device) - first_B[bag_P]
        return self.offsets_B1[bag_P] + place_P * PART, first_B

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Packed":
        """The same bags on another device."""
        features_ND = self.features_ND.to(device, non_blocking=non_blocking)
        return Packed(features_ND, self.offsets_B1.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Packed":
        """The same bags in memory that a GPU reads from directly."""
        return Packed(self.features_ND.pin_memory(), self.offsets_B1.pin_memory())


def pack(bags: Sequence[Tensor]) -> Packed:
    """A pack of the bags in their order.

    Args:
        bags: (N_b, D) each, one dtype.

    Raises:
        ValueError: there is no bag, one has no tile, or their widths differ.
    """
    if not bags:
        raise ValueError("a pack of 0 bags: 1 or more is expected")
    dim = bags[0].shape[-1]
    for i, bag_ND in enumerate(bags):
        if bag_ND.ndim != 2 or bag_ND.shape[1] != dim or not len(bag_ND):
            raise ValueError(
                f"bag {i} of a pack has the shape {tuple(bag_ND.shape)}: (tiles, {dim}) with 1 tile or more "
                "is expected; leave out bags without tiles, and embed all of them by one encoder"
            )
    lengths_B = torch.tensor([len(bag_ND) for bag_ND in bags])
    return Packed(torch.cat(list(bags)), F.pad(lengths_B.cumsum(0), (1, 0)))


def at_least_single(x: Tensor) -> Tensor:
    """Half precision lifted to float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def weighted_sum(x_ND: Tensor, weight_NA: Tensor, *, packed: Packed) -> Tensor:
    """Sum of each bag's rows, each times its weight.

    An embedding bag whose table is the rows themselves: it never holds the (N, D) products, and takes a third
    of the time of multiplying first. Sums of parts are summed: a float32 sum of 100,000 tiles is then exact
    to 5e-7, and all cores are busy with a single bag.

    Args:
        x_ND: one row per tile.
        weight_NA: one weight per tile and column, in the dtype of `x_ND`.
        packed: whose tiles they are.

    Returns:
        (B, A, D). With weights of 1 / N_b, the mean of bag b.
    """
    rows_N = torch.arange(len(x_ND), device=x_ND.device)
    starts_P, first_B = packed.parts
    of_parts = [
        F.embedding_bag(rows_N, x_ND, starts_P, mode="sum", per_sample_weights=weight_N.contiguous())
        for weight_N in weight_NA.unbind(1)
    ]
    sums = [F.embedding_bag(rows_N[: len(sum_PD)], sum_PD, first_B, mode="sum") for sum_PD in of_parts]
    return torch.stack(sums, dim=1)


def segment_sum(x_ND: Tensor, *, packed: Packed) -> Tensor:
    """Sum of each bag's rows, (B, D)."""
    return weighted_sum(x_ND, x_ND.new_ones(len(x_ND), 1), packed=packed)[:, 0]


def segment_mean(x_ND: Tensor, *, packed: Packed) -> Tensor:
    """Mean of each bag's rows, (B, D)."""
    return segment_sum(x_ND, packed=packed) / packed.n_tiles_B[:, None]


def segment_max(x_ND: Tensor, *, packed: Packed) -> Tensor:
    """Maximum of each bag's rows, (B, D); of equal ones, the first alone gets the gradient."""
    rows_N = torch.arange(len(x_ND), device=x_ND.device)
    starts_P, first_B = packed.parts
    max_PD = F.embedding_bag(rows_N, x_ND, starts_P, mode="max")
    return F.embedding_bag(rows_N[: len(max_PD)], max_PD, first_B, mode="max")


def segment_softmax(scores_NA: Tensor, *, packed: Packed) -> Tensor:
    """Softmax over the tiles of each bag, column by column.

    Args:
        scores_NA: any size; half precision is lifted to float32 first.
        packed: whose tiles they are.

    Returns:
        (N, A), each column of each bag sums to 1. 1 / N_b where all scores of a bag are the same.
    """
    scores_NA = at_least_single(scores_NA)
    highest_BA = segment_max(scores_NA.detach(), packed=packed)
    exp_NA = (scores_NA - highest_BA.index_select(0, packed.bag_N)).exp()
    return exp_NA / segment_sum(exp_NA, packed=packed).index_select(0, packed.bag_N)


@dataclass(frozen=True, kw_only=True)
class Extremes:
    """The tiles of each bag with the highest and the lowest scores, equally many in every column."""

    rows_KA: Tensor  # places in the pack, int64
    bag_K: Tensor  # the bag of each, int64
    is_top_K: Tensor  # bool: among the highest; else among the lowest


def extremes(scores_NA: Tensor, *, packed: Packed, n: int) -> Extremes:
    """The n tiles with the highest and the n with the lowest scores of each bag.

    A bag of fewer than 2n tiles gives half of them (rounded down) to either side, so that no tile is on both;
    a single tile is among the highest. Of equal scores the first counts as the higher.

    Args:
        scores_NA: nothing is differentiated through them.
        packed: whose tiles they are.
        n: 1 or more.
    """
    falling_NA = scores_NA.detach().argsort(dim=0, descending=True, stable=True)
    bag_NA = packed.bag_N[falling_NA]
    by_bag_NA = falling_NA.gather(0, bag_NA.argsort(dim=0, stable=True))
    place_N = torch.arange(len(scores_NA), device=scores_NA.device) - packed.offsets_B1[packed.bag_N]
    n_N = packed.n_tiles_B[packed.bag_N]
    is_top_N = place_N < (n_N // 2).clamp(min=1, max=n)
    is_bottom_N = place_N >= n_N - (n_N // 2).clamp(max=n)
    chosen_K = (is_top_N | is_bottom_N).nonzero()[:, 0]
    return Extremes(rows_KA=by_bag_NA[chosen_K], bag_K=packed.bag_N[chosen_K], is_top_K=is_top_N[chosen_K])
