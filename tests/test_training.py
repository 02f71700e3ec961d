"""A training that stopped and went on is the training that never stopped."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer, seed_everything

from histo_ssl.callbacks import MetricsLog, StepClock, read_metrics
from histo_ssl.data.base import TileSource
from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.data.loading import Loading
from histo_ssl.methods.base import SSLMethod
from histo_ssl.training import LAST, METRICS, Recording, precision_for, train
from histo_ssl.views.compose import Views

Source = Callable[[int], TileSource]
N_STEPS = 8  # 2 epochs of 4


class StopAfter(Callback):
    """Ends the training the hard way after so many steps."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.n_steps:
            raise RuntimeError("stopped by the test")


def _train(
    folder: Path,
    *,
    source: TileSource,
    views: Views,
    method: dict[str, Any],
    stop_after: int = 0,
    every: int = 3,
) -> SSLMethod:
    folder.mkdir(exist_ok=True)
    seed_everything(0, verbose=False)
    data = TileDataModule(
        source=source,
        rows=np.arange(len(source)),
        views=views,
        batch_size=4,
        epochs=2,
        accumulate=1,
        seed=0,
        loading=Loading(n_workers=0, start_method="fork", timeout_s=0),
    )
    module: SSLMethod = instantiate(method, _convert_="all")
    callbacks = [StopAfter(stop_after)] if stop_after else []

    def trainer(**settings: Any) -> Trainer:
        settings["callbacks"] = settings["callbacks"] + callbacks
        return Trainer(accelerator="cpu", devices=1, default_root_dir=str(folder), **settings)

    recording = Recording(checkpoint_every=every, log_every=1)
    train(module, data, folder=folder, trainer=trainer, logger=None, online=None, recording=recording)
    return module


def _timeless(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if name not in ("data_s", "step_s")}
        for line in read_metrics(folder / METRICS)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backbone", "stop_after"),
    [
        *(("dino", "test_vit", stop_after) for stop_after in (2, 3, 5, 8)),
        ("simclr", "test_resnet", 5),
        ("moco", "test_vit", 3),
        ("moco", "test_resnet", 5),  # shuffled
        ("mocov3", "test_vit", 5),
        ("byol", "test_resnet", 5),
        ("mae", "test_vit", 5),
    ],
)
def test_a_resumed_training_equals_the_unbroken_one_to_the_last_digit(
    image_source: Source,
    tiny: Callable[..., dict[str, Any]],
    tmp_path: Path,
    name: str,
    backbone: str,
    stop_after: int,
) -> None:
    config = tiny(name, backbone=backbone)
    views = instantiate(config["views"])
    run = partial(_train, source=image_source(17), views=views, method=config["method"])
    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run(tmp_path / "broken", stop_after=stop_after)
    resumed = run(tmp_path / "broken")
    assert _timeless(tmp_path / "broken") == _timeless(tmp_path / "whole")
    assert [line["step"] for line in _timeless(tmp_path / "whole")] == list(range(1, N_STEPS + 1))
    for (key, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def test_the_last_checkpoint_is_written_at_steps_and_at_the_ends_of_epochs(
    image_source: Source,
    views: Views,
    tiny_dino: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = []

    def spy(temporary: Path, path: Path) -> None:
        written.append(torch.load(temporary, weights_only=True)["global_step"])
        temporary.replace(path)

    monkeypatch.setattr("histo_ssl.callbacks.publish", spy)
    _train(tmp_path, source=image_source(17), views=views, method=tiny_dino, every=3)
    assert written == [3, 4, 6, 8]
    assert (tmp_path / LAST).exists()


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
        monkeypatch.setattr("histo_ssl.training.CPU_FACTS", tmp_path / "cpuinfo")
        assert precision_for("auto", "cpu") == expected


def test_two_trainings_with_one_seed_are_equal_to_the_last_digit(
    image_source: Source, views: Views, tiny_dino: dict[str, Any], tmp_path: Path
) -> None:
    source = image_source(17)
    run = partial(_train, source=source, views=views, method=tiny_dino)
    run(tmp_path / "a")
    run(tmp_path / "b")
    assert _timeless(tmp_path / "a") == _timeless(tmp_path / "b")


def test_a_torn_checkpoint_is_named_and_what_to_do_about_it(
    image_source: Source, views: Views, tiny_dino: dict[str, Any], tmp_path: Path
) -> None:
    run = partial(_train, source=image_source(17), views=views, method=tiny_dino)
    run(tmp_path)
    whole = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"last\.ckpt: not a readable checkpoint .* delete it"):
        run(tmp_path)
