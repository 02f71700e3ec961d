"""Survival over folds: C within folds, curves and log-rank test of a published trial, and the whole task."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.utils import instantiate

from histo_ssl.data.loading import Loading
from histo_ssl.embeddings import write_embeddings
from histo_ssl.tasks.base import TaskResult, Workplace
from histo_ssl.tasks.bootstrap import Asked
from histo_ssl.tasks.survival import SurvivalTask, _logrank
from histo_ssl.tasks.survival_scores import (
    C_INDEX,
    FOLD_MEAN_C,
    HIGH,
    LOW,
    Risks,
    c_by_fold,
    curves,
    logrank,
    survival_scores,
)

# Weeks in remission of children with leukaemia, placebo and 6-mercaptopurine (Freireich 1963, Blood 21: 699;
# as in Klein and Moeschberger 2003, table 1.1): medians 8 and 23 weeks, log-rank chi-square 16.79, p 4.2e-5.
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]
TREATED = [6, 6, 6, 7, 10, 13, 16, 22, 23, 6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
RELAPSED = [True] * 9 + [False] * 12  # of the treated
ASKED = Asked(subject="encoder", protocol="abmil", n_bootstrap=200, seed=0)
LOADING = Loading(n_workers=0, start_method="fork", timeout_s=60)
SMALL = (
    *("task/models=[abmil]", "task.recipe.epochs=30", "task.recipe.optimizer.lr=5e-3"),
    *("task.folds.n_folds=2", "task.protocol.n_bootstrap=50", "task.recipe.batch_bags=8"),
    *("task.models.abmil.n_hidden=16", "task.models.abmil.n_attention=8"),
)


def _trial() -> Risks:
    time = np.array(PLACEBO + TREATED, dtype=float)
    event = np.array([True] * 21 + RELAPSED)
    is_placebo = np.arange(42) < 21
    return Risks(
        risk_M=is_placebo.astype(float),
        time_M=time,
        event_M=event,
        group_M=np.arange(42),
        is_high_M=is_placebo,
    )


def test_the_log_rank_test_of_a_published_trial() -> None:
    assert logrank([_trial()]) == pytest.approx(4.17e-5, rel=0.01)


def test_where_nobody_died_or_all_are_on_one_side_there_is_no_log_rank_test() -> None:
    alive, alike = (
        replace(_trial(), event_M=np.zeros(42, dtype=bool)),
        replace(_trial(), is_high_M=np.ones(42, dtype=bool)),
    )
    assert (
        _logrank([alive])
        == _logrank([alike])
        == "no log-rank test: nobody tested died, or all are on one side"
    )
    assert _logrank([_trial()]) == "log-rank p = 4.2e-05"


def test_kaplan_meier_curves_of_a_published_trial() -> None:
    table = curves([_trial()])
    for group, median in ((HIGH, 8), (LOW, 23)):
        of = table[table["group"] == group]
        assert of["time"][of["survival"] <= 0.5].iloc[0] == median
    treated = table[table["group"] == LOW].set_index("time")
    # The product-limit estimates as printed there (table 4.1B): 18/21, times 16/17, times 14/15.
    assert treated["survival"][[6, 7, 10]].tolist() == pytest.approx([0.857, 0.807, 0.753], abs=5e-4)
    assert treated["at_risk"][[6, 7, 10]].tolist() == [21, 17, 15]


def test_folds_that_speak_other_languages_are_compared_within_themselves() -> None:
    time = np.arange(1.0, 11)
    folds = [
        Risks(
            risk_M=shift - time,
            time_M=time,
            event_M=np.ones(10, dtype=bool),
            group_M=np.arange(first, first + 10),
            is_high_M=time < 5,
        )
        for first, shift in ((0, 0.0), (10, 1000.0))
    ]
    scores = {score.metric: score for score in survival_scores(folds, ASKED)}
    assert scores[C_INDEX].value == scores[FOLD_MEAN_C].value == 1.0
    assert c_by_fold(folds) == [1.0, 1.0]


def test_random_risks_score_chance_within_the_interval() -> None:
    rng = np.random.default_rng(4)
    folds = [
        Risks(
            risk_M=rng.normal(size=40),
            time_M=rng.exponential(size=40),
            event_M=rng.random(40) < 0.7,
            group_M=np.arange(first, first + 40),
            is_high_M=rng.random(40) < 0.5,
        )
        for first in (0, 40)
    ]
    for score in survival_scores(folds, ASKED):
        assert score.low < 0.5 < score.high
        assert score.high - score.low < 0.3


@pytest.fixture
def configured(compose: Any) -> Callable[..., SurvivalTask]:
    """The task as configured, small."""

    def task(*overrides: str) -> SurvivalTask:
        plan = compose("method=dino", "backbone=vit_t", "task=survival", *SMALL, *overrides)
        made: SurvivalTask = instantiate(plan.group("task.protocol"))
        return made

    return task


@pytest.fixture
def slides() -> pd.DataFrame:
    """60 slides of 40 patients, who live the shorter the larger their number."""
    rng = np.random.default_rng(0)
    patient = [i % 40 for i in range(60)]
    time = 60 - np.arange(40) + rng.normal(size=40)
    died = rng.random(40) < 0.8
    return pd.DataFrame(
        {
            "slide": [f"s{i:02d}" for i in range(60)],
            "patient": [f"p{p:02d}" for p in patient],
            "site": "A",
            "label": "",
            "survival_months": [f"{time[p]:.2f}" for p in patient],
            "censorship": ["0" if died[p] else "1.0" for p in patient],
            "n_tiles": 10,
        }
    )


def _write(folder: Path, slides: pd.DataFrame, *, signal: float) -> Path:
    rng = np.random.default_rng(1)
    folder.mkdir()
    for row in slides.itertuples():
        features = rng.normal(size=(10, 6))
        features[:, 0] += signal * (float(row.survival_months) - 40) / 10
        coords = np.arange(20).reshape(10, 2)
        write_embeddings(folder / f"{row.slide}.h5", features=features, coords=coords, attributes={})
    return folder


def _evaluate(task: SurvivalTask, slides: pd.DataFrame, features: Path, folder: Path) -> TaskResult:
    folder.mkdir(exist_ok=True)
    place = Workplace(folder=folder, accelerator="cpu", precision="32-true", loading=LOADING, max_failed=0.1)
    return task.evaluate_bags(features, slides, subject="encoder", place=place)


@pytest.mark.parametrize("objective", ["discrete", "cox"])
def test_bags_that_tell_the_time_are_ordered_by_it(
    configured: Callable[..., SurvivalTask], slides: pd.DataFrame, tmp_path: Path, objective: str
) -> None:
    task = configured(f"task.protocol.objective={objective}")
    result = _evaluate(task, slides, _write(tmp_path / "h5", slides, signal=2.0), tmp_path / "out")
    scores = {score.metric: score for score in result.scores}
    # 40 patients: bags that tell nothing reach .5, with an SE of about .06
    assert scores[C_INDEX].low > 0.6
    assert scores[FOLD_MEAN_C].value > 0.8
    assert result.counts["n_test"] == result.counts["n_test_groups"] == 40  # patients, not slides
    assert any("log-rank p =" in note for note in result.notes)
    assert set(result.tables["curves"]["group"]) == {HIGH, LOW}
    assert {look.title for look in result.looks} == {"abmil: high risk", "abmil: low risk"}
    shown = slides.set_index("slide")["patient"][[look.slide for look in result.looks]]
    assert shown.nunique() == 8  # patients, with all their slides


def test_bags_that_tell_nothing_score_chance(
    configured: Callable[..., SurvivalTask], slides: pd.DataFrame, tmp_path: Path
) -> None:
    result = _evaluate(configured(), slides, _write(tmp_path / "h5", slides, signal=0.0), tmp_path / "out")
    assert all(score.low <= 0.5 <= score.high for score in result.scores)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"censorship": "1"}, "all 60 patients are censored: nobody died"),
        ({"censorship": "maybe"}, "60 of 60 cells of censorship say neither 0 nor 1, such as 'maybe' of s00"),
        ({"survival_months": "-3"}, "60 of 60 times are no numbers above 0, such as '-3' of s00"),
        ({"survival_months": "soon"}, "60 of 60 times are no numbers above 0, such as 'soon' of s00"),
        (
            {"event": ["1", ""] * 30},
            "30 of 60 cells of event say neither 0 nor 1, such as '' of s01: correct",
        ),
        (
            {"event": "1", "censorship": ["0", "1"] * 30},
            "contradict each other for 30 of 60 slides, such as s01",
        ),
        (
            {"survival_months": [f"{i + 1}" for i in range(60)]},
            "20 patients, such as p00, have .* several times",
        ),
        ({"censorship": ["0"] * 40 + ["1"] * 20}, "20 patients, such as p00, have slides of several events"),
        ({"censorship": ""}, "nobody's event is known: task.labels needs a column event"),
        ({"survival_months": ""}, "none of 60 slides has a label: give the slide list a column 'time'"),
    ],
)
def test_what_can_not_be_scored_is_refused_before_any_training(
    configured: Callable[..., SurvivalTask], slides: pd.DataFrame, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        configured().check_slides(slides.assign(**changes))


def test_an_event_column_counts_the_other_way(
    configured: Callable[..., SurvivalTask], slides: pd.DataFrame
) -> None:
    task = configured()
    _, times = task._parts(slides)
    turned = slides.assign(event=["1" if c == "0" else "0" for c in slides["censorship"]], censorship="")
    _, same = task._parts(turned)
    assert np.array_equal(times.event_N, same.event_N)
    assert 0 < times.event_N.sum() < 40


def test_cox_needs_bags_to_compare(configured: Callable[..., SurvivalTask]) -> None:
    with pytest.raises(Exception, match="Cox's likelihood compares the bags of a step; take 16 or more"):
        configured("task.protocol.objective=cox", "task.recipe.batch_bags=1")
