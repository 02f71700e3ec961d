"""Training a model of bags: our packed steps beside a plain loop over bags in float32.

    python benchmarks/bags.py [--n 700] [--tiles 5000] [--small 50]

One epoch of CLAM-SB over bags on a disk, and over many small bags; each way in a process of its own, whose
peak memory is told. The plain loop is what one writes first: a bag from HDF5, one step, torch's own dropout.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM, N_HIDDEN, N_ATTENTION, DROPOUT, N_INSTANCES = 384, 512, 256, 0.25, 8
GIB = 2**30


def main() -> None:
    """Print a table of both ways on both kinds of bags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=700, help="bags")
    parser.add_argument("--tiles", type=int, default=5000, help="tiles of a bag")
    parser.add_argument("--small", type=int, default=50, help="tiles of a small bag, of which there are 10 n")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        print(json.dumps(measured(asked.way, asked.folder, batch_bags=asked.batch)))
        return
    print("| bags | way | s per epoch | peak memory, GiB | plain loop / this |")
    print("|---|---|--:|--:|--:|")
    for n, tiles, batch in ((asked.n, asked.tiles, 1), (10 * asked.n, asked.small, 64)):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), n=n, tiles=tiles)
            plain = in_a_process("plain", folder, batch)
            ways = {"plain loop, float32": plain}
            for way in ("32-true", "bf16-mixed"):
                ways |= {
                    f"ours, {way}, {size} a step": in_a_process(way, folder, size) for size in {1, batch}
                }
        for name, found in ways.items():
            ratio = plain["seconds"] / found["seconds"]
            print(
                f"| {n:,} x {tiles:,} | {name} | {found['seconds']:.1f} | {found['gib']:.2f} | {ratio:.2f} |"
            )


def in_a_process(way: str, folder: str, batch: int) -> dict[str, float]:
    """What one way takes, measured by itself."""
    command = [sys.executable, __file__, "--way", way, "--folder", folder, "--batch", str(batch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def write(folder: Path, *, n: int, tiles: int) -> None:
    """Bags of random features, in half precision."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((tiles, DIM)).astype(np.float16)
    for i in range(n):
        with h5py.File(folder / f"s{i:05d}.h5", "w") as file:
            file["features"] = features
            file["coords"] = np.zeros((tiles, 2), dtype=np.int64)


def measured(way: str, folder: Path, *, batch_bags: int) -> dict[str, float]:
    """Seconds of one epoch and the peak memory of this process."""
    slides = sorted(path.stem for path in folder.glob("*.h5"))
    classes = np.arange(len(slides)) % 2
    seconds = (
        plain(folder, slides, classes) if way == "plain" else ours(folder, slides, classes, way, batch_bags)
    )
    return {"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB}


def ours(folder: Path, slides: list[str], classes: Any, precision: str, batch_bags: int) -> float:
    """An epoch by `histo_ssl.mil.training`."""
    from histo_ssl.mil.bags import SlideBags
    from histo_ssl.mil.clam import ClamSb
    from histo_ssl.mil.objectives import Classes
    from histo_ssl.mil.training import Device, Recipe, fit

    bags = SlideBags(folder, slides)
    recipe = Recipe(
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-4, weight_decay=1e-5),
        epochs=1,
        patience=None,
        batch_bags=batch_bags,
        max_tiles=None,
        is_weighted=True,
        max_tiles_at_once=50_000,
        precision=None,
        n_workers=0,
    )

    def model(*, dim: int, n_classes: int) -> ClamSb:
        sizes = {"n_hidden": N_HIDDEN, "n_attention": N_ATTENTION, "dropout": DROPOUT}
        return ClamSb(
            dim=dim, n_classes=n_classes, **sizes, n_instances=N_INSTANCES, subtyping=True, bag_weight=0.7
        )

    started = time.monotonic()
    fit(
        model,
        Classes(class_N=classes, n_outputs=2),
        bags,
        train=np.arange(len(slides)),
        valid=np.arange(0),
        recipe=recipe,
        seed=[0],
        device=Device(accelerator="cpu", precision=precision),
    )
    return time.monotonic() - started


class Plain(nn.Module):
    """CLAM-SB as one writes it first, for one bag (arXiv:2004.09666)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(DIM, N_HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT))
        self.value = nn.Sequential(nn.Linear(N_HIDDEN, N_ATTENTION), nn.Tanh(), nn.Dropout(DROPOUT))
        self.gate = nn.Sequential(nn.Linear(N_HIDDEN, N_ATTENTION), nn.Sigmoid(), nn.Dropout(DROPOUT))
        self.score = nn.Linear(N_ATTENTION, 1)
        self.bag = nn.Linear(N_HIDDEN, 2)
        self.instance = nn.ModuleList(nn.Linear(N_HIDDEN, 2) for _ in range(2))

    def loss(self, x_ND: Tensor, target: int) -> Tensor:
        """0.7 of the bag's loss and 0.3 of its tiles'."""
        h_NH = self.trunk(x_ND)
        score_N = self.score(self.value(h_NH) * self.gate(h_NH))[:, 0]
        logits_C = self.bag(score_N.softmax(0) @ h_NH)
        top, bottom = score_N.topk(N_INSTANCES).indices, (-score_N).topk(N_INSTANCES).indices
        wanted = torch.cat([torch.ones(N_INSTANCES), torch.zeros(N_INSTANCES)]).long()
        true = F.cross_entropy(margin(self.instance[target](h_NH[torch.cat([top, bottom])]), wanted), wanted)
        none = torch.zeros(N_INSTANCES).long()
        other = F.cross_entropy(margin(self.instance[1 - target](h_NH[top]), none), none)
        bag = F.cross_entropy(logits_C[None], torch.tensor([target]))
        return 0.7 * bag + 0.3 * (true + other) / 2


def margin(logits_KC: Tensor, wanted_K: Tensor) -> Tensor:
    """Logits with 1 more for the wrong class: the smooth SVM's."""
    return logits_KC + 1 - F.one_hot(wanted_K, 2)


def plain(folder: Path, slides: list[str], classes: Any) -> float:
    """An epoch of the plain loop."""
    model = Plain()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, weight_decay=1e-5)
    rng = np.random.default_rng(0)
    started = time.monotonic()
    for i in rng.integers(len(slides), size=len(slides)):
        with h5py.File(folder / f"{slides[i]}.h5") as file:
            x_ND = torch.from_numpy(file["features"][:]).float()
        optimizer.zero_grad()
        model.loss(x_ND, int(classes[i])).backward()
        optimizer.step()
    return time.monotonic() - started


if __name__ == "__main__":
    main()
