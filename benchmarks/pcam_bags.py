"""Models of bags on bags of real tiles: who finds few tumour tiles among many (PatchCamelyon).

    python benchmarks/pcam_bags.py --pcam FOLDER [--encoder encoder.safetensors]

FOLDER holds labels.csv (path, label, split) and the tiles. A bag is positive if any of its tiles is tumour:
then a share of them is. Bags of train, validation and test are drawn from tiles of the same split. Without an
encoder, tiles are embedded by statistics of their colours. Prints test AUC, mean and SD over seeds.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from histo_ssl.cli import conf_dir
from histo_ssl.encode import Encoder, load_encoder
from histo_ssl.mil.objectives import Classes
from histo_ssl.mil.training import Device, Recipe, fit
from histo_ssl.tasks.floors import ColorStatistics

SPLITS = {"train": 300, "valid": 100, "test": 300}  # bags of each
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
    parser.add_argument("--tiles", type=int, default=100, help="tiles of a bag")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    table = pd.read_csv(asked.pcam / "labels.csv", dtype=str)
    trained = load_encoder(asked.encoder) if asked.encoder else None
    features = embedded(asked.pcam, table, trained)
    print(f"| model |{''.join(f' {share:.0%} tumour tiles |' for share in asked.shares)}")
    print(f"|---|{'--:|' * len(asked.shares)}")
    for model in MODELS:
        cells = [
            [auc(model, features, table, share, n_tiles=asked.tiles, seed=s) for s in range(asked.seeds)]
            for share in asked.shares
        ]
        shown = "".join(f" {statistics.fmean(c):.3f} ± {statistics.stdev(c):.3f} |" for c in cells)
        print(f"| {model} |{shown}", flush=True)


@torch.inference_mode()
def embedded(folder: Path, table: pd.DataFrame, trained: Encoder | None) -> NDArray[np.float32]:
    """Features of all tiles, standardised by those of train."""
    statistics_of = ColorStatistics()
    parts = []
    for start in range(0, len(table), 256):
        tiles = [
            np.asarray(Image.open(folder / path).convert("RGB"))
            for path in table["path"][start : start + 256]
        ]
        batch = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2)
        parts.append((trained(batch) if trained else statistics_of(batch.float() / 255)).numpy())
    features = np.concatenate(parts)
    train = features[(table["split"] == "train").to_numpy()]
    scaled: NDArray[np.float32] = ((features - train.mean(0)) / (train.std(0) + 1e-6)).astype(np.float32)
    return scaled


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
