"""What is dropped, how much of it, and that it can be repeated."""

import math

import pytest
import torch

from histo_ssl.mil.dropout import Dropout


def dropped(share: float, *, shape: tuple[int, ...] = (1000, 101), seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return Dropout(share)(torch.ones(shape))


@pytest.mark.parametrize("share", [0.25, 0.4375, 0.5])
def test_a_share_of_units_is_zero_and_the_others_make_up_for_it(share: float) -> None:
    x = dropped(share)
    assert set(x.unique().tolist()) == {0, torch.tensor(1 / (1 - share)).item()}
    sd = math.sqrt(share * (1 - share) / x.numel())  # of the share of zeros among so many independent units
    assert (x == 0).float().mean().item() == pytest.approx(share, abs=4 * sd)


def test_units_are_dropped_independently_of_their_neighbours() -> None:
    kept = (dropped(0.25) != 0).float()
    for shift in (1, 2, 7, 8):  # 8 bytes come from one word
        pairs = (kept[:, shift:] * kept[:, :-shift]).mean().item()
        assert pairs == pytest.approx(
            0.75**2, abs=4 * 0.5 / math.sqrt(kept.numel())
        )  # SD of a share is under 0.5


def test_a_share_that_no_byte_holds_is_rounded_and_the_expectation_stays() -> None:
    x = dropped(0.1)
    assert x.max().item() == pytest.approx(256 / 230)
    assert x.mean().item() == pytest.approx(1, abs=4 * math.sqrt(0.1 / x.numel()) * 256 / 230)


def test_the_same_state_of_the_generator_drops_the_same_units_and_the_next_others() -> None:
    first, again = dropped(0.5), dropped(0.5)
    after = Dropout(0.5)(torch.ones(1000, 101))
    assert torch.equal(first, again)
    assert (first == after).float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_gradients_flow_through_what_is_kept_alone() -> None:
    x = torch.ones(50, 3, requires_grad=True)
    y = Dropout(0.5)(x * 1)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_nothing_is_dropped_in_evaluation_or_where_the_share_is_0() -> None:
    x = torch.ones(7, 3)
    state = torch.get_rng_state()
    assert torch.equal(Dropout(0.5).eval()(x), torch.ones(7, 3))
    assert torch.equal(Dropout(0.0)(x), torch.ones(7, 3))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"dropout=.*: a share from 0 to less than 1"):
        Dropout(share)
