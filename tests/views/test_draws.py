import numpy as np
import pytest
import torch
from scipy import stats

from histo_ssl.views.draws import Draws, columns, mix, output, uniforms

MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """One step of the published algorithm, on Python's integers, which have no width."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_outputs_are_the_published_numbers_of_splitmix64() -> None:
    # Test vector for seed 1234567 that implementations in many languages share (Rosetta Code, "SplitMix64").
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    made = output(1234567, torch.arange(4))
    assert [n % 2**64 for n in made.tolist()] == published


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**70 + 5])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert output(seed, torch.tensor([0])).item() % 2**64 == splitmix64(seed & MASK)


def test_mixing_changes_half_of_the_bits_when_one_bit_changes() -> None:
    x = torch.arange(1000)
    changed = mix(x) ^ mix(x ^ (1 << 17))
    n_bits = [bin(n % 2**64).count("1") for n in changed.tolist()]
    assert np.mean(n_bits) == pytest.approx(32, abs=5 * 4 / 1000**0.5)  # the SD of a binomial(64, 1/2) is 4


def numbers(
    *, n_ids: int = 4096, epoch: int = 0, view: int = 0, seed: int = 0, n_draws: int = 8
) -> torch.Tensor:
    at = torch.tensor([epoch]), torch.tensor([view])
    return uniforms(torch.arange(n_ids), epoch=at[0], view=at[1], seed=seed, n_draws=n_draws)


def test_numbers_are_uniform_over_ids_and_over_draws() -> None:
    u = numbers(n_draws=50).numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 0.01
    by_draw = [stats.kstest(u[:, d], "uniform").pvalue for d in range(50)]
    assert (
        stats.kstest(by_draw, "uniform").pvalue > 0.01
    )  # p-values of true hypotheses are uniform themselves


def test_numbers_of_one_id_are_uniform_over_epochs_and_views() -> None:
    epoch, view = torch.arange(400)[:, None], torch.arange(10)
    u = uniforms(torch.tensor(123_456), epoch=epoch, view=view, seed=3, n_draws=1)
    assert stats.kstest(u.numpy().ravel(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("other", [{"epoch": 1}, {"view": 1}, {"seed": 1}, {"seed": -1}])
def test_streams_of_other_addresses_are_uncorrelated(other: dict[str, int]) -> None:
    u, v = numbers(), numbers(**other)
    r = np.corrcoef(u.T.numpy(), v.T.numpy()) - np.eye(16)
    assert np.abs(r).max() < 5 / 4096**0.5  # five SDs of a correlation of independent numbers


def test_neighbouring_ids_are_uncorrelated_and_no_two_are_alike() -> None:
    u = numbers(n_ids=20_000)
    assert len(torch.unique(u, dim=0)) == 20_000
    for lag in (1, 2, 256):
        assert abs(np.corrcoef(u[:-lag, 0], u[lag:, 0])[0, 1]) < 5 / 20_000**0.5


def test_a_number_depends_neither_on_the_batch_nor_on_how_many_are_drawn() -> None:
    few = uniforms(
        torch.tensor([77, 5]), epoch=torch.tensor([0, 0]), view=torch.tensor([0, 0]), seed=0, n_draws=3
    )
    assert torch.equal(few, numbers()[[77, 5], :3])


def test_named_numbers_are_the_columns_in_their_order() -> None:
    u = Draws(u_ND=torch.arange(10.0).view(2, 5), columns=columns({"hue": 1, "stain": 3, "grey": 1}))
    assert u["hue"].tolist() == [0, 5]
    assert u["stain"].tolist() == [[1, 2, 3], [6, 7, 8]]
    assert u.of(torch.tensor([1]))["grey"].tolist() == [9]
