"""MoCo v3's loss, its two forms, its frozen parts and its momentum."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from histo_ssl.methods.mocov3 import contrast


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_loss_is_the_loop_of_algorithm_1_and_no_gradient_reaches_the_keys() -> None:
    query, key = rows(4, 6).requires_grad_(), rows(4, 6, seed=1).requires_grad_()
    q, k = (F.normalize(x.detach(), dim=1) for x in (query, key))
    terms = []
    for b in range(4):
        weights = [math.exp((q[b] @ k[n]).item() / 0.2) for n in range(4)]
        terms.append(-math.log(weights[b] / sum(weights)))
    loss = contrast(query, key, temperature=0.2)
    assert loss.item() == pytest.approx(2 * 0.2 * sum(terms) / 4, rel=1e-5)
    loss.backward()
    assert key.grad is None
    assert query.grad.abs().sum() > 0


@pytest.mark.parametrize(("B", "temperature"), [(2, 1.0), (5, 0.2)])
def test_loss_is_2t_times_the_log_of_the_candidates_when_all_coincide(B: int, temperature: float) -> None:
    same = torch.ones(B, 3)
    expected = 2 * temperature * math.log(B)
    assert contrast(same, same, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


def test_a_step_contrasts_each_view_with_the_other_ones_keys(build: Any) -> None:
    v3, views = build("mocov3")
    out = v3.step(views)
    with torch.no_grad():
        q1, q2 = (v3.predictor(v3.base(view)[1]) for view in views)
        k1, k2 = (v3.average(view)[1] for view in views)
    expected = contrast(q1, k2, temperature=0.2) + contrast(q2, k1, temperature=0.2)
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert out["chance"].item() == pytest.approx(4 * 0.2 * math.log(4))
    assert v3.encoder() is v3.base.backbone


def kinds(module: nn.Module) -> list[str]:
    letters = {nn.Linear: "L", nn.BatchNorm1d: "B", nn.ReLU: "R"}
    return ["b" if getattr(m, "affine", True) is False else letters[type(m)] for m in module]


@pytest.mark.parametrize(
    ("backbone", "projector", "predictor"),
    [("test_vit", "LBRLBRLb", "LBRLb"), ("test_resnet", "LBRLb", "LBRL")],
)
def test_vits_and_resnets_have_the_heads_of_section_4(
    build: Any, backbone: str, projector: str, predictor: str
) -> None:
    v3, _ = build("mocov3", backbone=backbone)
    assert "".join(kinds(v3.base.projector)) == projector  # b: a BatchNorm without weights
    assert "".join(kinds(v3.predictor)) == predictor
    has_bias = [m.bias is not None for m in [*v3.base.projector, *v3.predictor] if isinstance(m, nn.Linear)]
    assert has_bias == [False] * (len(has_bias) - 1) + [predictor[-1] == "L"]


def test_a_vits_patch_projection_and_positions_stay_as_they_were_drawn(build: Any, fit: Any) -> None:
    v3, _ = build("mocov3", "method.optim.warmup=0.0")
    vit = v3.base.backbone
    frozen = {
        "pos_embed": vit.pos_embed,
        "weight": vit.patch_embed.proj.weight,
        "bias": vit.patch_embed.proj.bias,
    }
    before = {name: p.clone() for name, p in frozen.items()}
    trained = vit.blocks[0].attn.qkv.weight.clone()
    fit(v3, max_steps=2, sides=(32, 32))
    assert all(torch.equal(frozen[name], before[name]) for name in frozen)
    assert not torch.equal(vit.blocks[0].attn.qkv.weight, trained)
    # a linear layer's xavier: uniform to sqrt(6 / (3 * 16^2 + 64))
    limit = math.sqrt(6 / (3 * 16**2 + 64))
    assert 0.98 * limit < before["weight"].abs().max() <= limit
    assert before["bias"].tolist() == [0.0] * 64


def test_a_resnet_keeps_its_first_layer_trained(build: Any) -> None:
    v3, _ = build("mocov3", backbone="test_resnet")
    assert all(p.requires_grad for p in v3.base.parameters())


def test_the_average_moves_by_the_momentum_of_the_step_that_it_is_moved_for(build: Any, fit: Any) -> None:
    class Diary(Callback):
        def __init__(self) -> None:
            self.pages: list[tuple[list[Tensor], list[Tensor]]] = []

        def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
            nets = (module.average, module.base)
            self.pages.append(tuple([p.detach().clone() for p in net.parameters()] for net in nets))

    v3, diary = build("mocov3", "method.optim.warmup=0.0")[0], Diary()
    fit(v3, max_steps=5, callbacks=[diary], sides=(32, 32))
    for n in range(1, 5):  # of 10 steps; the code's m at iteration n
        m = 1.0 - 0.5 * (1 + math.cos(math.pi * n / 10)) * 0.01
        for old, new, base in zip(diary.pages[n - 1][0], *diary.pages[n], strict=True):
            torch.testing.assert_close(new, m * old + (1 - m) * base)
