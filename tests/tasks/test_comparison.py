"""Two encoders on the same patients: which test is taken, and what resampling patients finds."""

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from histo_ssl.tasks.bootstrap import group_weights
from histo_ssl.tasks.comparison import (
    BOOTSTRAP,
    DELONG,
    Comparison,
    compare,
    compare_risks,
    paired_bootstrap,
)
from histo_ssl.tasks.delong import delong
from histo_ssl.tasks.fold_scores import FOLD_MEAN
from histo_ssl.tasks.metrics import auc

Floats = NDArray[np.float64]
N_FOLDS = 3


def _table(
    score_n: Floats, *, per_patient: int = 1, classes: tuple[str, ...] = ("IDC", "ILC")
) -> pd.DataFrame:
    """Rows of predictions.csv: patients' slides, dealt to folds by patient; the last class has the score."""
    n = len(score_n)
    patient = np.arange(n) // per_patient
    label = np.array(classes)[patient % len(classes)]
    rest = (1 - score_n) / (len(classes) - 1)
    return pd.DataFrame(
        {
            **{"slide": [f"s{i:03}" for i in range(n)], "patient": [f"p{p:03}" for p in patient]},
            **{"label": label, "fold": [f"k{p // 2 % N_FOLDS}" for p in patient]},
            **{f"score_{name}": score_n if name == classes[-1] else rest for name in classes},
        }
    )


def _scores(seed: int, *, n: int = 120, effect: float = 1.0) -> Floats:
    rng = np.random.default_rng(seed)
    return np.asarray(1 / (1 + np.exp(-(effect * (np.arange(n) % 2) + rng.normal(size=n)))), dtype=np.float64)


def _compared(first: pd.DataFrame, second: pd.DataFrame, *, n: int = 400) -> list[Comparison]:
    return compare(first, second, n_bootstrap=n, seed=0)


def test_one_prediction_per_patient_is_compared_by_delong_in_whatever_order_it_comes() -> None:
    first, second = _table(_scores(0)), _table(_scores(1, effect=0.3))
    truth = (first["label"] == "ILC").to_numpy()
    expected = delong(truth, first["score_ILC"].to_numpy(), second["score_ILC"].to_numpy())
    order = np.random.default_rng(0).permutation(len(first))
    shuffled = second.iloc[order][[*second.columns[:4], "score_ILC", "score_IDC"]]
    whole, over_folds = _compared(first, shuffled)
    assert (whole.metric, whole.test, over_folds.metric, over_folds.test) == (
        "auc",
        DELONG,
        FOLD_MEAN,
        BOOTSTRAP,
    )
    assert whole.paired.difference == pytest.approx(expected.difference, abs=1e-12)
    assert (whole.paired.low, whole.paired.p) == pytest.approx((expected.low, expected.p), abs=1e-12)
    assert whole.first - whole.second == pytest.approx(expected.difference, abs=1e-12)


def test_the_mean_over_folds_is_compared_fold_by_fold() -> None:
    tables = [_table(_scores(0)), _table(_scores(1))]
    means = []
    for table in tables:
        values = [
            auc(rows["score_ILC"].to_numpy(), (rows["label"] == "ILC").to_numpy(), np.ones((1, len(rows))))[0]
            for _, rows in table.groupby("fold")
        ]
        means.append(np.mean(values))
    found = _compared(*tables)[1]
    assert (found.first, found.second) == pytest.approx(means, abs=1e-12)
    assert found.paired.difference == pytest.approx(means[0] - means[1], abs=1e-12)
    assert found.paired.low < found.paired.difference < found.paired.high


def test_several_slides_of_a_patient_count_as_one_where_delong_would_count_them_all() -> None:
    scores = [_scores(seed, effect=effect) for seed, effect in ((0, 1.0), (1, 0.5))]
    once = [_table(score) for score in scores]
    four = [_table(np.repeat(score, 4), per_patient=4) for score in scores]
    truth = (four[0]["label"] == "ILC").to_numpy()
    naive = delong(truth, four[0]["score_ILC"].to_numpy(), four[1]["score_ILC"].to_numpy())
    by_patient, by_delong = _compared(*four, n=2000)[0], _compared(*once)[0]
    assert by_patient.test == BOOTSTRAP
    width = by_patient.paired.high - by_patient.paired.low
    assert naive.high - naive.low == pytest.approx(
        (by_delong.paired.high - by_delong.paired.low) / 2, rel=0.02
    )
    # 2,000 resamples know their 2.5 % quantiles to some 3 %; the two variances differ by some 2 % as well.
    assert width == pytest.approx(by_delong.paired.high - by_delong.paired.low, rel=0.1)


def test_a_slide_that_several_folds_test_is_compared_by_resampling() -> None:
    first, second = _table(_scores(0)), _table(_scores(1))
    again = [pd.concat([table, table.assign(fold="r" + table["fold"])]) for table in (first, second)]
    whole = _compared(*again)[0]
    assert whole.test == BOOTSTRAP
    once = _compared(first, second)[0]
    assert (whole.first, whole.second) == pytest.approx((once.first, once.second))


def test_three_classes_are_compared_by_the_mean_of_their_aucs() -> None:
    classes = ("A", "B", "C")
    tables = [_table(_scores(seed, n=90), classes=classes) for seed in (0, 1)]
    found = _compared(*tables)[0]
    values = []
    for table in tables:
        one_by_one = [
            auc(
                table[f"score_{name}"].to_numpy(),
                (table["label"] == name).to_numpy(),
                np.ones((1, len(table))),
            )
            for name in classes
        ]
        values.append(float(np.mean(one_by_one)))
    assert found.test == BOOTSTRAP
    assert (found.first, found.second) == pytest.approx(values, abs=1e-12)


def test_an_encoder_does_not_differ_from_itself() -> None:
    for table in (_table(_scores(0)), _table(_scores(0), per_patient=2)):
        for found in _compared(table, table.copy()):
            assert (found.paired.difference, found.paired.low, found.paired.high, found.paired.p) == (
                0,
                0,
                0,
                1,
            )


def test_resampling_finds_what_a_loop_over_resamples_finds() -> None:
    truth = np.arange(40) % 2 == 1
    scores = [_scores(seed, n=40) for seed in (0, 1)]
    first, second = (lambda w_RG, score=score: auc(score, truth, w_RG) for score in scores)
    found = paired_bootstrap(first, second, n_groups=40, n_tiles=40, n_bootstrap=200, seed=5)
    drawn = []
    for w_RG in group_weights(40, n=200, seed=5, n_tiles=40):
        for w_G in w_RG:
            rows = np.repeat(np.arange(40), w_G.astype(int))
            wins = [
                np.mean([(a > b) + (a == b) / 2 for a in s[rows][truth[rows]] for b in s[rows][~truth[rows]]])
                for s in scores
            ]
            drawn.append(wins[0] - wins[1])
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist(), abs=1e-12)
    beyond = min(np.sum(np.array(drawn) <= 0), np.sum(np.array(drawn) >= 0))
    assert found.p == pytest.approx(min(1, 2 * (1 + beyond) / 201))


def test_resamples_that_define_no_score_are_left_out_and_one_patient_says_nothing() -> None:
    def first(w_RG: Floats) -> Floats:
        return np.where(w_RG[:, 0] == 0, np.nan, 1.0)

    def second(w_RG: Floats) -> Floats:
        return np.zeros(len(w_RG))

    found = paired_bootstrap(first, second, n_groups=3, n_tiles=3, n_bootstrap=99, seed=0)
    n_defined = sum(int((w_RG[:, 0] > 0).sum()) for w_RG in group_weights(3, n=99, seed=0, n_tiles=3))
    assert 0 < n_defined < 99
    assert (found.difference, found.low, found.high) == (1, 1, 1)
    assert found.p == pytest.approx(2 / (n_defined + 1))
    alone = paired_bootstrap(second, second, n_groups=1, n_tiles=3, n_bootstrap=99, seed=0)
    assert alone.difference == 0
    assert np.isnan([alone.low, alone.high, alone.p]).all()


def test_without_an_effect_one_resampled_test_in_twenty_finds_one() -> None:
    truth = np.arange(100) % 2 == 1
    rng = np.random.default_rng(2)
    p = []
    for t in range(300):
        scores = [truth + rng.normal(size=100) for _ in range(2)]
        first, second = (lambda w_RG, score=score: auc(score, truth, w_RG) for score in scores)
        p.append(paired_bootstrap(first, second, n_groups=100, n_tiles=100, n_bootstrap=199, seed=t).p)
    # SE of a share of .05 among 300 is .0126; three of them, and the bootstrap's own small bias.
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.045)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"drop": [3]}, r"of 120 and 119 slides can't be compared in pairs \(such as slide s003 in fold k1"),
        ({"label": "IDC"}, "of 120 and 120 slides can't be compared in pairs: one protocol"),
        ({"fold": "k9"}, r"\(such as slide s000 in fold k0, which one has alone\)"),
        ({"patient": "p0"}, "can't be compared in pairs: one protocol, the same slides"),
        ({"column": "score_ILC"}, "can't be compared in pairs"),
        ({"column": "fold"}, "predictions without fold: those of a task on slides have fold, slide, patient"),
    ],
)
def test_predictions_of_other_tests_are_not_compared(change: dict[str, object], sentence: str) -> None:
    first, second = _table(_scores(0)), _table(_scores(1))
    if "drop" in change:
        second = second.drop(index=[3])
    elif "column" in change:
        second = second.drop(columns=[str(change["column"])])
    else:
        second = second.assign(**{str(name): value for name, value in change.items()})
    with pytest.raises(ValueError, match=sentence):
        _compared(first, second)


def test_two_protocols_in_one_table_are_not_taken_for_one() -> None:
    table = _table(_scores(0))
    both = pd.concat([table, table])
    with pytest.raises(ValueError, match="of 240 and 240 slides can't be compared in pairs: one protocol"):
        _compared(both, both)


def _risks(seed: int, *, effect: float, n: int = 90, per_patient: int = 1) -> pd.DataFrame:
    """Rows of predictions.csv of a task of survival: the risk rises as the time falls, in folds of 30."""
    rng, noise = np.random.default_rng(0), np.random.default_rng(seed).normal(size=n)
    time, died = 1 + rng.exponential(20, size=n), rng.random(n) < 0.6
    patient = np.arange(n) // per_patient
    return pd.DataFrame(
        {
            **{"slide": [f"s{i:03}" for i in range(n)], "patient": [f"p{p:03}" for p in patient]},
            **{"time": time, "event": died, "fold": [f"k{p * per_patient // 30}" for p in patient]},
            **{"risk": noise - effect * np.log(time), "is_high": noise > 0},
        }
    )


def _pairs(rows: pd.DataFrame) -> list[bool]:
    """Of each pair whose order is known, since the first died before the other was last seen: is it right?"""
    found = list(rows[["time", "event", "risk"]].itertuples(index=False))
    return [one.risk > two.risk for one in found for two in found if one.event and one.time < two.time]


def test_c_indices_are_compared_by_resampling_patients() -> None:
    first, second = _risks(1, effect=2.0), _risks(2, effect=0.3)
    pairs = [[_pairs(rows) for _, rows in table.groupby("fold")] for table in (first, second)]
    means = [np.mean([np.mean(of_fold) for of_fold in of]) for of in pairs]
    pooled = [np.mean([right for of_fold in of for right in of_fold]) for of in pairs]
    over_pairs, over_folds = compare_risks(
        first, second.sample(frac=1, random_state=0), n_bootstrap=400, seed=0
    )
    assert (over_pairs.metric, over_folds.metric) == ("c_index", "fold_mean_c_index")
    assert (over_pairs.first, over_pairs.second) == pytest.approx(pooled, abs=1e-9)
    assert (over_folds.first, over_folds.second) == pytest.approx(means, abs=1e-9)
    for found in (over_pairs, over_folds):
        assert found.test == BOOTSTRAP
        assert found.paired.difference == pytest.approx(found.first - found.second)
        assert 0 < found.paired.low < found.paired.difference < found.paired.high
        assert found.paired.p == pytest.approx(2 / 401)


def test_risks_that_say_nothing_differ_in_one_test_of_twenty() -> None:
    p = [
        compare_risks(_risks(1 + 2 * t, effect=0.0), _risks(2 + 2 * t, effect=0.0), n_bootstrap=199, seed=t)[
            0
        ].paired.p
        for t in range(100)
    ]
    # SE of a share of .05 among 100 is .022; three of them.
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.066)
    assert np.mean(p) == pytest.approx(0.5, abs=0.1)


def test_slides_of_a_patient_are_resampled_together() -> None:
    """A copy of each patient's slide adds nothing: neither the value nor the interval's width changes."""
    once = [_risks(seed, effect=effect, n=60) for seed, effect in ((1, 1.0), (2, 0.3))]
    twice = [
        pd.concat([table, table.assign(slide=table["slide"] + "b")], ignore_index=True) for table in once
    ]
    for one, other in zip(
        compare_risks(*once, n_bootstrap=300, seed=0),
        compare_risks(*twice, n_bootstrap=300, seed=0),
        strict=True,
    ):
        assert other.first == pytest.approx(one.first)
        assert (other.paired.low, other.paired.high) == pytest.approx((one.paired.low, one.paired.high))


def test_risks_of_other_times_are_not_compared() -> None:
    first, second = _risks(1, effect=1.0), _risks(2, effect=1.0)
    with pytest.raises(ValueError, match="can't be compared in pairs"):
        compare_risks(first, second.assign(time=second["time"] + 1), n_bootstrap=9, seed=0)
    with pytest.raises(ValueError, match="predictions without event: those of a task on slides have fold"):
        compare_risks(first.drop(columns=["event"]), second, n_bootstrap=9, seed=0)
