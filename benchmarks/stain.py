"""Seconds that stain normalisation takes of one core, beside plain numpy on the same tiles.

`python benchmarks/stain.py [ROUNDS]`: 64 tiles of 256 px; the two run in turn in this process.
"""

import sys
import time
from collections.abc import Callable

import hydra
import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray

from histo_ssl.config.choices import conf_dir
from histo_ssl.stain.base import restained

Pixels = NDArray[np.uint8]
N_TILES, SIDE_PX = 64, 256
CONES = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
OPPONENTS = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])


def tiles() -> Pixels:
    """Tiles (N, S, S, 3) of two dyes in smooth patches, with noise and glass."""
    rng = np.random.default_rng(0)
    dyes = np.array([[0.56, 0.72, 0.41], [0.22, 0.80, 0.56]])
    coarse = rng.gamma(1.0, 0.5, (N_TILES, SIDE_PX // 8, SIDE_PX // 8, 2))
    amount = coarse.repeat(8, axis=1).repeat(8, axis=2)
    values = 240 * np.exp(-(amount @ dyes)) + rng.normal(0, 3, (N_TILES, SIDE_PX, SIDE_PX, 3))
    return values.round().clip(0, 255).astype(np.uint8)


def macenko(tile: Pixels, spec: object) -> Pixels:
    """One tile (S, S, 3), each step of the paper as a call of numpy."""
    v = vars(spec)
    density = np.log(v["white"] / np.maximum(tile.reshape(-1, 3), 1.0))
    tissue = density[(density >= v["min_density"]).all(axis=1)]
    _, vectors = np.linalg.eigh(tissue.T @ tissue)
    plane = vectors[:, [2, 1]] * [np.sign(vectors[:, 2].sum()), 1]
    along, across = (tissue @ plane).T
    ends = np.percentile(np.arctan2(across, along), [100 * v["angle_tail"], 100 - 100 * v["angle_tail"]])
    dyes = plane @ np.array([np.cos(ends), np.sin(ends)])
    dyes = dyes[:, np.argsort(-dyes[0])]
    amount = np.linalg.pinv(dyes) @ density.T
    of_tissue = amount[:, (density >= v["min_density"]).all(axis=1)]
    gain = np.array(v["amounts"]) / np.percentile(of_tissue, 100 - 100 * v["amount_tail"], axis=1)
    light = v["white"] * np.exp(-(np.array(v["dyes"]).T @ (gain[:, None] * amount)))
    made: Pixels = light.T.round().clip(0, 255).astype(np.uint8).reshape(tile.shape)
    return made


def reinhard(tile: Pixels, spec: object) -> Pixels:
    """One tile (S, S, 3) likewise."""
    v = vars(spec)
    pixels = np.maximum(tile.reshape(-1, 3), 1.0)
    is_tissue = np.log(v["white"] / pixels.min(axis=1)) >= v["min_density"]
    lab = np.log(pixels[is_tissue] @ CONES.T) @ OPPONENTS.T
    lab = (lab - lab.mean(axis=0)) / lab.std(axis=0) * v["sds"] + v["means"]
    made = tile.reshape(-1, 3).copy()
    light = np.exp(lab @ OPPONENTS) @ np.linalg.inv(CONES).T
    made[is_tissue] = light.round().clip(0, 255).astype(np.uint8)
    return made.reshape(tile.shape)


def seconds(work: Callable[[], object]) -> float:
    """Processor time of this process for one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    """Print the table."""
    n_rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    torch.set_num_threads(1)
    pixels = tiles()
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # as they are read
    print("| 64 tiles of 256 px | numpy, s | torch, s | ratio, with 95 % interval | values that differ |")
    print("|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for name, plain in (("macenko", macenko), ("reinhard", reinhard)):
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            spec = instantiate(hydra.compose("config", overrides=[f"stain={name}"]).stain)
        expected = np.stack([plain(tile, spec) for tile in pixels])
        made = restained(spec, batch)
        assert not made.is_left_B.any()
        differ = (made.tiles.permute(0, 2, 3, 1).numpy() != expected).mean()
        rounds = np.array(
            [
                [
                    seconds(lambda plain=plain, spec=spec: [plain(tile, spec) for tile in pixels]),
                    seconds(lambda spec=spec: restained(spec, batch)),
                ]
                for _ in range(n_rounds)
            ]
        )
        ratios = rounds[:, 1] / rounds[:, 0]
        low, high = np.quantile(np.median(rng.choice(ratios, (2000, n_rounds)), axis=1), [0.025, 0.975])
        theirs, ours = np.median(rounds, axis=0)
        interval = f"{np.median(ratios):.2f} [{low:.2f}, {high:.2f}]"
        print(f"| {name} | {theirs:.3f} | {ours:.3f} | {interval} | {100 * differ:.4f} % |")


if __name__ == "__main__":
    main()
