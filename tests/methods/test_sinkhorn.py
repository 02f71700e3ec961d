"""Sinkhorn's shares against the paper's loop, lightly's own, and what they must sum to."""

import pytest
import torch
from lightly.loss.swav_loss import sinkhorn as lightlys

from histo_ssl.methods.sinkhorn import sinkhorn


def logits(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_shares_are_those_of_the_papers_loop() -> None:
    x = logits(6, 4)
    q = [[torch.exp(x[n, k]).item() for n in range(6)] for k in range(4)]
    for _ in range(3):
        q = [[share / sum(row) / 4 for share in row] for row in q]
        totals = [sum(q[k][n] for k in range(4)) for n in range(6)]
        q = [[q[k][n] / totals[n] / 6 for n in range(6)] for k in range(4)]
    expected = torch.tensor(q).T * 6
    torch.testing.assert_close(sinkhorn(x, n_iterations=3), expected)


def test_shares_are_lightlys() -> None:
    x = logits(10, 7)
    expected = lightlys(x, iterations=3, epsilon=0.5, gather_distributed=False)
    torch.testing.assert_close(sinkhorn(x / 0.5, n_iterations=3), expected)


def test_rows_sum_to_one_and_after_many_rounds_prototypes_are_used_alike() -> None:
    q = sinkhorn(logits(12, 5), n_iterations=200)
    torch.testing.assert_close(q.sum(1), torch.ones(12))
    torch.testing.assert_close(q.sum(0), torch.full((5,), 12 / 5))


def test_equal_rows_get_the_uniform_distribution() -> None:
    torch.testing.assert_close(sinkhorn(logits(1, 8).expand(5, 8), n_iterations=1), torch.full((5, 8), 1 / 8))


@pytest.mark.parametrize("scale", [50.0, 1000.0])
def test_sharp_logits_neither_overflow_nor_vanish(scale: float) -> None:
    q = sinkhorn(logits(16, 9, scale=scale), n_iterations=3)
    assert torch.isfinite(q).all()
    torch.testing.assert_close(q.sum(1), torch.ones(16))
