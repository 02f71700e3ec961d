"""The linear probe ends where logistic regression does, and leaves no trace."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from histo_ssl.parallel import quiet
from histo_ssl.tasks.linear import LinearProbe
from histo_ssl.tasks.tiles import Lesson

SGD = partial(torch.optim.SGD, momentum=0.9, weight_decay=0.0)


def probe(**changes: object) -> LinearProbe:
    values = {"lrs": [0.1], "optimizer": SGD, "epochs": 30, "batch_size": 64, "n_folds": 5, "seed": 0}
    return LinearProbe(**{**values, **changes})  # type: ignore[arg-type]


def lesson(n: int = 600, *, seed: int = 0) -> Lesson:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3
    features = 100 + 5 * (rng.normal(size=(n, 4)) + np.eye(3, 4)[label])
    return Lesson(
        features_ND=features.astype(np.float32), class_N=label, group_N=np.arange(n) // 6, n_classes=3
    )


def test_after_many_steps_it_is_logistic_regression_without_penalty() -> None:
    learn, test = lesson(), lesson(seed=1).features_ND
    scaled = StandardScaler().fit(learn.features_ND.astype(np.float64))
    reference = LogisticRegression(C=1e6).fit(scaled.transform(learn.features_ND), learn.class_N)
    expected = reference.predict_proba(scaled.transform(test))
    found, notes = probe(epochs=150, batch_size=600, lrs=[1.0]).classify(learn, test)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert notes == []


def test_the_rate_is_chosen_that_learns() -> None:
    learn, test = lesson(), lesson(seed=1)
    truth = test.class_N
    losses = {}
    for name, lrs in (("slow", [1e-6]), ("good", [0.1]), ("chosen", [1e-6, 0.1, 1e4])):
        found, _ = probe(lrs=lrs).classify(learn, test.features_ND)
        losses[name] = -np.log(found[np.arange(len(truth)), truth]).mean()
    assert losses["chosen"] == losses["good"] < losses["slow"] - 0.1


def test_heads_that_train_together_are_those_that_train_alone() -> None:
    learn = lesson(120)
    x, y = torch.from_numpy((learn.features_ND - 100) / 5), torch.from_numpy(learn.class_N)
    pair = probe(epochs=3)._trained(x, y, learn, lrs=[0.1, 0.01])(x)
    first = probe(epochs=3)._trained(x, y, learn, lrs=[0.1])(x)
    assert pair.shape == (2, 120, 3)
    # the second head's weights are drawn between the first's and the batches, which therefore differ a little
    np.testing.assert_allclose(pair[0].softmax(1), first[0].softmax(1), atol=0.05)
    assert (pair[0] - pair[1]).abs().max() > 0.1


def test_the_result_is_the_same_again_whatever_was_drawn_before_and_draws_nothing() -> None:
    learn, test = lesson(60), lesson(9, seed=1).features_ND
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, _ = probe(epochs=2).classify(learn, test)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second, _ = probe(epochs=2).classify(learn, test)
    np.testing.assert_array_equal(first, second)


def test_adamw_will_do_as_well() -> None:
    learn, test = lesson(), lesson(seed=1)
    found, _ = probe(optimizer=partial(torch.optim.AdamW, weight_decay=0.01), lrs=[0.01]).classify(
        learn, test.features_ND
    )
    reference, _ = probe().classify(learn, test.features_ND)
    assert (found.argmax(1) == test.class_N).mean() == pytest.approx(
        (reference.argmax(1) == test.class_N).mean(), abs=0.03
    )


def test_a_constant_feature_and_one_patient_of_a_class_are_no_hindrance_but_told() -> None:
    learn = lesson(60)
    learn.features_ND[:, 3] = 5.0
    alone = Lesson(features_ND=learn.features_ND, class_N=learn.class_N, group_N=learn.class_N, n_classes=3)
    found, notes = probe(lrs=[0.01, 0.1, 1.0], epochs=2).classify(alone, learn.features_ND)
    assert np.isfinite(found).all()
    assert notes == ["has a class of one patient (or slide) in train: its rate is 0.1, unchosen"]


@pytest.mark.parametrize(
    ("lrs", "note"),
    [
        ([0.001, 0.01], "did best with the highest of its learning rates, 0.01: higher ones may do better"),
        ([0.1, 1e4], "did best with the lowest of its learning rates, 0.1: lower ones may do better"),
        ([1e-6, 0.1, 1e4], ""),
        ([0.1, 0.1], ""),
    ],
)
def test_a_rate_at_the_end_of_those_to_choose_from_is_told(lrs: list[float], note: str) -> None:
    _, notes = probe(lrs=lrs, epochs=5).classify(lesson(120), lesson(9).features_ND)
    assert [text.split(";")[0] for text in notes] == ([note] if note else [])


def test_rates_that_all_diverge_are_refused_and_one_that_does_not_is_taken() -> None:
    learn, test = lesson(120), lesson(9).features_ND
    decayed = partial(torch.optim.SGD, weight_decay=0.1)  # lr 1000: each step multiplies weights by 1 - 100
    with pytest.raises(ValueError, match=r"trainings with lrs=1000, 3000 all diverged; give it lower"):
        probe(lrs=[1e3, 3e3], optimizer=decayed).classify(learn, test)
    with pytest.raises(ValueError, match=r"training with lr=1000 diverged; give it lower"):
        probe(lrs=[1e3], optimizer=decayed).classify(learn, test)
    found, notes = probe(lrs=[0.1, 1e3, 3e3], optimizer=decayed).classify(learn, test)
    np.testing.assert_array_equal(found, probe(lrs=[0.1], optimizer=decayed).classify(learn, test)[0])
    assert len(notes) == 1


def test_it_trains_on_what_the_lesson_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def trainer(**settings: Any) -> Trainer:
        asked.append(settings["accelerator"])
        return Trainer(**{**settings, "accelerator": "cpu"})

    monkeypatch.setattr(quiet, "Trainer", trainer)
    for accelerator in ("cpu", "gpu"):
        allowed = replace(lesson(60), accelerator=accelerator)
        probe(epochs=1, lrs=[0.1, 1.0]).classify(allowed, allowed.features_ND)
    assert asked == ["cpu", "cpu", "gpu", "gpu"]


@pytest.mark.parametrize(
    "changes", [{"lrs": []}, {"lrs": [0.0]}, {"epochs": 0}, {"batch_size": 0}, {"n_folds": 1}]
)
def test_values_without_meaning_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"linear: .*expected"):
        probe(**changes)
