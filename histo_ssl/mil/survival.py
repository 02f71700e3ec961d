"""How long patients live: what a model of bags is told by times, of which some are only known to be longer.

`Cox` orders bags of a batch by risk (Cox 1972; ties as Breslow 1974). `DiscreteTime` gives the hazard of each
of K intervals (Zadeh and Schmid 2020, arXiv:1805.00917 eq. 4), so that it learns from single bags, too.

Letters: B bags of a batch, M bags of a validation or test, K intervals.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Times:
    """What is known of every bag's patient.

    Args:
        time_N: until death, or until last seen alive; above 0.
        event_N: whether the patient died then.
    """

    time_N: Floats
    event_N: Mask

    def of(self, bag_B: Tensor) -> tuple[Tensor, Tensor]:
        """Times float64 (B,) and events (B,) of bags by their numbers."""
        rows = bag_B.cpu().numpy()
        return (
            torch.from_numpy(self.time_N[rows]).to(bag_B.device),
            torch.from_numpy(self.event_N[rows]).to(bag_B.device),
        )


@dataclass(frozen=True, kw_only=True)
class Cox:
    """The partial likelihood; it compares the bags of a step, so that a step needs many.

    Args:
        times: of every bag.
    """

    times: Times
    n_outputs: int = 1  # a definition: the log of the relative risk

    def loss(self, outputs_BC: Tensor, bag_B: Tensor) -> Tensor:
        """`partial_likelihood` of the bags of a step."""
        time_B, event_B = self.times.of(bag_B)
        return partial_likelihood(outputs_BC[:, 0], time_B, event_B)

    def classes(self, bag_B: Tensor) -> None:
        """None."""

    def risk(self, outputs_MC: Floats) -> Floats:
        """(M,) the higher, the sooner."""
        return outputs_MC[:, 0]

    def score(self, outputs_MC: Tensor, bag_M: Tensor) -> float:
        """Harrell's C."""
        return _c_index(self.risk(outputs_MC.double().cpu().numpy()), self.times, bag_M)

    def stratum(self, bag_N: Ints) -> Ints:
        """Whether the event was seen."""
        return self.times.event_N[bag_N].astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class DiscreteTime:
    """Hazards of intervals, by the likelihood of what is known of each patient.

    Args:
        times: of every bag.
        ends: (K - 1,) ends of the intervals but the last, ascending; of `quantile_ends`.
    """

    times: Times
    ends: Floats

    @property
    def n_outputs(self) -> int:
        """K."""
        return len(self.ends) + 1

    def loss(self, outputs_BC: Tensor, bag_B: Tensor) -> Tensor:
        """`discrete_likelihood` of the bags of a step."""
        time_B, event_B = self.times.of(bag_B)
        ends = torch.from_numpy(self.ends).to(time_B.device)
        return discrete_likelihood(outputs_BC, torch.bucketize(time_B, ends, right=True), event_B)

    def classes(self, bag_B: Tensor) -> None:
        """None."""

    def risk(self, outputs_MC: Floats) -> Floats:
        """(M,) minus the expected number of intervals survived: the higher, the sooner."""
        log_survival_MK = -np.logaddexp(0, outputs_MC).cumsum(axis=1)
        risk_M: Floats = -np.exp(log_survival_MK).sum(axis=1)
        return risk_M

    def score(self, outputs_MC: Tensor, bag_M: Tensor) -> float:
        """Harrell's C."""
        return _c_index(self.risk(outputs_MC.double().cpu().numpy()), self.times, bag_M)

    def stratum(self, bag_N: Ints) -> Ints:
        """Whether the event was seen."""
        return self.times.event_N[bag_N].astype(np.int64)


def partial_likelihood(risk_B: Tensor, time_B: Tensor, event_B: Tensor) -> Tensor:
    """Minus the log of Cox's partial likelihood, by event; ties as Breslow.

    Args:
        risk_B: log of the relative risk of each bag.
        time_B: until the event or the end of what was seen.
        event_B: bool.

    Returns:
        Scalar. The mean of log(number still at risk) over events where all risks are equal; 0, with
        gradients of 0, where nothing happened.
    """
    risk_B = risk_B.to(torch.promote_types(risk_B.dtype, torch.float32))
    is_at_risk_BB = time_B[None, :] >= time_B[:, None]  # row: at whose time
    total_B = risk_B[None, :].masked_fill(~is_at_risk_BB, -torch.inf).logsumexp(dim=1)
    n_events = event_B.sum().clamp(min=1)
    return ((total_B - risk_B) * event_B).sum() / n_events


def discrete_likelihood(logits_BK: Tensor, interval_B: Tensor, event_B: Tensor) -> Tensor:
    """Minus the log-likelihood of intervals, averaged over bags.

    Who died in interval k lived through those before it and not through k; who was last seen in k counts as
    having lived through it, too.

    Args:
        logits_BK: of the hazard of each interval.
        interval_B: int64, in which interval each time lies, 0 to K - 1.
        event_B: bool.

    Returns:
        Scalar in nats. log 2 for a bag that died in the first interval, where all logits are 0.
    """
    logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    place_K = torch.arange(logits_BK.shape[1], device=logits_BK.device)
    lived_BK = place_K < (interval_B + (~event_B).long())[:, None]
    died_BK = (place_K == interval_B[:, None]) & event_B[:, None]
    losses_BK = F.softplus(logits_BK) * lived_BK + F.softplus(-logits_BK) * died_BK
    return losses_BK.sum(dim=1).mean()


def quantile_ends(times: Times, rows: Ints, *, n_intervals: int) -> Floats:
    """Ends of intervals that hold equally many of the deaths of some bags.

    Raises:
        ValueError: fewer than one death for each interval.
    """
    died = np.unique(times.time_N[rows][times.event_N[rows]])
    if len(died) < n_intervals:
        raise ValueError(
            f"{len(died)} times of death among {len(rows)} patients to learn from are too few for "
            f"{n_intervals} intervals: take fewer (task.protocol.n_intervals), or the Cox objective"
        )
    ends: Floats = np.quantile(died, np.linspace(0, 1, n_intervals + 1)[1:-1])
    return ends


def concordance(risk_M: Floats, time_M: Floats, event_M: Mask) -> tuple[Floats, Mask]:
    """Of each pair of patients, how right the order of their risks is, and whether it can be told.

    A pair can be told where the one who was seen for less time died (Harrell 1982); at equal times, where one
    died and the other didn't, who then lived longer.

    Returns:
        (M, M) 1 where row i died before j and has the higher risk, 1/2 where risks are equal, else 0; and
        (M, M) whether row i is known to have died before j.
    """
    died_before = event_M[:, None] & (
        (time_M[:, None] < time_M[None, :]) | ((time_M[:, None] == time_M[None, :]) & ~event_M[None, :])
    )
    right = (risk_M[:, None] > risk_M[None, :]) + 0.5 * (risk_M[:, None] == risk_M[None, :])
    return right * died_before, died_before


def _c_index(risk_M: Floats, times: Times, bag_M: Tensor) -> float:
    rows = bag_M.cpu().numpy()
    right, known = concordance(risk_M, times.time_N[rows], times.event_N[rows])
    return float(right.sum() / known.sum()) if known.any() else float("nan")
