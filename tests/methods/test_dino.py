"""A step of DINO, its schedules, its monitors and its repetition, against values computed by hand."""

import logging
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from histo_ssl.methods.dino import DINO, dino_loss
from histo_ssl.methods.monitors import rankme


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


# the step


def test_views_of_one_resolution_share_a_call_and_all_share_the_head(build_dino: Any, batches: Any) -> None:
    dino = build_dino()
    n_rows: list[int] = []
    dino.student.head.register_forward_hook(lambda _, inputs, __: n_rows.append(len(inputs[0])))
    dino.step(batches(1)[0]["views"])
    assert dino.student.backbone.calls == [8, 8]  # 2 large views of 4 tiles, then 2 small ones
    assert dino.teacher.backbone.calls == [8]  # the large ones alone
    assert n_rows == [16]


def test_teacher_starts_equal_without_drop_path_and_without_gradient(build_dino: Any, batches: Any) -> None:
    dino = build_dino()
    assert all(map(torch.equal, weights(dino.student), weights(dino.teacher)))
    assert (dino.student.backbone.drop_path, dino.teacher.backbone.drop_path) == (0.1, 0.0)
    dino.step(batches(1)[0]["views"])["loss"].backward()
    assert [p.grad for p in dino.teacher.parameters()] == [None] * len(weights(dino.teacher))
    assert dino.encoder() is dino.teacher.backbone


def test_centre_comes_from_earlier_batches_and_moves_after_the_loss(build_dino: Any, batches: Any) -> None:
    dino = build_dino()
    with torch.no_grad():
        means = [dino.teacher(batch["views"][:2])[1].mean(0) for batch in batches(2)]
    centres = []
    for batch in batches(2):
        centres.append(dino.centre_K.clone())
        dino.step(batch["views"])
        assert torch.equal(dino.centre_K, centres[-1])
        dino.after_step(1.0)  # momentum 1: the teacher stays
    assert centres[0].tolist() == [0.0] * 8
    torch.testing.assert_close(centres[1], 0.1 * means[0])
    torch.testing.assert_close(dino.centre_K, 0.09 * means[0] + 0.1 * means[1])


def test_the_centre_and_nothing_of_the_moment_is_in_the_checkpoint(build_dino: Any) -> None:
    keys = build_dino().state_dict().keys()
    assert "centre_K" in keys
    assert {key.split(".")[0] for key in keys} == {"centre_K", "student", "teacher"}
    assert "teacher.backbone.mix.weight" in keys


def test_two_accumulated_batches_move_the_centre_as_one_batch_of_both(build_dino: Any, batches: Any) -> None:
    split, whole = build_dino(), build_dino()
    teacher = split.teacher.eval()  # without batch statistics rows do not depend on their batch
    whole.teacher.eval()
    first, second = (batch["views"] for batch in batches(2))
    split.step(first)
    split.step(second)
    whole.step([torch.cat(pair) for pair in zip(first, second, strict=True)])
    assert teacher is split.teacher
    split.after_step(0.0)
    whole.after_step(0.0)
    torch.testing.assert_close(split.centre_K, whole.centre_K)


def test_teacher_normalises_by_batch_and_its_buffers_are_its_own(
    build_dino: Any, fit: Any, batches: Any
) -> None:
    dino = build_dino(momentum=1.0, final_momentum=1.0)
    before = weights(dino.teacher)
    fit(dino, max_steps=1)
    views_B = torch.cat(batches(1)[0]["views"][:2])
    with torch.no_grad():
        x = dino.teacher.backbone.mix(torch.cat([views_B.mean(dim=(2, 3)), views_B.std(dim=(2, 3))], 1))
    # BatchNorm's own running mean: 0.9 of 0 and 0.1 of the teacher's batch of large views
    torch.testing.assert_close(dino.teacher.backbone.norm.running_mean, 0.1 * x.mean(0))
    assert all(map(torch.equal, before, weights(dino.teacher)))
    assert not torch.equal(dino.teacher.backbone.norm.running_mean, dino.student.backbone.norm.running_mean)


# schedules


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.04), (0.25, 0.05), (0.5, 0.06), (1.0, 0.06)])
def test_teacher_temperature_warms_up_in_a_line(build_dino: Any, progress: float, expected: float) -> None:
    assert build_dino().spec.temp_at(progress) == pytest.approx(expected)


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.9), (1 / 3, 0.925), (0.5, 0.95), (1.0, 1.0)])
def test_momentum_goes_to_one_in_a_cosine(build_dino: Any, progress: float, expected: float) -> None:
    assert build_dino().spec.momentum_at(progress) == pytest.approx(expected)


class Snapshots(Callback):
    """Weights of student and teacher, and the last layer, after every batch."""

    def on_train_start(self, trainer: Any, module: DINO) -> None:
        self.student, self.teacher, self.last = [], [], []
        self.take(module)

    def on_train_batch_end(self, trainer: Any, module: DINO, *args: Any) -> None:
        self.take(module)

    def take(self, module: DINO) -> None:
        self.student.append(weights(module.student))
        self.teacher.append(weights(module.teacher))
        self.last.append(module.student.head.last_layer.weight_v.detach().clone())


def test_teacher_follows_the_student_after_each_step_by_the_momentum_of_that_step(
    build_dino: Any, fit: Any
) -> None:
    shots = Snapshots()
    fit(build_dino(freeze=0), max_steps=10, callbacks=[shots])
    for n in range(10):
        m = 1.0 - 0.1 * (1 + math.cos(math.pi * n / 10)) / 2
        for before, after, student in zip(
            shots.teacher[n], shots.teacher[n + 1], shots.student[n + 1], strict=True
        ):
            torch.testing.assert_close(after, m * before + (1 - m) * student)


def test_last_layer_stays_to_the_bit_in_its_frozen_epoch_and_moves_after(build_dino: Any, fit: Any) -> None:
    shots = Snapshots()
    fit(build_dino(), max_steps=7, callbacks=[shots])  # an epoch has 5 steps
    is_same = [torch.equal(shots.last[0], later) for later in shots.last[1:]]
    assert is_same == [True] * 5 + [False] * 2
    assert not torch.equal(shots.student[1][0], shots.student[5][0])  # the backbone trains meanwhile


def test_a_last_layer_that_would_never_train_is_warned_of(build_dino: Any, fit: Any, caplog: Any) -> None:
    dino = build_dino(length=(2, 5))
    with caplog.at_level(logging.WARNING):
        fit(dino, max_steps=2)
    assert "frozen for all 2 steps, an epoch has 5" in caplog.text
    assert "freeze_last_layer_epochs below 0.4" in caplog.text


def test_clipping_is_per_tensor_and_the_frozen_layer_has_no_gradient_after_it(build_dino: Any) -> None:
    dino = build_dino()
    for p in dino.student.parameters():
        p.grad = torch.full_like(p, 100.0) if p.requires_grad else None
    dino.student.backbone.mix.bias.grad = torch.full((5,), 0.1)
    dino.on_before_optimizer_step(dino.optim.build(dino))
    norms = {name: p.grad.norm().item() for name, p in dino.student.named_parameters() if p.grad is not None}
    assert norms.pop("backbone.mix.bias") == pytest.approx(0.1 * math.sqrt(5))
    assert list(norms.values()) == pytest.approx([3.0] * len(norms), rel=1e-5)
    assert dino.student.head.last_layer.weight_v.grad is None


# what is logged, and the two failures


def test_monitors_are_entropy_divergence_centre_and_rank(build_dino: Any, batches: Any) -> None:
    dino = build_dino()
    dino.centre_K.copy_(logits(8) / 10)
    views = batches(1)[0]["views"]
    out = dino.step(views)
    with torch.no_grad():
        dino.student.train()
        z_ND, student = dino.student(views)
        p = ((dino.teacher(views[:2])[1] - dino.centre_K) / 0.04).softmax(-1)
    log_q = (student / 0.1).log_softmax(-1).unflatten(0, (4, 4))
    rows = p.unflatten(0, (2, 4))
    divergences = [
        F.kl_div(log_q[v], rows[g], reduction="batchmean") for g in range(2) for v in range(4) if v != g
    ]
    assert out["teacher_entropy"].item() == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-5)
    assert out["kl"].item() == pytest.approx(torch.stack(divergences).mean().item(), rel=1e-4)
    assert out["centre_norm"].item() == pytest.approx((logits(8) / 10).norm().item())
    assert out["max_entropy"].item() == pytest.approx(math.log(8))
    assert out["rankme"].item() == pytest.approx(rankme(z_ND[:8]).item(), rel=1e-4)


def test_monitors_wait_for_the_step_that_is_logged(build_dino: Any, batches: Any) -> None:
    dino = build_dino()
    dino.log_every = 2
    assert set(dino.step(batches(1)[0]["views"])) == {"loss"}


@pytest.mark.parametrize(
    ("name", "peak", "centre_momentum"), [("uniform collapse", 0.0, 0.9), ("one-hot collapse", 1.0, 1.0)]
)
def test_a_collapsed_teacher_is_named_in_the_log(
    build_dino: Any, fit: Any, caplog: Any, name: str, peak: float, centre_momentum: float
) -> None:
    # a head that says the same of every view: without a moving centre its one peak takes all
    dino = build_dino(centre_momentum=centre_momentum)
    dino.teacher.head.forward = lambda z_ND: peak * torch.eye(8)[0].expand(len(z_ND), 8)
    with caplog.at_level(logging.WARNING):
        fit(dino, max_steps=10)
    named = [message.split(":")[0] for message in caplog.messages]
    assert named == [name]


# precision and repetition


def test_loss_and_last_layer_are_float32_under_bfloat16(build_dino: Any, batches: Any) -> None:
    views = batches(1)[0]["views"]
    dino = build_dino()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, student_NK = dino.student(views)
        _, teacher_NK = dino.teacher(views[:2])
        mixed = dino.step(views)["loss"]
    target_GBK = (teacher_NK / 0.04).softmax(-1).unflatten(0, (2, 4))
    expected = dino_loss(student_NK.unflatten(0, (4, 4)), target_GBK, student_temp=0.1)
    assert (student_NK.dtype, mixed.dtype) == (torch.float32, torch.float32)
    # the same logits without autocast: a sum in bfloat16 would differ in the third digit
    assert mixed.item() == pytest.approx(expected.item(), rel=1e-6)


def test_two_trainings_with_one_seed_agree_to_the_last_digit(build_dino: Any, fit: Any) -> None:
    class Losses(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
            module.losses.append(outputs["loss"].item())

    runs = []
    for _ in range(2):
        dino = build_dino()
        dino.losses = []
        fit(dino, max_steps=10, callbacks=[Losses()])
        runs.append(dino)
    assert runs[0].losses == runs[1].losses
    assert len(set(runs[0].losses)) == 10
    assert all(map(torch.equal, weights(runs[0]), weights(runs[1])))
