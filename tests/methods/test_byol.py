"""BYOL's loss against the paper's equation and lightly's cosine, and what one step does."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from torch import Tensor, nn

from histo_ssl.methods.byol import byol_loss


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_loss_is_the_squared_distance_of_unit_vectors() -> None:
    p, z = rows(3, 4), rows(3, 4, seed=1)
    terms = []
    for a, b in zip(p.tolist(), z.tolist(), strict=True):
        a_length, b_length = (math.sqrt(sum(x * x for x in v)) for v in (a, b))
        terms.append(sum((x / a_length - y / b_length) ** 2 for x, y in zip(a, b, strict=True)))
    assert byol_loss(p, z).item() == pytest.approx(sum(terms) / 3, rel=1e-5)


def test_loss_and_gradient_are_two_and_twice_lightlys_negative_cosine() -> None:
    ours, theirs, target = rows(5, 6).requires_grad_(), rows(5, 6).requires_grad_(), rows(5, 6, seed=1)
    loss, expected = byol_loss(ours, target), 2 + 2 * NegativeCosineSimilarity()(theirs, target)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(("target", "expected"), [([2.0, 0.0], 0.0), ([0.0, 1.0], 2.0), ([-1.0, 0.0], 4.0)])
def test_loss_is_0_for_the_same_2_for_nothing_in_common_4_for_the_opposite(
    target: list[float], expected: float
) -> None:
    assert byol_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([target])).item() == pytest.approx(expected)


def test_a_step_predicts_each_view_from_the_other_and_the_target_does_not_learn(build: Any) -> None:
    byol, views = build("byol")
    out = byol.step(views)
    with torch.no_grad():
        p1, p2 = (byol.predictor(byol.online(view)[1]) for view in views)
        z1, z2 = (byol.target(view)[1] for view in views)
    assert out["loss"].item() == pytest.approx((byol_loss(p1, z2) + byol_loss(p2, z1)).item(), rel=1e-5)
    out["loss"].backward()
    assert all(p.grad is None for p in byol.target.parameters())
    assert byol.predictor[-1].weight.grad.abs().sum() > 0
    assert byol.encoder() is byol.online.backbone


def test_the_target_starts_equal_and_moves_by_the_cosine_of_section_3(build: Any) -> None:
    byol, _ = build("byol", "method.momentum=0.9")
    before = [p.clone() for p in byol.target.parameters()]
    assert all(map(torch.equal, before, byol.online.parameters()))
    with torch.no_grad():
        for p in byol.online.parameters():
            p.add_(1.0)
    byol.after_step(1 / 3)
    moved = 0.1 * (math.cos(math.pi / 3) + 1) / 2  # 1 - tau
    for old, new in zip(before, byol.target.parameters(), strict=True):
        torch.testing.assert_close(new, old + moved)


def test_projector_and_predictor_are_those_of_section_3_3(build: Any) -> None:
    byol, _ = build("byol", "method.projector.n_hidden=24")
    for head, n_in in ((byol.online.projector, 64), (byol.predictor, 8)):
        kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert [type(layer) for layer in head] == kinds
        assert (head[0].weight.shape, head[-1].weight.shape) == ((24, n_in), (8, 24))
        assert head[-1].bias is not None
