"""Parameter groups, the schedules of an optimiser, clipping and moving averages, by hand."""

from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import nn

from histo_ssl.optim.clipping import clip_each
from histo_ssl.optim.ema import move_towards
from histo_ssl.optim.groups import decay_groups
from histo_ssl.optim.spec import OptimSpec


def spec(**changes: Any) -> OptimSpec:
    values = {
        "optimizer": partial(torch.optim.AdamW, betas=(0.9, 0.999)),
        "lr_per_256": 0.0005,
        "final_lr": 1e-6,
        "warmup": 0.1,
        "weight_decay": 0.04,
        "final_weight_decay": 0.4,
        "clip_norm": 3.0,
    }
    return OptimSpec(**{**values, **changes})


def test_biases_and_vectors_do_not_decay_but_class_token_and_positions_do() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    names = {id(p): name for name, p in vit.named_parameters()}
    decayed, rest = decay_groups(vit)
    decayed_names = {names[id(p)] for p in decayed["params"]}
    rest_names = {names[id(p)] for p in rest["params"]}

    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= decayed_names
    assert {"norm.weight", "blocks.0.norm1.weight", "patch_embed.proj.bias"} <= rest_names
    # 12 blocks of 4 matrices; 12 of 4 biases and 2 norms of 2 vectors; patch projection; last norm
    assert (len(decayed_names), len(rest_names)) == (2 + 1 + 12 * 4, 1 + 12 * 8 + 2)
    assert rest["weight_decay"] == 0.0


def test_frozen_parameters_are_in_no_group() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    assert [len(group["params"]) for group in decay_groups(layer)] == [0, 1]


def test_learning_rate_grows_with_the_tiles_of_a_step() -> None:
    # 0.0005 * 1024 / 256 at the end of the warm-up, half the way down in the middle of the cosine
    assert spec().lr(0.1, tiles_per_step=1024) == pytest.approx(0.002)
    assert spec().lr(0.0, tiles_per_step=1024) == 0.0
    assert spec().lr(0.55, tiles_per_step=64) == pytest.approx((0.000125 + 1e-6) / 2)
    assert spec().lr(1.0, tiles_per_step=64) == pytest.approx(1e-6)


def test_schedule_sets_both_groups_but_decays_one() -> None:
    optimizer = spec().build(nn.Linear(3, 2))
    spec().schedule(optimizer, progress=0.5, tiles_per_step=256)
    lr = 1e-6 + (0.0005 - 1e-6) * (1 + torch.tensor(torch.pi * 4 / 9).cos().item()) / 2
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(lr)] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(0.22), 0.0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"warmup": 10}, "share of training, got 10"), ({"clip_norm": 0.0}, "above 0, got 0.0: use null")],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        spec(**changes)


def test_clip_each_looks_at_one_tensor_at_a_time() -> None:
    large, small, none = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    large.grad, small.grad = torch.tensor([30.0, 40.0]), torch.tensor([0.3, 0.4])
    largest = clip_each([large, small, none], max_norm=3.0)
    assert largest.item() == pytest.approx(50.0)
    # 50 becomes 3; 0.5 stays as it is, to the bit, which a clip of the common norm would not leave
    torch.testing.assert_close(large.grad, torch.tensor([1.8, 2.4]))
    assert torch.equal(small.grad, torch.tensor([0.3, 0.4]))
    assert none.grad is None


def test_clip_each_equals_torchs_clip_of_each_tensor_alone() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.zeros(5, n)) for n in (1, 20, 300)]
    theirs = [nn.Parameter(torch.zeros(5, n)) for n in (1, 20, 300)]
    for p, q in zip(ours, theirs, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
        torch.nn.utils.clip_grad_norm_([q], 3.0)
    clip_each(ours, max_norm=3.0)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_clip_each_without_any_gradient_does_nothing() -> None:
    p = nn.Parameter(torch.ones(2))
    assert clip_each([p], max_norm=1.0).item() == 0.0
    assert p.grad is None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_the_norm_of_gradients_is_finite_only_if_all_of_them_are(bad: float, place: int) -> None:
    parameters = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    for p in parameters:
        p.grad = torch.tensor([3.0, 4.0, 0.0])
    assert clip_each(parameters, max_norm=None).item() == pytest.approx(5.0)
    assert parameters[0].grad.tolist() == [3.0, 4.0, 0.0]
    parameters[place].grad[1] = bad
    assert not clip_each(parameters, max_norm=None).isfinite()


def test_moving_average_moves_parameters_and_leaves_buffers() -> None:
    target, source = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.constant_(source.weight, 2.0)
    nn.init.constant_(source.bias, -4.0)
    source.running_mean.fill_(7.0)
    move_towards(target, source, momentum=0.75)
    assert target.weight.tolist() == [1.25, 1.25]  # 0.75 * 1 + 0.25 * 2
    assert target.bias.tolist() == [-1.0, -1.0]  # 0.75 * 0 - 0.25 * 4
    assert target.running_mean.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, 1.0), (0.0, 3.0)])
def test_moving_average_is_exact_at_both_ends(momentum: float, expected: float) -> None:
    target, source = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(target.weight, 1.0)
    nn.init.constant_(source.weight, 3.0)
    move_towards(target, source, momentum=momentum)
    assert target.weight.item() == expected


def test_adamw_goes_over_each_weight_once_and_ends_where_torchs_default_does() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(7, 5).double(), nn.Linear(7, 5).double()
    theirs.load_state_dict(ours.state_dict())
    optimizers = spec().build(ours), torch.optim.AdamW(decay_groups(theirs), betas=(0.9, 0.999))
    for _ in range(5):
        x = torch.randn(4, 7, dtype=torch.float64)
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            spec().schedule(optimizer, progress=0.5, tiles_per_step=256)
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    assert all(group["fused"] for group in optimizers[0].param_groups)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=1e-12)


def test_the_state_of_an_optimiser_that_was_not_fused_can_be_taken_up() -> None:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(decay_groups(layer))
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    resumed = spec().build(layer)
    resumed.load_state_dict(optimizer.state_dict())
    resumed.step()
    assert resumed.state[layer.weight]["step"].item() == 2


def test_lightning_unscales_gradients_before_they_are_clipped() -> None:
    # what torch sets where an optimiser was built as a fused one, and Lightning asks for
    assert not getattr(spec().build(nn.Linear(3, 2)), "_step_supports_amp_scaling", False)
    assert torch.optim.AdamW(nn.Linear(3, 2).parameters(), fused=True)._step_supports_amp_scaling
