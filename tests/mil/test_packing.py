"""What is summed bag by bag, against a plain loop over bags."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from histo_ssl.mil.packing import (
    PART,
    Packed,
    extremes,
    pack,
    segment_max,
    segment_mean,
    segment_softmax,
    segment_sum,
    weighted_sum,
)

LENGTHS = (5, 1, 12, 2, 3)


def bags(*, lengths: tuple[int, ...] = LENGTHS, dim: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in lengths]


def test_a_pack_holds_the_bags_end_to_end() -> None:
    packed = pack([torch.full((n, 2), float(n)) for n in (3, 1, 2)])
    assert packed.offsets_B1.tolist() == [0, 3, 4, 6]
    assert packed.features_ND[:, 0].tolist() == [3, 3, 3, 1, 2, 2]
    assert packed.bag_N.tolist() == [0, 0, 0, 1, 2, 2]
    assert packed.n_tiles_B.tolist() == [3, 1, 2]
    assert packed.n_bags == 3


def test_a_pack_on_another_device_has_the_same_offsets() -> None:
    moved = pack(bags()).to("meta")
    assert moved.features_ND.device.type == moved.offsets_B1.device.type == "meta"
    assert moved.features_ND.shape == (23, 4)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ([], "a pack of 0 bags"),
        ([(3, 4), (0, 4)], r"bag 1 of a pack has the shape \(0, 4\): \(tiles, 4\) with 1 tile or more"),
        ([(3, 4), (2, 4), (3, 5)], r"bag 2 of a pack has the shape \(3, 5\)"),
        ([(4,)], r"bag 0 of a pack has the shape \(4,\)"),
    ],
)
def test_what_cannot_be_packed_is_refused(shapes: list[tuple[int, ...]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pack([torch.zeros(shape) for shape in shapes])


@pytest.mark.parametrize(
    ("segment", "alone"),
    [
        (segment_sum, lambda bag_ND: bag_ND.sum(0)),
        (segment_mean, lambda bag_ND: bag_ND.mean(0)),
        (segment_max, lambda bag_ND: bag_ND.max(0).values),
        (segment_softmax, lambda bag_ND: bag_ND.softmax(0)),
    ],
)
def test_values_and_gradients_are_those_of_a_loop_over_bags(
    segment: Callable[..., Tensor], alone: Callable[[Tensor], Tensor]
) -> None:
    ours, theirs = ([bag_ND.requires_grad_() for bag_ND in bags()] for _ in range(2))
    values = segment((packed := pack(ours)).features_ND, packed=packed)
    expected = torch.cat([alone(bag_ND).view(-1, 4) for bag_ND in theirs])
    torch.testing.assert_close(values, expected)
    weights = bags(lengths=(len(values),), seed=1)[0]
    (values * weights).sum().backward()
    (expected * weights).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_bags_are_cut_into_parts_that_never_cross_from_one_to_the_next() -> None:
    packed = pack([torch.zeros(n, 1) for n in (PART + 1, 3, 2 * PART)])
    starts_P, first_B = packed.parts
    assert starts_P.tolist() == [0, PART, PART + 1, PART + 4, 2 * PART + 4]
    assert first_B.tolist() == [0, 2, 3]


@pytest.mark.parametrize("n", [PART - 1, PART, PART + 1, 3 * PART + 7])
def test_bags_of_several_parts_are_summed_and_their_maximum_taken_as_a_whole(n: int) -> None:
    first, second = bags(lengths=(n, 2 * n), dim=3)
    packed = pack([first, second])
    sums = segment_sum(packed.features_ND, packed=packed)
    torch.testing.assert_close(sums, torch.stack([first.sum(0), second.sum(0)]))
    highest = segment_max(packed.features_ND, packed=packed)
    assert torch.equal(highest, torch.stack([first.max(0).values, second.max(0).values]))


def test_a_large_bag_is_summed_as_exactly_in_float32_as_by_torch() -> None:
    x_ND = bags(lengths=(100_000,), dim=3)[0].abs()
    packed = pack([x_ND.float()])
    mean_D = segment_mean(packed.features_ND, packed=packed)[0].double()
    assert ((mean_D - x_ND.mean(0)) / x_ND.mean(0)).abs().max() < 1e-6  # one after the other: 1.3e-5


def test_a_weighted_sum_is_a_product_of_matrices_per_bag() -> None:
    x, w = bags(), bags(dim=3, seed=1)
    expected = torch.stack([w_NA.T @ x_ND for x_ND, w_NA in zip(x, w, strict=True)])
    packed = pack(x)
    torch.testing.assert_close(weighted_sum(packed.features_ND, torch.cat(w), packed=packed), expected)


@pytest.mark.parametrize("segment", [segment_sum, segment_mean, segment_max, segment_softmax])
def test_gradients_are_those_of_finite_differences(segment: Callable[..., Tensor]) -> None:
    packed = pack(bags(dim=2))
    x_ND = packed.features_ND.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: segment(x, packed=packed), (x_ND,))


def test_gradients_of_a_weighted_sum_are_those_of_finite_differences() -> None:
    packed = pack(bags(dim=3))
    inputs = (packed.features_ND.requires_grad_(), torch.cat(bags(dim=2, seed=1)).requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: weighted_sum(x, w, packed=packed), inputs)


def test_a_softmax_bears_scores_of_any_size_and_sums_to_one_in_each_bag() -> None:
    scores_N2 = torch.tensor([[1000.0, -1000.0], [0.0, 0.0], [3e4, 5.0], [3e4, 5.0]], dtype=torch.float16)
    packed = Packed(scores_N2, torch.tensor([0, 2, 4]))
    weights_N2 = segment_softmax(scores_N2, packed=packed)
    assert weights_N2.tolist() == [[1, 0], [0, 1], [0.5, 0.5], [0.5, 0.5]]
    assert weights_N2.dtype == torch.float32
    sums_B2 = segment_sum(segment_softmax((p := pack(bags())).features_ND, packed=p), packed=p)
    torch.testing.assert_close(sums_B2, torch.ones(5, 4, dtype=torch.float64))


def test_of_equal_rows_the_first_alone_gets_the_gradient_of_a_maximum() -> None:
    x_ND = torch.tensor([[1.0], [2.0], [2.0]], requires_grad=True)
    segment_max(x_ND, packed=Packed(x_ND, torch.tensor([0, 3]))).sum().backward()
    assert x_ND.grad is not None
    assert x_ND.grad.flatten().tolist() == [0, 1, 0]


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_extremes_are_those_of_a_loop_and_never_on_both_sides(n: int) -> None:
    packed = pack(bags(lengths=(5, 1, 16, 2, 3, 7), dim=2))
    chosen = extremes(packed.features_ND, packed=packed, n=n)
    for column in range(2):
        for b, (start, end) in enumerate(zip(packed.offsets_B1[:-1], packed.offsets_B1[1:], strict=True)):
            scores = packed.features_ND[start:end, column].tolist()
            falling = sorted(range(len(scores)), key=lambda i: -scores[i])
            half = min(n, len(scores) // 2)
            top, bottom = falling[: max(half, 1)], falling[len(scores) - half :]
            rows = chosen.rows_KA[:, column] - start
            assert rows[(chosen.bag_K == b) & chosen.is_top_K].tolist() == top
            assert rows[(chosen.bag_K == b) & ~chosen.is_top_K].tolist() == bottom
            assert set(top).isdisjoint(bottom)


def test_of_equal_scores_the_first_counts_as_the_higher() -> None:
    packed = pack([torch.zeros(6, 1), torch.zeros(4, 1)])
    chosen = extremes(packed.features_ND, packed=packed, n=2)
    assert chosen.rows_KA[:, 0].tolist() == [0, 1, 4, 5, 6, 7, 8, 9]
    assert chosen.is_top_K.tolist() == [True, True, False, False] * 2


def test_values_and_gradients_repeat_to_the_last_digit_on_several_threads() -> None:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        packed = pack([x.float() for x in bags(lengths=(9000, 1, 4000), dim=64)])
        x_ND = packed.features_ND.requires_grad_()
        scores_N1 = bags(lengths=(13001,), dim=1, seed=1)[0].float().requires_grad_()

        def run() -> list[Tensor]:
            x_ND.grad = scores_N1.grad = None
            z_BD = weighted_sum(x_ND, segment_softmax(scores_N1, packed=packed), packed=packed)
            (z_BD[:, 0] + segment_max(x_ND, packed=packed)).square().sum().backward()
            assert x_ND.grad is not None
            assert scores_N1.grad is not None
            return [z_BD.detach().clone(), x_ND.grad, scores_N1.grad]

        first = run()
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    finally:
        torch.set_num_threads(n_threads)
