"""Recomputed activations and compiled networks give what the plain ones give, under the same names."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from histo_ssl.methods.switches import switch_on

METHODS = ["simclr", "moco", "mocov3", "byol", "mae"]


def outcome(method: Any, views: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    loss = method.step(views)["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "backbone"), [*((name, "test_vit") for name in METHODS), ("simclr", "test_resnet")]
)
def test_recomputed_activations_change_neither_loss_nor_gradients(
    build: Any, name: str, backbone: str
) -> None:
    plain, views = build(name, backbone=backbone)
    saving, _ = build(name, backbone=backbone)
    switch_on(saving, compile=False, grad_checkpointing=True)
    calls: dict[Any, int] = {plain: 0, saving: 0}
    for method in calls:
        block = next(m for n, m in method.named_modules() if n.endswith(("blocks.1", "layer2.0")))
        block.register_forward_pre_hook(lambda *_, key=method: calls.update({key: calls[key] + 1}))
    loss, grads = outcome(plain, views)
    again, same = outcome(saving, views)
    assert calls[saving] == 2 * calls[plain]  # the block runs again in the backward pass
    assert torch.equal(loss, again)
    assert grads.keys() == same.keys()
    for key, grad in grads.items():
        torch.testing.assert_close(same[key], grad, msg=key)


def test_a_truncated_resnet_can_recompute_as_well() -> None:
    from histo_ssl.backbones.resnet_trunc import truncated_resnet

    torch.manual_seed(0)
    model = nn.Sequential(truncated_resnet(name="resnet18", drop_path=0.0))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model(x)
    switch_on(model, compile=False, grad_checkpointing=True)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("backbone", ["vgg11", "none"])
def test_a_backbone_that_cannot_recompute_is_refused(backbone: str) -> None:
    from histo_ssl.backbones.timm import timm_backbone

    part = nn.Linear(2, 2) if backbone == "none" else timm_backbone(name=backbone, drop_path=0.0)
    with pytest.raises(ValueError, match=r"grad_checkpointing=true: this backbone cannot recompute"):
        switch_on(nn.Sequential(part), compile=False, grad_checkpointing=True)


@pytest.mark.parametrize("name", METHODS)
def test_compiled_networks_keep_the_names_of_checkpoints_and_encoders(
    build: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: compiled.append(call) or call)
    plain, views = build(name)
    fast, _ = build(name)
    switch_on(fast, compile=True, grad_checkpointing=False)
    assert len(compiled) == len(list(fast.children()))
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert list(fast.encoder().state_dict()) == list(plain.encoder().state_dict())
    assert torch.equal(fast.step(views)["loss"], plain.step(views)["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simclr", "mae"])
def test_torchs_compiler_gives_the_same_loss_and_gradients(build: Any, name: str) -> None:
    plain, views = build(name)
    fast, _ = build(name)
    for network in fast.children():
        network.compile(backend="aot_eager")  # traced forwards and backwards, without a C++ compiler
    loss, grads = outcome(plain, views)
    again, same = outcome(fast, views)
    torch.testing.assert_close(again, loss)
    for key, grad in grads.items():
        torch.testing.assert_close(same[key], grad, rtol=1e-3, atol=1e-5, msg=key)
    assert all("_orig_mod" not in key for key in fast.state_dict())
