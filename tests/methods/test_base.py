"""What every method inherits: schedules, counting of steps, the log, and the stop at a bad loss."""

import dataclasses
import math
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from histo_ssl.methods.base import NonFiniteError, SSLMethod
from histo_ssl.optim.spec import OptimSpec


class Constant(SSLMethod):
    """One weight w, with the loss w x mean of the views: its gradient is that mean."""

    def __init__(self, *, clip_norm: float | None = None, optimizer: Any = torch.optim.SGD) -> None:
        super().__init__(
            optim=OptimSpec(
                optimizer=optimizer,
                lr_per_256=64.0,  # 1 at a batch of 4
                final_lr=0.0,
                warmup=0.5,
                weight_decay=0.0,
                final_weight_decay=0.5,
                clip_norm=clip_norm,
            )
        )
        self.layer = nn.Linear(1, 1)
        nn.init.ones_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.seen: list[float] = []
        self.total_steps, self.steps_per_epoch, self.log_every = 4, 2, 1

    def step(self, views: list[Tensor]) -> dict[str, Tensor]:
        return {"loss": self.layer.weight.sum() * sum(view.mean() for view in views)}

    def encoder(self) -> nn.Module:
        return self.layer

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        self.seen.append(progress)


class Diary(Callback):
    """Notes the weight and the groups after every batch."""

    def __init__(self) -> None:
        self.pages: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        decayed, rest = trainer.optimizers[0].param_groups
        self.pages.append(
            {
                "step": trainer.global_step,
                "weight": module.layer.weight.item(),
                "lr": decayed["lr"],
                "decay": (decayed["weight_decay"], rest["weight_decay"]),
                "log": {k: v.item() for k, v in trainer.callback_metrics.items()},
            }
        )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_after_step_runs_once_per_optimiser_step_with_its_progress(fit: Any, accumulate: int) -> None:
    method = Constant()
    trainer = fit(method, max_steps=4, accumulate=accumulate)
    assert trainer.global_step == 4
    assert method.seen == [0.0, 0.25, 0.5, 0.75]


def test_schedules_reach_the_groups_and_the_log_before_each_step(fit: Any) -> None:
    diary = Diary()
    fit(Constant(), max_steps=4, callbacks=[diary])
    # warm-up 0, 1/2, then from 1 half a cosine to 0; decay from 0 to 0.5
    assert [page["lr"] for page in diary.pages] == pytest.approx([0.0, 0.5, 1.0, 0.5])
    decays = [0.25 * (1 - math.cos(math.pi * p)) for p in (0, 0.25, 0.5, 0.75)]
    assert [page["decay"][0] for page in diary.pages] == pytest.approx(decays)
    assert {page["decay"][1] for page in diary.pages} == {0.0}
    assert [page["log"]["lr"] for page in diary.pages] == pytest.approx([0.0, 0.5, 1.0, 0.5])
    assert [page["log"]["weight_decay"] for page in diary.pages] == pytest.approx(decays)


def test_the_optimiser_uses_the_rate_of_its_own_step(fit: Any, batches: Any) -> None:
    diary = Diary()
    fit(Constant(), max_steps=4, callbacks=[diary])
    weight = 1.0
    for page, batch in zip(diary.pages, batches(4), strict=True):
        gradient = sum(view.mean().item() for view in batch["views"])
        weight -= page["lr"] * (gradient + page["decay"][0] * weight)  # SGD couples decay and rate
        assert page["weight"] == pytest.approx(weight, rel=1e-4, abs=1e-6)


def test_tiles_per_step_counts_accumulated_batches(fit: Any) -> None:
    method = Constant()
    diary = Diary()
    fit(method, max_steps=4, accumulate=2, callbacks=[diary])
    assert method.tiles_per_step == 8
    assert diary.pages[-3]["lr"] == pytest.approx(2.0)  # the peak, twice that of 4 tiles per step


def test_gradients_are_clipped_before_the_step(fit: Any, batches: Any) -> None:
    diary = Diary()
    fit(Constant(clip_norm=1e-3), max_steps=2, callbacks=[diary])
    gradient = sum(view.mean().item() for view in batches(2)[1]["views"])
    assert abs(gradient) > 1e-3
    decayed = diary.pages[0]["weight"] * (1 - 0.5 * diary.pages[1]["decay"][0])
    assert diary.pages[1]["weight"] == pytest.approx(decayed - 0.5 * math.copysign(1e-3, gradient), abs=1e-6)


class Sick(Constant):
    """Its loss is multiplied by `bad` at some batches; or its loss is fine, and only its gradient is not."""

    def __init__(
        self, *, bad: float = math.nan, at: tuple[int, ...] = (2,), of_gradient: bool = False
    ) -> None:
        super().__init__()
        self.bad, self.at, self.of_gradient = bad, at, of_gradient
        self.register_buffer("n_seen", torch.zeros(()))
        self.n_plain = self.n_batches = 0

    def step(self, views: list[Tensor]) -> dict[str, Tensor]:
        loss = super().step(views)["loss"]
        is_sick = self.n_batches in self.at
        self.n_batches += 1
        self.n_seen += 1.0  # what a step changes beside gradients: a buffer and a plain value
        self.n_plain += 1
        if is_sick and self.of_gradient:
            loss = loss + (self.layer.weight * 0.0).abs().sqrt().sum()  # 0, with a slope of 0 * inf
        return {"loss": loss * self.bad if is_sick and not self.of_gradient else loss}

    def bookmark(self) -> Any:
        put_back_buffers, n_plain = super().bookmark(), self.n_plain

        def put_back() -> None:
            put_back_buffers()
            self.n_plain = n_plain

        return put_back


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_loss_stops_with_one_sentence_and_leaves_the_weights(fit: Any, bad: float) -> None:
    method = Sick(bad=bad)
    with pytest.raises(NonFiniteError, match=r"the loss is (-?inf|nan) at step 2$") as error:
        fit(method, max_steps=4)
    assert error.value.ids == [8, 9, 10, 11]
    assert len(method.seen) == 2
    assert method.layer.weight.isfinite().all()


def test_a_bad_gradient_stops_before_any_weight_sees_it(fit: Any) -> None:
    method, diary = Sick(of_gradient=True), Diary()
    with pytest.raises(NonFiniteError, match=r"a gradient's norm is nan at step 2$") as error:
        fit(method, max_steps=4, callbacks=[diary])
    assert error.value.ids == [8, 9, 10, 11]
    assert method.layer.weight.item() == diary.pages[1]["weight"]
    assert len(method.seen) == 2


@pytest.mark.parametrize("of_gradient", [False, True])
def test_a_skipped_step_moves_nothing_and_time_goes_on(fit: Any, of_gradient: bool, caplog: Any) -> None:
    method, diary = Sick(of_gradient=of_gradient), Diary()
    method.max_skipped = 1
    trainer = fit(method, max_steps=4, callbacks=[diary])
    assert trainer.global_step == 4
    assert method.n_skipped == 1
    weights = [page["weight"] for page in diary.pages]
    assert weights[2] == weights[1] != weights[3]
    assert method.seen == [0.0, 0.25, 0.75]
    assert [page["lr"] for page in diary.pages] == pytest.approx([0.0, 0.5, 1.0, 0.5])
    assert (method.n_seen.item(), method.n_plain) == (3.0, 3)
    (said,) = (message for message in caplog.messages if "skipped" in message)
    assert said.startswith("pretrain: step 2 is skipped (1 of at most 1): ")
    assert said.endswith("its tiles: [8, 9, 10, 11]")


def test_an_optimiser_with_momentum_does_not_drift_over_a_skipped_step(fit: Any) -> None:
    method, diary = Sick(of_gradient=True), Diary()
    method.optim = dataclasses.replace(method.optim, optimizer=partial(torch.optim.AdamW, betas=(0.9, 0.99)))
    method.max_skipped = 1
    trainer = fit(method, max_steps=4, callbacks=[diary])
    weights = [page["weight"] for page in diary.pages]
    assert weights[2] == weights[1] != weights[3]
    assert trainer.optimizers[0].state[method.layer.weight]["step"].item() == 3


@pytest.mark.parametrize("batch", [4, 5])
def test_a_bad_batch_of_several_accumulated_ones_skips_their_whole_step(fit: Any, batch: int) -> None:
    method, diary = Sick(at=(batch,)), Diary()
    method.max_skipped = 1
    fit(method, max_steps=4, accumulate=2, callbacks=[diary])
    weights = [page["weight"] for page in diary.pages][1::2]  # after each step
    assert weights[2] == weights[1] != weights[3]
    assert (method.n_seen.item(), method.n_plain) == (6.0, 6)
    assert method.seen == [0.0, 0.25, 0.75]


def test_more_bad_steps_than_may_be_skipped_stop(fit: Any) -> None:
    method = Sick(at=(0, 2, 3))
    method.max_skipped = 2
    with pytest.raises(NonFiniteError, match=r"the loss is nan at step 3, after 2 that were skipped$"):
        fit(method, max_steps=4)
    assert method.n_skipped == 2


def test_flags_are_averaged_in_the_reduction_of_the_loss(fit: Any) -> None:
    method = Constant()
    method.flags = {"a": 1.0, "b": 0.0}
    trainer = fit(method, max_steps=2)
    assert method.flag_means == {"a": 1.0, "b": 0.0}
    assert "a" not in trainer.callback_metrics


def test_the_trainer_says_how_long_training_is_unless_told_before(fit: Any) -> None:
    method = Constant()
    method.total_steps = method.log_every = 0
    fit(method, max_steps=3)
    assert (method.total_steps, method.log_every) == (3, 50)
    assert method.seen == pytest.approx([0.0, 1 / 3, 2 / 3])
