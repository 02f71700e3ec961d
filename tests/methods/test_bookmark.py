"""A step that is taken back leaves no trace in any method."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from histo_ssl.methods.base import SSLMethod
from histo_ssl.methods.monitors import EmbeddingWindow

CASES = [
    ("dino", "test_vit", (64, 64, 32)),
    ("simclr", "test_resnet", (64, 64)),
    ("moco", "test_vit", (64, 64)),
    ("moco", "test_resnet", (64, 64)),
    ("mocov3", "test_resnet", (64, 64)),
    ("byol", "test_resnet", (64, 64)),
    ("mae", "test_vit", (64,)),
]


def _traces(method: SSLMethod) -> dict[str, Any]:
    """All buffers, and what a method keeps in plain attributes, as values that can be compared."""
    kept: dict[str, Any] = {name: buffer.clone() for name, buffer in method.named_buffers()}
    for name, value in vars(method).items():
        if isinstance(value, EmbeddingWindow):
            kept[name] = list(value._batches)
        elif isinstance(value, int | list) and not name.startswith("_"):
            kept[name] = deepcopy(value) if isinstance(value, int) else list(value)
    return kept


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


@pytest.mark.parametrize(("name", "backbone", "sides"), CASES)
def test_a_step_that_is_taken_back_leaves_no_trace(
    tiny_method: Callable[..., dict[str, Any]], name: str, backbone: str, sides: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    method: SSLMethod = instantiate(tiny_method(name, backbone=backbone)["method"], _convert_="all")
    method.total_steps, method.steps_per_epoch, method.log_every = 10, 5, 100
    views = [torch.randn(4, 3, side, side) for side in sides]
    method.step(views)
    method.after_step(0.0)
    before = _traces(method)
    put_back = method.bookmark()
    method.step(views)
    after = _traces(method)
    assert not all(_equal(before[key], after[key]) for key in before)  # there is something to take back
    put_back()
    now = _traces(method)
    assert {key for key in before if not _equal(before[key], now[key])} == set()
