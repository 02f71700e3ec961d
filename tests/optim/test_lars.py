"""LARS against a loop over its algorithm, lightly's LARS, and plain SGD where it is plain SGD."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from lightly.utils.lars import LARS as LightlysLARS
from torch import Tensor, nn

from histo_ssl.optim.lars import LARS
from histo_ssl.optim.spec import OptimSpec


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lars(*groups: dict[str, Any], lr: float, decay: float = 0.0) -> LARS:
    optimizer = LARS(list(groups), momentum=0.9, trust=0.01)
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = decay if group.get("is_decayed", True) else 0.0
    return optimizer


def test_steps_are_the_loop_of_algorithm_1_also_when_the_rate_changes() -> None:
    p = nn.Parameter(values(3, 2))
    optimizer = lars({"params": [p]}, lr=0.0, decay=0.1)
    w, v = p.detach().flatten().tolist(), [0.0] * 6
    for n, lr in enumerate([0.0, 0.5, 2.0, 1.0]):
        p.grad = values(3, 2, seed=n + 1)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        g = p.grad.flatten().tolist()
        w_norm, g_norm = (math.sqrt(sum(x * x for x in xs)) for xs in (w, g))
        local = 0.01 * w_norm / (g_norm + 0.1 * w_norm)
        v = [0.9 * a + lr * local * (b + 0.1 * c) for a, b, c in zip(v, g, w, strict=True)]
        w = [a - b for a, b in zip(w, v, strict=True)]
        assert p.detach().flatten().tolist() == pytest.approx(w, rel=1e-5)


def test_steps_equal_lightlys_at_a_constant_rate() -> None:
    ours, theirs = nn.Parameter(values(4, 5)), nn.Parameter(values(4, 5))
    optimizer = lars({"params": [ours]}, lr=0.7, decay=0.05)
    reference = LightlysLARS([theirs], lr=0.7, momentum=0.9, weight_decay=0.05, trust_coefficient=0.01)
    for n in range(3):
        ours.grad, theirs.grad = values(4, 5, seed=n + 1), values(4, 5, seed=n + 1)
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, theirs)


def test_batchnorm_and_biases_take_plain_steps_without_decay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    spec = OptimSpec(
        optimizer=partial(LARS, momentum=0.9, trust=0.001),
        lr_per_256=0.3,
        final_lr=0.3,
        warmup=0.0,
        weight_decay=0.1,
        final_weight_decay=0.1,
        clip_norm=None,
    )
    optimizer = spec.build(model)
    plain = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters() if p.ndim == 1}
    reference = torch.optim.SGD(plain.values(), lr=0.3, momentum=0.9)
    assert set(plain) == {"0.bias", "1.weight", "1.bias"}
    for n in range(3):
        for name, p in model.named_parameters():
            p.grad = values(*p.shape, seed=n)
            if name in plain:
                plain[name].grad = p.grad.clone()
        spec.schedule(optimizer, progress=0.0, tiles_per_step=256)
        optimizer.step()
        reference.step()
    for name, p in model.named_parameters():
        if name in plain:
            torch.testing.assert_close(p, plain[name])


def test_a_step_is_as_long_as_the_rate_says_whatever_the_gradients_scale() -> None:
    start = values(6, 6)
    for scale in (1e-6, 1.0, 1e6):
        p = nn.Parameter(start.clone())
        p.grad = scale * values(6, 6, seed=1)
        lars({"params": [p]}, lr=2.0).step()
        assert (p - start).norm().item() == pytest.approx(2.0 * 0.01 * start.norm().item(), rel=1e-4)


def test_a_tensor_of_zeros_leaves_zero_and_one_without_gradient_stays() -> None:
    zero, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    zero.grad = torch.full((2, 2), 3.0)
    lars({"params": [zero, still]}, lr=0.5, decay=0.1).step()
    assert zero.tolist() == [[-1.5, -1.5], [-1.5, -1.5]]
    assert still.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_restored_optimiser_goes_on_with_its_velocity() -> None:
    def trained(n_steps: int, p: nn.Parameter, optimizer: LARS, *, first: int = 0) -> Tensor:
        for n in range(first, first + n_steps):
            p.grad = values(2, 3, seed=n)
            optimizer.step()
        return p.detach()

    whole = nn.Parameter(values(2, 3, seed=9))
    expected = trained(4, whole, lars({"params": [whole]}, lr=0.5))
    half = nn.Parameter(values(2, 3, seed=9))
    before = lars({"params": [half]}, lr=0.5)
    trained(2, half, before)
    after = lars({"params": [half]}, lr=0.1)
    after.load_state_dict(before.state_dict())
    assert torch.equal(trained(2, half, after, first=2), expected)
