"""Regression: 1 for embeddings that hold the number, chance for random ones, sentences for bad labels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from numpy.typing import NDArray

from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.tasks.regression import NumberLesson, RegressionTask, ratings, strata

Tiles = Callable[..., EmbeddingSet]
Make = Callable[..., RegressionTask]
Floats = NDArray[np.float64]


@pytest.fixture
def make(compose: Any) -> Make:
    """The task as configured, with overrides."""

    def made(*overrides: str) -> RegressionTask:
        plan = compose("method=dino", "backbone=vit_t", "task=regression", *overrides)
        task: RegressionTask = instantiate(plan.group("task.protocol"))
        return task

    return made


@pytest.fixture
def task(make: Make) -> RegressionTask:
    return make()


def _patients(n: int, *, tiles_each: int) -> list[str]:
    return [f"P{i // tiles_each:03}" for i in range(n * tiles_each)]


def _linear(tiles: Tiles, *, n: int = 40, noise: float = 0.0, dim: int = 6) -> EmbeddingSet:
    """Numbers that are a weighted sum of the embeddings, and 3."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n * 10, dim)).astype(np.float32)
    number = features.astype(float) @ np.arange(1.0, dim + 1) + 3 + noise * rng.normal(size=n * 10)
    label = [f"{x:.9g}" for x in number]
    return tiles(label=label, patient=_patients(n, tiles_each=10), features=features)


def test_both_protocols_are_configured_and_ridge_stands_for_the_task(task: RegressionTask) -> None:
    assert list(task.protocols) == ["least_squares", "ridge"]
    assert task.primary == ("ridge", "prediction_probability")
    assert task.clip is None
    assert not task.labels_are_classes


def test_a_number_that_embeddings_hold_is_found(task: RegressionTask, tiles: Tiles) -> None:
    result = task.evaluate(_linear(tiles), subject="encoder")
    values = {(s.protocol, s.metric): s.value for s in result.scores}
    assert values["least_squares", "mse"] == pytest.approx(0, abs=1e-10)  # of a variance of 91
    assert values["least_squares", "prediction_probability"] == pytest.approx(1, abs=1e-6)
    assert values["least_squares", "icc_2_1"] == pytest.approx(1, abs=1e-9)
    assert values["ridge", "mse"] < 1e-4  # its smallest penalty is .1 beside 280 tiles
    assert values["ridge", "spearman"] > 0.999
    assert (result.confusion, result.classes) == ({}, [])


def test_random_embeddings_reach_chance_within_their_intervals(make: Make, tiles: Tiles) -> None:
    task = make("task.protocol.n_bootstrap=200")
    n_within = dict.fromkeys(task.protocols, 0)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        label = [f"{x:.3f}" for x in rng.uniform(size=1500)]
        features = rng.normal(size=(1500, 8))
        data = tiles(label=label, patient=_patients(50, tiles_each=30), features=features)
        result = task.evaluate(data, subject="encoder")
        assert len(result.scores) == 14
        for score in result.scores:
            # 450 test tiles: standard errors of .016 (P_K), .03 (tau), .047 (rho); least squares loses D / N
            # of the error, here 1 %, to what it learned of noise
            tolerance = {"mse": 0.004, "mae": 0.01, "prediction_probability": 0.06}.get(score.metric, 0.17)
            assert score.value == pytest.approx(score.chance, abs=tolerance), score
            is_within = score.low <= score.chance <= score.high
            n_within[score.protocol] += is_within and score.metric == "prediction_probability"
    # Of 95 % intervals over 15 patients, in truth about 93 %: fewer than 16 of 20 have a chance of 1 %.
    assert min(n_within.values()) >= 16


def test_predictions_tell_the_same_as_the_scores(task: RegressionTask, tiles: Tiles) -> None:
    data = _linear(tiles, noise=2.0)
    result = task.evaluate(data, subject="colour")
    assert set(result.predictions["protocol"]) == {"least_squares", "ridge"}
    for protocol, rows in result.predictions.groupby("protocol"):
        (mse,) = [s.value for s in result.scores if s.protocol == protocol and s.metric == "mse"]
        assert ((rows["truth"] - rows["predicted"]) ** 2).mean() == pytest.approx(mse)
        assert len(rows) == result.counts["n_test"] == 120
        np.testing.assert_array_equal(rows["label"].astype(float), rows["truth"])
        np.testing.assert_array_equal(data.label[rows["tile"]], rows["label"])
    assert set(result.predictions["subject"]) == {"colour"}
    assert result.counts == {"n_train": 280, "n_test": 120, "n_train_groups": 28, "n_test_groups": 12}


def test_a_drawn_test_has_every_quarter_of_the_numbers(task: RegressionTask, tiles: Tiles) -> None:
    rng = np.random.default_rng(1)
    level = np.repeat(rng.permutation(40), 10)  # each patient's numbers lie together
    data = tiles(label=[str(x) for x in level + rng.uniform(size=400)], patient=_patients(40, tiles_each=10))
    split = task.split(data)
    quarter = level // 10
    assert [int(split.test[quarter == q].sum()) for q in range(4)] == [30, 30, 30, 30]
    assert not set(data.patient[split.train]) & set(data.patient[split.test])
    assert sorted(set(split.group[split.test])) == sorted(
        {int(g) for g, t in zip(split.group, split.test, strict=True) if t}
    )


def test_strata_are_equal_shares_of_two_patients_or_more() -> None:
    number = np.arange(8.0)
    assert strata(number, np.arange(8).astype(str), n_strata=4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    keys = np.array(list("aaaabbbb"))  # any two shares would lie in one patient each
    assert strata(number, keys, n_strata=4).tolist() == [0] * 8
    keys = np.array(list("aaabaabb"))
    assert strata(number, keys, n_strata=4).tolist() == [0] * 4 + [1] * 4


def test_clipped_predictions_stay_in_their_range(make: Make, tiles: Tiles) -> None:
    data = _linear(tiles, noise=2.0)
    free, cut = make(), make("task.protocol.clip=[0,5]")
    loose, tight = (one.evaluate(data, subject="encoder").predictions["predicted"] for one in (free, cut))
    assert loose.min() < 0
    assert loose.max() > 5
    np.testing.assert_array_equal(tight, loose.clip(0, 5))


class Unsteady:
    """Says one number, but for the digits that a matrix product leaves open."""

    def predict(
        self,
        lesson: NumberLesson,
        test_MD: NDArray[np.float32],
    ) -> tuple[Floats, list[str]]:
        """Half, and what is below the digits of float32."""
        return 0.5 + 1e-12 * np.arange(len(test_MD)), []


def test_predictions_that_differ_by_rounding_alone_are_ties(tiles: Tiles) -> None:
    values = {"primary": None, "clip": None, "test_share": 0.3, "n_strata": 4, "n_bootstrap": 5, "seed": 0}
    task = RegressionTask(protocols={"unsteady": Unsteady()}, also=[], **values)
    scores = task.evaluate(_linear(tiles), subject="encoder").scores
    assert {s.metric: s.value for s in scores}["prediction_probability"] == 0.5


def test_labels_are_numbers_of_one_reader_or_of_several() -> None:
    found = ratings(np.array(["0.5", "0.2;0.4", "-1e2"]))
    np.testing.assert_array_equal(found, [[0.5, np.nan], [0.2, 0.4], [-100, np.nan]])


def test_the_mean_of_the_readers_is_what_is_learned(make: Make, tiles: Tiles) -> None:
    features = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    number = features[:, 0].astype(float)
    label = [f"{x - 1:.9g};{x + 1:.9g}" for x in number]
    data = tiles(label=label, patient=_patients(12, tiles_each=5), features=features)
    result = make("task/protocols=[least_squares]").evaluate(data, subject="encoder")
    values = {s.metric: s.value for s in result.scores}
    assert values["mse"] == pytest.approx(0, abs=1e-12)
    assert values["prediction_probability"] == pytest.approx(1)
    assert values["icc_3_1"] == pytest.approx(1)
    assert values["icc_2_1"] < 0.9  # each reader is 1 off, the other way
    agreed = f"readers 1 and 2 agree on {result.counts['n_test']} test tiles: P_K 1.000"
    assert any(note.startswith(agreed) for note in result.notes)


@pytest.mark.parametrize("wrong", ["IDC", "nan", "inf", "0,5", "0.2;", "0.2;x"])
def test_a_label_that_is_no_number_is_refused_by_name(task: RegressionTask, tiles: Tiles, wrong: str) -> None:
    data = tiles(label=["0.1", wrong, "0.3", "0.4", ""], patient=list("PQRST"))
    for act in (task.check, task.split, partial(task.evaluate, subject="encoder")):
        with pytest.raises(ValueError, match=rf"1 of \d labels are not finite numbers, '{wrong}' for one"):
            act(data.labelled())


@pytest.mark.parametrize(
    ("label", "note"),
    [
        (["", "", ""], "no tile of this data set has a label"),
        (["0.5", "0.7", ""], "2 labelled tiles, of which a regression needs 3 or more"),
        (["0.5", "0.50", "5e-1"], "all labelled tiles have the label 0.5"),
    ],
)
def test_what_cannot_be_scored_has_a_note_and_no_score(
    task: RegressionTask, tiles: Tiles, label: list[str], note: str
) -> None:
    data = tiles(label=label, patient=list("PQR"))
    task.check(data)
    result = task.evaluate(data, subject="encoder")
    assert (result.scores, result.notes) == ([], [f"{note}: nothing to score"])


def test_a_train_of_one_number_is_refused(task: RegressionTask, tiles: Tiles) -> None:
    data = tiles(label=["1", "1.0", "2"], patient=list("PQR"), split=["train", "train", "test"])
    for act in (task.check, partial(task.evaluate, subject="encoder")):
        with pytest.raises(
            ValueError, match="all 2 labelled tiles in train have the label 1: there is nothing"
        ):
            act(data)


def test_embeddings_of_an_encoder_that_diverged_are_refused_in_a_sentence(
    task: RegressionTask, tiles: Tiles
) -> None:
    data = _linear(tiles)
    data.features[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"^1 of 400 embeddings are not finite: the encoder has diverged"):
        task.evaluate(data, subject="encoder")


def test_a_leak_of_patients_is_refused_also_before_there_are_embeddings(
    task: RegressionTask, tiles: Tiles
) -> None:
    data = tiles(label=list("1234"), patient=list("PQPR"), split=["train", "train", "test", "test"])
    for act in (task.check, partial(task.evaluate, subject="encoder")):
        with pytest.raises(ValueError, match="patient P"):
            act(data)


def test_one_patient_alone_is_refused_and_told_what_to_do(task: RegressionTask, tiles: Tiles) -> None:
    with pytest.raises(ValueError, match=r"all labelled tiles are of one patient \(or slide\)"):
        task.check(tiles(label=list("1234"), patient=list("PPPP")))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["task/protocols=[knn]"], "weighted_k20, euclidean_k5: can't predict numbers"),
        (["task.protocol.primary=[ridge,auc]"], "a metric .prediction_probability, kendall_tau_b, spearman"),
        (["task.protocol.clip=[1,0]"], r"clip=\[1, 0\]: \[lowest, highest\] is expected"),
        (["task.protocol.clip=5"], r"clip=5: \[lowest, highest\] is expected"),
        (["task.protocol.clip=[a,b]"], r"clip=\['a', 'b'\]: \[lowest, highest\] is expected"),
        (["task.protocol.n_strata=0"], "n_strata=0: a count of 1 or more"),
        (["task.protocol.test_share=1.0"], "test_share=1.0"),
    ],
)
def test_senseless_values_are_refused(make: Make, overrides: list[str], sentence: str) -> None:
    with pytest.raises(Exception, match=sentence):  # Hydra wraps what a constructor raises
        make(*overrides)


def test_a_regression_is_refused_where_classes_are_asked_for(compose: Any) -> None:
    plan = compose("method=dino", "backbone=vit_t", "task=labelled", "task/protocols=[knn,ridge]")
    with pytest.raises(Exception, match=r"ridge: can't tell classes; .* task=regression"):
        instantiate(plan.group("task.protocol"))
