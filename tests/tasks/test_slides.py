"""Slides by bags and folds: told apart where bags differ, by chance where they don't, the same every time."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.utils import instantiate

from histo_ssl.data.loading import Loading
from histo_ssl.embeddings import write_embeddings
from histo_ssl.tasks.base import TaskResult, Workplace
from histo_ssl.tasks.fold_scores import FOLD_MEAN
from histo_ssl.tasks.slides import SlideTask

DIM = 8
LOADING = Loading(n_workers=0, start_method="fork", timeout_s=60)
SMALL = (
    *("task/models=[clam_sb,mean]", "task.recipe.epochs=4", "task.recipe.optimizer.lr=3e-3"),
    *("task.folds.n_folds=2", "task.protocol.n_bootstrap=50", "task.recipe.batch_bags=4"),
    *(f"task.models.{name}.n_hidden=16" for name in ("clam_sb", "mean")),
    "task.models.clam_sb.n_attention=8",
)


@pytest.fixture
def configured(compose: Any) -> Callable[..., SlideTask]:
    """The task as configured, small."""

    def task(*overrides: str) -> SlideTask:
        plan = compose("method=dino", "backbone=vit_t", "task=slides", *SMALL, *overrides)
        made: SlideTask = instantiate(plan.group("task.protocol"))
        return made

    return task


@pytest.fixture
def slides() -> pd.DataFrame:
    """32 slides of 16 patients, two classes."""
    n = 32
    patient = [f"p{i // 2:02d}" for i in range(n)]
    return pd.DataFrame(
        {
            "slide": [f"s{i:02d}" for i in range(n)],
            "patient": patient,
            "site": "A",
            "label": ["a" if (i // 2) % 2 else "b" for i in range(n)],
            "n_tiles": 20,
        }
    )


def _write(folder: Path, slides: pd.DataFrame, *, share: float, seed: int = 0) -> Path:
    """Bags whose tiles tell the class by a share of them."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for slide, label in zip(slides["slide"], slides["label"], strict=True):
        features = rng.normal(size=(20, DIM))
        features[: round(20 * share), 0] += 8 if label == "a" else -8
        coords = np.arange(40).reshape(20, 2)
        write_embeddings(folder / f"{slide}.h5", features=features, coords=coords, attributes={})
    return folder


def _evaluate(task: SlideTask, slides: pd.DataFrame, features: Path, folder: Path) -> TaskResult:
    folder.mkdir(exist_ok=True)
    place = Workplace(folder=folder, accelerator="cpu", precision="32-true", loading=LOADING, max_failed=0.1)
    return task.evaluate_bags(features, slides, subject="encoder", place=place)


def _scores(result: TaskResult) -> dict[tuple[str, str], float]:
    return {(s.protocol, s.metric): s.value for s in result.scores if not s.label}


def test_bags_that_differ_are_told_apart(
    configured: Callable[..., SlideTask], slides: pd.DataFrame, tmp_path: Path
) -> None:
    result = _evaluate(configured(), slides, _write(tmp_path / "h5", slides, share=0.5), tmp_path / "out")
    scores = _scores(result)
    assert scores["clam_sb", FOLD_MEAN] == scores["mean", FOLD_MEAN] == 1.0
    assert scores["clam_sb", "auc"] == 1.0
    assert result.counts == {
        **{"n_train": 24, "n_train_groups": 12, "n_test": 32, "n_test_groups": 16, "n_folds": 2}
    }
    assert result.tables["folds"]["fold"].tolist() == ["k0", "k1", "k0", "k1"]


def test_bags_that_do_not_differ_score_chance(
    configured: Callable[..., SlideTask], slides: pd.DataFrame, tmp_path: Path
) -> None:
    result = _evaluate(configured(), slides, _write(tmp_path / "h5", slides, share=0.0), tmp_path / "out")
    for score in result.scores:
        if score.metric in ("auc", FOLD_MEAN):
            assert score.low <= 0.5 <= score.high


def test_each_patient_is_tested_once_and_by_a_model_that_has_not_seen_it(
    configured: Callable[..., SlideTask], slides: pd.DataFrame, tmp_path: Path
) -> None:
    result = _evaluate(configured(), slides, _write(tmp_path / "h5", slides, share=0.5), tmp_path / "out")
    tested = result.predictions.query("protocol == 'mean'")
    assert sorted(tested["slide"]) == slides["slide"].tolist()
    assert tested.groupby("patient")["fold"].nunique().max() == 1


def test_a_fold_is_the_same_alone_in_the_whole_and_again(
    configured: Callable[..., SlideTask], slides: pd.DataFrame, tmp_path: Path
) -> None:
    features = _write(tmp_path / "h5", slides, share=0.1)
    whole = _evaluate(configured(), slides, features, tmp_path / "whole").predictions.query("fold == 'k1'")
    again = _evaluate(configured(), slides, features, tmp_path / "again").predictions.query("fold == 'k1'")
    alone = _evaluate(configured("task.only_folds=[k1]"), slides, features, tmp_path / "alone").predictions
    for other in (again, alone):
        pd.testing.assert_frame_equal(
            whole.reset_index(drop=True), other.reset_index(drop=True), check_exact=True
        )


def test_what_was_kept_of_an_interrupted_run_is_taken(
    configured: Callable[..., SlideTask],
    slides: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = _write(tmp_path / "h5", slides, share=0.1)
    first = _evaluate(configured(), slides, features, tmp_path / "out")
    monkeypatch.setattr("histo_ssl.tasks.crossvalidation.fit", None)  # a training would fail
    second = _evaluate(configured(), slides, features, tmp_path / "out")
    pd.testing.assert_frame_equal(first.predictions, second.predictions, check_exact=True)


def test_a_kept_fold_that_is_not_whole_is_trained_again(
    configured: Callable[..., SlideTask], slides: pd.DataFrame, tmp_path: Path
) -> None:
    features = _write(tmp_path / "h5", slides, share=0.1)
    first = _evaluate(configured(), slides, features, tmp_path / "out")
    kept = sorted((tmp_path / "out" / "folds").glob("*.npz"))
    for path in kept:  # cut in the middle of the archive, and before its first entry
        path.write_bytes(path.read_bytes()[: 500 if path == kept[0] else 3])
    second = _evaluate(configured(), slides, features, tmp_path / "out")
    pd.testing.assert_frame_equal(first.predictions, second.predictions, check_exact=True)


def test_a_patients_slides_can_be_one_bag(
    configured: Callable[..., SlideTask], slides: pd.DataFrame, tmp_path: Path
) -> None:
    features = _write(tmp_path / "h5", slides, share=0.5)
    result = _evaluate(configured("task.unit=patient"), slides, features, tmp_path / "out")
    assert result.counts["n_test"] == result.counts["n_test_groups"] == 16
    assert _scores(result)["mean", FOLD_MEAN] == 1.0


def test_what_can_not_be_scored_is_refused_before_any_training(
    configured: Callable[..., SlideTask], slides: pd.DataFrame
) -> None:
    with pytest.raises(ValueError, match="all 32 labelled slides are of class a"):
        configured().check_slides(slides.assign(label="a"))
    with pytest.raises(ValueError, match=r"no fold k7; there are k0, k1"):
        configured("task.only_folds=[k7]").check_slides(slides)
    two = slides.assign(label=["a", "b"] * 16)
    with pytest.raises(ValueError, match="patient p00 has slides of 2 classes"):
        configured("task.unit=patient").check_slides(two)
    with pytest.raises(ValueError, match="class a has 8 patients for 9 folds"):
        configured("task.folds.n_folds=9").check_slides(slides)


def test_a_model_of_a_library_that_is_not_there_is_refused_before_any_training(
    compose: Any, slides: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchmil.models", None)
    months, died = (np.arange(32) // 2 + 1).astype(str), (np.arange(32) // 2 % 8 > 0).astype(int).astype(str)
    timed = slides.assign(survival_months=months, event=died)
    for task in ("slides", "survival"):
        cut = ("task/models=[dsmil]", "task.folds.n_folds=2", "task.folds.valid_share=0.2")
        plan = compose("method=dino", "backbone=vit_t", f"task={task}", *cut)
        with pytest.raises(Exception, match="is not installed: pip install 'histo-ssl"):
            instantiate(plan.group("task.protocol")).check_slides(timed)


def test_a_slide_without_embeddings_is_named(
    configured: Callable[..., SlideTask], slides: pd.DataFrame, tmp_path: Path
) -> None:
    features = _write(tmp_path / "h5", slides, share=0.5)
    (features / "s05.h5").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 32 slides have no file of embeddings: s05"):
        _evaluate(configured(), slides, features, tmp_path / "out")


def test_the_surest_right_and_wrong_cases_of_each_class_are_shown(
    configured: Callable[..., SlideTask], slides: pd.DataFrame, tmp_path: Path
) -> None:
    features = _write(tmp_path / "h5", slides, share=0.5)
    result = _evaluate(configured("task.n_maps=4"), slides, features, tmp_path / "out")
    tested = result.predictions.query("protocol == 'clam_sb'").set_index("slide")
    for look, label in zip(result.looks, ["b", "a"], strict=False):
        right = tested.query("label == predicted and label == @label")
        assert look.slide in right.index[right[f"score_{label}"] == right[f"score_{label}"].max()]
    assert len({look.slide for look in result.looks}) == 4
    for look in result.looks:
        assert look.model == "clam_sb"
        assert look.fold == tested["fold"][look.slide]
        assert len(look.attention) == len(look.coords) == 20
    # The first ten tiles of a bag tell its class, the others are noise: attention is on the first.
    higher = [look.attention[:10].mean() > look.attention[10:].mean() for look in result.looks]
    assert all(higher)


def test_floors_are_scored_and_not_shown(
    configured: Callable[..., SlideTask], slides: pd.DataFrame, tmp_path: Path
) -> None:
    features = _write(tmp_path / "h5", slides, share=0.5)
    place = Workplace(
        folder=tmp_path, accelerator="cpu", precision="32-true", loading=LOADING, max_failed=0.1
    )
    assert configured().evaluate_bags(features, slides, subject="colour", place=place).looks == []


def test_folds_without_a_validation_need_a_recipe_that_has_none(
    configured: Callable[..., SlideTask], slides: pd.DataFrame, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"2 of 2 folds \(k0, k1\) have nobody to choose the epoch by"):
        configured("task.folds.valid_share=0").check_slides(slides)
    task = configured("task.folds.valid_share=0", "task.recipe.patience=null")
    result = _evaluate(task, slides, _write(tmp_path / "h5", slides, share=0.5), tmp_path / "out")
    assert _scores(result)["clam_sb", FOLD_MEAN] == 1.0
    assert result.counts["n_train"] == 32
