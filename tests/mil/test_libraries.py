"""Models of torchmil: our CLAM against its own, and its others against their papers' formulas."""

import math
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histo_ssl.mil.base import Scored, whole_loss
from histo_ssl.mil.clam import smooth_top1_svm
from histo_ssl.mil.packing import pack, segment_max, segment_softmax

from .conftest import Build

models = pytest.importorskip("torchmil.models", reason="needs torchmil: pip install 'histo-ssl[mil]'")

SIZES = {
    "transmil": {"n_hidden": 16, "n_heads": 2, "n_landmarks": 4},
    "dsmil": {"n_attention": 5},
}


class MeanSvm(nn.Module):
    """Our loss in the place of torchmil's, which in 1.0.2 sums over tiles where it should over classes."""

    def forward(self, logits_K2: Tensor, target_K1: Tensor) -> Tensor:
        return smooth_top1_svm(logits_K2, target_K1[:, 0].long()).mean()


def torchmils_clam(ours: Any) -> Any:
    """torchmil's CLAM with the weights of ours: its one logit is the difference of our two."""
    hidden = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
    theirs = models.CLAM_SB(in_shape=(6,), att_dim=4, k_sample=3, gated=True, feat_ext=hidden).double()
    with torch.no_grad():
        pairs = [
            (hidden[0], ours.trunk.linear),
            *zip(theirs.inst_classifiers, ours.instance_classifiers, strict=True),
        ]
        pairs += [(theirs.pool.fc1, ours.attention.V), (theirs.pool.fc_gated, ours.attention.U)]
        for a, b in pairs:
            getattr(a, "module", a).load_state_dict(b.state_dict())
        theirs.pool.fc2.weight.copy_(ours.attention.w.weight)
        (classifier,) = ours.classifiers
        theirs.classifier.module.weight.copy_(classifier.weight.diff(dim=0))
        theirs.classifier.module.bias.copy_(classifier.bias.diff())
    theirs.inst_loss_fn = MeanSvm()
    return theirs


def test_logits_losses_and_gradients_of_clam_are_torchmils(build: Build, bags: list[Tensor]) -> None:
    ours: Any = build("clam_sb", n_hidden=5, n_attention=4, n_instances=3).eval()
    theirs = torchmils_clam(ours)
    large = [x for x in bags if len(x) >= 6]  # in smaller ones torchmil takes a tile as both
    target = torch.tensor([0, 1, 1, 0])
    scored: Scored = ours(packed := pack(large))
    tiles = ours.instance_loss(scored, packed, target)
    whole_loss(F.cross_entropy(scored.logits_BC, target), tiles, bag_weight=0.7).backward()
    bag_losses, tile_losses = [], []
    for b, x in enumerate(large):
        logit, attention, hidden = theirs(x[None], return_att=True, return_emb=True)
        torch.testing.assert_close(scored.logits_BC[b].diff(), logit)
        torch.testing.assert_close(scored.attention_N.split([len(x) for x in large])[b], attention[0])
        bag_losses.append(F.binary_cross_entropy_with_logits(logit, target[b, None].double()))
        tile_losses.append(theirs.compute_inst_loss(attention, hidden, target[b, None]))
    expected = torch.stack(tile_losses).mean() / 2  # it does not divide by the number of classes
    torch.testing.assert_close(tiles, expected.double(), rtol=1e-6, atol=1e-6)  # it rounds logits to float32
    whole_loss(torch.stack(bag_losses).mean(), expected, bag_weight=0.7).backward()
    close = {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(ours.trunk.linear.weight.grad, theirs.feat_ext[0].weight.grad, **close)
    torch.testing.assert_close(ours.attention.V.weight.grad, theirs.pool.fc1.module.weight.grad, **close)
    torch.testing.assert_close(ours.attention.U.weight.grad, theirs.pool.fc_gated.module.weight.grad, **close)
    torch.testing.assert_close(ours.attention.w.weight.grad, theirs.pool.fc2.weight.grad, **close)
    for a, b in zip(ours.instance_classifiers, theirs.inst_classifiers, strict=True):
        torch.testing.assert_close(a.weight.grad, b.module.weight.grad, **close)


@pytest.mark.parametrize("n_classes", [1, 3])
@pytest.mark.parametrize("name", SIZES)
def test_a_bag_gets_the_same_alone_and_in_a_pack(
    build: Build, bags: list[Tensor], name: str, n_classes: int
) -> None:
    model = build(name, n_classes=n_classes, **SIZES[name]).eval()
    together: Scored = model(pack(bags))
    alone = [model(pack([x])) for x in bags]
    assert together.logits_BC.shape == (7, n_classes)
    torch.testing.assert_close(together.logits_BC, torch.cat([s.logits_BC for s in alone]))
    if together.attention_N is not None:
        torch.testing.assert_close(together.attention_N, torch.cat([s.attention_N for s in alone]))
        assert together.attention_N.shape == ((88, 3) if (name, n_classes) == ("dsmil", 3) else (88,))


def test_the_logits_of_transmil_are_torchmils_class_by_class(build: Build, bags: list[Tensor]) -> None:
    ours: Any = build("transmil", n_classes=3, **SIZES["transmil"]).eval()
    logits_BC = ours(pack(bags)).logits_BC
    wide = ours.model.classifier.layer
    for c in range(3):
        ours.model.classifier = nn.Linear(16, 1).double()
        ours.model.classifier.load_state_dict({"weight": wide.weight[c, None], "bias": wide.bias[c, None]})
        torch.testing.assert_close(torch.cat([ours.model(x[None]) for x in bags]), logits_BC[:, c])


def test_transmil_has_the_relu_of_its_authors_and_the_values_of_its_yaml(
    build: Build, bags: list[Tensor]
) -> None:
    model: Any = build("transmil", **SIZES["transmil"]).eval()
    assert {layer.att_module.pinv_iterations for layer in model.model.layers} == {6}
    assert {layer.att_module.n_landmarks for layer in model.model.layers} == {4}
    torch.nn.init.constant_(model.model.feat_ext[0].bias, -100.0)  # no tile gets past a ReLU
    first, second = model(pack([bags[0], -bags[0]])).logits_BC
    torch.testing.assert_close(first, second)


def test_the_queries_of_dsmil_end_in_a_tanh(build: Build, bags: list[Tensor]) -> None:
    scored = build("dsmil", **SIZES["dsmil"]).eval()(packed := pack([1e6 * x for x in bags]))
    spread = segment_max(scored.attention_N, packed=packed) + segment_max(-scored.attention_N, packed=packed)
    assert spread.max().item() <= 2 * math.sqrt(
        5
    )  # of products of 5 numbers from -1 to 1, over the root of 5


def test_dsmil_is_its_papers_two_streams(build: Build, bags: list[Tensor]) -> None:
    model: Any = build("dsmil", n_classes=3, **SIZES["dsmil"]).eval()
    scored = model(packed := pack(bags))
    logits, attention, highest = [], [], []
    conv = model.model.bag_classifier.layer
    for x in bags:
        tiles = model.model.inst_classifier(x)
        query = model.model.q_nn(x)
        weights = [  # of each class: softmax over tiles of their likeness to the class's highest tile
            torch.softmax(torch.stack([q @ query[tiles[:, c].argmax()] for q in query]) / math.sqrt(5), 0)
            for c in range(3)
        ]
        z = torch.stack([sum(w * row for w, row in zip(weight, x, strict=True)) for weight in weights])
        logits.append(torch.stack([(conv.weight[c] * z).sum() + conv.bias[c] for c in range(3)]))
        attention.append(torch.stack(weights, dim=1))
        highest.append(tiles.max(0).values)
    torch.testing.assert_close(scored.logits_BC, torch.stack(logits))
    torch.testing.assert_close(segment_softmax(scored.attention_N, packed=packed), torch.cat(attention))
    target = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    expected = F.cross_entropy(torch.stack(highest), target)
    torch.testing.assert_close(model.instance_loss(scored, packed, target), expected)
    assert model.bag_weight == 0.5


def test_a_risk_of_dsmil_has_no_loss_on_tiles(build: Build, bags: list[Tensor]) -> None:
    model = build("dsmil", n_classes=1, **SIZES["dsmil"])
    packed = pack(bags)
    assert model.instance_loss(model(packed), packed, torch.zeros(7, dtype=torch.long)) is None


def test_the_order_of_tiles_does_not_matter_to_dsmil(build: Build, bags: list[Tensor]) -> None:
    model = build("dsmil", n_classes=2, **SIZES["dsmil"]).eval()
    first, second = model(pack(bags)), model(pack([x.flip(0) for x in bags]))
    torch.testing.assert_close(first.logits_BC, second.logits_BC)
    lengths = [len(x) for x in bags]
    flipped = torch.cat([a.flip(0) for a in second.attention_N.split(lengths)])
    torch.testing.assert_close(first.attention_N, flipped)


@pytest.mark.parametrize("name", SIZES)
def test_every_parameter_gets_a_gradient_and_logits_are_float32_from_bfloat16_layers(
    build: Build, bags: list[Tensor], name: str
) -> None:
    model = build(name, **SIZES[name]).float()
    packed = pack([x.half() for x in bags])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scored = model(packed)
        tiles = model.instance_loss(scored, packed, torch.tensor([0, 1, 1, 0, 1, 0, 0]))
    assert scored.logits_BC.dtype == torch.float32
    (scored.logits_BC.square().sum() + (0 if tiles is None else tiles)).backward()
    unused = {key for key, p in model.named_parameters() if p.grad is None}
    assert unused == set()


def test_a_missing_torchmil_is_named_with_what_to_do(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmil.models", None)
    with pytest.raises(
        Exception, match=r"'torchmil.models' is not installed: pip install 'histo-ssl\[mil\]'"
    ):
        build("dsmil")
