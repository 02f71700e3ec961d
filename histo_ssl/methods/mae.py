"""MAE: a ViT sees a quarter of a tile's patches, and a small decoder paints the others (arXiv:2111.06377).

Where we differ from the paper's code: which patches are hidden depends on the step and on the tile's place in
the batch of all ranks, so that the same are hidden on any number of ranks; the decoder's layers are torch's.

B: tiles of this rank; L: patches of a view; K: those that the encoder sees; P: tokens before them; D: width
of the ViT; E: width of the decoder; Q: values of a patch, 3 * side^2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from histo_ssl.backbones import BackboneFactory
from histo_ssl.backbones.vit import (
    fix_positions,
    hide_patches,
    is_vit,
    kept_tokens,
    patch_px,
    pooled,
    sincos_LD,
)
from histo_ssl.methods.heads import n_features
from histo_ssl.methods.monitors import WatchSpec
from histo_ssl.methods.watched import WatchedMethod
from histo_ssl.optim.spec import OptimSpec
from histo_ssl.parallel.distributed import rank, world_size

EPSILON = 1e-6  # added to a patch's variance, as in the paper's code
INIT_STD = 0.02  # of the mask token, as in the paper's code


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """Shape of the decoder (section 3).

    Args:
        width: E, a multiple of 4 and of the heads.
        n_layers: blocks of attention and MLP.
        n_heads: of each attention.
    """

    width: int
    n_layers: int
    n_heads: int


def patches_of(x: Tensor, *, side_px: int) -> Tensor:
    """Views (B, 3, s, s) as patches (B, L, Q), row by row; a patch's values are pixel by pixel, RGB within.

    Raises:
        ValueError: the views cannot be cut into such patches.
    """
    if x.shape[-1] % side_px:
        nearest = max(1, round(x.shape[-1] / side_px)) * side_px
        raise ValueError(
            f"mae cuts views into patches of {side_px} px, got views of {x.shape[-1]} px: use a multiple of "
            f"it, such as {nearest}"
        )
    b, c, height, width = x.shape
    grid = x.reshape(b, c, height // side_px, side_px, width // side_px, side_px)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, c * side_px**2)


def normalised(patches_BLQ: Tensor) -> Tensor:
    """Patches with mean 0 and variance 1, each by itself (section 3, "reconstruction target")."""
    variance, mean = torch.var_mean(patches_BLQ, dim=-1, keepdim=True)
    return (patches_BLQ - mean) / (variance + EPSILON).sqrt()


class Decoder(nn.Module):
    """Paints every patch from the tokens of those that were seen and from one token for all that were not."""

    def __init__(self, n_in: int, n_values: int, spec: DecoderSpec) -> None:
        super().__init__()
        self.embed = nn.Linear(n_in, spec.width)
        self.mask_token = nn.Parameter(INIT_STD * torch.randn(1, 1, spec.width))
        self.blocks = nn.Sequential(*[_block(spec) for _ in range(spec.n_layers)])
        self.norm = nn.LayerNorm(spec.width)
        self.paint = nn.Linear(spec.width, n_values)

    def forward(self, tokens: Tensor, order_BL: Tensor, *, n_seen: int) -> Tensor:
        """Patches (B, L, Q), row by row.

        Args:
            tokens: (B, P + K, D) of the encoder.
            order_BL: places of the patches in the order in which they were drawn, those that were seen first.
            n_seen: K.
        """
        x = self.embed(tokens)
        n_before, n_patches = x.shape[1] - n_seen, order_BL.shape[1]
        hidden = self.mask_token.to(x.dtype).expand(len(x), n_patches - n_seen, -1)
        drawn_BLE = torch.cat([x[:, n_before:], hidden], dim=1)
        patches_BLE = drawn_BLE.gather(1, order_BL.argsort(1)[..., None].expand_as(drawn_BLE))
        side = round(n_patches**0.5)
        positions_LE = sincos_LD(side, side, n_features=x.shape[-1]).to(x)
        x = self.blocks(torch.cat([x[:, :n_before], patches_BLE + positions_LE], dim=1))
        painted: Tensor = self.paint(self.norm(x[:, n_before:]))
        return painted


class MaskedAutoencoder(nn.Module):
    """A ViT and the decoder on it."""

    def __init__(self, backbone: nn.Module, decoder: DecoderSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = Decoder(n_features(backbone), 3 * patch_px(backbone) ** 2, decoder)

    def forward(self, view: Tensor, order_BL: Tensor, *, n_seen: int) -> tuple[Tensor, Tensor]:
        """Features (B, D) of what the encoder saw, and painted patches (B, L, Q)."""
        tokens = kept_tokens(self.backbone, view, places_BK=order_BL[:, :n_seen])
        features = pooled(self.backbone, tokens)
        return features, self.decoder(tokens, order_BL, n_seen=n_seen)


class MAE(WatchedMethod):
    """A ViT learns to see a tile from a part of its patches."""

    carried = (*WatchedMethod.carried, "n_seen_tiles")

    mask_seed: Tensor

    def __init__(
        self,
        *,
        backbone: BackboneFactory,
        optim: OptimSpec,
        decoder: DecoderSpec,
        watch: WatchSpec,
        masked: float,
    ) -> None:
        """Build the ViT, with fixed positions, and its decoder.

        Args:
            backbone: called once; has to build a plain ViT of timm.
            optim: how both are optimised.
            decoder: its shape.
            watch: when a failure is named.
            masked: share of the patches that are hidden, 0-1.

        Raises:
            ValueError: the backbone is no ViT, or a share of 0 or 1 is hidden.
        """
        super().__init__(optim=optim, watch=watch)
        encoder = backbone()
        if not is_vit(encoder):
            raise ValueError(
                f"method=mae hides patches of a ViT, got a {type(encoder).__name__}: choose a backbone such "
                f"as vit_t or vit_s"
            )
        if not 0.0 < masked < 1.0:
            raise ValueError(f"method.masked={masked}: a share between 0 and 1 is expected, such as 0.75")
        self.masked = masked
        fix_positions(encoder)
        hide_patches(encoder)
        self.network = MaskedAutoencoder(encoder, decoder)
        # a seed of this run's masks, the same on all ranks and in a checkpoint
        self.register_buffer("mask_seed", torch.randint(2**31, ()))
        self.n_seen_tiles = 0  # of the step under way, on all ranks

    def encoder(self) -> nn.Module:
        """The ViT, which sees every patch once training ends."""
        return self.network.backbone

    def step(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Loss of one batch; every `log_every` steps also the monitors."""
        if len(views) != 1:
            raise ValueError(f"mae takes one view of a tile, got {len(views)}: use views=single")
        target_BLQ = normalised(patches_of(views[0].float(), side_px=patch_px(self.network.backbone)))
        order_BL = self._order(*target_BLQ.shape[:2]).to(target_BLQ.device)
        n_seen = max(1, int(order_BL.shape[1] * (1.0 - self.masked)))
        z_BD, painted_BLQ = self.network(views[0], order_BL, n_seen=n_seen)
        hidden = order_BL[:, n_seen:, None].expand(-1, -1, target_BLQ.shape[-1])
        target, painted = target_BLQ.gather(1, hidden), painted_BLQ.float().gather(1, hidden)
        loss = (painted - target).square().mean()
        grey = target.square().mean()  # what painting every pixel in its patch's mean would cost
        return {"loss": loss, **self.look(z_BD, z_BD, loss=loss.detach(), chance=grey)}

    def after_step(self, progress: float) -> None:
        """Start the next step's tiles from the first."""
        super().after_step(progress)
        self.n_seen_tiles = 0

    def _order(self, n_tiles: int, n_patches: int) -> Tensor:
        """A random order (B, L) of each tile's patches; a function of the step and the tile's place in it."""
        first = self.n_seen_tiles + rank() * n_tiles
        self.n_seen_tiles += world_size() * n_tiles
        generator = torch.Generator().manual_seed(int(self.mask_seed) + self.global_step)
        noise = torch.rand(first + n_tiles, n_patches, generator=generator)
        return noise[first:].argsort(1)


def _block(spec: DecoderSpec) -> nn.Module:
    return nn.TransformerEncoderLayer(
        spec.width,
        spec.n_heads,
        dim_feedforward=4 * spec.width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
