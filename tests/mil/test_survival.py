"""Losses and orders of survival: against plain loops of their formulas, and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from histo_ssl.mil.survival import (
    Cox,
    DiscreteTime,
    Times,
    concordance,
    discrete_likelihood,
    partial_likelihood,
    quantile_ends,
)


def _drawn(seed: int, *, n: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Risks, times with ties, events."""
    rng = np.random.default_rng(seed)
    return (
        torch.from_numpy(rng.normal(size=n)).requires_grad_(),
        torch.from_numpy(rng.integers(1, 6, size=n).astype(float)),
        torch.from_numpy(rng.random(n) < 0.6),
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_partial_likelihood_equals_a_plain_loop(seed: int) -> None:
    risk, time, event = _drawn(seed)
    terms = [
        math.log(sum(math.exp(r[j]) for j in range(12) if time[j] >= time[i])) - r[i]
        for r in [risk.tolist()]
        for i in range(12)
        if event[i]
    ]
    assert partial_likelihood(risk, time, event).item() == pytest.approx(sum(terms) / len(terms))


def test_equal_risks_cost_the_log_of_how_many_are_at_risk() -> None:
    time = torch.tensor([1.0, 2.0, 3.0])
    everybody_died = torch.ones(3, dtype=torch.bool)
    loss = partial_likelihood(torch.zeros(3), time, everybody_died)
    assert loss.item() == pytest.approx((math.log(3) + math.log(2) + math.log(1)) / 3)


def test_where_nobody_died_the_loss_and_its_gradient_are_zero() -> None:
    risk, time, event = _drawn(0)
    loss = partial_likelihood(risk, time, torch.zeros_like(event))
    loss.backward()
    assert loss.item() == 0
    assert risk.grad is not None
    assert risk.grad.abs().max() == 0


def test_huge_risks_stay_finite() -> None:
    risk = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    loss = partial_likelihood(risk, torch.tensor([1.0, 2.0, 3.0]), torch.ones(3, dtype=torch.bool))
    loss.backward()
    assert torch.isfinite(loss)
    assert risk.grad is not None
    assert torch.isfinite(risk.grad).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_discrete_likelihood_equals_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, interval = torch.from_numpy(rng.normal(size=(9, 4))), torch.from_numpy(rng.integers(0, 4, 9))
    event = torch.from_numpy(rng.random(9) < 0.5)
    total = 0.0
    for row, k, died in zip(logits, interval, event, strict=True):
        hazard = [1 / (1 + math.exp(-float(x))) for x in row]
        lived = math.prod(1 - h for h in hazard[: int(k)])
        total -= math.log(lived * (hazard[int(k)] if died else 1 - hazard[int(k)]))
    assert discrete_likelihood(logits, interval, event).item() == pytest.approx(total / 9)


def test_a_death_in_the_first_of_even_intervals_costs_log_two() -> None:
    loss = discrete_likelihood(torch.zeros(1, 4), torch.tensor([0]), torch.tensor([True]))
    assert loss.item() == pytest.approx(math.log(2))


def test_the_risk_of_hazards_is_minus_what_is_lived() -> None:
    times = Times(time_N=np.array([1.0]), event_N=np.array([True]))
    objective = DiscreteTime(times=times, ends=np.array([1.0]))
    (risk,) = objective.risk(np.array([[0.0, 0.0]]))
    assert risk == pytest.approx(-(0.5 + 0.25))
    sure, safe = objective.risk(np.array([[9.0, 9.0], [-9.0, -9.0]]))
    assert safe == pytest.approx(-2, abs=1e-3)
    assert sure > safe


def test_intervals_hold_equally_many_deaths_and_times_on_an_end_belong_to_the_later() -> None:
    time = np.arange(1.0, 13)
    times = Times(time_N=time, event_N=np.ones(12, dtype=bool))
    ends = quantile_ends(times, np.arange(12), n_intervals=4)
    place = np.searchsorted(ends, time, side="right")
    assert np.bincount(place).tolist() == [3, 3, 3, 3]
    died = Times(time_N=time, event_N=time > 9)
    with pytest.raises(
        ValueError, match="3 times of death among 12 patients to learn from are too few for 4"
    ):
        quantile_ends(died, np.arange(12), n_intervals=4)


def test_concordance_by_hand() -> None:
    # a died at 1, b was last seen at 2, c died at 3: a-b and a-c can be told, b-c can't
    right, known = concordance(
        np.array([3.0, 9.0, 3.0]), np.array([1.0, 2.0, 3.0]), np.array([True, False, True])
    )
    assert known.tolist() == [[False, True, True], [False, False, False], [False, False, False]]
    assert right.sum() == 0.5  # a before b is wrong, a level with c is half right


def test_who_was_last_seen_when_another_died_lived_longer() -> None:
    _, known = concordance(np.zeros(2), np.array([5.0, 5.0]), np.array([True, False]))
    assert known.tolist() == [[False, True], [False, False]]
    _, both = concordance(np.zeros(2), np.array([5.0, 5.0]), np.array([True, True]))
    assert not both.any()


@pytest.mark.parametrize("seed", range(3))
def test_without_censoring_c_follows_from_somers_d(seed: int) -> None:
    rng = np.random.default_rng(seed)
    time, risk = rng.permutation(30).astype(float), rng.integers(0, 8, 30).astype(float)
    right, known = concordance(risk, time, np.ones(30, dtype=bool))
    d = stats.somersd(time, risk).statistic  # of risks, given times, all of which differ
    assert right.sum() / known.sum() == pytest.approx((1 - d) / 2)


def test_cox_finds_the_effect_that_was_simulated() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2))
    time = rng.exponential(np.exp(-(x @ np.array([1.0, -0.5]))))
    censored = rng.exponential(2.0, 600)
    times = Times(time_N=np.minimum(time, censored), event_N=time <= censored)
    layer, everybody = torch.nn.Linear(2, 1, bias=False).double(), torch.arange(600)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = Cox(times=times).loss(layer(torch.from_numpy(x)), everybody)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert layer.weight[0].tolist() == pytest.approx([1.0, -0.5], abs=0.15)  # SE about .06
    score = Cox(times=times).score(layer(torch.from_numpy(x)).detach(), everybody)
    assert 0.7 < score < 0.85
