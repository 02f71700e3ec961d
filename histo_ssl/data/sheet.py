"""What a training will see, for the eye."""

from pathlib import Path

import numpy as np
from PIL import Image

from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.folders.artifacts import write_image
from histo_ssl.views.sheet import contact_sheet

N_TILES = 6  # rows of the sheet


def write_sheet(data: TileDataModule, path: Path) -> None:
    """A picture of the views that training will see: a row per tile, the tile first."""
    places = np.arange(0, len(data.rows), max(1, len(data.rows) // N_TILES))[:N_TILES]
    batch = data.batch(data.rows[places])
    tiles_B3SS = batch["tiles"].permute(0, 3, 1, 2)
    sheet = contact_sheet(data.views, tiles_B3SS, ids=batch["ids"], epoch=0, seed=data.seed)
    write_image(path, Image.fromarray(np.asarray(sheet)))
