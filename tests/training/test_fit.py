"""A training that stopped and went on is the training that never stopped."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from histo_ssl.data.base import TileSource
from histo_ssl.methods.base import SSLMethod
from histo_ssl.training.checkpoints import LAST
from histo_ssl.training.fit import METRICS, device_for, precision_for
from histo_ssl.training.recording import MetricsLog, StepClock, read_metrics

Source = Callable[[int], TileSource]
Fit = Callable[..., SSLMethod]


def _end() -> None:
    raise RuntimeError("stopped by the test")


def _assert_equal(a: SSLMethod, b: SSLMethod) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop_after", "settings"),
    [
        (2, {}),
        (3, {}),
        (5, {}),
        (8, {}),
        (5, {"accumulate": 2}),
        (5, {"precision": "bf16-mixed"}),
    ],
)
def test_a_resumed_training_equals_the_unbroken_one_to_the_last_digit(
    image_source: Source,
    fit_tiny: Fit,
    tiny: ModuleType,
    tmp_path: Path,
    stop_after: int,
    settings: dict[str, Any],
) -> None:
    source, diaries = image_source(17), [tiny.Diary(), tiny.Diary(), tiny.Diary()]
    whole = fit_tiny(tmp_path / "whole", source=source, callbacks=diaries[:1], **settings)
    callbacks = [diaries[1], tiny.At(stop_after, _end)]
    with pytest.raises(RuntimeError, match="stopped by the test"):
        fit_tiny(tmp_path / "broken", source=source, callbacks=callbacks, **settings)
    resumed = fit_tiny(tmp_path / "broken", source=source, callbacks=diaries[2:], **settings)
    assert tiny.timeless(tmp_path / "broken") == tiny.timeless(tmp_path / "whole")
    assert [line["step"] for line in tiny.timeless(tmp_path / "whole")] == list(range(1, tiny.N_STEPS + 1))
    _assert_equal(whole, resumed)
    counted = diaries[1].ids | diaries[2].ids  # a batch that was made again counts once
    assert counted == diaries[0].ids
    in_order = [row for _, ids in sorted(counted.items()) for row in ids]
    for epoch in (in_order[:16], in_order[16:]):
        seen = Counter(epoch)
        assert len(seen) == 16
        assert set(seen.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backbone", "stop_after"),
    [
        ("simclr", "test_resnet", 5),
        ("moco", "test_vit", 3),
        ("moco", "test_resnet", 5),  # shuffled
        ("mocov3", "test_vit", 5),
        ("byol", "test_resnet", 5),
        ("mae", "test_vit", 5),
    ],
)
def test_every_method_resumes_to_the_last_digit(
    image_source: Source,
    tiny_method: Callable[..., dict[str, Any]],
    tiny: ModuleType,
    tmp_path: Path,
    name: str,
    backbone: str,
    stop_after: int,
) -> None:
    config = tiny_method(name, backbone=backbone)
    views = instantiate(config["views"])
    run = partial(tiny.run_training, source=image_source(17), views=views, method=config["method"])
    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run(tmp_path / "broken", callbacks=[tiny.At(stop_after, _end)])
    resumed = run(tmp_path / "broken")
    assert tiny.timeless(tmp_path / "broken") == tiny.timeless(tmp_path / "whole")
    _assert_equal(whole, resumed)


def test_a_training_is_not_gone_on_with_other_batches_per_step(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path
) -> None:
    source = image_source(17)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        fit_tiny(tmp_path, source=source, callbacks=[tiny.At(5, _end)])
    with pytest.raises(ValueError, match=r"was begun with trainer\.accumulate_grad_batches=1; go on"):
        fit_tiny(tmp_path, source=source, accumulate=2)


@pytest.mark.slow
def test_float16_goes_on_with_the_scale_of_its_loss_where_it_was(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path
) -> None:
    def scaled() -> MixedPrecision:
        # grows after every third sound step, and starts too high: the first steps are left out
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3)
        return MixedPrecision("16-mixed", "cpu", scaler=scaler)

    whole, broken, resumed = scaled(), scaled(), scaled()
    fit = partial(fit_tiny, source=image_source(17))
    as_whole = fit(tmp_path / "whole", plugins=[whole])
    with pytest.raises(RuntimeError, match="stopped by the test"):
        fit(tmp_path / "broken", plugins=[broken], callbacks=[tiny.At(5, _end)])
    as_resumed = fit(tmp_path / "broken", plugins=[resumed])
    assert resumed.state_dict() == whole.state_dict()
    assert whole.state_dict()["scale"] not in (2.0**24, broken.state_dict()["scale"])
    assert tiny.timeless(tmp_path / "broken") == tiny.timeless(tmp_path / "whole")
    _assert_equal(as_whole, as_resumed)


@pytest.mark.slow
def test_a_resumed_loggers_steps_go_on_where_they_were(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path
) -> None:
    source = image_source(17)
    loggers = [
        CSVLogger(tmp_path, name="whole"),
        CSVLogger(tmp_path, name="a"),
        CSVLogger(tmp_path, name="b"),
    ]
    fit_tiny(tmp_path / "w", source=source, logger=loggers[0])
    with pytest.raises(RuntimeError, match="stopped by the test"):
        fit_tiny(tmp_path / "r", source=source, logger=loggers[1], callbacks=[tiny.At(5, _end)], every=3)
    fit_tiny(tmp_path / "r", source=source, logger=loggers[2])

    def rows(logger: CSVLogger) -> dict[str, str]:
        lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
        place = lines[0].split(",").index("step")
        return {line.split(",")[place]: line for line in lines}

    whole, resumed = rows(loggers[0]), rows(loggers[2])
    assert list(whole) == ["step", *map(str, range(tiny.N_STEPS))]
    assert resumed == {step: whole[step] for step in ["step", "4", "5", "6", "7"]}  # the newest was of step 4


def test_the_last_checkpoint_is_written_at_steps_and_at_the_ends_of_epochs(
    image_source: Source, fit_tiny: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def spy(temporary: Path, path: Path) -> None:
        written.append(torch.load(temporary, weights_only=True)["global_step"])
        temporary.replace(path)

    monkeypatch.setattr("histo_ssl.training.checkpoints.publish", spy)
    fit_tiny(tmp_path, source=image_source(17), every=3)
    assert written == [3, 4, 6, 8]
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 8


def test_a_resumed_log_drops_the_steps_that_are_made_again_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    log = MetricsLog(path, clock=StepClock(), every_n_steps=1, steps_per_epoch=4)
    log.on_train_start(_AtStep(3), None)  # type: ignore[arg-type]
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


class _AtStep:
    is_global_zero = True

    def __init__(self, global_step: int) -> None:
        self.global_step = global_step


def test_a_stated_precision_is_taken_and_auto_follows_the_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert precision_for("16-mixed", "cpu") == "16-mixed"
    for flags, expected in (("fpu avx512_bf16", "bf16-mixed"), ("fpu avx2", "32-true")):
        (tmp_path / "cpuinfo").write_text(flags)
        monkeypatch.setattr("histo_ssl.training.fit.CPU_FACTS", tmp_path / "cpuinfo")
        assert precision_for("auto", "cpu") == expected


@pytest.mark.parametrize(
    ("accelerator", "has_gpu", "expected"),
    [("auto", True, "cuda"), ("gpu", True, "cuda"), ("cpu", True, "cpu"), ("auto", False, "cpu")],
)
def test_what_is_done_beside_training_is_done_on_the_trainers_kind_of_device(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, has_gpu: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert device_for(accelerator).type == expected


def test_two_trainings_with_one_seed_are_equal_to_the_last_digit(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path
) -> None:
    source = image_source(17)
    _assert_equal(fit_tiny(tmp_path / "a", source=source), fit_tiny(tmp_path / "b", source=source))
    assert tiny.timeless(tmp_path / "a") == tiny.timeless(tmp_path / "b")


def test_a_trainer_that_ends_by_itself_is_not_taken_for_a_finished_training(
    image_source: Source, fit_tiny: Fit, tmp_path: Path, tiny: ModuleType
) -> None:
    class Tired(tiny.At):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 3

    with pytest.raises(InterruptedError, match="ended by itself at step 3 of 8"):
        fit_tiny(tmp_path, source=image_source(17), callbacks=[Tired(3, _end)])
