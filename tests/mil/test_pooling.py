"""Pooling models against the paper's formulas, tile by tile, and what all models of bags have in common."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from histo_ssl.mil.base import BagModel, Scored, whole_loss
from histo_ssl.mil.dropout import Dropout
from histo_ssl.mil.packing import pack, segment_softmax, segment_sum

from .conftest import Build

NAMES = ["mean", "max", "abmil", "clam_sb", "clam_mb"]


def hidden(model: Any, x_ND: Tensor) -> Tensor:
    layer = model.trunk.linear
    return (x_ND @ layer.weight.T + layer.bias).clamp(min=0)


def scores(model: Any, h_NH: Tensor) -> list[list[float]]:
    """Equation 9 of arXiv:1802.04712 before its softmax, one number at a time."""
    V, U, w = (layer.weight.tolist() for layer in (model.V, model.U, model.w))
    v, u, b = (layer.bias.tolist() for layer in (model.V, model.U, model.w))
    rows = []
    for h in h_NH.tolist():
        value = [
            math.tanh(sum(x * y for x, y in zip(row, h, strict=True)) + c)
            for row, c in zip(V, v, strict=True)
        ]
        gate = [
            1 / (1 + math.exp(-sum(x * y for x, y in zip(row, h, strict=True)) - c))
            for row, c in zip(U, u, strict=True)
        ]
        rows.append(
            [
                sum(x * y * z for x, y, z in zip(row, value, gate, strict=True)) + c
                for row, c in zip(w, b, strict=True)
            ]
        )
    return rows


def shuffled_biases(model: BagModel) -> BagModel:
    """The model with biases that are not 0, so that a test sees them, and without dropout."""
    for name, values in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(values)
    return model.eval()


@pytest.mark.parametrize("name", ["mean", "max"])
def test_mean_and_max_classify_the_mean_and_the_maximum_of_hidden_features(
    build: Build, bags: list[Tensor], name: str
) -> None:
    model: Any = shuffled_biases(build(name, n_classes=3))
    pool = {"mean": lambda h: h.mean(0), "max": lambda h: h.max(0).values}[name]
    expected = torch.stack([model.classifier(pool(hidden(model, x))) for x in bags])
    scored = model(pack(bags))
    torch.testing.assert_close(scored.logits_BC, expected)
    assert scored.attention_N is None


def test_abmil_is_equations_7_and_9_one_tile_at_a_time(build: Build, bags: list[Tensor]) -> None:
    model: Any = shuffled_biases(build("abmil", n_hidden=5, n_attention=4))
    scored = model(pack(bags))
    logits, attention = [], []
    for x in bags:
        h = hidden(model, x)
        raw = [row[0] for row in scores(model.attention, h)]
        total = sum(math.exp(score) for score in raw)
        z = sum(math.exp(score) / total * row for score, row in zip(raw, h, strict=True))
        logits.append(model.classifier(z))
        attention += raw
    torch.testing.assert_close(scored.logits_BC, torch.stack(logits))
    torch.testing.assert_close(scored.attention_N, torch.tensor(attention, dtype=torch.float64))


@pytest.mark.parametrize("n_classes", [1, 2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_bag_gets_the_same_alone_and_in_a_pack(
    build: Build, bags: list[Tensor], name: str, n_classes: int
) -> None:
    model = build(name, n_classes=n_classes).eval()
    together: Scored = model(pack(bags))
    alone = [model(pack([x])) for x in bags]
    assert together.logits_BC.shape == (7, n_classes)
    torch.testing.assert_close(together.logits_BC, torch.cat([s.logits_BC for s in alone]))
    if together.attention_N is not None:
        torch.testing.assert_close(together.attention_N, torch.cat([s.attention_N for s in alone]))


@pytest.mark.parametrize("name", NAMES)
def test_float32_differs_between_alone_and_packed_by_rounding_only(
    build: Build, bags: list[Tensor], name: str
) -> None:
    model = build(name).float().eval()
    single = [x.float() for x in bags]
    alone = torch.cat([model(pack([x])).logits_BC for x in single])
    torch.testing.assert_close(model(pack(single)).logits_BC, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_tiles_does_not_matter(build: Build, bags: list[Tensor], name: str) -> None:
    model = build(name, n_classes=3).eval()
    target = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(x), generator=generator) for x in bags]
    packs = (pack(bags), pack([x[order] for x, order in zip(bags, orders, strict=True)]))
    (first, loss), (second, other) = ((s := model(p), model.instance_loss(s, p, target)) for p in packs)
    torch.testing.assert_close(first.logits_BC, second.logits_BC)
    if name.startswith("clam"):
        torch.testing.assert_close(loss, other)
    if first.attention_N is not None:
        moved = [
            a[order] for a, order in zip(first.attention_N.split([len(x) for x in bags]), orders, strict=True)
        ]
        torch.testing.assert_close(torch.cat(moved), second.attention_N)


@pytest.mark.parametrize("name", ["abmil", "clam_sb", "clam_mb"])
def test_attention_sums_to_one_in_each_bag(build: Build, bags: list[Tensor], name: str) -> None:
    packed = pack(bags)
    scored: Scored = build(name, n_classes=3)(packed)
    assert scored.attention_N is not None
    weights = segment_softmax(scored.attention_N.reshape(88, -1), packed=packed)
    torch.testing.assert_close(segment_sum(weights, packed=packed), torch.ones(7, weights.shape[1]).double())
    assert weights.shape[1] == (3 if name == "clam_mb" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_weights_begin_normal_with_the_variance_of_xavier_and_biases_at_zero(build: Build, name: str) -> None:
    model = build(name, dim=384)
    for layer in (m for m in model.modules() if isinstance(m, torch.nn.Linear)):
        assert torch.count_nonzero(layer.bias) == 0
        if layer.weight.numel() > 10_000:  # SD of an SD of so many is under 1 %
            sd = math.sqrt(2 / (layer.in_features + layer.out_features))
            assert layer.weight.std().item() == pytest.approx(sd, rel=0.03)
            assert layer.weight.abs().max().item() > 3 * sd  # of a uniform distribution it would be 1.7


@pytest.mark.parametrize("name", NAMES)
def test_training_drops_units_and_repeats_with_the_seed(build: Build, bags: list[Tensor], name: str) -> None:
    model = build(name)
    packed = pack(bags)

    def logits(seed: int) -> Tensor:
        torch.manual_seed(seed)
        scored: Scored = model(packed)
        return scored.logits_BC

    assert torch.equal(logits(0), logits(0))
    assert not torch.allclose(logits(0), logits(1))
    assert not torch.allclose(logits(0), model.eval()(packed).logits_BC)


def test_a_product_of_two_dropped_factors_is_dropped_where_either_is(build: Build) -> None:
    model: Any = build("abmil", dropout=0.25)
    assert model.attention.dropout.share == pytest.approx(1 - 0.75 * 0.75)
    assert isinstance(model.trunk.dropout, Dropout)
    assert model.trunk.dropout.share == 0.25


@pytest.mark.parametrize("name", NAMES)
def test_stored_half_precision_is_lifted_to_the_models(build: Build, bags: list[Tensor], name: str) -> None:
    model = build(name).float().eval()
    halves = [x.half() for x in bags]
    lifted = [x.float() for x in halves]
    assert torch.equal(model(pack(halves)).logits_BC, model(pack(lifted)).logits_BC)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_layers_give_scores_in_float32_near_the_exact_ones(
    build: Build, bags: list[Tensor], name: str
) -> None:
    model = build(name).float().eval()
    packed = pack([x.half() for x in bags])
    exact: Scored = model(packed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough: Scored = model(packed)
    assert rough.logits_BC.dtype == torch.float32
    # inputs, weights, hidden features and both factors are each rounded to 8 bits
    torch.testing.assert_close(rough.logits_BC, exact.logits_BC, rtol=0, atol=0.03)
    assert not torch.equal(rough.logits_BC, exact.logits_BC)
    if rough.attention_N is not None:
        assert rough.attention_N.dtype == torch.float32
        assert len(rough.attention_N.unique()) > 0.95 * rough.attention_N.numel()  # hardly a tie


def test_the_whole_loss_weighs_bags_and_tiles_and_is_the_bags_alone_without_tiles() -> None:
    bag, tile = torch.tensor(2.0), torch.tensor(1.0)
    assert whole_loss(bag, tile, bag_weight=0.7).item() == pytest.approx(0.7 * 2 + 0.3 * 1)
    assert whole_loss(bag, None, bag_weight=0.7).item() == 2.0
