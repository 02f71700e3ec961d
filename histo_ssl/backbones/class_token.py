"""ViTs whose last block works for the class token alone, where nothing else of it is asked for.

Behind the last block only the class token goes on, so that the other tokens need no query, no projection and
no MLP there. Keys and values need not be formed either: with q the token's query of a head, x_t a token,
q . (K x_t + b) differs over t as (K'q) . x_t does, and the sum of a_t (V x_t + b) is V (sum of a_t x_t) + b,
as the weights a_t sum to 1. A block of a ViT of 12 then costs two products with its H heads per token: 8 % of
the whole is saved, forwards and backwards, and results are the same up to rounding.

B: tiles; T: tokens, the class token first; D: width; H: heads; E: width of a head.
"""

from typing import Any

import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from histo_ssl.backbones.quick_attention import QuickAttention


class ClassTokenAttention(QuickAttention):
    """Attention which can also be asked for what the class token alone takes up."""

    def forward(self, x: Tensor, *args: Any, class_token_only: bool = False, **options: Any) -> Tensor:
        """Tokens (B, T, D) to (B, T, D), or to (B, 1, D)."""
        if not class_token_only:
            return super().forward(x, *args, **options)
        shape, bias = (3, self.num_heads, self.head_dim), self.qkv.bias
        query_HED, key_HED, value_HED = self.qkv.weight.view(*shape, -1).unbind(0)
        bias_q, _, bias_v = (None,) * 3 if bias is None else bias.view(3, -1).unbind(0)
        q_BHE = F.linear(x[:, 0], query_HED.flatten(0, 1), bias_q).view(-1, *shape[1:])
        towards_HBD = (self.scale * q_BHE).transpose(0, 1) @ key_HED
        weights_BHT = (towards_HBD.transpose(0, 1) @ x.transpose(1, 2)).softmax(dim=-1)
        taken_BHD = self.attn_drop(weights_BHT) @ x
        taken_HBE = taken_BHD.transpose(0, 1) @ value_HED.transpose(1, 2)
        y_BD = taken_HBE.transpose(0, 1).flatten(1)
        if bias_v is not None:
            y_BD = y_BD + bias_v
        y_B1D: Tensor = self.proj_drop(self.proj(self.norm(y_BD)))[:, None]
        return y_B1D


class ClassTokenBlock(Block):
    """timm's block, which can also be asked for the class token alone."""

    def forward(self, x: Tensor, *args: Any, class_token_only: bool = False, **options: Any) -> Tensor:
        """Tokens (B, T, D) to (B, T, D), or to (B, 1, D)."""
        if not class_token_only:
            return super().forward(x, *args, **options)
        taken = self.attn(self.norm1(x), class_token_only=True)
        y = x[:, :1] + self.drop_path1(self.ls1(taken))
        y_B1D: Tensor = y + self.drop_path2(self.ls2(self.mlp(self.norm2(y))))
        return y_B1D


class ClassTokenViT(VisionTransformer):
    """timm's ViT; called, it asks its last block for the class token alone."""

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Views (B, 3, s, s) to features (B, D); with a mask of attention as timm's own."""
        if args or options:
            return super().forward(x, *args, **options)
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        for block in self.blocks[:-1]:
            x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)
        token = self.blocks[-1](x, class_token_only=True)
        return self.forward_head(self.norm(token))


def shorten_last_block(backbone: nn.Module) -> None:
    """Let a ViT of timm whose features are its class token spend no more on them than it must.

    Parameters keep their names and values. Other architectures, and ViTs that pool in another way or whose
    last block is none of timm's plain ones, stay as they are.
    """
    if type(backbone) is not VisionTransformer:
        return
    vit: Any = backbone
    block = vit.blocks[-1]
    is_plain = type(block) is Block and type(block.attn) in (Attention, QuickAttention)
    is_plain = is_plain and block.attn.gate is None
    if not is_plain or vit.cls_token is None or vit.global_pool != "token" or vit.attn_pool is not None:
        return
    if any(not isinstance(norm, nn.Identity) for norm in (block.attn.q_norm, block.attn.k_norm)):
        return
    vit.__class__ = ClassTokenViT
    block.__class__, block.attn.__class__ = ClassTokenBlock, ClassTokenAttention
