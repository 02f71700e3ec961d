"""timm's attention, computed in the way that takes the least time where it runs.

torch's fused attention is that on GPUs, and on CPUs but for gradients in bfloat16, for which its kernel took
2 to 7 times as long as products and a softmax between them (`benchmarks/README.md`). There the softmax gives
bfloat16, to which its result would be rounded anyway, rather than float32, as autocast would have it: the
weights are the same to the last bit, and the largest array of a ViT is never copied.

B: tiles; T: tokens; D: width; H: heads; E: width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn


class QuickAttention(Attention):
    """timm's plain attention without a gate."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens (B, T, D) to (B, T, D)."""
        if attn_mask is not None or is_causal:
            y_BTD: Tensor = super().forward(x, attn_mask, is_causal)
            return y_BTD
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        q_BHTE, k_BHTE, v_BHTE = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q_BHTE, k_BHTE = self.q_norm(q_BHTE), self.k_norm(k_BHTE)
        if v_BHTE.dtype == torch.bfloat16 and v_BHTE.device.type == "cpu" and v_BHTE.requires_grad:
            scores_BHTT = (q_BHTE * self.scale) @ k_BHTE.transpose(-2, -1)
            with torch.autocast("cpu", enabled=False):
                weights_BHTT = scores_BHTT.softmax(dim=-1)
            y_BHTE = self.attn_drop(weights_BHTT) @ v_BHTE
        else:
            dropped = self.attn_drop.p if self.training else 0.0
            y_BHTE = F.scaled_dot_product_attention(
                q_BHTE, k_BHTE, v_BHTE, dropout_p=dropped, scale=self.scale
            )
        y: Tensor = self.proj_drop(self.proj(self.norm(y_BHTE.transpose(1, 2).flatten(2))))
        return y


def attend_quickly(backbone: nn.Module) -> None:
    """Let all of a backbone's attention that is timm's plain one be quick.

    Parameters keep their names and values. Other kinds of attention are fused where there is a GPU.
    """
    found: Any = backbone.modules()
    for module in found:
        if type(module) is Attention and module.gate is None:
            module.__class__ = QuickAttention
        elif hasattr(module, "fused_attn"):
            module.fused_attn = torch.cuda.is_available()
