"""The attention of a ViT's class token in its last block, head by head (arXiv:2104.14294, figure 1).

timm's fused kernels never form the weights, so they are made anew, in float32, from the tokens that enter the
block's attention and from its own projection, norms and scale. Any block of timm whose `attn` is timm's plain
attention will do, with queries and keys normalised or not, before or after the residual.

B: tiles; H: heads; T: tokens, the class token first; P: tokens before the patches (class token, registers);
L: patches; E: width of a head; h, w: rows and columns of patches.
"""

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from histo_ssl.backbones.class_token import ClassTokenAttention
from histo_ssl.backbones.quick_attention import QuickAttention
from histo_ssl.backbones.vit import patch_px


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassAttention:
    """What the class token attends to; over patches and prefix tokens each head's weights sum to 1."""

    patches_BHhw: Tensor  # float32
    prefix_BHP: Tensor  # float32; the class token itself first, then registers


def check_heads(backbone: nn.Module) -> None:
    """Stop at a backbone that has no class token's attention to look at.

    Raises:
        ValueError: says what it is instead, and which backbones will do.
    """
    kind, advice = (
        type(backbone).__name__,
        "use one of timm's ViTs with a class token, such as backbone=vit_s",
    )
    if not isinstance(backbone, VisionTransformer):
        raise ValueError(f"attention: the backbone is a {kind}, which has no heads to look at: {advice}")
    if backbone.cls_token is None:
        raise ValueError(
            f"attention: this {kind} has no class token whose attention could be taken: {advice}"
        )
    attention = getattr(backbone.blocks[-1], "attn", None)
    if type(attention) not in (Attention, QuickAttention, ClassTokenAttention):
        raise ValueError(
            f"attention: the last block of this {kind} attends by {type(attention).__name__}, whose weights "
            f"can't be told: {advice}"
        )


@torch.no_grad()
def class_attention(backbone: nn.Module, x_B3ss: Tensor) -> ClassAttention:
    """The weights by which the class token takes up patches and prefix tokens in the last block.

    Args:
        backbone: one of timm's ViTs, in evaluation mode.
        x_B3ss: as the backbone is fed; sides are multiples of its patch.

    Raises:
        ValueError: the backbone has no such attention.
    """
    check_heads(backbone)
    vit = cast(Any, backbone)
    weights_BHT = class_weights(vit.blocks[-1].attn, entering(vit, x_B3ss))
    n_prefix, side = vit.num_prefix_tokens, patch_px(vit)
    h, w = (length // side for length in x_B3ss.shape[-2:])
    return ClassAttention(
        patches_BHhw=weights_BHT[..., n_prefix:].reshape(*weights_BHT.shape[:2], h, w),
        prefix_BHP=weights_BHT[..., :n_prefix],
    )


def entering(vit: Any, x_B3ss: Tensor) -> Tensor:
    """Tokens (B, T, D) as they enter the attention of the last block."""
    found: list[Tensor] = []
    hook = vit.blocks[-1].attn.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        vit.forward_features(x_B3ss)
    finally:
        hook.remove()
    return found[0]


def class_weights(attention: Any, tokens_BTD: Tensor) -> Tensor:
    """The class token's weights (B, H, T) float32, whose sum over the tokens is 1."""
    exact = attention if attention.qkv.weight.dtype == torch.float32 else copy.deepcopy(attention).float()
    with torch.autocast(tokens_BTD.device.type, enabled=False):
        parts: Tensor = exact.qkv(tokens_BTD.float())
        q_BTHE, k_BTHE, _ = parts.view(*parts.shape[:2], 3, exact.num_heads, -1).unbind(2)
        q_BHE, k_BHTE = exact.q_norm(q_BTHE[:, 0]), exact.k_norm(k_BTHE.transpose(1, 2))
        logits_BHT = (k_BHTE @ (exact.scale * q_BHE)[..., None]).squeeze(-1)
    return cast(Tensor, logits_BHT.softmax(dim=-1))
