"""From a batch of tiles to a list of batches of views, on whatever device the tiles are.

Every parameter is drawn per view, as a pure function of (tile id, epoch, view, seed), and no operation mixes
tiles: a tile's views depend neither on its batch nor on the worker or the rank that makes them.

B: tiles, V: views (in a kind: those of that kind), S: side of a tile, s: side of a view.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from histo_ssl.stain.base import Restained, StainNormaliser, restained
from histo_ssl.views.draws import Draws, uniforms
from histo_ssl.views.geometry import with_transposes
from histo_ssl.views.view import COLUMNS, N_DRAWS, View, coloured, framed

CPU_TILES = 4  # worked on at once: what stays in the caches
DEVICE_TILES = 128  # likewise on an accelerator: bounds the memory that the windows take


class Views:
    """Makes the views of a batch of tiles: SimCLR's pairs, DINO's multi-crops and all that lies between."""

    def __init__(
        self,
        *,
        kinds: Mapping[str, View],
        mean: Sequence[float],
        std: Sequence[float],
        stain: StainNormaliser | None = None,
    ) -> None:
        """Takes the kinds of view in the order in which their views come out.

        Args:
            kinds: the kinds of view; the names are for the configuration and for people.
            mean: subtracted from red, green and blue in [0, 1].
            std: divides what is left.
            stain: gives the tiles the colours of a target before any view is made; None: they keep theirs.
        """
        self.kinds = dict(kinds)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.stain = stain

    @property
    def n_views(self) -> int:
        """Views per tile. 10 for DINO's multi-crop."""
        return sum(kind.count for kind in self.kinds.values())

    def sides(self, tile_px: int) -> list[int]:
        """Side in px of each view: [224, 224, 96, ...] for DINO's multi-crop of 256 px tiles."""
        return [kind.side_px(tile_px) for kind in self.kinds.values() for _ in range(kind.count)]

    def restained(self, tiles: Tensor) -> Restained:
        """The tiles (B, 3, S, S) uint8 in the colours that views are made of."""
        return restained(self.stain, tiles)

    def __call__(self, tiles: Tensor, *, ids: Tensor, epoch: Tensor | int, seed: int) -> list[Tensor]:
        """The views of `tiles` as they were scanned; see `of_restained`."""
        return self.of_restained(self.restained(tiles).tiles, ids=ids, epoch=epoch, seed=seed)

    @torch.no_grad()
    def of_restained(self, tiles: Tensor, *, ids: Tensor, epoch: Tensor | int, seed: int) -> list[Tensor]:
        """The normalised views of tiles that went through `restained`.

        Args:
            tiles: (B, 3, S, S) uint8.
            ids: (B,) int64 on the tiles' device; what makes a tile the same tile.
            epoch: (B,) int64, or one number for all.
            seed: of the run.

        Returns:
            `n_views` tensors (B, 3, s, s) float32. A tile's views are the same whatever the other tiles are:
            bit for bit on a CPU, up to the rounding of matrix products on other devices.

        Raises:
            ValueError: the tiles are no batch of square 8-bit RGB images.
        """
        n_tiles, px = len(tiles), tiles.shape[-1]
        if tiles.dtype != torch.uint8 or tiles.shape[1:] != (3, px, px):
            raise ValueError(
                f"views: got tiles {tuple(tiles.shape)} of {tiles.dtype}; expected (B, 3, S, S) uint8"
            )
        kinds = list(self.kinds.values())
        made = [
            torch.empty(kind.count, n_tiles, 3, *2 * [kind.side_px(px)], device=tiles.device)
            for kind in kinds
        ]
        drawn = torch.split(self._numbers(ids, epoch=epoch, seed=seed), [kind.count for kind in kinds])
        step = CPU_TILES if tiles.device.type == "cpu" else DEVICE_TILES
        with torch.autocast(tiles.device.type, enabled=False):
            for few in (slice(first, first + step) for first in range(0, n_tiles, step)):
                sources = with_transposes(tiles[few])
                for kind, u_VBD, out in zip(kinds, drawn, made, strict=True):
                    self._write(out[:, few], kind=kind, sources=sources, u_VBD=u_VBD[:, few])
        return [view for kind_views in made for view in kind_views.unbind(0)]

    def _numbers(self, ids: Tensor, *, epoch: Tensor | int, seed: int) -> Tensor:
        """The random numbers (V, B, n_draws) of all views of all tiles."""
        epochs = epoch if isinstance(epoch, Tensor) else torch.full_like(ids, epoch)
        number_V1 = torch.arange(self.n_views, device=ids.device)[:, None]
        return uniforms(ids, epoch=epochs, view=number_V1, seed=seed, n_draws=N_DRAWS)

    def _write(self, out: Tensor, *, kind: View, sources: Tensor, u_VBD: Tensor) -> None:
        """Fills `out` (V, B, 3, s, s) with the normalised views of one kind."""
        mean, std = (
            torch.tensor(values).to(out.device, non_blocking=True)[:, None, None]
            for values in (self.mean, self.std)
        )
        u = Draws(u_ND=u_VBD.flatten(0, 1), columns=COLUMNS)
        x = coloured(kind, framed(kind, sources, u), u)
        torch.div(x.sub_(mean).view_as(out), std, out=out)
