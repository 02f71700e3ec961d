"""A picture of views, for people to look at."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histo_ssl.views.compose import Views

GAP_PX = 4  # white between the images


def contact_sheet(
    views: Views, tiles: Tensor, *, ids: Tensor, epoch: Tensor | int, seed: int
) -> NDArray[np.uint8]:
    """One row per tile: the tile, then its views in their order and at their size, without normalisation.

    Args:
        views: what makes the views.
        tiles: (B, 3, S, S) uint8.
        ids: (B,) int64, see `Views`.
        epoch: see `Views`.
        seed: see `Views`.

    Returns:
        (B (S + gap) + gap, width, 3) uint8; white where no image is.
    """
    mean, std = (torch.tensor(values)[:, None, None] for values in (views.mean, views.std))
    made = [view.cpu() * std + mean for view in views(tiles, ids=ids, epoch=epoch, seed=seed)]
    columns = [tiles.cpu(), *((255 * view).round().clamp(0, 255).to(torch.uint8) for view in made)]
    row_px = tiles.shape[-1] + GAP_PX
    width_px = sum(column.shape[-1] + GAP_PX for column in columns) + GAP_PX
    sheet = np.full((len(tiles) * row_px + GAP_PX, width_px, 3), 255, dtype=np.uint8)
    left = GAP_PX
    for column in columns:
        side = column.shape[-1]
        for row, image in enumerate(column):
            top = GAP_PX + row * row_px
            sheet[top : top + side, left : left + side] = image.permute(1, 2, 0).numpy()
        left += side + GAP_PX
    return sheet
