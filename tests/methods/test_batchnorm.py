"""BatchNorms over all ranks and over a few tiles, against torch's own; on two ranks in test_ranks.py."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from histo_ssl.methods.batchnorm import (
    GhostBatchNorm,
    GlobalBatchNorm,
    check_batch,
    has_batch_norm,
    split,
    synchronise,
)


def values(*shape: int, seed: int = 0) -> Tensor:
    return 3.0 + 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients of a loss that is no constant of the input, and buffers after two batches."""
    x = x.clone().requires_grad_()
    out = [layer(x), layer(x.square())]
    sum(y.pow(3).sum() for y in out).backward()
    grads = {name: p.grad for name, p in layer.named_parameters()}
    return {"first": out[0], "second": out[1], "x": x.grad, **grads, **dict(layer.named_buffers())}


@pytest.mark.parametrize(
    "kind", [GlobalBatchNorm, lambda n, **options: GhostBatchNorm(n, n_tiles=6, **options)]
)
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 5)])
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}]
)
def test_on_one_rank_over_all_rows_both_are_torchs(
    kind: Callable[..., nn.Module], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    reference = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(4, **options)
    ours, theirs = trained(kind(4, **options), values(*shape)), trained(reference, values(*shape))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4, msg=name)


def test_ghosts_are_torchs_on_each_group_and_follow_the_mean_of_all_groups() -> None:
    ghost, x = GhostBatchNorm(4, n_tiles=2), values(6, 4, 3, 3)
    alone = [nn.BatchNorm2d(4) for _ in range(3)]
    expected = torch.cat([norm(group) for norm, group in zip(alone, x.split(2), strict=True)])
    torch.testing.assert_close(ghost(x), expected)
    means = torch.stack([norm.running_mean for norm in alone])
    variances = torch.stack([norm.running_var for norm in alone])
    torch.testing.assert_close(ghost.running_mean, means.mean(0))
    torch.testing.assert_close(ghost.running_var, variances.mean(0))
    assert ghost.num_batches_tracked.item() == 1


def test_ghosts_refuse_a_batch_that_their_group_does_not_divide() -> None:
    with pytest.raises(ValueError, match=r"norm_tiles=4 does not divide the 6 tiles"):
        GhostBatchNorm(3, n_tiles=4)(values(6, 3))
    assert GhostBatchNorm(3, n_tiles=4).eval()(values(6, 3)).shape == (6, 3)


@pytest.mark.parametrize(
    "change", [lambda m: synchronise(m, device_type="cpu"), lambda m: split(m, n_tiles=2)]
)
def test_a_changed_network_keeps_its_tensors_and_their_names_and_what_it_says_in_the_end(
    change: Callable[[nn.Module], None],
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=0)  # its BatchNorms also activate
    model(values(4, 3, 32, 32))  # running statistics of its own
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    x = values(4, 3, 32, 32, seed=1)
    expected = model.eval()(x)
    change(model)
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    kinds = {type(part) for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
    assert kinds in ({GlobalBatchNorm}, {GhostBatchNorm})
    assert not any(part.training for part in model.modules())
    torch.testing.assert_close(model(x), expected)


def test_a_change_is_made_once() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm1d(2)))
    split(model, n_tiles=2)
    synchronise(model, device_type="cpu")
    assert [type(model[0]), type(model[1][0])] == [GhostBatchNorm] * 2


def test_on_gpus_torchs_own_kernels_take_over() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2))
    synchronise(model, device_type="cuda")
    assert type(model[0]) is nn.SyncBatchNorm


def test_one_tile_is_refused_where_there_is_a_batchnorm_only() -> None:
    with pytest.raises(ValueError, match="BatchNorm needs 2 tiles at a time or more, got 1") as error:
        check_batch(nn.Sequential(nn.BatchNorm1d(3)), n_tiles=1)
    assert "\n" not in str(error.value)
    check_batch(nn.Sequential(nn.BatchNorm1d(3)), n_tiles=2)
    check_batch(nn.LayerNorm(3), n_tiles=1)
    assert not has_batch_norm(nn.LayerNorm(3))
