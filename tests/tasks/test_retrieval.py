"""What a test tile finds in train, against loops over the definitions, and chance by shuffling."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from histo_ssl.tasks.bootstrap import Asked
from histo_ssl.tasks.retrieval import NearestTiles, votes_by_chance
from histo_ssl.tasks.scores import mean_scores
from histo_ssl.tasks.tiles import Exam, Lesson

KS = (1, 3, 5, 20)


VOTE_KS = (1, 4, 5)


def retrieval(
    ks: tuple[int, ...] = KS, metric: str = "euclidean", vote_ks: tuple[int, ...] = VOTE_KS
) -> NearestTiles:
    return NearestTiles(ks=ks, vote_ks=vote_ks, metric=metric, chunk_rows=7)  # type: ignore[arg-type]


def data(n_train: int, n_test: int, *, skill: float, seed: int = 0) -> tuple[Lesson, Exam]:
    rng = np.random.default_rng(seed)
    train, test = (
        np.concatenate([np.arange(3), rng.choice(3, size=n - 3, p=[0.6, 0.3, 0.1])])
        for n in (n_train, n_test)
    )
    points = [
        (rng.normal(size=(len(c), 4)) + skill * np.eye(3, 4)[c]).astype(np.float32) for c in (train, test)
    ]
    lesson = Lesson(features_ND=points[0], class_N=train, group_N=np.arange(n_train), n_classes=3)
    return lesson, Exam(features_MD=points[1], class_M=test, group_M=np.arange(n_test))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_values_equal_a_loop_over_the_definitions(metric: str) -> None:
    lesson, exam = data(60, 25, skill=1.0)
    found = retrieval(metric=metric).retrieve(lesson, exam)
    for m, query in enumerate(exam.features_MD.astype(np.float64)):
        train = lesson.features_ND.astype(np.float64)
        far = np.linalg.norm(train - query, axis=1)
        if metric == "cosine":
            far = -(train @ query) / np.linalg.norm(train, axis=1)
        found_N = lesson.class_N[np.argsort(far)]
        right = found_N == exam.class_M[m]
        assert found.nearest_M[m] == lesson.class_N[np.argmin(far)]
        for k in KS:
            assert found.values[f"acc_at_{k}"][m] == float(any(right[:k]))
            precisions = [sum(right[:i]) / i for i in range(1, k + 1) if right[i - 1]]
            assert found.values[f"map_at_{k}"][m] == pytest.approx(sum(precisions) / min(k, sum(right)))
        for k in VOTE_KS:
            assert found.values[f"mvacc_at_{k}"][m] == float(voted(found_N[:k].tolist()) == exam.class_M[m])


def voted(found: list[int]) -> int:
    """Of the classes with most votes the one that was found first: a Counter keeps that order."""
    return Counter(found).most_common(1)[0][0]


@pytest.mark.parametrize("k", range(1, 8))
def test_chance_of_a_vote_is_that_of_all_orders_counted_one_by_one(k: int) -> None:
    classes = [0, 0, 0, 1, 1, 2, 3]
    winners = Counter(voted(list(order[:k])) for order in permutations(classes))
    expected = [winners[c] / 5040 for c in range(4)]
    assert votes_by_chance(k, np.array([3, 2, 1, 1])) == pytest.approx(expected)


def test_chance_of_a_vote_among_many_tiles_is_that_of_draws_with_replacement() -> None:
    # of two classes, shares .6 and .4: 3, 4 or 5 of 5 by the binomial distribution
    expected = 10 * 0.6**3 * 0.4**2 + 5 * 0.6**4 * 0.4 + 0.6**5
    assert votes_by_chance(5, np.array([600_000, 400_000])) == pytest.approx(
        [expected, 1 - expected], abs=1e-5
    )
    assert votes_by_chance(50, np.full(9, 11_000)) == pytest.approx([1 / 9] * 9)


def test_chance_is_what_a_shuffled_order_reaches() -> None:
    lesson, exam = data(40, 30, skill=0.0)
    expected = retrieval().retrieve(lesson, exam).chances
    rng, reached = np.random.default_rng(0), []
    for _ in range(1500):
        points = rng.normal(size=(40, 4)).astype(np.float32)
        shuffled = Lesson(features_ND=points, class_N=lesson.class_N, group_N=lesson.group_N, n_classes=3)
        values = retrieval().retrieve(shuffled, exam).values
        reached.append([values[name].mean() for name in expected])
    error = np.std(reached, axis=0) / np.sqrt(len(reached))
    assert (np.abs(np.mean(reached, axis=0) - list(expected.values())) < 4 * error + 1e-9).all()


def test_separable_tiles_find_their_own_class_alone() -> None:
    lesson, exam = data(200, 30, skill=50.0)
    asked = retrieval((1, 5), vote_ks=(5,))
    found = asked.retrieve(lesson, exam)
    assert {name: values.tolist() for name, values in found.values.items()} == {
        name: [1.0] * 30 for name in ("acc_at_1", "map_at_1", "acc_at_5", "map_at_5", "mvacc_at_5")
    }
    assert asked.metrics == tuple(found.values) == tuple(found.chances)


def test_more_neighbours_than_training_tiles_are_refused() -> None:
    lesson, exam = data(10, 3, skill=0.0)
    with pytest.raises(ValueError, match="k=20, but train has 10 tiles"):
        retrieval().retrieve(lesson, exam)
    with pytest.raises(ValueError, match="k=20, but train has 10 tiles"):
        retrieval((1,), vote_ks=(20,)).retrieve(lesson, exam)
    for ks, vote_ks in [((0,), (5,)), ((), (5,)), ((1,), (0,))]:
        with pytest.raises(ValueError, match="whole numbers from 1 on"):
            retrieval(ks, vote_ks=vote_ks)
    assert retrieval((1,), vote_ks=()).metrics == ("acc_at_1", "map_at_1")


def test_means_over_tiles_have_the_interval_of_drawn_patients() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(30), 10)
    value = rng.normal(size=300) + rng.normal(size=30)[group]
    asked = Asked(subject="encoder", protocol="p", n_bootstrap=4000, seed=0)
    (score,) = mean_scores({"x": value}, {"x": 0.1}, group, asked=asked)
    assert (score.value, score.chance, score.label) == (pytest.approx(value.mean()), 0.1, "")
    means = value.reshape(30, 10).mean(axis=1)
    drawn = means[rng.integers(30, size=(4000, 30))].mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert (score.low, score.high) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))
    (alone,) = mean_scores({"x": value}, {"x": 0.1}, np.zeros(300, int), asked=asked)
    assert np.isnan([alone.low, alone.high]).all()
