"""Signs of failure of the methods without a teacher's distributions: what is logged, and what is named."""

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from histo_ssl.methods.monitors import FailureWatch, rankme, spread

PAIR = {"sides": (32, 32)}


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_spread_is_zero_of_one_direction_and_one_of_directions_that_cancel() -> None:
    assert spread(torch.tensor([[1.0, 2.0], [2.0, 4.0], [0.1, 0.2]])).item() == pytest.approx(0.0, abs=1e-6)
    assert spread(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])).item() == pytest.approx(1.0)
    # half and half at a right angle: |mean|^2 = 1/2
    assert spread(torch.tensor([[1.0, 0.0], [0.0, 5.0]])).item() == pytest.approx(math.sqrt(0.5))


def test_spread_is_the_standard_deviation_of_directions_over_that_of_even_ones() -> None:
    unit = rows(5000, 16)
    unit = unit / unit.norm(dim=1, keepdim=True)
    # SimSiam's figure 2: 1 / sqrt(D) per channel when directions are even
    expected = unit.std(0).square().mean().sqrt() / (1 / math.sqrt(16))
    assert spread(unit).item() == pytest.approx(expected.item(), rel=1e-3)
    assert spread(unit).item() == pytest.approx(1.0, abs=0.01)


def test_a_failure_is_named_once_when_its_sign_has_lasted(caplog: pytest.LogCaptureFixture) -> None:
    watch = FailureWatch(patience=0.3)
    with caplog.at_level(logging.WARNING):
        for progress, is_there in [(0.0, True), (0.2, False), (0.3, True), (0.59, True)]:
            watch.look("loss at chance", is_there=is_there, evidence="loss 6", progress=progress)
        assert caplog.messages == []
        for progress in (0.61, 0.7):
            watch.look("loss at chance", is_there=True, evidence="loss 6", progress=progress)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        "loss at chance: loss 6 for 30 % of training: the method tells no tile"
    )


def frozen(method: Any) -> Any:
    """The method with a learning rate of 0, so that it stays as it is made here."""
    object.__setattr__(method.optim, "lr_per_256", 0.0)
    object.__setattr__(method.optim, "final_lr", 0.0)
    return method


def says(method: Any, name: str, out_of: Any) -> None:
    """Let one network answer with features and projections of our choice for as many rows as it gets."""
    network = getattr(method, name)
    honest = network.forward
    network.forward = lambda x, *args, **options: out_of(x, honest(x, *args, **options))


def names(caplog: pytest.LogCaptureFixture) -> set[str]:
    return {message.split(":")[0] for message in caplog.messages}


@pytest.mark.parametrize(
    ("method", "networks"),
    [("simclr", ["network"]), ("moco", ["query", "key"]), ("mocov3", ["base", "average"])],
)
def test_a_contrast_that_tells_no_tile_from_another_is_named(
    build: Any, fit: Any, caplog: pytest.LogCaptureFixture, method: str, networks: list[str]
) -> None:
    built, _ = build(method)
    for name in networks:
        says(frozen(built), name, lambda _, out: (out[0] + rows(*out[0].shape), out[1] * 0 + 1.0))
    if method == "moco":
        built.queue.keys_NC.fill_(1 / math.sqrt(8))
    with caplog.at_level(logging.WARNING):
        fit(built, max_steps=10, **PAIR)
    assert names(caplog) == {"loss at chance", "feature collapse"}


def test_byols_collapse_is_named_by_its_spread(
    build: Any, fit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    byol, _ = build("byol")
    says(frozen(byol), "online", lambda _, out: (out[0] + rows(*out[0].shape), 1.0 + 1e-4 * out[1]))
    with caplog.at_level(logging.WARNING):
        fit(byol, max_steps=10, **PAIR)
    assert names(caplog) == {"feature collapse"}
    assert "all tiles look alike" in caplog.text


def test_an_mae_that_paints_grey_is_named(build: Any, fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    mae, _ = build("mae")
    says(frozen(mae), "network", lambda _, out: (out[0] + rows(*out[0].shape), 0.0 * out[1]))
    with caplog.at_level(logging.WARNING):
        fit(mae, max_steps=10, sides=(32,))
    assert names(caplog) == {"loss at chance"}


@pytest.mark.parametrize("method", ["simclr", "moco", "mocov3", "byol", "mae"])
def test_networks_that_have_not_collapsed_are_not_said_to_have(
    build: Any, fit: Any, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    built, views = build(method)
    with caplog.at_level(logging.WARNING):
        fit(frozen(built), max_steps=10, sides=[32] * len(views))
    assert names(caplog) <= {"loss at chance"}  # where random weights may well be


def test_what_is_logged_is_spread_rank_and_the_loss_at_chance(build: Any) -> None:
    simclr, views = build("simclr")
    out = simclr.step(views)
    with torch.no_grad():
        z_MD, p_MC = simclr.network(torch.cat(views))
    assert out["feature_spread"].item() == pytest.approx(spread(z_MD).item(), rel=1e-4)
    assert out["projection_spread"].item() == pytest.approx(spread(p_MC).item(), rel=1e-4)
    assert out["rankme"].item() == pytest.approx(rankme(z_MD).item(), rel=1e-4)


@pytest.mark.parametrize("method", ["simclr", "moco", "mocov3", "byol", "mae"])
def test_monitors_wait_for_the_step_that_is_logged(build: Any, method: str) -> None:
    built, views = build(method)
    built.log_every = 2
    assert set(built.step(views)) == {"loss"}
