"""The recipe: its schedule and steps equal those written out; the card feeds the copy; paths are dropped."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning import Trainer
from torch import Tensor, nn

from histo_ssl.backbones.timm import timm_backbone
from histo_ssl.encode import Encoder
from histo_ssl.stain.base import facts_of
from histo_ssl.tasks.tuning import LOOK_EVERY, Tuned

from .conftest import Small, encoder_of, tuning_of


def _tiles(n: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, 16, 16), dtype=np.uint8))


class Batches:
    """What a Trainer takes for one set of batches."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _fit(tuned: Tuned, batches: list[tuple[Tensor, Tensor]], precision: Any = "32-true") -> None:
    trainer = Trainer(
        **{"accelerator": "cpu", "devices": 1, "max_epochs": 1, "precision": precision, "logger": False},
        **{"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False},
    )
    trainer.fit(tuned, Batches(batches))


def test_the_rate_rises_and_falls_and_no_step_is_without() -> None:
    tuning = tuning_of(warmup=0.1)
    rates = np.array([tuning.rate(step, n_steps=100) for step in range(100)])
    middle = (np.arange(100) + 0.5) / 100
    expected = np.where(middle < 0.1, middle / 0.1, (1 + np.cos(np.pi * (middle - 0.1) / 0.9)) / 2)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    assert (rates > 0).all()
    assert tuning_of(warmup=0.0).rate(0, n_steps=1) == pytest.approx(0.5)
    assert tuning_of(warmup=0.0).rate(0, n_steps=2) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_a_training_is_that_of_the_formulas(small: Encoder) -> None:
    tuning = tuning_of(layer_decay=0.5, weight_decay=0.1, label_smoothing=0.2, warmup=0.5)
    batches = [(_tiles(5, seed), torch.tensor([0, 1, 2, 1, 0])) for seed in range(4)]
    torch.manual_seed(1)
    tuned = Tuned(small, n_classes=3, lr=0.01, tuning=tuning, n_steps=4)
    backbone, head = Small(), nn.Linear(8, 3)
    backbone.load_state_dict(tuned.backbone.state_dict())
    head.load_state_dict(tuned.head.state_dict())
    _fit(tuned, batches)
    # the same by hand: AdamW (arXiv:1711.05101, algorithm 2) on the smoothed cross-entropy
    layers = [(p, 0.01 * 0.5) for p in backbone.parameters()] + [(p, 0.01) for p in head.parameters()]
    m, v = ([torch.zeros_like(p) for p, _ in layers] for _ in range(2))
    for step, (tiles, label) in enumerate(batches):
        progress = (step + 0.5) / 4
        share = progress / 0.5 if progress < 0.5 else (1 + math.cos(math.pi * (progress - 0.5) / 0.5)) / 2
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.5, 0.4, 0.3), (0.25, 0.2, 0.3)))
        log_p = head(backbone((tiles / 255 - mean) / std)).log_softmax(dim=1)
        target = 0.8 * nn.functional.one_hot(label, 3) + 0.2 / 3
        gradients = torch.autograd.grad(-(target * log_p).sum(1).mean(), [p for p, _ in layers])
        for i, ((p, rate), gradient) in enumerate(zip(layers, gradients, strict=True)):
            m[i] = 0.9 * m[i] + 0.1 * gradient
            v[i] = 0.999 * v[i] + 0.001 * gradient**2
            step_m, step_v = m[i] / (1 - 0.9 ** (step + 1)), v[i] / (1 - 0.999 ** (step + 1))
            with torch.no_grad():
                decay = 0.1 * p if p.ndim > 1 else 0.0
                p.sub_(rate * share * (decay + step_m / (step_v.sqrt() + 1e-8)))
    # Adam divides by small numbers: float32 keeps some four digits of a step
    for (p, _), got in zip(layers, [*tuned.backbone.parameters(), *tuned.head.parameters()], strict=True):
        torch.testing.assert_close(got, p, rtol=0, atol=2e-6)


def test_a_copy_is_fed_as_the_card_says_stain_and_all(compose: Any) -> None:
    plan = compose("method=dino", "backbone=vit_t", "stain=reinhard")
    stain = facts_of(instantiate(plan.group("stain")))
    torch.manual_seed(0)
    plain = encoder_of(Small())
    encoder = encoder_of(plain.backbone, stain=stain)
    tuned = Tuned(encoder, n_classes=2, lr=1.0, tuning=tuning_of(), n_steps=1).eval()
    rng = np.random.default_rng(0)
    tiles = torch.from_numpy(rng.integers(90, 220, (4, 3, 32, 32), dtype=np.uint8))
    made = tuned.restained(tiles)
    assert not made.is_left_B.all()
    with torch.inference_mode():
        logits, unlike = tuned.head(encoder(tiles)), tuned.head(plain(tiles))
        torch.testing.assert_close(tuned(made.tiles), logits, rtol=0, atol=1e-7)
        assert not torch.allclose(logits, unlike, atol=1e-5)
    seen: list[Tensor] = []
    tuned.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tuned.training_step((tiles, torch.zeros(4, dtype=torch.long)))
    assert torch.equal(seen[0], encoder.fed(made.tiles))


def test_paths_are_dropped_where_that_is_asked_for() -> None:
    architecture = {"_target_": "histo_ssl.backbones.timm.timm_backbone", "name": "test_vit"}
    vit = timm_backbone(name="test_vit", drop_path=0.0)
    encoder = encoder_of(vit, architecture={**architecture, "drop_path": 0.0})
    tuned = Tuned(encoder, n_classes=2, lr=1.0, tuning=tuning_of(drop_path=0.4), n_steps=1)
    n_blocks = len(tuned.backbone.blocks)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in tuned.backbone.blocks]
    assert rates == pytest.approx(np.linspace(0, 0.4, n_blocks))
    x = _tiles(4).float() / 255
    assert torch.equal(tuned.backbone.eval()(x), encoder.backbone(x))
    own = Tuned(encoder, n_classes=2, lr=1.0, tuning=tuning_of(drop_path=None), n_steps=1)
    assert not any(getattr(block.drop_path1, "drop_prob", 0.0) for block in own.backbone.blocks)


def test_an_architecture_that_drops_no_paths_says_so_and_may_do_without(small: Encoder) -> None:
    message = "task.protocol.tuning.drop_path=0.4: the test encoder: its card asks for None"
    with pytest.raises(ValueError, match=message):
        Tuned(small, n_classes=2, lr=1.0, tuning=tuning_of(drop_path=0.4), n_steps=1)


def test_all_weights_of_a_copy_learn_and_none_of_the_encoder(small: Encoder) -> None:
    small.backbone.requires_grad_(False)  # as a method may have left it
    before = {name: tensor.clone() for name, tensor in small.backbone.state_dict().items()}
    tuned = Tuned(small, n_classes=2, lr=0.1, tuning=tuning_of(epochs=1), n_steps=1)
    start = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    _fit(tuned, [(_tiles(6), torch.tensor([0, 1, 0, 1, 0, 1]))])
    assert all(not torch.equal(start[name], p) for name, p in tuned.named_parameters())
    assert all(torch.equal(before[name], p) for name, p in small.backbone.state_dict().items())
    assert not small.backbone.training


def test_a_training_that_has_diverged_ends_at_the_next_look(small: Encoder) -> None:
    tuned = Tuned(small, n_classes=2, lr=1e30, tuning=tuning_of(), n_steps=500)
    begun: list[int] = []
    tuned.backbone.register_forward_pre_hook(lambda *_: begun.append(1))
    _fit(tuned, [(_tiles(4), torch.tensor([0, 1, 0, 1]))] * 500)
    assert len(begun) == LOOK_EVERY
    assert not torch.isfinite(tuned.last_loss)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_copy_learns_in_half_precision(small: Encoder, precision: str) -> None:
    tiles, label = _tiles(32), torch.arange(32) % 2
    tiles[label == 1] //= 4  # dark
    tuned = Tuned(small, n_classes=2, lr=0.02, tuning=tuning_of(), n_steps=40)
    _fit(tuned, [(tiles, label)] * 40, precision)
    with torch.inference_mode():
        assert torch.equal(tuned.eval()(tiles).argmax(dim=1), label)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lrs": []}, "rates above 0"),
        ({"lrs": [0.0]}, "rates above 0"),
        ({"layer_decay": 2}, "up to 1"),
        ({"n_folds": 1}, "n_folds=1"),
        ({"epochs": 0}, "epochs=0"),
        ({"warmup": 1.0}, "warmup=1.0: 0 or more, and below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1: 0 or more"),
        ({"drop_path": 1.0}, "drop_path=1.0: 0 or more"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: 0 or more"),
    ],
)
def test_values_without_meaning_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuning_of(**changes)
