"""Accumulated batches are one step: k batches of B tiles move what one batch of k * B moves."""

from typing import Any

import pytest
import torch
from torch import Tensor

METHODS = {
    "moco": 2,
    "byol": 2,
    "mae": 1,
}  # a loss over single tiles; contrasts in a batch see its tiles alone


def grads(method: Any) -> dict[str, Tensor]:
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", METHODS)
def test_two_batches_of_four_step_as_one_of_eight(build: Any, name: str) -> None:
    split, whole = (build(name)[0] for _ in range(2))
    generator = torch.Generator().manual_seed(3)
    views = [torch.randn(8, 3, 64, 64, generator=generator) for _ in range(METHODS[name])]
    for method in (split, whole):
        for part in method.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                part.eval()  # as if there were none
    loss = whole.step(views)["loss"]
    loss.backward()
    halves = [split.step([view.chunk(2)[n] for view in views])["loss"] for n in range(2)]
    (sum(halves) / 2).backward()
    torch.testing.assert_close(sum(halves) / 2, loss)
    assert grads(split).keys() == grads(whole).keys()
    for key, grad in grads(whole).items():
        torch.testing.assert_close(grads(split)[key], grad, rtol=1e-3, atol=1e-6, msg=key)
    for method in (split, whole):
        torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1).step()
        method.after_step(0.0)
    for (key, a), b in zip(whole.state_dict().items(), split.state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6, msg=key)
