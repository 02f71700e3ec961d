"""Part `embedding`: from a slide's pixels to a file of features, against the bare forward pass.

Tiles of the drawn 40x scan at 0.5 um/px, 256 px, ViT-S/16 with random weights. Ours reads, decodes and
resamples them with the workers of the configuration, embeds them and writes their file; the peer is the same
backbone on as many normalised tiles that lie in memory, in the same batches and precision: float32, and
bfloat16 as of `embedding.precision=bf16-mixed`; in bfloat16 also from stored JPEGs at half their size, as of
`tiling.scaled_jpegs=true`. A ratio of 0.95 means that everything but the forward pass
costs 5 % of it. On a CPU that is told in processor time, since reading and computing share its cores; on a
GPU by the wall, since there all else is to go on beside it.
"""

import tempfile
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import torch
from contests import CannotRunError, Contest, Ratio, Work, compete, settling
from hydra.utils import instantiate
from omegaconf import OmegaConf
from reading import MPP, TILE_PX, drawn, write_scan

from histo_ssl.config.choices import conf_dir
from histo_ssl.data.base import TileSource
from histo_ssl.data.loading import Loading
from histo_ssl.data.slides import SlideTiles
from histo_ssl.data.sources import open_source
from histo_ssl.embed import Embedding, embed_tiles
from histo_ssl.encode import Card, Encoder
from histo_ssl.slides.grid import Tiling

BATCH = {"cpu": 16, "cuda": 256}
N_ROUNDS = 3
# name of a case -> precision, and whether tiles are made from scaled JPEGs
CASES = {
    "in float32, tiles of 40x slides": ("32-true", False),
    "in bfloat16, tiles of 40x slides": ("bf16-mixed", False),
    "in bfloat16, tiles of 40x slides, scaled JPEGs": ("bf16-mixed", True),
}
SLIDES = {"cpu": (4096, 4), "cuda": (8192, 8)}  # side in px, number
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def measure(device: str) -> list[Ratio]:
    """A ratio per precision."""
    if device == "cuda" and not torch.cuda.is_available():
        raise CannotRunError("there is no GPU that torch can use")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source = tiles_of(folder, side_px=SLIDES[device][0], n_slides=SLIDES[device][1])
        encoder = random_encoder().on(torch.device(device))
        rows = []
        scaled = SlideTiles(folder / "tiles", **{**source.facts(), "scaled_jpegs": True})
        for name, (precision, is_scaled) in CASES.items():
            how = {"precision": precision, "device": device}
            contest = Contest(
                part="embedding",
                case=f"ViT-S/16 {name}",
                n_items=len(source),
                item="tile",
                ours=by_us(encoder, scaled if is_scaled else source, folder=folder, **how),
                peers={"bare forward pass": by_forward(encoder, n_tiles=len(source), **how)},
                targets={"bare forward pass": 0.95},
                n_rounds=N_ROUNDS,
                clock="processor" if device == "cpu" else "wall",
                settle=settling(device),
            )
            rows += compete(contest)
        return rows


def composed(*overrides: str) -> Any:
    """The configuration of a run."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose("config", overrides=["method=dino", "backbone=vit_s", *overrides])


def tiles_of(folder: Path, *, side_px: int, n_slides: int) -> SlideTiles:
    """Tiles of copies of the drawn slide, cut as by `tiling=study` at 0.5 um/px."""
    import numpy as np

    scan = drawn()
    repeats = side_px // len(scan)
    slides = folder / "slides"
    slides.mkdir()
    for i in range(n_slides):
        write_scan(slides / f"s{i}.tif", np.tile(np.roll(scan, 100 * i, axis=0), (repeats, repeats, 1)))
    names = pd.DataFrame({"slide_id": [f"s{i}" for i in range(n_slides)]})
    names["path"] = [str(slides / f"{name}.tif") for name in names["slide_id"]]
    names.to_csv(folder / "manifest.csv", index=False)
    cfg = composed("data=slides", "tiling=study")
    tiling: Tiling = instantiate(cfg.tiling, size_px=TILE_PX, stride_px=TILE_PX, mpp=2 * MPP)
    data = instantiate(
        OmegaConf.to_container(cfg.data, resolve=True), manifest=str(folder / "manifest.csv"), root=None
    )
    data.tile(tiling, folder=folder / "tiles", home=folder, n_processes=0, slide_timeout_s=600)
    source = open_source(folder / "tiles")
    assert isinstance(source, SlideTiles)
    return source


def random_encoder() -> Encoder:
    """ViT-S/16 as born."""
    architecture = {"_target_": "histo_ssl.backbones.timm.timm_backbone", "name": "vit_small_patch16_224"}
    backbone = instantiate(architecture, drop_path=0.0).eval()
    card = Card(
        architecture={**architecture, "drop_path": 0.0},
        dim=384,
        mean=MEAN,
        std=STD,
        tile_px=TILE_PX,
        mpp=2 * MPP,
        method="random",
        fingerprint="0" * 8,
    )
    return Encoder(backbone, card)


def by_us(encoder: Encoder, source: TileSource, *, folder: Path, precision: str, device: str) -> Work:
    """Files of features of all slides, in a new folder each time."""
    cfg = composed()
    loading = Loading(**{**OmegaConf.to_container(cfg.loader), "n_workers": 16 if device == "cuda" else 2})
    rounding = {"dtype": "float32", "precision": precision}
    how = Embedding(batch_size=BATCH[device], loading=loading, **rounding, any_mpp=False, max_failed=0.0)

    def work(i: int) -> None:  # noqa: ARG001
        embed_tiles(encoder, source, folder=Path(tempfile.mkdtemp(dir=folder)), how=how)

    return work


def by_forward(encoder: Encoder, *, n_tiles: int, precision: str, device: str) -> Work:
    """The encoder's own forward pass alone, in the same number of batches."""
    tiles = torch.randint(0, 256, (min(n_tiles, BATCH[device]), 3, TILE_PX, TILE_PX), dtype=torch.uint8)
    fed = encoder.fed(tiles.to(device))

    @torch.inference_mode()
    def work(i: int) -> None:  # noqa: ARG001
        for start in range(0, n_tiles, BATCH[device]):
            with torch.autocast(device, dtype=torch.bfloat16, enabled=precision != "32-true"):
                encoder.backbone(fed[: min(BATCH[device], n_tiles - start)])

    return work
