"""SimCLR's loss against the paper's double loop and lightly's, and what one step does."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from histo_ssl.methods.simclr import nt_xent


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_loss_is_the_loop_of_algorithm_1() -> None:
    z_BC, w_BC = rows(4, 5), rows(4, 5, seed=1)
    views = [row for pair in zip(z_BC.tolist(), w_BC.tolist(), strict=True) for row in pair]

    def similarity(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    def term(i: int, j: int) -> float:
        others = [math.exp(similarity(views[i], views[k]) / 0.2) for k in range(8) if k != i]
        return -math.log(math.exp(similarity(views[i], views[j]) / 0.2) / sum(others))

    expected = sum(term(2 * k, 2 * k + 1) + term(2 * k + 1, 2 * k) for k in range(4)) / 8
    assert nt_xent(z_BC, w_BC, temperature=0.2).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("B", "temperature"), [(2, 0.1), (7, 0.5)])
def test_loss_and_gradient_are_lightlys(B: int, temperature: float) -> None:
    ours, theirs = (tuple(rows(B, 6, seed=s).requires_grad_() for s in (0, 1)) for _ in range(2))
    loss = nt_xent(*ours, temperature=temperature)
    expected = NTXentLoss(temperature=temperature)(*theirs)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("B", [1, 2, 7])
def test_loss_is_the_log_of_the_candidates_when_all_views_coincide(B: int) -> None:
    same_BC = torch.ones(B, 4)
    expected = math.log(2 * B - 1)  # each of 2B - 1 candidates is equally likely
    assert nt_xent(same_BC, same_BC, temperature=0.1).item() == pytest.approx(expected, abs=1e-5)


def test_a_view_is_no_candidate_for_itself() -> None:
    # two tiles at a right angle, both views alike: candidates 1, 0, 0, so -log(e / (e + 2))
    loss = nt_xent(torch.eye(2), torch.eye(2), temperature=1.0)
    assert loss.item() == pytest.approx(math.log(math.e + 2) - 1)


def test_lengths_of_projections_do_not_matter() -> None:
    z_BC, w_BC = rows(3, 4), rows(3, 4, seed=1)
    stretched = nt_xent(z_BC * torch.tensor([[1e-3], [1.0], [1e3]]), 7 * w_BC, temperature=0.1)
    torch.testing.assert_close(stretched, nt_xent(z_BC, w_BC, temperature=0.1))


def test_logits_are_float32_whatever_the_projections_are() -> None:
    z_BC, w_BC = rows(8, 16).bfloat16(), rows(8, 16, seed=1).bfloat16()
    loss = nt_xent(z_BC, w_BC, temperature=0.05)
    assert loss.dtype == torch.float32
    # in bfloat16 the second digit of a logit near 20 would be lost
    torch.testing.assert_close(loss, nt_xent(z_BC.float(), w_BC.float(), temperature=0.05))


# the method


def test_both_views_go_through_the_backbone_together_and_the_projector_ends_in_batchnorms(build: Any) -> None:
    simclr, views = build("simclr")
    n_rows: list[int] = []
    simclr.network.backbone.register_forward_hook(lambda _, inputs, __: n_rows.append(len(inputs[0])))
    out = simclr.step(views)
    assert n_rows == [8]  # two views of four tiles
    with torch.no_grad():
        _, p_MC = simclr.network(torch.cat(views))
    # a fresh BatchNorm leaves mean 0 and variance 1, here over both views of all tiles
    torch.testing.assert_close(p_MC.mean(0), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(p_MC.var(0, correction=0), torch.ones(8), rtol=1e-2, atol=0)
    expected = nt_xent(*p_MC.chunk(2), temperature=0.1)
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert out["chance"].item() == pytest.approx(math.log(7))
    assert simclr.encoder() is simclr.network.backbone


@pytest.mark.parametrize("method", ["simclr", "moco", "mocov3", "byol"])
def test_another_number_or_size_of_views_is_refused(build: Any, method: str) -> None:
    built, views = build(method)
    with pytest.raises(ValueError, match=r"two views of one size are compared, got 3 of 32, 32, 32 px"):
        built.step([*views, views[0]])
    with pytest.raises(ValueError, match=r"got 2 of 32, 16 px: use views=pair or byol"):
        built.step([views[0], views[1][..., :16, :16]])
