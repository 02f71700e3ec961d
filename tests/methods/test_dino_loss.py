"""DINO's loss and head against the paper's equations, lightly's loss and torch's weight norm."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss
from torch import Tensor, nn

from histo_ssl.methods.dino import Head, HeadSpec, dino_loss


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# the loss


def test_loss_is_the_double_loop_of_equation_3() -> None:
    student_VBK, target_GBK = logits(5, 3, 7), logits(2, 3, 7, seed=1).softmax(-1)
    terms = []
    for g in range(2):
        for v in range(5):
            if v == g:
                continue
            for b in range(3):
                student = [math.exp(x / 0.1) for x in student_VBK[v, b].tolist()]
                shares = [x / sum(student) for x in student]
                teacher = target_GBK[g, b].tolist()
                terms.append(-sum(t * math.log(s) for t, s in zip(teacher, shares, strict=True)))
    assert len(terms) == 2 * (5 - 1) * 3
    expected = sum(terms) / len(terms)
    assert dino_loss(student_VBK, target_GBK, student_temp=0.1).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("V", "B", "K"), [(2, 1, 3), (4, 5, 16)])
def test_loss_of_equal_logits_is_ln_k(V: int, B: int, K: int) -> None:
    loss = dino_loss(torch.ones(V, B, K), logits(2, B, K).softmax(-1), student_temp=0.1)
    assert loss.item() == pytest.approx(math.log(K), rel=1e-6)


def test_a_view_is_never_compared_with_itself() -> None:
    student_VBK, target_GBK = logits(2, 1, 4).requires_grad_(), torch.eye(4)[[0, 1]].unsqueeze(1)
    dino_loss(student_VBK, target_GBK, student_temp=1.0).backward()
    # d/dz of a cross-entropy is softmax(z) - target, and view 0 must learn from view 1's target alone
    expected = (student_VBK.detach().softmax(-1) - target_GBK.flip(0)) / 2
    torch.testing.assert_close(student_VBK.grad, expected)


def test_steps_equal_lightlys_loss_and_gradient_with_its_moving_centre(build_dino: Any) -> None:
    dino = build_dino(first_temp=0.05, temp=0.05)
    reference = DINOLoss(output_dim=8, teacher_temp=0.05, student_temp=0.1, center_momentum=0.9)
    for n in range(3):
        student, teacher = logits(16, 8, seed=n), logits(8, 8, seed=10 + n)
        ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
        dino.student.forward = lambda _, z=ours: (z, z)
        dino.teacher.forward = lambda _, z=teacher: (z, z)
        loss = dino.step([torch.empty(4, 3, 2, 2)] * 4)["loss"]
        expected = reference(list(teacher.chunk(2)), list(theirs.chunk(4)))
        loss.backward()
        expected.backward()
        dino.after_step(0.0)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(ours.grad, theirs.grad)
        torch.testing.assert_close(dino.centre_K, reference.center.flatten())


# the head


def test_head_is_an_mlp_onto_the_sphere_and_torchs_weight_norm() -> None:
    torch.manual_seed(0)
    head = Head(5, HeadSpec(n_outputs=9, n_hidden=12, n_bottleneck=6, norm_last_layer=True))
    reference = nn.utils.parametrizations.weight_norm(nn.Linear(6, 9, bias=False))
    reference.parametrizations.weight.original0.data.fill_(1.0)
    reference.parametrizations.weight.original1.data.copy_(head.last_layer.weight_v)
    z = logits(4, 5)
    hidden = F.gelu(head.mlp[2](F.gelu(head.mlp[0](z))))
    x = head.mlp[4](hidden)
    torch.testing.assert_close(head(z), reference(x / x.norm(dim=1, keepdim=True)))
    assert head(z).abs().max() <= 1.0 + 1e-6


@pytest.mark.parametrize("is_fixed", [True, False])
def test_length_of_the_last_layer_is_trained_only_if_asked(is_fixed: bool) -> None:
    head = Head(5, HeadSpec(n_outputs=9, n_hidden=12, n_bottleneck=6, norm_last_layer=is_fixed))
    assert set(head.last_layer.state_dict()) == {"weight_g", "weight_v"}  # as in the paper's checkpoints
    assert torch.equal(head.last_layer.weight_g, torch.ones(9, 1))
    assert head.last_layer.weight_g.requires_grad is not is_fixed
