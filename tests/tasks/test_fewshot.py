"""Prototypes of few examples: the nearest is scikit-learn's nearest centroid, episode by episode."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.neighbors import NearestCentroid

from histo_ssl.tasks.bootstrap import Asked
from histo_ssl.tasks.fewshot import FewShot
from histo_ssl.tasks.scores import Predictions, episode_scores, scores_of
from histo_ssl.tasks.tiles import Lesson


def lesson(n_each: int, *, C: int = 3, D: int = 5, seed: int = 0) -> Lesson:
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(C), n_each)
    features = rng.normal(size=(len(label), D)) + 1.5 * np.eye(C, D)[label] + 7
    return Lesson(
        features_ND=features.astype(np.float32), class_N=label, group_N=np.arange(len(label)), n_classes=C
    )


def fewshot(k: int, *, n_episodes: int = 20, **changes: bool) -> FewShot:
    return FewShot(
        k=k, n_episodes=n_episodes, seed=0, **{"is_centred": True, "is_normalised": True, **changes}
    )


def test_with_all_training_tiles_the_nearest_prototype_is_the_nearest_centroid() -> None:
    learn, test = lesson(12), lesson(30, seed=1).features_ND
    expected = NearestCentroid().fit(learn.features_ND, learn.class_N).predict(test)
    plain = fewshot(12, n_episodes=1, is_centred=False, is_normalised=False)
    score_EMC, _ = plain.classify(learn, test)
    assert score_EMC.shape == (1, 90, 3)
    np.testing.assert_allclose(score_EMC.sum(axis=2), 1)
    assert score_EMC[0].argmax(axis=1).tolist() == expected.tolist()
    origin = learn.features_ND.mean(axis=0)

    def placed(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return (x - origin) / np.linalg.norm(x - origin, axis=1, keepdims=True)

    expected = NearestCentroid().fit(placed(learn.features_ND), learn.class_N).predict(placed(test))
    score_EMC, _ = fewshot(12, n_episodes=1).classify(learn, test)
    assert score_EMC[0].argmax(axis=1).tolist() == expected.tolist()


def test_of_one_example_each_the_nearest_is_one_of_the_training_tiles_and_every_draw_is_another() -> None:
    learn = lesson(6)
    shots = fewshot(1, n_episodes=200, is_centred=False, is_normalised=False)
    score_EMC, notes = shots.classify(learn, learn.features_ND)
    far = score_EMC[:, :, 0].argmax(axis=1)  # the tile that is most surely of class 0 is its prototype, often
    assert len(set(far.tolist())) > 3
    assert notes == ["is the mean of 200 draws of 1 tiles of each class"]
    again, _ = shots.classify(learn, learn.features_ND)
    np.testing.assert_array_equal(again, score_EMC)


def test_more_examples_are_better_on_average() -> None:
    learn, test = lesson(64), lesson(50, seed=1)
    shares = []
    for k in (1, 4, 16, 64):
        score_EMC, _ = fewshot(k, n_episodes=50).classify(learn, test.features_ND)
        shares.append((score_EMC.argmax(axis=2) == test.class_N).mean())
    assert shares == sorted(shares)
    assert shares[-1] - shares[0] > 0.1


def test_a_class_with_fewer_tiles_than_examples_is_refused_with_their_number() -> None:
    with pytest.raises(
        ValueError, match=r"k=7 examples .* smallest has 6 training tiles; take k of at most 6"
    ):
        fewshot(7).classify(lesson(6), np.zeros((1, 5), np.float32))


@pytest.mark.parametrize("changes", [{"k": 0}, {"n_episodes": 0}])
def test_no_example_and_no_draw_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="1 or more are expected"):
        fewshot(**{"k": 1, **changes})


def predictions(seed: int, *, n_groups: int = 20) -> Predictions:
    """Of the same tiles; how well a classifier tells them apart varies with the seed."""
    rng = np.random.default_rng(seed)
    truth, group = np.random.default_rng(7).integers(2, size=400), np.arange(400) % n_groups
    score = rng.normal(size=(400, 2)) + rng.normal(1, 0.5) * np.eye(2)[truth]
    return Predictions(score_MC=score, truth_M=truth, group_M=group, classes=["a", "b"])


def test_the_score_of_episodes_is_their_mean_and_its_interval_holds_their_spread() -> None:
    asked = Asked(subject="encoder", protocol="p", n_bootstrap=1000, seed=0)
    episodes = [predictions(seed) for seed in range(40)]
    each = [scores_of(one, asked) for one in episodes]
    together = episode_scores(episodes, asked)
    for i, score in enumerate(together):
        values = [found[i].value for found in each]
        assert score.value == pytest.approx(np.mean(values), abs=1e-12)
        low, high = np.percentile(values, (2.5, 97.5))
        width_of_one = np.mean([found[i].high - found[i].low for found in each])
        # two sources of spread, both near normal: their squares add up, within a fifth
        expected = np.hypot(high - low, width_of_one)
        assert score.high - score.low == pytest.approx(expected, rel=0.2)
    assert episode_scores(episodes[:1], asked) == each[0]
