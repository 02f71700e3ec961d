"""Entropy, RankMe and the names of the two collapses."""

import logging
import math

import pytest
import torch

from histo_ssl.methods.monitors import CollapseWatch, EmbeddingWindow, MonitorSpec, entropy, rankme

LN_K = math.log(8)


def watch() -> CollapseWatch:
    return CollapseWatch(MonitorSpec(margin=0.02, patience=0.3, rankme_rows=4), max_entropy=LN_K)


def test_entropy_is_zero_for_one_hot_ln_k_for_uniform_and_their_mean_for_both() -> None:
    one_hot, uniform = torch.eye(8)[:1], torch.full((1, 8), 1 / 8)
    assert entropy(one_hot).item() == 0.0
    assert entropy(uniform).item() == pytest.approx(LN_K)
    assert entropy(torch.cat([one_hot, uniform])).item() == pytest.approx(LN_K / 2)


def test_rankme_of_equal_rows_is_one_and_of_orthogonal_rows_their_number() -> None:
    # the epsilon of eq. 2 adds 1e-7 ln 1e7 for each empty direction
    assert rankme(torch.ones(20, 6)).item() == pytest.approx(1.0, abs=1e-4)
    assert rankme(3.0 * torch.eye(6)).item() == pytest.approx(6.0, abs=1e-4)
    assert rankme(torch.eye(12)[:5]).item() == pytest.approx(5.0, abs=1e-4)


@pytest.mark.parametrize("shape", [(50, 7), (7, 50)])
def test_rankme_is_the_exponential_entropy_of_the_singular_values(shape: tuple[int, int]) -> None:
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.linalg.svdvals(z.double()).tolist()
    shares = [s / sum(sigma) + 1e-7 for s in sigma]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert rankme(z).item() == pytest.approx(expected, rel=1e-6)


def test_rankme_of_nothing_but_zeros_is_finite() -> None:
    assert math.isfinite(rankme(torch.zeros(4, 3)).item())


def test_the_window_keeps_the_newest_rows_in_order() -> None:
    window = EmbeddingWindow(4)
    window.push(torch.tensor([[1.0], [2.0], [3.0]]))
    assert window.rows().flatten().tolist() == [1, 2, 3]
    window.push(torch.tensor([[4.0], [5.0], [6.0]]))
    assert window.rows().flatten().tolist() == [3, 4, 5, 6]
    window.push(torch.tensor([[7.0], [8.0], [9.0]]))
    assert window.rows().flatten().tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize(
    ("name", "row_entropy", "mean_entropy"),
    [
        ("uniform collapse", 0.99 * LN_K, LN_K),
        ("one-hot collapse", 0.01 * LN_K, 0.01 * LN_K),
        ("constant collapse", 0.50 * LN_K, 0.51 * LN_K),
    ],
)
def test_a_collapse_is_named_once_when_it_has_lasted(
    caplog: pytest.LogCaptureFixture, name: str, row_entropy: float, mean_entropy: float
) -> None:
    eye = watch()
    with caplog.at_level(logging.WARNING):
        eye.look(row_entropy=row_entropy, mean_entropy=mean_entropy, progress=0.1)
        eye.look(row_entropy=row_entropy, mean_entropy=mean_entropy, progress=0.39)
        assert caplog.messages == []
        eye.look(row_entropy=row_entropy, mean_entropy=mean_entropy, progress=0.41)
        eye.look(row_entropy=row_entropy, mean_entropy=mean_entropy, progress=0.9)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{name}: teacher entropy {row_entropy:.3f} nats of at most 2.079")


def test_a_healthy_moment_starts_the_count_again(caplog: pytest.LogCaptureFixture) -> None:
    eye = watch()
    for progress, row_entropy in [(0.0, LN_K), (0.2, 1.0), (0.4, LN_K), (0.6, LN_K)]:
        eye.look(row_entropy=row_entropy, mean_entropy=LN_K, progress=progress)
    assert caplog.messages == []


def test_a_teacher_that_is_sure_of_different_things_is_not_collapsed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    eye = watch()
    for progress in (0.0, 0.5, 1.0):
        eye.look(row_entropy=0.0, mean_entropy=0.9 * LN_K, progress=progress)
    assert caplog.messages == []
