"""Every backbone of conf/backbone: its features are finite, repeatable and reach every parameter."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from hydra.utils import instantiate
from torch import Tensor, nn

from histo_ssl.backbones.resnet_trunc import truncated_resnet
from histo_ssl.backbones.timm import timm_backbone, timm_variant

CONF = Path(__file__).resolve().parents[2] / "conf" / "backbone"
N_FEATURES = {
    "vit_t": 192,
    "vit_s": 384,
    "vit_b": 768,
    "resnet18": 512,
    "resnet50": 2048,
    "resnet50_trunc": 1024,
    "timm": 320,
}


def build(name: str, **options: float) -> nn.Module:
    torch.manual_seed(0)
    return instantiate(yaml.safe_load((CONF / f"{name}.yaml").read_text()))(**options)


def views(n: int, side: int) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


# backbone=hub is named by other parts of the configuration: tests/backbones/test_hub.py
STANDING_ALONE = sorted(path.stem for path in CONF.glob("*.yaml") if "${" not in path.read_text())


@pytest.mark.parametrize("name", STANDING_ALONE)
def test_features_are_finite_repeatable_different_and_reach_every_parameter(name: str) -> None:
    model = build(name).eval()
    with torch.no_grad():  # some branches are born at zero: wake them, or no gradient passes
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    x = views(2, 64)
    first, second = model(x), model(x)
    first.square().sum().backward()

    assert first.shape == (2, model.num_features)
    assert model.num_features == N_FEATURES.get(name, model.num_features)
    assert first.isfinite().all()
    assert torch.equal(first, second)
    assert (first[0] - first[1]).abs().max() > 1e-3
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("name", "n_heads", "n_million"), [("vit_t", 3, 5.5), ("vit_s", 6, 21.7), ("vit_b", 12, 85.8)]
)
def test_vits_have_the_heads_and_parameters_of_deit_table_1(
    name: str, n_heads: int, n_million: float
) -> None:
    model = build(name)
    assert [block.attn.num_heads for block in model.blocks] == [n_heads] * 12
    assert model.cls_token.shape == (1, 1, N_FEATURES[name])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(n_million, abs=0.1)


def test_truncated_resnet50_is_the_mean_of_the_third_stage_of_the_whole_one() -> None:
    truncated = build("resnet50_trunc").eval()
    whole = build("resnet50").eval()
    whole.load_state_dict(truncated.state_dict(), strict=False)
    x = views(2, 64)
    x_stem = whole.maxpool(whole.act1(whole.bn1(whole.conv1(x))))
    third_BCHW = whole.layer3(whole.layer2(whole.layer1(x_stem)))

    # torchvision's ResNet-50 has 25.557 M parameters: 14.965 M in its fourth stage, 2.049 M in its classifier
    assert sum(p.numel() for p in truncated.parameters()) == 25_557_032 - 14_964_736 - 2_049_000
    torch.testing.assert_close(truncated(x), third_BCHW.mean(dim=(2, 3)))


@pytest.mark.parametrize("side", [96, 112, 224, 256])
def test_position_embeddings_are_resampled_by_size_bicubic_in_float32(side: int) -> None:
    model = build("vit_t").eval()
    grid = side // 16
    class_position, positions = model.pos_embed[:, :1], model.pos_embed[:, 1:]
    if grid == 14:
        resampled = positions
    else:
        image_1DHW = positions.reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
        resampled = F.interpolate(image_1DHW, size=(grid, grid), mode="bicubic", antialias=True)
        resampled = resampled.permute(0, 2, 3, 1).flatten(1, 2)
    x = views(2, side)
    tokens_BLD = model.patch_embed.proj(x).flatten(2).transpose(1, 2)
    expected = torch.cat([model.cls_token.expand(2, -1, -1), tokens_BLD], 1) + torch.cat(
        [class_position, resampled], 1
    )

    assert model.pos_embed.dtype == torch.float32
    torch.testing.assert_close(model._pos_embed(model.patch_embed(x)), expected, rtol=0, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # and stay float32 under mixed precision
        assert model._pos_embed(model.patch_embed(x)).dtype == torch.float32


def test_other_attention_than_vits_is_fused_on_gpus_only_and_the_same_either_way() -> None:
    model = timm_backbone(name="swin_tiny_patch4_window7_224", drop_path=0.0).eval()
    x = views(2, 224)
    chosen = model(x)
    found = [module for module in model.modules() if hasattr(module, "fused_attn")]
    assert found
    for module in found:
        assert module.fused_attn == torch.cuda.is_available()
        module.fused_attn = not module.fused_attn
    torch.testing.assert_close(model(x), chosen)


def test_a_vit_ends_in_its_normalised_class_token() -> None:
    model = build("vit_t").eval()
    x = views(2, 32)
    torch.testing.assert_close(model(x), model.forward_features(x)[:, 0])


def test_drop_path_is_the_students_alone_and_does_not_change_the_parameters() -> None:
    student, teacher = build("vit_t").train(), build("vit_t", drop_path=0.0).train()
    teacher.load_state_dict(student.state_dict())
    x = views(8, 32)
    torch.testing.assert_close(teacher(x), student.eval()(x), rtol=0, atol=0)
    student.train()
    torch.manual_seed(2)
    dropped = student(x)
    assert not torch.equal(dropped, student(x))
    # a line from 0 at the first block to 0.1 at the last
    assert student.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    assert student.blocks[1].drop_path1.drop_prob == pytest.approx(0.1 / 11)


def test_views_that_are_no_multiple_of_the_patch_are_refused_with_the_nearest_that_are() -> None:
    model = build("vit_t")
    with pytest.raises(
        ValueError, match=r"vit_tiny_patch16_224 cuts .* of 16 px, got views of 100 x 100 px: .*such as 96"
    ):
        model(views(1, 100))


def test_an_architecture_of_one_size_says_which() -> None:
    model = timm_backbone(name="cait_xxs24_224", drop_path=0.0)
    with pytest.raises(ValueError, match="cait_xxs24_224 takes 224 px only, got views of 64 x 64 px"):
        model(views(1, 64))


@pytest.mark.parametrize("factory", [timm_backbone, truncated_resnet])
def test_an_unknown_name_is_answered_with_the_nearest_known_ones(factory) -> None:
    with pytest.raises(ValueError, match=r"no architecture 'resnet5O'; the nearest are .*resnet50"):
        factory(name="resnet5O", drop_path=0.0)


def test_an_architecture_without_drop_path_says_so() -> None:
    with pytest.raises(ValueError, match=r"vgg11 cannot drop paths, got 0\.1: use 0"):
        timm_backbone(name="vgg11", drop_path=0.1)


def test_options_change_the_architecture_and_unknown_ones_are_named() -> None:
    twelve, six = build("vit_s_12heads"), build("vit_s")
    assert [block.attn.num_heads for block in twelve.blocks] == [12] * 12
    shapes = [{name: t.shape for name, t in model.state_dict().items()} for model in (twelve, six)]
    assert shapes[0] == shapes[1]  # which is why shapes can't tell
    with pytest.raises(
        ValueError, match=r"backbone.options=\{'n_heads': 12\}: vit_small_patch16_224 does not"
    ):
        timm_variant(name="vit_small_patch16_224", drop_path=0.0, options={"n_heads": 12})


def test_only_resnets_are_truncated() -> None:
    with pytest.raises(ValueError, match="convnext_atto has no four stages"):
        truncated_resnet(name="convnext_atto", drop_path=0.0)


def test_pooled_features_wider_than_the_last_stage_are_counted_as_they_come_out() -> None:
    model = timm_backbone(name="mobilenetv3_small_050", drop_path=0.0).eval()
    assert model.num_features == 1024  # 288 channels, then a hidden layer of 1024 before the classifier
    assert model(views(1, 64)).numel() == 1024
