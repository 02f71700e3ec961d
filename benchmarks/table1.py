"""What the stages of the study's Table 1 cost on one CPU core: a tile embedded, an epoch of CLAM-SB.

    OMP_NUM_THREADS=1 python benchmarks/table1.py

Networks have random weights, bags random features: neither changes the cost. Prints milliseconds of a core
per 256 px tile for the three encoders in turn, and the seconds of an epoch over bags that lie on the disk as
`embed` would have written them, without its start. `docs/tcga_brca.md` multiplies them by tiles and bags.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn

from histo_ssl.backbones.resnet_trunc import truncated_resnet
from histo_ssl.backbones.timm import timm_backbone
from histo_ssl.mil.bags import SlideBags
from histo_ssl.mil.clam import ClamSb
from histo_ssl.mil.objectives import Classes
from histo_ssl.mil.training import Device, Recipe, fit

TILE_PX, BATCH_TILES, DIM = 256, 8, 384
PRECISIONS = ("32-true", "bf16-mixed")


def main() -> None:
    """Print a line per encoder and precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bags", type=int, default=100)
    parser.add_argument("--tiles", type=int, default=2000, help="of a bag")
    asked = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    for name, values in embedding_ms(asked.rounds).items():
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"{name}: {statistics.median(values):.0f} ms of a core per tile ({spread})")
    with tempfile.TemporaryDirectory() as folder:
        bags = written(Path(folder), n_bags=asked.bags, n_tiles=asked.tiles)
        for precision in PRECISIONS:
            cpu_s, wall_s = epoch_s(bags, precision=precision)
            per_million = 1e6 * cpu_s / (asked.bags * asked.tiles)
            print(
                f"CLAM-SB, {asked.bags} bags of {asked.tiles:,} x {DIM}, {precision}: {cpu_s:.1f} s of a "
                f"core an epoch ({wall_s:.1f} s in all), {per_million:.0f} s per million tiles"
            )


def embedding_ms(rounds: int) -> dict[str, list[float]]:
    """Milliseconds of processor time per tile, of the encoders in turn."""
    networks: dict[str, nn.Module] = {
        "resnet50_trunc": truncated_resnet(name="resnet50", drop_path=0.0),
        "resnet50": timm_backbone(name="resnet50", drop_path=0.0),
        "vit_s": timm_backbone(name="vit_small_patch16_224", drop_path=0.0),
    }
    tiles = torch.randn(BATCH_TILES, 3, TILE_PX, TILE_PX)
    found: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for i in range(rounds + 1):  # the first warms up
            for name, network in networks.items():
                started = time.process_time()
                network.eval()(tiles)
                if i:
                    found[name].append(1e3 * (time.process_time() - started) / BATCH_TILES)
    return found


def written(folder: Path, *, n_bags: int, n_tiles: int) -> SlideBags:
    """Bags of random features on the disk."""
    rng = np.random.default_rng(0)
    names = [f"s{i:04}" for i in range(n_bags)]
    for name in names:
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["features"] = rng.normal(size=(n_tiles, DIM)).astype(np.float32)
            file["coords"] = np.zeros((n_tiles, 2), dtype=np.int64)
    return SlideBags(folder, names)


def epoch_s(bags: SlideBags, *, precision: str) -> tuple[float, float]:
    """Seconds of processor time and of the clock per epoch: of four epochs less those of one, by three."""
    n = len(bags.ids)
    make = partial(
        ClamSb,
        n_hidden=512,
        n_attention=256,
        dropout=0.25,
        n_instances=8,
        subtyping=True,
        bag_weight=0.7,
    )
    seconds = []
    for epochs in (1, 4):
        recipe = Recipe(
            optimizer=partial(torch.optim.Adam, lr=2e-4, weight_decay=1e-5),
            epochs=epochs,
            patience=None,
            batch_bags=1,
            max_tiles=None,
            is_weighted=True,
            max_tiles_at_once=50_000,
            precision=precision,
            n_workers=0,
        )
        started = time.process_time(), time.monotonic()
        fit(
            make,
            Classes(class_N=np.arange(n) % 2, n_outputs=2),
            bags,
            train=np.arange(n),
            valid=np.arange(0),
            recipe=recipe,
            seed=[0],
            device=Device(accelerator="cpu", precision=precision),
        )
        seconds.append((time.process_time() - started[0], time.monotonic() - started[1]))
    return (seconds[1][0] - seconds[0][0]) / 3, (seconds[1][1] - seconds[0][1]) / 3


if __name__ == "__main__":
    main()
