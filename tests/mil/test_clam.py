"""CLAM against a loop over bags, classes and tiles as its paper and its authors' code describe them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from histo_ssl.mil.clam import smooth_top1_svm
from histo_ssl.mil.packing import pack

from .conftest import Build

TARGET = torch.tensor([0, 1, 2, 0, 1, 2, 0])  # of the seven bags


def svm(logits: list[float], target: int) -> float:
    """log of the sum over classes of exp(logit + [wrong]), less the true logit."""
    return math.log(sum(math.exp(x + (c != target)) for c, x in enumerate(logits))) - logits[target]


def test_two_classes_give_the_softplus_of_their_difference_plus_one() -> None:
    logits = torch.tensor([[0.3, -1.2], [2.0, 2.0], [-40.0, 60.0]], dtype=torch.float64)
    target = torch.tensor([0, 1, 0])
    expected = [math.log1p(math.exp(-1.2 - 0.3 + 1)), math.log1p(math.e), 101.0]
    assert smooth_top1_svm(logits, target).tolist() == pytest.approx(expected)


def test_the_loss_of_many_classes_is_the_formula() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    expected = [svm(row, int(t)) for row, t in zip(logits.tolist(), target, strict=True)]
    assert smooth_top1_svm(logits, target).tolist() == pytest.approx(expected)


class Loop:
    """Forward pass and loss of one bag, from the parameters of a model, with nothing of its code."""

    def __init__(self, model: Any, *, n: int, subtyping: bool) -> None:
        self.model, self.n, self.subtyping = model, n, subtyping
        self.is_multi = len(model.classifiers) > 1

    def __call__(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        net = self.model.attention
        h_NH = torch.relu(torch.nn.functional.linear(x_ND, *self.model.trunk.linear.parameters()))
        a_NA = net.w(torch.tanh(net.V(h_NH)) * torch.sigmoid(net.U(h_NH)))
        z_AH = torch.softmax(a_NA, 0).T @ h_NH
        if self.is_multi:
            logits = torch.cat([layer(z) for layer, z in zip(self.model.classifiers, z_AH, strict=True)])
        else:
            logits = self.model.classifiers[0](z_AH[0])
        return logits, a_NA, h_NH

    def loss(self, x_ND: Tensor, target: int) -> Tensor:
        _, a_NA, h_NH = self(x_ND)
        total = torch.zeros((), dtype=torch.float64)
        for c, classifier in enumerate(self.model.instance_classifiers):
            falling = a_NA[:, c if self.is_multi else 0].detach().argsort(descending=True).tolist()
            n_top = max(1, min(self.n, len(falling) // 2))
            top, bottom = falling[:n_top], falling[len(falling) - min(self.n, len(falling) // 2) :]
            if c == target:
                losses = [self._svm(classifier(h_NH[i]), 1) for i in top]
                losses += [self._svm(classifier(h_NH[i]), 0) for i in bottom]
            elif self.subtyping:
                losses = [self._svm(classifier(h_NH[i]), 0) for i in top]
            else:
                continue
            total = total + torch.stack(losses).mean()
        return total / len(self.model.instance_classifiers) if self.subtyping else total

    @staticmethod
    def _svm(logits: Tensor, target: int) -> Tensor:
        return torch.log1p(torch.exp(logits[1 - target] - logits[target] + 1))


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
@pytest.mark.parametrize("subtyping", [True, False])
@pytest.mark.parametrize("n", [1, 8])
def test_logits_attention_loss_and_gradients_are_those_of_the_loop(
    build: Build, bags: list[Tensor], name: str, subtyping: bool, n: int
) -> None:
    values = {"n_hidden": 5, "n_attention": 4, "subtyping": subtyping, "n_instances": n}
    ours: Any = build(name, n_classes=3, **values).eval()
    theirs: Any = build(name, n_classes=3, **values).eval()
    loop = Loop(theirs, n=n, subtyping=subtyping)
    scored = ours(packed := pack(bags))
    logits, attention, _ = zip(*(loop(x) for x in bags), strict=True)
    torch.testing.assert_close(scored.logits_BC, torch.stack(logits))
    torch.testing.assert_close(scored.attention_N.reshape(88, -1), torch.cat(attention))
    loss = ours.instance_loss(scored, packed, TARGET)
    expected = torch.stack([loop.loss(x, int(t)) for x, t in zip(bags, TARGET, strict=True)]).mean()
    torch.testing.assert_close(loss, expected)
    cross_entropy = torch.nn.functional.cross_entropy
    (0.7 * cross_entropy(scored.logits_BC, TARGET) + 0.3 * loss).backward()
    (0.7 * cross_entropy(torch.stack(logits), TARGET) + 0.3 * expected).backward()
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
def test_the_loss_of_a_pack_is_the_mean_of_its_bags_losses(
    build: Build, bags: list[Tensor], name: str
) -> None:
    model = build(name, n_classes=3).eval()

    def loss(some: list[Tensor], target: Tensor) -> Tensor:
        found = model.instance_loss(model(packed := pack(some)), packed, target)
        assert found is not None
        return found

    alone = torch.stack([loss([x], t[None]) for x, t in zip(bags, TARGET, strict=True)])
    torch.testing.assert_close(loss(bags, TARGET), alone.mean())


def test_a_bag_of_one_tile_knows_what_is_telling_and_nothing_that_is_not(
    build: Build, bags: list[Tensor]
) -> None:
    model: Any = build("clam_sb", subtyping=False).eval()
    packed = pack([bags[1]])
    scored = model(packed)
    one, zero = (layer(scored.hidden_ND)[0].tolist() for layer in model.instance_classifiers)
    assert model.instance_loss(scored, packed, torch.tensor([0])).item() == pytest.approx(svm(one, 1))
    assert model.instance_loss(scored, packed, torch.tensor([1])).item() == pytest.approx(svm(zero, 1))


def test_the_loss_on_tiles_leaves_the_attention_and_the_bags_classifier_alone(
    build: Build, bags: list[Tensor]
) -> None:
    model: Any = build("clam_sb")
    scored = model(packed := pack(bags))
    model.instance_loss(scored, packed, TARGET % 2).backward()
    for part in (model.attention, model.classifiers):
        assert all(p.grad is None for p in part.parameters())
    assert model.trunk.linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
def test_a_risk_has_no_loss_on_tiles_and_every_parameter_a_gradient(
    build: Build, bags: list[Tensor], name: str
) -> None:
    model = build(name, n_classes=1)
    scored = model(packed := pack(bags))
    assert scored.logits_BC.shape == (7, 1)
    assert model.instance_loss(scored, packed, torch.zeros(7, dtype=torch.long)) is None
    scored.logits_BC.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_study_has_the_sizes_of_its_small_model(build: Build) -> None:
    model: Any = build("clam_sb", dim=384)
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert shapes == [(512, 384), (256, 512), (256, 512), (1, 256), (2, 512), (2, 512), (2, 512)]
    assert (model.n_instances, model.bag_weight, model.subtyping) == (8, 0.7, True)
