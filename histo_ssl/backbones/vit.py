"""What some methods ask of timm's ViTs: fixed positions, a frozen patch projection, a part of the patches.

B: tiles; L: patches of a view; K: those that are kept; P: tokens before the patches, such as the class
token; D: width.
"""

from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

TEMPERATURE = 10_000.0  # of the slowest wave (arXiv:1706.03762, section 3.5)


def is_vit(backbone: nn.Module) -> bool:
    """Whether a backbone is one of timm's plain ViTs."""
    return isinstance(backbone, VisionTransformer)


def patch_px(vit: nn.Module) -> int:
    """Side of a patch in pixels."""
    embed: Any = vit.patch_embed
    return cast(int, embed.patch_size[0])


def sincos_LD(rows: int, columns: int, *, n_features: int) -> Tensor:
    """Fixed positions of patches, half of the features for each dimension (arXiv:2104.02057, section 5).

    Args:
        rows: of the grid of patches, and
        columns: their number, so that L = rows * columns.
        n_features: D, a multiple of 4.

    Returns:
        (L, D) in [-1, 1], row by row: sine and cosine of the column, then sine and cosine of the row.

    Raises:
        ValueError: D is no multiple of 4.
    """
    if n_features % 4:
        raise ValueError(
            f"fixed positions need a width that is a multiple of 4, got {n_features}: use another"
        )
    frequency = TEMPERATURE ** (-torch.arange(n_features // 4) / (n_features // 4))
    row_L, column_L = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in (column_L, row_L)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


@torch.no_grad()
def fix_positions(backbone: nn.Module) -> None:
    """Replace a ViT's learnt positions by fixed ones, zeros for the class token; none stay none."""
    vit = cast(Any, backbone)
    if vit.pos_embed is None:
        return
    rows, columns = vit.patch_embed.grid_size
    fixed = sincos_LD(rows, columns, n_features=vit.embed_dim)
    n_before = vit.pos_embed.shape[1] - len(fixed)
    vit.pos_embed[:, :n_before] = 0.0
    vit.pos_embed[:, n_before:] = fixed
    vit.pos_embed.requires_grad_(False)


@torch.no_grad()
def freeze_patches(backbone: nn.Module) -> None:
    """Draw a ViT's patch projection as a linear layer's, and keep it so (arXiv:2104.02057, section 4)."""
    projection = cast(Any, backbone).patch_embed.proj
    nn.init.xavier_uniform_(projection.weight.flatten(1))  # flattened, it counts the inputs of a patch
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    projection.requires_grad_(False)


class KeepPatches(nn.Module):
    """Passes on the class token and the patches that are asked for; all of them while none are."""

    def __init__(self, n_before: int) -> None:
        super().__init__()
        self.n_before = n_before
        self.places_BK: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, P + L, D) to (B, P + K, D)."""
        if self.places_BK is None:
            return x
        before, patches = x[:, : self.n_before], x[:, self.n_before :]
        places_BKD = self.places_BK[..., None].expand(-1, -1, x.shape[-1])
        return torch.cat([before, patches.gather(1, places_BKD)], dim=1)


def hide_patches(backbone: nn.Module) -> None:
    """Make a ViT ready for `kept_tokens`; it still sees every patch when it is called."""
    vit = cast(Any, backbone)
    vit.patch_drop = KeepPatches(vit.num_prefix_tokens)


def kept_tokens(backbone: nn.Module, x: Tensor, *, places_BK: Tensor) -> Tensor:
    """Last tokens (B, P + K, D) of a ViT that sees only some patches of each tile.

    Args:
        backbone: a ViT after `hide_patches`.
        x: (B, 3, s, s).
        places_BK: which of the L patches each tile keeps, in the order in which they come out.
    """
    vit = cast(Any, backbone)
    vit.patch_drop.places_BK = places_BK
    tokens = vit.forward_features(x)
    vit.patch_drop.places_BK = None
    return cast(Tensor, tokens)


def pooled(backbone: nn.Module, tokens: Tensor) -> Tensor:
    """Features (B, D) that a ViT makes of its last tokens, such as the class token."""
    return cast(Tensor, cast(Any, backbone).forward_head(tokens))
