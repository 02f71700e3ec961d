"""Whether a tile costs the same among a thousand as among a million: `python benchmarks/growth.py`.

    python benchmarks/growth.py [--sizes 1000 10000 ...] [--json FILE] [--plot FILE] [--folder DIR]

Per size it reads that many tiles in the order of training, trains on them, embeds them and tiles them anew,
each in a process of its own, and tells the processor time per tile of that process and all below it, and the
most memory that they took. A slide is a drawn 40x scan of 8,192 px, 1,024 stored JPEG tiles of 256 px, under
as many names as a size needs: hard links, so a million tiles are 9 MB of a disk, and stay in its cache. Tiles
are cut as they are stored, so that no decoded tile helps the next and small lists gain nothing by it.

The first three open a list in the format of the stage `tile`, of one survey that is repeated. Of reading and
training a fixed number of steps is measured: at the beginning, in the middle and at the end of an epoch, and
at its beginning. Of embedding it is some batches, of tiling all slides. Workers run ahead of both ends of
it by as much, so that what they did before makes up for what they do beyond it. Networks are tiny:
what may grow is what lies around them.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from many_slides import MB, below, memory

from histo_ssl.data.base import SOURCE
from histo_ssl.slides.index import TileIndex, write_index

SIZES = (1_000, 10_000, 100_000, 1_000_000)
TILE_PX, MPP = 256, 0.25
BATCH, N_WORKERS, SEED = 64, 2, 0
LOOK_S = 0.5  # between two looks at the memory
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How much of a long list is looked at."""

    read_warm_up: int  # steps before the clock starts, in which workers meet their slides for the first time
    read: int  # steps at each of three places
    train_warm_up: int
    train: int
    embed_warm_up: int  # batches
    embed: int
    side_px: int  # of a slide


LONG = Lengths(read_warm_up=60, read=60, train_warm_up=2, train=12, embed_warm_up=10, embed=60, side_px=8192)
SHORT = Lengths(read_warm_up=2, read=4, train_warm_up=1, train=2, embed_warm_up=1, embed=4, side_px=2048)


def main() -> None:
    """Measure all sizes; or, as a child of itself, one part of one size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of tiles")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument(
        "--short", action="store_true", help="small slides and few steps, to see that it runs"
    )
    parser.add_argument("--folder", type=Path, help="for what is deleted afterwards")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="SVG or PNG")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    lengths = SHORT if given.short else LONG
    if given.one:
        print(json.dumps(PARTS[given.one](given.folder, lengths)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for rows in grown(Path(folder), sizes=given.sizes, parts=given.parts, is_short=given.short):
            if given.json:
                found = {"lengths": asdict(lengths), "rows": rows}
                given.json.write_text(json.dumps(found, indent=1) + "\n")
    for names in (COSTS, MEMORY):
        told = [name for name in names if any(name in row for row in rows)]
        print(pd.DataFrame(rows)[["tiles", "slides", *told]].to_string(index=False))
    if given.plot:
        draw(rows, given.plot)


COSTS = (
    *("tile, ms", "draw, us", "read at the beginning, ms", "read in the middle, ms", "read at the end, ms"),
    *("train, ms", "embed, ms", "open the list, s"),
)
MEMORY = tuple(f"{part}, {who} MB" for part in ("tile", "read", "train", "embed") for who in ("main", "all"))


def grown(
    folder: Path, *, sizes: list[int], parts: list[str], is_short: bool
) -> Iterator[list[dict[str, float]]]:
    """A row per size; again each time that something was measured."""
    lengths = SHORT if is_short else LONG
    write_slide(folder / "scan.tif", side_px=lengths.side_px)
    places = [folder / str(n_tiles) for n_tiles in sizes]
    rows = [
        link(place, folder / "scan.tif", n_tiles, lengths)
        for place, n_tiles in zip(places, sizes, strict=True)
    ]
    for part, (i, place) in itertools.product(parts, enumerate(places)):
        rows[i] |= measured(part, place, is_short=is_short)
        yield rows


def measured(part: str, place: Path, *, is_short: bool) -> dict[str, float]:
    """One part by a process of its own, and the most memory that it and all below it took at any time."""
    command = [sys.executable, __file__, "--one", part, "--folder", str(place), *["--short"] * is_short]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        most = {"main": 0, "all": 0}
        watch = threading.Thread(target=_watch, args=(process.pid, most), daemon=True)
        watch.start()
        assert process.stdout is not None
        said = process.stdout.read()
    watch.join()
    if process.returncode:
        raise SystemExit(f"part {part} broke; its error stands above")
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return {**found, **{f"{part}, {who} MB": round(n_bytes / MB) for who, n_bytes in most.items()}}


def _watch(pid: int, most: dict[str, int]) -> None:
    """Look at the proportional memory of a process and all below it until it ends."""
    while looks := memory(pid):
        others = [memory(other).get("Pss", 0) for other in below(pid)]
        most["main"] = max(most["main"], looks["Pss"])
        most["all"] = max(most["all"], looks["Pss"] + sum(others))
        time.sleep(LOOK_S)


def write_slide(path: Path, *, side_px: int) -> None:
    """The slide that all others are names of."""
    from reading import drawn, write_scan

    scan = drawn()
    write_scan(path, np.tile(scan, (side_px // len(scan), side_px // len(scan), 1)))


def link(place: Path, scan: Path, n_tiles: int, lengths: Lengths) -> dict[str, float]:
    """A list of so many slides that they have at least so many tiles, and both counts.

    One of them is surveyed, and stands for all in a folder as the stage `tile` leaves it.
    """
    n_slides = -(-n_tiles // (lengths.side_px // TILE_PX) ** 2)
    (place / "slides").mkdir(parents=True)
    paths = [place / "slides" / f"s{i:05}.tif" for i in range(n_slides)]
    for path in paths:
        os.link(scan, path)
    manifest = pd.DataFrame(
        {"slide_id": [path.stem for path in paths], "path": [str(path) for path in paths]}
    )
    manifest["patient_id"] = [f"p{i // 2}" for i in range(n_slides)]
    manifest.to_csv(place / "manifest.csv", index=False)
    manifest[:1].to_csv(place / "first.csv", index=False)
    _tile(place, "first", n_processes=0)
    first, listed = place / "tiles-first", place / "tiles-listed"
    index = TileIndex(first)
    status = pd.concat([index.slides] * n_slides, ignore_index=True)
    for name in ("slide_id", "path", "patient_id"):
        status[name] = manifest[name]
    listed.mkdir()
    whole = write_index(listed, status=status, xy_level0=[index.of_slide(0)] * n_slides)
    (listed / SOURCE).write_bytes((first / SOURCE).read_bytes())
    return {"tiles": len(whole), "slides": n_slides}


def spent_s() -> float:
    """Processor seconds so far of this process, all below it, and those of them that ended."""
    return sum(_spent_s(pid) for pid in (os.getpid(), *below(os.getpid())))


def _spent_s(pid: int) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return TICK_S * sum(map(int, words[11:15]))  # user, system; the same of children that were waited for


def by_tiling(place: Path, lengths: Lengths) -> dict[str, float]:  # noqa: ARG001 (all is measured)
    """The stage `tile`, two slides at a time; the clock starts once a server of processes is there."""
    from histo_ssl.parallel.memory import keep_freed_memory

    keep_freed_memory()
    _tile(place, "first", n_processes=N_WORKERS)
    began = spent_s()
    counts = _tile(place, "manifest", n_processes=N_WORKERS)
    return {"tile, ms": 1e3 * (spent_s() - began) / counts["tiles"]}


def _tile(place: Path, manifest: str, *, n_processes: int) -> dict[str, int]:
    cfg = composed("data=slides", "tiling=study")
    from hydra.utils import instantiate

    tiling = instantiate(cfg.tiling, size_px=TILE_PX, stride_px=TILE_PX, mpp=MPP, min_tissue=0.0)
    data = instantiate(cfg.data, manifest=str(place / f"{manifest}.csv"))
    folder = place / f"tiles-{manifest}"
    counts: dict[str, int] = data.tile(
        tiling, folder=folder, home=place, n_processes=n_processes, slide_timeout_s=600
    )
    return counts


def composed(*overrides: str) -> Any:
    """The configuration of a run."""
    import hydra

    from histo_ssl.config.choices import conf_dir

    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose("config", overrides=["method=simclr", "backbone=timm", "views=pair", *overrides])


def opened(place: Path, *, epochs: int = 1, batch: int = BATCH) -> tuple[Any, float]:
    """The tiles with what plans a training on them, and the seconds that it took to open the list."""
    import torch
    from hydra.utils import instantiate

    from histo_ssl.data.datamodule import TileDataModule
    from histo_ssl.data.loading import Loading
    from histo_ssl.data.sources import open_source

    torch.set_num_threads(1)
    began = time.monotonic()
    source = open_source(place / "tiles-listed")
    data = TileDataModule(
        source=source,
        rows=source.training_rows(),
        views=instantiate(composed().views),
        batch_size=batch,
        epochs=epochs,
        accumulate=1,
        seed=SEED,
        loading=Loading(n_workers=N_WORKERS, start_method="fork", timeout_s=600),
    )
    return data, time.monotonic() - began


def by_reading(place: Path, lengths: Lengths) -> dict[str, float]:
    """Batches as training draws and reads them, at three places of an epoch; and an epoch only drawn."""
    n_needed = lengths.read_warm_up + lengths.read
    data, open_s = opened(place)
    n_epochs = -(-3 * n_needed // data.steps_per_epoch)
    if n_epochs > 1:
        data, open_s = opened(place, epochs=n_epochs)
    last = data.total_steps - n_needed
    found = {"open the list, s": open_s}
    for name, first in (("at the beginning", 0), ("in the middle", last // 2), ("at the end", last)):
        batches = iter(data.loader(data.sampler(first_step=first, rank=0, n_ranks=1)))
        seconds = cut(batches, lengths.read_warm_up, lengths.read)
        found[f"read {name}, ms"] = 1e3 * seconds / (lengths.read * BATCH)
        ended(batches)
    began, n_drawn = spent_s(), 0
    for wanted in itertools.islice(data.sampler(first_step=0, rank=0, n_ranks=1), data.steps_per_epoch):
        n_drawn += len(wanted)
    return {**found, "draw, us": 1e6 * (spent_s() - began) / n_drawn}


def cut(batches: Iterator[Any], n_before: int, n: int) -> float:
    """Processor seconds from one batch to another, of workers, too."""
    for _ in range(n_before):
        next(batches)
    began = spent_s()
    for _ in range(n):
        next(batches)
    return spent_s() - began


def ended(batches: Iterator[Any]) -> None:
    """End the workers of batches that nobody wants."""
    batches.close()  # type: ignore[attr-defined]  # a generator
    for child in multiprocessing.active_children():
        child.join(60)


class EnoughError(Exception):
    """All was measured that is to be."""


class Clock:
    """Takes the time between two calls of many, and ends them after the second."""

    def __init__(self, n_before: int, n: int) -> None:
        self.n_before, self.n = n_before, n
        self.n_calls, self.began, self.seconds = 0, 0.0, 0.0

    def tick(self) -> None:
        """Count a call; the clock starts with one and ends with another."""
        if self.n_calls == self.n_before:
            self.began = spent_s()
        if self.n_calls == self.n_before + self.n:
            self.seconds = spent_s() - self.began
            raise EnoughError
        self.n_calls += 1


def by_training(place: Path, lengths: Lengths) -> dict[str, float]:
    """Steps of SimCLR on timm's smallest ViT, with all that a run writes down of them."""
    import warnings
    from functools import partial

    import lightning
    from hydra.utils import instantiate
    from lightning import Trainer
    from omegaconf import OmegaConf

    from histo_ssl.config.sizing import sized
    from histo_ssl.parallel.memory import keep_freed_memory
    from histo_ssl.training.fit import Limits, Recording, train

    warnings.filterwarnings("ignore")
    keep_freed_memory()
    clock = Clock(lengths.train_warm_up, lengths.train)

    class Ticking(lightning.Callback):
        def on_train_batch_start(self, *args: Any) -> None:  # noqa: ARG002 (a hook)
            clock.tick()

    data, _ = opened(place, batch=BATCH // 2)
    n_needed = lengths.train_warm_up + lengths.train + 1
    data.epochs = max(1, -(-n_needed // data.steps_per_epoch))
    cfg = composed("backbone.name=test_vit")
    config, _ = sized(OmegaConf.to_container(cfg.method, resolve=True), n_tiles=len(data.rows))
    lightning.seed_everything(SEED, verbose=False)
    method = instantiate(config, backbone=instantiate(cfg.backbone))
    folder = place / "pretrain"
    folder.mkdir()
    try:
        train(
            method,
            data,
            folder=folder,
            trainer=partial(Trainer, accelerator="cpu", devices=1, default_root_dir=str(folder)),
            logger=None,
            online=Ticking(),
            recording=Recording(checkpoint_every=10, log_every=10),
            limits=Limits(max_failed_tiles=0.0, on_nonfinite="stop", max_nonfinite=0),
        )
    except EnoughError:
        return {"train, ms": 1e3 * clock.seconds / (clock.n * BATCH // 2)}
    raise AssertionError("the training ended before its time was taken")


def by_embedding(place: Path, lengths: Lengths) -> dict[str, float]:
    """Files of means of colours, by as many calls as the batches that are to be measured need."""
    import torch
    from torch import nn

    from histo_ssl.data.loading import Loading
    from histo_ssl.embed import Embedding, embed_tiles
    from histo_ssl.encode import Card, Encoder

    clock = Clock(lengths.embed_warm_up, lengths.embed)

    class Means(nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            clock.tick()
            return nn.functional.avg_pool2d(tiles, TILE_PX // 8).flatten(1)

    card = Card(
        architecture={},
        dim=3 * 8 * 8,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        tile_px=TILE_PX,
        mpp=MPP,
        method="means",
        fingerprint="0" * 8,
    )
    data, _ = opened(place)
    loading = Loading(n_workers=N_WORKERS, start_method="fork", timeout_s=600)
    rounding = {"dtype": "float32", "precision": "32-true"}
    how = Embedding(batch_size=BATCH, loading=loading, **rounding, any_mpp=False, max_failed=0.0)
    try:
        for i in itertools.count():
            folder = place / f"embeddings-{i}"
            folder.mkdir()
            embed_tiles(Encoder(Means(), card), data.source, folder=folder, how=how)
    except EnoughError:
        return {"embed, ms": 1e3 * clock.seconds / (clock.n * BATCH)}
    raise AssertionError


PARTS: dict[str, Callable[[Path, Lengths], dict[str, float]]] = {
    "read": by_reading,
    "train": by_training,
    "embed": by_embedding,
    "tile": by_tiling,
}


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Costs and memory over the number of tiles."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    costs = {"tile": "tile, ms", "read": "read in the middle, ms", "train": "train, ms", "embed": "embed, ms"}
    for name, column in costs.items():
        known = [row for row in rows if column in row]
        for axes, what in ((left, column), (right, f"{name}, all MB")):
            axes.plot([row["tiles"] for row in known], [row[what] for row in known], marker="o", label=name)
    left.set(xlabel="tiles", ylabel="processor ms per tile", xscale="log", yscale="log")
    right.set(xlabel="tiles", xscale="log", ylabel="most memory of all processes, MB", ylim=(0, None))
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside upper center", ncols=len(costs), frameon=False
    )
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
