"""Checkpoints in other people's layouts become encoders that say what their makers' own models say."""

import argparse
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from histo_ssl.backbones.families import HALVES, IMAGENET
from histo_ssl.backbones.resnet_trunc import truncated_resnet
from histo_ssl.backbones.timm import timm_backbone, timm_variant
from histo_ssl.backbones.weights import load_weights, read_weights

Tensors = dict[str, Tensor]

DEPTH, PATCH = 2, 16


def plain_vit(w: Tensors, x: Tensor, *, n_heads: int) -> Tensor:
    """The normalised class token of a ViT (arXiv:2010.11929, eq. 1-4), written down from the paper."""
    tokens = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH)
    tokens = tokens.flatten(2).transpose(1, 2)
    tokens = torch.cat([w["cls_token"].expand(len(x), -1, -1), tokens], 1) + w["pos_embed"]
    width = tokens.shape[-1]
    for i in range(DEPTH):
        b = {name.removeprefix(f"blocks.{i}."): value for name, value in w.items()}
        y = F.layer_norm(tokens, (width,), b["norm1.weight"], b["norm1.bias"], eps=1e-6)
        qkv = F.linear(y, b["attn.qkv.weight"], b["attn.qkv.bias"])
        q, k, v = qkv.unflatten(-1, (3, n_heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        y = (attention @ v).transpose(1, 2).flatten(2)
        tokens = tokens + F.linear(y, b["attn.proj.weight"], b["attn.proj.bias"])
        y = F.layer_norm(tokens, (width,), b["norm2.weight"], b["norm2.bias"], eps=1e-6)
        y = F.gelu(F.linear(y, b["mlp.fc1.weight"], b["mlp.fc1.bias"]))
        tokens = tokens + F.linear(y, b["mlp.fc2.weight"], b["mlp.fc2.bias"])
    return F.layer_norm(tokens[:, 0], (width,), w["norm.weight"], w["norm.bias"], eps=1e-6)


def vit_tensors(*, width: int = 384, grid: int = 14) -> Tensors:
    """Random tensors of a ViT with `DEPTH` blocks, under DINO's and timm's names."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.05 * torch.randn(*shape, generator=g)

    w = {
        "cls_token": draw(1, 1, width),
        "pos_embed": draw(1, 1 + grid * grid, width),
        "patch_embed.proj.weight": draw(width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": draw(width),
        "norm.weight": 1 + draw(width),
        "norm.bias": draw(width),
    }
    for i in range(DEPTH):
        for name, n_out, n_in in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            w |= {f"blocks.{i}.{name}.weight": draw(n_out, n_in), f"blocks.{i}.{name}.bias": draw(n_out)}
        for name in ("norm1", "norm2"):
            w |= {f"blocks.{i}.{name}.weight": 1 + draw(width), f"blocks.{i}.{name}.bias": draw(width)}
    return w


def vit(*, n_heads: int = 6) -> nn.Module:
    torch.manual_seed(1)
    options = {"depth": DEPTH, "num_heads": n_heads}
    return timm_variant(name="vit_small_patch16_224", drop_path=0.0, options=options).eval()


def resnet() -> nn.Module:
    """torchvision's, with statistics as after some training."""
    torch.manual_seed(2)
    model = torchvision.models.resnet18(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def head() -> Tensors:
    """DINO's, by the names of torch's first weight normalisation."""
    names = ("mlp.0.weight", "mlp.0.bias", "last_layer.weight_g", "last_layer.weight_v")
    return {name: torch.ones(3, 1) for name in names}


def random_like(tensors: Tensors) -> Tensors:
    return {name: torch.rand_like(tensor.float()) for name, tensor in tensors.items()}


def dino(w: Tensors) -> dict[str, Any]:
    """Of main_dino.py: a student under DistributedDataParallel, a teacher without, the command line."""
    student = under("module.backbone.", random_like(w)) | under("module.head.", head())
    teacher = under("backbone.", w) | under("head.", head())
    args = argparse.Namespace(arch="vit_small", patch_size=16, lr=0.0005, data_path="/data")
    return {"student": student, "teacher": teacher, "epoch": 100, "args": args, "dino_loss": {}}


def hipt(w: Tensors) -> dict[str, Any]:
    """Of vit256_small_dino.pth: the teacher was wrapped, too."""
    return {"teacher": under("module.backbone.", w) | under("module.head.", head())}


def mocov3(w: Tensors) -> dict[str, Any]:
    """Of main_moco.py of moco-v3."""
    head = "fc" if "layer1.0.conv1.weight" in w else "head"
    w = {name: tensor for name, tensor in w.items() if not name.startswith("fc.")}
    heads = {f"{head}.0.weight": torch.ones(2, 2), f"{head}.1.running_mean": torch.ones(2)}
    state = under("module.base_encoder.", w | heads) | under(
        "module.momentum_encoder.", random_like(w) | heads
    )
    state |= {"module.predictor.0.weight": torch.ones(2, 2)}
    return {"epoch": 300, "arch": "vit_small", "state_dict": state, "optimizer": {}, "scaler": {}}


def mocov2(w: Tensors) -> dict[str, Any]:
    """Of main_moco.py of moco, version 2: a head of two layers in place of fc."""
    mlp = {"fc.0.weight": torch.ones(2, 2), "fc.0.bias": torch.ones(2), "fc.2.weight": torch.ones(2, 2)}
    body = {name: tensor for name, tensor in w.items() if not name.startswith("fc.")}
    state = under("module.encoder_q.", body | mlp) | under("module.encoder_k.", random_like(body) | mlp)
    state |= {"module.queue": torch.ones(2, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state}


def bolts(w: Tensors) -> Tensors:
    """The state dict of lightning-bolts' SimCLR."""
    projection = {"model.0.weight": torch.ones(2, 2), "model.1.running_mean": torch.ones(2)}
    return under("encoder.", w) | under("projection.", projection)


def write(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def tiles(side: int = 224) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("layout", "n_heads"),
    [(dino, 6), (hipt, 6), (mocov3, 12), (dict, 6)],
    ids=["dino", "hipt", "mocov3", "timm"],
)
def test_a_vit_says_what_the_paper_s_formulas_say_of_its_makers_weights(
    layout: Callable[[Tensors], Any], n_heads: int, tmp_path: Path
) -> None:
    w, x = vit_tensors(), tiles()
    ours = vit(n_heads=n_heads)
    load_weights(ours, read_weights(write(layout(w), tmp_path / "checkpoint.pth")))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain_vit(w, x, n_heads=n_heads), rtol=0, atol=1e-5)
    # one float32 step of a sum of 384 products is 1e-6 of values near 1; in float64 nothing is left of it
    double = {name: tensor.double() for name, tensor in w.items()}
    with torch.no_grad():
        expected = plain_vit(double, x.double(), n_heads=n_heads)
        torch.testing.assert_close(ours.double()(x.double()), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "layout", [bolts, mocov2, dict, mocov3], ids=["bolts", "mocov2", "torchvision", "mocov3"]
)
def test_a_resnet_says_what_torchvision_s_says(layout: Callable[[Tensors], Any], tmp_path: Path) -> None:
    theirs, x = resnet(), tiles(64)
    ours = timm_backbone(name="resnet18", drop_path=0.0).eval()
    weights = read_weights(write(layout(theirs.state_dict()), tmp_path / "checkpoint.pth"))
    load_weights(ours, weights)
    theirs.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


def test_a_truncated_resnet_takes_three_stages_of_a_whole_one(tmp_path: Path) -> None:
    theirs, x = resnet(), tiles(64)
    ours = truncated_resnet(name="resnet18", drop_path=0.0).eval()
    load_weights(ours, read_weights(write(theirs.state_dict(), tmp_path / "resnet18.pth")))
    theirs.layer4 = theirs.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


def test_safetensors_are_read_as_well(tmp_path: Path) -> None:
    theirs, x = resnet(), tiles(64)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = timm_backbone(name="resnet18", drop_path=0.0).eval()
    load_weights(ours, read_weights(tmp_path / "model.safetensors"))
    theirs.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


def test_files_without_the_count_of_batches_are_complete(tmp_path: Path) -> None:
    theirs, x = resnet(), tiles(64)
    old = {name: t for name, t in theirs.state_dict().items() if not name.endswith("num_batches_tracked")}
    ours = timm_backbone(name="resnet18", drop_path=0.0).eval()
    load_weights(ours, read_weights(write(old, tmp_path / "old.pth")))
    theirs.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [16, 7])
def test_position_embeddings_of_another_size_stay_exact_for_the_tiles_that_they_were_trained_on(
    grid: int, tmp_path: Path
) -> None:
    w, x = vit_tensors(grid=grid), tiles(16 * grid)
    ours = vit()
    load_weights(ours, read_weights(write(dino(w), tmp_path / "checkpoint.pth")))
    assert torch.equal(ours.pos_embed, w["pos_embed"])
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain_vit(w, x, n_heads=6), rtol=0, atol=1e-5)
        assert ours(tiles(96)).isfinite().all()  # other tiles have them resampled


def test_each_family_says_what_rgb_it_takes_and_dino_s_files_don_t(tmp_path: Path) -> None:
    w, r = vit_tensors(), resnet().state_dict()
    files = {"dino": dino(w), "mocov3": mocov3(w), "mocov2": mocov2(r), "bolts": bolts(r), "plain": r}
    said = {
        name: read_weights(write(content, tmp_path / f"{name}.pth")).normalisation
        for name, content in files.items()
    }
    assert said == {"dino": None, "mocov3": IMAGENET, "mocov2": IMAGENET, "bolts": HALVES, "plain": None}


@pytest.mark.parametrize(
    ("layout", "n_heads", "sentence"),
    [
        (
            mocov3,
            6,
            r"MoCo v3\) was trained with 12 attention heads of 32, .* has 6: .*backbone=vit_s_12heads",
        ),
        (dino, 12, r"DINO\) was trained with 6 attention heads of 64, .* has 12: .*use 6 heads"),
    ],
)
def test_weights_of_another_number_of_heads_are_refused_though_their_shapes_fit(
    layout: Callable[[Tensors], Any], n_heads: int, sentence: str, tmp_path: Path
) -> None:
    weights = read_weights(write(layout(vit_tensors()), tmp_path / "checkpoint.pth"))
    with pytest.raises(ValueError, match=sentence):
        load_weights(vit(n_heads=n_heads), weights)


def test_what_is_missing_left_over_or_of_another_shape_is_listed_with_the_family(tmp_path: Path) -> None:
    w = vit_tensors()
    del w["blocks.1.attn.proj.bias"]
    w["blocks.2.attn.proj.bias"] = torch.ones(384)
    w["norm.weight"] = torch.ones(192)
    with pytest.raises(ValueError, match="recognised as DINO") as caught:
        load_weights(vit(), read_weights(write(dino(w), tmp_path / "checkpoint.pth")))
    for part in (
        "1 missing (blocks.1.attn.proj.bias)",
        "1 left over (blocks.2.attn.proj.bias)",
        "1 of another shape (norm.weight 192 for 384)",
        "does not fit vit_small_patch16_224",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_in_the_wrong_backbone_names_some_and_counts_the_rest(tmp_path: Path) -> None:
    weights = read_weights(write(bolts(resnet().state_dict()), tmp_path / "checkpoint.pth"))
    with pytest.raises(ValueError, match=r"missing \(cls_token, pos_embed, .* and 26 more\); \d+ left over"):
        load_weights(vit(), weights)


def test_what_is_left_out_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_weights(vit(n_heads=12), read_weights(write(mocov3(vit_tensors()), tmp_path / "checkpoint.pth")))
    # 30 of the encoder, 2 + 2 of the two heads, 30 of the momentum encoder, 1 of the predictor
    assert "weights: 30 tensors of" in caplog.text
    assert "left out: head.0.weight, head.1.running_mean, " in caplog.text
    assert "and 31 more" in caplog.text


class Payload:
    """Makes a file as soon as an ordinary unpickler meets it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("kind", ["zip", "old", "bare pickle", "inside the command line"])
def test_a_malicious_pickle_is_refused_in_a_sentence_and_does_not_run(kind: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "it_ran", tmp_path / "evil.pth"
    payload: Any = Payload(f"touch {trace}")
    content = {"state_dict": {"x": torch.ones(1)}, "args": payload}
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(payload))
    elif kind == "inside the command line":
        torch.save({"teacher": {"x": torch.ones(1)}, "args": argparse.Namespace(arch=payload)}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match=r"evil\.pth: refused and not run, since it ") as caught:
        read_weights(path)
    assert not trace.exists()
    assert "\n" not in str(caught.value)
    pickle.loads(pickle.dumps(payload))  # the payload works
    assert trace.exists()


def test_a_pickled_class_is_named(tmp_path: Path) -> None:
    path = write({"state_dict": {"x": torch.ones(1)}, "hyper_parameters": Path("/x")}, tmp_path / "a.ckpt")
    with pytest.raises(
        ValueError, match=r"since it asks for pathlib\S+; a checkpoint may hold tensors and plain"
    ):
        read_weights(path)


@pytest.mark.parametrize("name", ["page.pth", "page.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut", bytes(range(256)) * 40])
def test_what_is_no_checkpoint_is_said_to_be_none(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: (not a readable checkpoint|refused and not run)"):
        read_weights(tmp_path / name)


def test_a_file_without_tensors_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tensors in it, only epoch, lr; expected a state dict"):
        read_weights(write({"epoch": 3, "lr": 0.1}, tmp_path / "a.pth"))
    with pytest.raises(ValueError, match="holds a list; expected named tensors"):
        read_weights(write([1, 2], tmp_path / "b.pth"))
    with pytest.raises(FileNotFoundError, match="no such file of weights"):
        read_weights(tmp_path / "c.pth")
