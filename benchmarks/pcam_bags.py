"""Models of bags on bags of real tiles: who finds few tumour tiles among many (PatchCamelyon).

    python benchmarks/pcam_encoder.py --pcam FOLDER --to pcam_encoder.safetensors
    python benchmarks/pcam_bags.py --pcam FOLDER --encoder pcam_encoder.safetensors

FOLDER holds labels.csv (path, label, split) and the tiles. A bag is positive if any of its tiles is tumour:
then a share of them is. Bags of train, valid and test are drawn from tiles of the same split; the encoder has
seen train's with their labels. Without an encoder, tiles are embedded by statistics of their colours. Prints
test AUC, mean and SD over seeds, and each model's less the mean's on the same bags. With `--drawn 0.98`
features are no tiles' but Gaussians (16 dimensions, classes apart in one) that tell tiles with that AUC.
"""

import argparse
import math
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from histo_ssl.config.choices import conf_dir
from histo_ssl.encode import Encoder, load_encoder
from histo_ssl.mil.objectives import Classes
from histo_ssl.mil.training import Device, Recipe, fit
from histo_ssl.tasks.floors import ColorStatistics

SPLITS = {"train": 600, "valid": 200, "test": 300}  # bags of each
MODELS = ("mean", "max", "abmil", "clam_sb")


class DrawnBags:
    """Bags of rows of a table of features."""

    def __init__(self, features: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        self.features, self.rows, self.dim = features, rows, features.shape[1]
        self.ids = np.arange(len(rows)).astype(str)
        self.n_tiles = np.full(len(rows), rows.shape[1])

    def read(self, i: int) -> NDArray[np.float32]:
        """Features of a whole bag."""
        return self.features[self.rows[i]]

    def sample(self, i: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features of some of its tiles."""
        return self.features[self.rows[i][rows]]


def main() -> None:
    """Print a table of models x shares of tumour tiles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pcam", type=Path, required=True)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--drawn", type=float, help="AUC of tiles, above 0.5 and below 1")
    parser.add_argument("--tiles", type=int, default=100, help="tiles of a bag")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    table = pd.read_csv(asked.pcam / "labels.csv", dtype=str)
    trained = load_encoder(asked.encoder) if asked.encoder else None
    features = gaussian(table, asked.drawn) if asked.drawn else embedded(asked.pcam, table, trained)
    print(f"| model |{''.join(f' {share:.0%} tumour tiles |' for share in asked.shares)}")
    print(f"|---|{'--:|' * len(asked.shares)}")
    table_of: dict[str, list[list[float]]] = {}
    for model in asked.models:
        cells = [
            [auc(model, features, table, share, n_tiles=asked.tiles, seed=s) for s in range(asked.seeds)]
            for share in asked.shares
        ]
        table_of[model] = cells
        print(f"| {model} |{''.join(map(shown, cells))}", flush=True)
    for model in [m for m in asked.models if m != "mean"]:
        pairs = zip(table_of[model], table_of["mean"], strict=True)
        gains = [[own - mean for own, mean in zip(*pair, strict=True)] for pair in pairs]
        print(f"| {model} less mean, same bags |{''.join(map(shown, gains))}")


def shown(values: list[float]) -> str:
    """Mean and SD of a cell."""
    return f" {statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f} |"


@torch.inference_mode()
def embedded(folder: Path, table: pd.DataFrame, trained: Encoder | None) -> NDArray[np.float32]:
    """Features of all tiles, standardised by those of train; an encoder sees as much as it was trained on."""
    statistics_of = ColorStatistics()
    parts = []
    for start in range(0, len(table), 256):
        tiles = [
            np.asarray(Image.open(folder / path).convert("RGB"))
            for path in table["path"][start : start + 256]
        ]
        batch = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2)
        if trained and trained.card.tile_px:
            batch = middle(batch, trained.card.tile_px)
        parts.append((trained(batch) if trained else statistics_of(batch.float() / 255)).numpy())
    features = np.concatenate(parts)
    known = features[(table["split"] == "train").to_numpy()]
    scaled: NDArray[np.float32] = ((features - known.mean(0)) / (known.std(0) + 1e-6)).astype(np.float32)
    return scaled


def gaussian(table: pd.DataFrame, tile_auc: float) -> NDArray[np.float32]:
    """Features in which classes are as far apart as to give an AUC: Phi(distance / sqrt(2))."""
    drawn_ND = np.random.default_rng(0).normal(size=(len(table), 16)).astype(np.float32)
    distance = math.sqrt(2) * statistics.NormalDist().inv_cdf(tile_auc)
    drawn_ND[:, 0] += distance * (table["label"] == "tumor").to_numpy()
    return drawn_ND


def middle(tiles_B3SS: torch.Tensor, side_px: int) -> torch.Tensor:
    """The middle of each tile."""
    first = (tiles_B3SS.shape[-1] - side_px) // 2
    return tiles_B3SS[..., first : first + side_px, first : first + side_px]


def drawn(table: pd.DataFrame, share: float, *, n_tiles: int, seed: int) -> tuple[NDArray[np.int64], ...]:
    """Rows of the bags' tiles, their classes and their splits."""
    rng = np.random.default_rng(seed)
    rows, classes, splits = [], [], []
    for split, n in SPLITS.items():
        of_split = (table["split"] == split).to_numpy()
        pools = [
            np.flatnonzero(of_split & (table["label"] == label).to_numpy()) for label in ("normal", "tumor")
        ]
        for i in range(n):
            n_tumour = round(share * n_tiles) if i % 2 else 0
            chosen = [rng.choice(pools[0], n_tiles - n_tumour), rng.choice(pools[1], n_tumour)]
            rows.append(rng.permutation(np.concatenate(chosen)))
            classes.append(i % 2)
            splits.append(split)
    return np.stack(rows), np.array(classes), np.array(splits)


def auc(
    model: str, features: NDArray[np.float32], table: pd.DataFrame, share: float, *, n_tiles: int, seed: int
) -> float:
    """AUC of the test bags."""
    rows, classes, splits = drawn(table, share, n_tiles=n_tiles, seed=seed)
    bags, objective = DrawnBags(features, rows), Classes(class_N=classes, n_outputs=2)
    recipe = Recipe(
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-4, weight_decay=1e-5),
        epochs=30,
        patience=10,
        batch_bags=8,
        max_tiles=None,
        is_weighted=True,
        max_tiles_at_once=50_000,
        precision=None,
        n_workers=0,
    )
    fitted = fit(
        instantiate(OmegaConf.load(conf_dir() / "task" / "models" / f"{model}.yaml")[model]),
        objective,
        bags,
        train=np.flatnonzero(splits == "train"),
        valid=np.flatnonzero(splits == "valid"),
        recipe=recipe,
        seed=[seed],
        device=Device(accelerator="cpu", precision="32-true"),
    )
    test = np.flatnonzero(splits == "test")
    outputs = torch.from_numpy(fitted.outputs(bags, test))
    return objective.score(outputs, torch.from_numpy(test))


if __name__ == "__main__":
    main()
