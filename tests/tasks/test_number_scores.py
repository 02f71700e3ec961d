"""Scores of numbers: several readers, what guessing reaches, and intervals over patients."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from histo_ssl.tasks import agreement
from histo_ssl.tasks.base import NUMBER_METRICS, Score
from histo_ssl.tasks.bootstrap import Asked
from histo_ssl.tasks.number_scores import Numbers, number_cautions, number_scores

Floats = NDArray[np.float64]


def numbers(rating: Floats, group: NDArray[np.int64] | None = None) -> Numbers:
    rating_MJ = rating[:, None] if rating.ndim == 1 else rating
    return Numbers(rating_MJ=rating_MJ, group_M=np.arange(len(rating)) if group is None else group)


def scored(
    pred: Floats, test: Numbers, *, taught: Floats | None = None, n_bootstrap: int = 50
) -> dict[str, Score]:
    asked = Asked(subject="encoder", protocol="ridge", n_bootstrap=n_bootstrap, seed=0)
    found = number_scores(pred, test, np.array([0.0, 1.0]) if taught is None else taught, asked)
    assert [score.metric for score in found] == list(NUMBER_METRICS)
    return {score.metric: score for score in found}


@pytest.fixture
def noisy() -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Predictions, truths and 12 patients, each of whom is predicted too high or too low."""
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(12), rng.integers(3, 9, size=12))
    truth = rng.normal(size=len(group))
    return truth + rng.normal(size=12)[group] + 0.3 * rng.normal(size=len(group)), truth, group


def test_intervals_are_those_of_scipys_bootstrap_of_patients(
    noisy: tuple[Floats, Floats, NDArray[np.int64]],
) -> None:
    pred, truth, group = noisy
    ours = scored(pred, numbers(truth, group), n_bootstrap=4000)
    tiles_of = [np.flatnonzero(group == g) for g in range(12)]

    def error(drawn: NDArray[np.int64]) -> float:
        tiles = np.concatenate([tiles_of[g] for g in drawn])
        return float(np.mean((pred[tiles] - truth[tiles]) ** 2))

    def order(drawn: NDArray[np.int64]) -> float:
        tiles = np.concatenate([tiles_of[g] for g in drawn])
        up, told = (np.subtract.outer(x[tiles], x[tiles]) for x in (truth, pred))
        return float(np.mean((np.sign(told) * np.sign(up))[up != 0]) + 1) / 2

    for metric, statistic in (("mse", error), ("prediction_probability", order)):
        theirs = stats.bootstrap(
            (np.arange(12),),
            statistic,
            n_resamples=4000,
            method="percentile",
            vectorized=False,
            rng=np.random.default_rng(7),
        ).confidence_interval
        width = theirs.high - theirs.low
        # Each end of 4,000 resamples has a standard error of about 1 % of the width.
        assert ours[metric].low == pytest.approx(theirs.low, abs=0.05 * width)
        assert ours[metric].high == pytest.approx(theirs.high, abs=0.05 * width)
    per_tile = scored(pred, numbers(truth))["mse"]
    assert per_tile.high - per_tile.low < 0.7 * (ours["mse"].high - ours["mse"].low)  # tiles are no patients


def test_guessing_the_training_mean_or_median_reaches_the_chance_of_the_errors() -> None:
    truth, taught = np.array([0.0, 0.5, 0.9, 0.7]), np.array([0.1, 0.1, 1.0])
    found = scored(np.full(4, 0.4), numbers(truth), taught=taught)
    assert found["mse"].value == pytest.approx(found["mse"].chance)
    assert found["mse"].chance == pytest.approx(np.mean((truth - 0.4) ** 2))
    found = scored(np.full(4, 0.1), numbers(truth), taught=taught)
    assert found["mae"].value == pytest.approx(found["mae"].chance)
    assert found["prediction_probability"].value == 0.5 == found["prediction_probability"].chance
    others = ("kendall_tau_b", "spearman", "icc_2_1", "icc_3_1")
    assert {found[name].chance for name in others} == {0.0}


def test_orders_are_means_over_readers_and_errors_are_against_their_mean() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 30))
    other[20:] = np.nan  # who has seen 20 of 30 tiles
    pred = one + rng.normal(size=30)
    found = scored(pred, numbers(np.column_stack([one, other])))
    w = np.ones((1, 30))
    expected = [
        agreement.prediction_probability(one, pred, w)[0],
        agreement.prediction_probability(other[:20], pred[:20], w[:, :20])[0],
    ]
    assert found["prediction_probability"].value == pytest.approx(np.mean(expected))
    mean = np.concatenate([(one[:20] + other[:20]) / 2, one[20:]])
    assert found["mse"].value == pytest.approx(np.mean((pred - mean) ** 2))


def test_two_readers_agreement_is_told() -> None:
    one = np.arange(12.0)
    other = one.copy()
    other[:2] = [1, 0]  # one of 66 pairs the other way round
    notes = number_cautions(numbers(np.column_stack([one, other])))
    icc = agreement.icc_2_1(np.column_stack([one, other]), np.ones((1, 12)))[0]
    assert f"readers 1 and 2 agree on 12 test tiles: P_K {65 / 66:.3f}" in notes[0]
    assert f"ICC(2,1) {icc:.3f};" in notes[0]
    assert number_cautions(numbers(one)) == []


def test_one_patient_or_few_are_said_and_one_patient_has_no_interval() -> None:
    truth = np.arange(8.0)
    alone = scored(truth, numbers(truth, np.zeros(8, dtype=np.int64)))
    assert all(np.isnan(score.low) and np.isnan(score.high) for score in alone.values())
    assert alone["mse"].value == 0
    notes = number_cautions(numbers(truth, np.zeros(8, dtype=np.int64)))
    assert notes == ["all test tiles are of one patient (or slide): there are no intervals"]
    (note,) = number_cautions(numbers(truth, np.arange(8) // 2))
    assert note.startswith("intervals rest on 4 patients (or slides) and are too narrow: a 95 % interval")


def test_a_test_of_one_number_has_errors_alone() -> None:
    found = scored(np.arange(12.0), numbers(np.full(12, 3.0)))
    assert found["mse"].value == pytest.approx(np.mean((np.arange(12) - 3.0) ** 2))
    assert np.isnan(found["prediction_probability"].value)
    assert number_cautions(numbers(np.full(12, 3.0))) == [
        "all test tiles have the label 3: only errors can be scored"
    ]


def test_the_published_concordance_is_told_where_it_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=40)
    test = Numbers(rating_MJ=truth[:, None], group_M=np.arange(40))
    asked = Asked(subject="encoder", protocol="least_squares", n_bootstrap=20, seed=0)
    pred = truth + rng.normal(size=40)
    plain = number_scores(pred, test, truth, asked)
    more = number_scores(pred, test, truth, asked, also=["concordance_as_published"])
    assert [score.metric for score in more] == [*NUMBER_METRICS, "concordance_as_published"]
    assert more[:-1] == plain
    p_k = plain[0].value
    assert more[-1].value == pytest.approx(1 / (2 - p_k))  # as no two predictions tie
    assert more[-1].chance == pytest.approx(2 / 3)
