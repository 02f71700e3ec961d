"""Finetuning: 1 where tiles tell their class, chance where they don't; the same twice, also after a stop."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from histo_ssl.backbones.depths import layer_depths
from histo_ssl.backbones.timm import timm_backbone
from histo_ssl.data.loading import Loading
from histo_ssl.encode import Encoder
from histo_ssl.tasks import school
from histo_ssl.tasks.base import TaskResult, Workplace
from histo_ssl.tasks.finetune import FineTuneTask, tiles_of
from histo_ssl.tasks.floors import ColorStatistics

from .conftest import N_TRAIN, DrawnTiles, Small, encoder_of

TWO_RATES = "task.protocol.tuning.lrs=[1e-3,1e-2]"
LOADING = Loading(n_workers=0, start_method="fork", timeout_s=60)


@pytest.fixture
def configured(compose: Any) -> Callable[..., FineTuneTask]:
    """The task as configured, short."""

    def task(*overrides: str) -> FineTuneTask:
        short = ("task.protocol.tuning.epochs=6", "task.protocol.tuning.batch_size=16")
        values = (*short, "task.protocol.tuning.lrs=[1e-2]", "task.protocol.n_bootstrap=100", *overrides)
        plan = compose("method=dino", "backbone=vit_t", "task=pcam", "task/protocol=finetune", *values)
        made: FineTuneTask = instantiate(plan.group("task.protocol"))
        return made

    return task


def _tune(
    task: FineTuneTask,
    encoder: Encoder,
    source: Any,
    folder: Path,
    *,
    max_failed: float = 0.05,
    **other: Any,
) -> TaskResult:
    folder.mkdir(exist_ok=True)
    values: dict[str, Any] = {"accelerator": "cpu", "precision": "32-true", "loading": LOADING, **other}
    place = Workplace(folder=folder, max_failed=max_failed, **values)
    return task.tune(encoder, source, subject="encoder", place=place)


def _auc(result: TaskResult) -> Any:
    return next(score for score in result.scores if (score.metric, score.label) == ("auc", ""))


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], float]]:
    """The tiles and the rate of every training from now on."""
    found: list[tuple[list[int], float]] = []
    train = school.School.trained

    def noted(self: school.School, learn: Any, lr: float, lost: Any) -> Any:
        found.append((learn.tolist(), lr))
        return train(self, learn, lr, lost)

    monkeypatch.setattr(school.School, "trained", noted)
    return found


def test_tiles_that_tell_their_class_score_one(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    result = _tune(configured(), small, DrawnTiles(told=True), tmp_path)
    assert _auc(result).value == 1.0
    assert result.counts == {"n_train": 64, "n_test": 32, "n_train_groups": 16, "n_test_groups": 8}
    assert result.confusion["finetune"] == [[16, 0], [0, 16]]
    assert any(note.startswith("intervals rest on 8 patients") for note in result.notes)


def test_tiles_that_tell_nothing_score_chance(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    score = _auc(_tune(configured(), small, DrawnTiles(n=192, told=False), tmp_path))
    assert score.low <= 0.5 <= score.high


def test_the_same_twice_and_the_encoder_stays_as_it_is(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in small.backbone.state_dict().items()}
    source = DrawnTiles(told=False)
    first, second = (_tune(configured(), small, source, tmp_path / name).predictions for name in ("a", "b"))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    after = small.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_rate_is_chosen_on_patients_that_are_set_aside(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    task = configured("task.protocol.tuning.lrs=[1e-7,1e-2,1e-1]")
    result = _tune(task, small, DrawnTiles(told=True), tmp_path)
    assert _auc(result).value == 1.0  # at 1e-7 nothing is learned


@pytest.mark.parametrize("broken", [(3, 95), (3, 7, 11, 95)])
def test_tiles_that_can_not_be_read_are_counted_and_told(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path, broken: tuple[int, ...]
) -> None:
    result = _tune(configured(), small, DrawnTiles(told=True, broken=broken), tmp_path)
    assert len(result.predictions) == result.counts["n_test"] == 31
    assert 95 not in set(result.predictions["tile"])
    assert "finetune left out 1 of 32 test tiles that could not be read" in result.notes
    n_replaced = len(broken) - 1
    replaced = f"finetune put others in the places of {n_replaced} training tiles that could not be read"
    assert replaced in result.notes


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            (70, 80, 90, 95),
            "4 of 32 test tiles can't be read, more than max_failed_tiles=0.05.*: tile 95 is",
        ),
        ((0, 9, 18, 27), "4 of 64 training tiles can't be read, more than max_failed_tiles=0.05"),
    ],
)
def test_too_many_of_them_are_an_error(
    configured: Callable[..., FineTuneTask],
    small: Encoder,
    tmp_path: Path,
    broken: tuple[int, ...],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        _tune(configured(), small, DrawnTiles(told=True, broken=broken), tmp_path)


def test_a_test_that_can_not_be_read_at_all_has_no_scores(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    source = DrawnTiles(told=True, broken=tuple(range(N_TRAIN, 96)))
    result = _tune(configured(), small, source, tmp_path, max_failed=1.0)
    assert result.scores == []
    assert result.notes == ["no test tile can be read: nothing to score"]


def test_an_encoder_without_weights_has_no_scores(
    configured: Callable[..., FineTuneTask], tmp_path: Path
) -> None:
    result = _tune(configured(), encoder_of(ColorStatistics()), DrawnTiles(told=True), tmp_path)
    assert result.scores == []
    assert result.notes == ["encoder has no weights that could be tuned: nothing to score"]


def test_a_class_that_train_lacks_is_refused_before_and_after_a_training(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    source = DrawnTiles(told=True, label={95: "c"})
    message = r"the test has tiles of class c, train has none \(it has a, b\)"
    with pytest.raises(ValueError, match=message):
        configured().check(tiles_of(source))
    with pytest.raises(ValueError, match=message):
        _tune(configured(), small, source, tmp_path)


def test_a_class_that_the_test_lacks_is_learned_and_told(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    source = DrawnTiles(told=True, label={0: "c", 8: "c"})  # of two patients: the rate can be chosen
    result = _tune(configured(TWO_RATES), small, source, tmp_path)
    assert result.classes == ["a", "b", "c"]
    assert _auc(result).value == 1.0
    assert "no test tile is of class c: it has no score and no part in any mean" in result.notes
    assert not any("unchosen" in note for note in result.notes)


def test_with_one_sample_of_each_class_the_rate_is_the_middle_one_unchosen(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    source = DrawnTiles(told=True, label={row: "" for row in range(N_TRAIN) if row not in (0, 4)})
    task = configured("task.protocol.tuning.lrs=[1e-2,3e-2,1e-1]", "task.protocol.tuning.epochs=60")
    result = _tune(task, small, source, tmp_path)
    assert result.counts["n_train"] == 2
    unchosen = "finetune has a class of one patient (or slide) in train: its rate is 0.03, unchosen"
    assert unchosen in result.notes
    assert _auc(result).value == 1.0
    assert [path.name for path in (tmp_path / "tunings").iterdir()] == ["encoder-test-0.03.npz"]


def test_those_set_aside_are_other_patients_whose_absence_leaves_each_class_some(
    configured: Callable[..., FineTuneTask],
    small: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # class c is that of three patients, a and b are of all
    patient = {row: f"p{row % 5}" for row in range(N_TRAIN)}
    source = DrawnTiles(told=True, patient=patient, label={0: "c", 1: "c", 2: "c"})
    trained = _watched(monkeypatch)
    _tune(configured(TWO_RATES), small, source, tmp_path)
    assert [lr for _, lr in trained] == [0.001, 0.01, trained[-1][1]]
    assert trained[-1][0] == list(range(N_TRAIN))
    labels = source.table()["label"]
    for learn, lr in trained[:2]:
        with np.load(tmp_path / "tunings" / f"encoder-held-out-{lr:g}.npz") as kept:
            aside = kept["rows"].tolist()
        assert sorted(learn + aside) == list(range(N_TRAIN))
        assert not {row % 5 for row in learn} & {row % 5 for row in aside}
        assert set(labels[learn]) == {"a", "b", "c"}


@pytest.mark.parametrize("lrs", ["[1e30]", "[1e30,1e31]"])
def test_a_training_that_diverges_is_an_error_and_not_a_score(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path, lrs: str
) -> None:
    task = configured(f"task.protocol.tuning.lrs={lrs}")
    with pytest.raises(ValueError, match=r"diverges at .*take lower ones \(task.protocol.tuning.lrs\)"):
        _tune(task, small, DrawnTiles(told=True), tmp_path)


def test_a_rate_that_diverges_loses_against_one_that_does_not(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    task = configured("task.protocol.tuning.lrs=[1e-2,1e30]")
    result = _tune(task, small, DrawnTiles(told=True), tmp_path)
    assert _auc(result).value == 1.0
    assert any(note.startswith("finetune took the rate 0.01") for note in result.notes)


def test_an_interrupted_run_goes_on_with_the_next_training_and_ends_the_same(
    configured: Callable[..., FineTuneTask],
    small: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = DrawnTiles(told=False)
    whole = _tune(configured(TWO_RATES), small, source, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    (tmp_path / "stopped" / "tunings" / "encoder-held-out-0.01.npz").write_bytes(b"PK\x03\x04 torn")
    for path in (tmp_path / "stopped" / "tunings").glob("encoder-test-*"):  # answers of other tiles
        shutil.copy(tmp_path / "whole" / "tunings" / "encoder-held-out-0.001.npz", path)
    trained = _watched(monkeypatch)
    again = _tune(configured(TWO_RATES), small, source, tmp_path / "stopped")
    assert len(trained) == 2
    assert trained[0][1] == 0.01
    assert len(trained[1][0]) == N_TRAIN
    pd.testing.assert_frame_equal(whole.predictions, again.predictions, check_exact=True)
    assert whole.scores == again.scores


def test_processes_that_read_tiles_change_nothing(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    source = DrawnTiles(told=False, broken=(5,))
    alone = _tune(configured(), small, source, tmp_path / "alone")
    loading = Loading(n_workers=2, start_method="fork", timeout_s=60)
    helped = _tune(configured(), small, source, tmp_path / "helped", loading=loading)
    pd.testing.assert_frame_equal(alone.predictions, helped.predictions, check_exact=True)


def test_the_seed_decides_and_nothing_before(
    configured: Callable[..., FineTuneTask], small: Encoder, tmp_path: Path
) -> None:
    source = DrawnTiles(told=False)
    state = torch.get_rng_state()
    first = _tune(configured(), small, source, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    second = _tune(configured(), small, source, tmp_path / "b")
    other = _tune(configured("task.protocol.seed=1"), small, source, tmp_path / "c")
    assert first.predictions["score_a"].equals(second.predictions["score_a"])
    assert not first.predictions["score_a"].equals(other.predictions["score_a"])


def test_a_vision_transformer_learns_tiles_with_dropped_paths(
    configured: Callable[..., FineTuneTask], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    architecture = {"_target_": "histo_ssl.backbones.timm.timm_backbone", "name": "test_vit"}
    vit = encoder_of(
        timm_backbone(name="test_vit", drop_path=0.0), architecture={**architecture, "drop_path": 0.0}
    )
    task = configured("task.protocol.tuning.drop_path=0.1", "task.protocol.tuning.lrs=[1e-3]")
    source = DrawnTiles(told=True)
    first, second = (_tune(task, vit, source, tmp_path / name) for name in ("a", "b"))
    assert _auc(first).value == 1.0
    pd.testing.assert_frame_equal(first.predictions, second.predictions, check_exact=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_teaches_and_asks(configured: Callable[..., FineTuneTask], tmp_path: Path) -> None:
    places: list[tuple[bool, str]] = []

    class Watched(Small):
        def forward(self, x_B3SS: Tensor) -> Tensor:
            places.append((self.training, x_B3SS.device.type))
            return super().forward(x_B3SS)

    result = _tune(configured(), encoder_of(Watched()), DrawnTiles(told=True), tmp_path, accelerator="gpu")
    assert _auc(result).value == 1.0
    assert set(places) == {(True, "cuda"), (False, "cuda")}


@pytest.mark.parametrize(("name", "n_depths"), [("vit_tiny_patch16_224", 13), ("resnet18", 9)])
def test_depths_rise_from_the_input_to_the_output(name: str, n_depths: int) -> None:
    depths = list(layer_depths(timm_backbone(name=name, drop_path=0.0)).values())
    assert sorted(set(depths)) == list(range(n_depths))
    assert depths[0] == 0
    assert depths == sorted(depths)
