"""What many slides and many tiles take: memory over time, seconds.

    python benchmarks/many_slides.py slides          # 1,000 slides are tiled, on two processes
    python benchmarks/many_slides.py tiles           # a list of 100,000,000 tiles is opened and trained from

Memory is what the kernel says of each process (`smaps_rollup`): PSS shares what several have among them, also
libraries with programs of others; anonymous is the part of it that is no file's; private is what one process
has for itself. Prints a table; `--json` writes the figures.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histo_ssl.folders.artifacts import write_json, write_text

MB = 2**20
SEED = 0
N_DRAWN = 8  # slides that are drawn; all others are copies of their bytes under other names
SMALL = {"n_slides": N_DRAWN, "size_px": 1024}
LOOK_S = 0.5  # between two looks at the memory


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["slides", "tiles", "opened"])
    parser.add_argument("--n-slides", type=int)
    parser.add_argument("--n-tiles", type=int, default=100_000_000)
    parser.add_argument("--n-processes", type=int, default=2)
    parser.add_argument("--start-method", default="fork")
    parser.add_argument("--folder", type=Path, help="for gigabytes that are deleted afterwards")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.part == "opened":  # one measurement of `tiles`, in a process of its own
        print(json.dumps(opened(given.folder, start_method=given.start_method, n_workers=given.n_processes)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        if given.part == "slides":
            found = slides(Path(folder), n_slides=given.n_slides or 1000, n_processes=given.n_processes)
        else:
            found = tiles(Path(folder), n_slides=given.n_slides or 11_000, n_tiles=given.n_tiles)
    print(pd.DataFrame(found["rows"]).to_string(index=False))
    if given.json:
        write_json(given.json, found)


def drawn(folder: Path) -> list[Path]:
    """A few generated slides, small ones."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from histo_ssl.config.choices import conf_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", [f"data.{name}={value}" for name, value in SMALL.items()])
    instantiate(cfg.data).write(folder, n_processes=2)
    return sorted((folder / "slides").glob("*.tif"))


def slides(folder: Path, *, n_slides: int, n_processes: int) -> dict[str, Any]:
    """Tile many slides by the command that a user gives, and watch what its processes take."""
    originals = drawn(folder / "drawn")
    (folder / "slides").mkdir()
    for i in range(n_slides):
        original = originals[i % len(originals)]
        content = bytearray(original.read_bytes())
        path = folder / "slides" / f"S{i:05}.tif"
        path.write_bytes(
            content + i.to_bytes(8, "little")
        )  # behind what TIFF reads: each file has a stamp of its own
    command = [
        sys.executable,
        "-m",
        "histo_ssl",
        "method=dino",
        "backbone=vit_t",
        "data=slides",
        "task.data=${data}",
    ]
    command = [*command, f"data.root={folder / 'slides'}", f"runs_dir={folder / 'runs'}", "stages=[tile]"]
    command = [*command, f"n_processes={n_processes}", "logger=none"]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        watch = Watch(process.pid, folder / "runs")
        watch.start()
        status = process.wait()
        watch.join()
    seconds = time.monotonic() - started
    assert status == 0, status
    (index,) = (folder / "runs" / "tiles").glob("*/done.json")
    counts = json.loads(index.read_text())["counts"]
    rows = []
    for quarter in range(1, 5):
        looks = [look for look in watch.looks if (quarter - 1) / 4 < look["n"] / n_slides <= quarter / 4]
        row: dict[str, Any] = {"slides done": n_slides * quarter // 4}
        for name in NAMES:
            sizes = [look[name] / MB for look in looks]
            row |= {f"{name}, median": round(float(np.median(sizes))), "most": round(max(sizes))}
        rows.append(row)
    facts = {"counts": counts, "seconds": round(seconds, 1), "slides_per_s": round(n_slides / seconds, 2)}
    print(facts)
    return {**facts, "n_processes": n_processes, "rows": rows}


NAMES = ("all, anonymous MB", "first process, anonymous MB", "all, PSS MB")


class Watch(threading.Thread):
    """Looks at the memory of a process and all below it until it ends."""

    def __init__(self, pid: int, runs: Path) -> None:
        super().__init__(daemon=True)
        self.pid, self.runs = pid, runs
        self.looks: list[dict[str, float]] = []

    def run(self) -> None:
        """Look, as long as there is something to see."""
        while facts := [memory(pid) for pid in (self.pid, *below(self.pid))]:
            if not facts[0]:
                return
            anonymous = [fact.get("Pss_Anon", 0) for fact in facts]
            sizes = sum(anonymous), anonymous[0], sum(fact.get("Pss", 0) for fact in facts)
            n = sum(1 for _ in self.runs.glob("tiles/*/surveys/[!.]*.npz"))
            self.looks.append({"n": n, **dict(zip(NAMES, sizes, strict=True))})
            time.sleep(LOOK_S)


def below(pid: int) -> Iterator[int]:
    """Processes that a process has started, and theirs."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        threads = [p for p in Path(f"/proc/{pid}/task").iterdir() if p.name != str(pid)]
        children += [child for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from below(child)


def memory(pid: int) -> dict[str, int]:
    """Bytes by the kernel's names; nothing of a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return {**found, "Private": found["Private_Clean"] + found["Private_Dirty"]}


def tiles(folder: Path, *, n_slides: int, n_tiles: int) -> dict[str, Any]:
    """Write a long list of tiles and a short one, and train from each in processes of its own."""
    originals = drawn(folder / "drawn")
    rows = []
    for name, n_of_slides, n_of_tiles in (("short", 64, 64 * 10), ("long", n_slides, n_tiles)):
        listed(folder / name, originals, n_slides=n_of_slides, n_tiles=n_of_tiles)
        for start_method in ("fork", "spawn", "forkserver"):
            command = [
                sys.executable,
                __file__,
                "opened",
                "--folder",
                str(folder / name),
                "--start-method",
                start_method,
            ]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append({"tiles": n_of_tiles, "workers": start_method, **json.loads(said.splitlines()[-1])})
            print(rows[-1], flush=True)
        shutil.rmtree(folder / name)
    return {"rows": rows}


def listed(folder: Path, originals: list[Path], *, n_slides: int, n_tiles: int) -> None:
    """A tile folder of so many slides and tiles, in the format that the stage writes."""
    from histo_ssl.folders.cells import csv_text
    from histo_ssl.slides.index import INDEX, STATUS, TILE
    from histo_ssl.slides.reader import Slide

    (folder / "slides").mkdir(parents=True)
    stamps = [Slide(str(path)).stamp for path in originals]
    bounds = np.linspace(0, n_tiles, n_slides + 1).astype(np.int64)
    status = []
    for i in range(n_slides):
        path = folder / "slides" / f"S{i:05}.tif"
        os.link(originals[i % len(originals)], path)
        stamp = stamps[i % len(originals)]
        status.append(
            {
                **{
                    "slide_id": path.stem,
                    "path": str(path),
                    "patient_id": f"P{i // 2:05}",
                    "site": f"site-{i % 30}",
                },
                **{
                    "label": "AB"[i % 2],
                    "split": ("train", "train", "test")[i % 3],
                    "width_px": 1024,
                    "height_px": 1024,
                },
                **{
                    "mpp": 0.5,
                    "n_levels": 3,
                    "n_unwritten": 0,
                    "tissue_mm2": 0.1234,
                    "n_bytes": stamp.n_bytes,
                },
                **{"modified_ns": stamp.modified_ns, "digest": stamp.digest},
                **{"n_tiles": bounds[i + 1] - bounds[i], "seconds": 1.234, "reason": ""},
            }
        )
    write_text(folder / STATUS, csv_text(pd.DataFrame(status)))
    header = {"descr": np.lib.format.dtype_to_descr(TILE), "fortran_order": False, "shape": (n_tiles,)}
    random = np.random.default_rng(SEED)
    with (folder / INDEX).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for i in range(n_slides):
            found = np.zeros(bounds[i + 1] - bounds[i], TILE)
            found["slide"] = i
            found["x"], found["y"] = random.integers(0, 800, (2, len(found)))
            file.write(found.tobytes())
    write_json(
        folder / "source.json", {"kind": "slides", "tile_px": 64, "mpp": 1.0, "stride_px": 64, "classes": []}
    )


def opened(folder: Path, *, start_method: str, n_workers: int) -> dict[str, Any]:
    """Open a list and train from it: seconds, and what this process and its workers take."""
    from histo_ssl.data.datamodule import TileDataModule
    from histo_ssl.data.loading import Loading
    from histo_ssl.data.sources import open_source
    from histo_ssl.methods.base import SSLMethod  # noqa: F401 (imports what a training has imported)

    before = memory(os.getpid())["Anonymous"]
    started = time.monotonic()
    source = open_source(folder)
    open_s = time.monotonic() - started
    data = TileDataModule(
        source=source,
        rows=source.training_rows(),
        views=None,  # type: ignore[arg-type]  # made after loading
        batch_size=32,
        epochs=2,
        accumulate=1,
        seed=SEED,
        loading=Loading(n_workers=n_workers, start_method=start_method, timeout_s=600),
    )
    batches = iter(data.loader(data.sampler(first_step=0, rank=0, n_ranks=1)))
    next(batches)
    first_s = time.monotonic() - started
    for _ in range(min(100, data.steps_per_epoch) - 1):
        next(batches)
    workers = [memory(child.pid) for child in multiprocessing.active_children()]
    return {
        "opened, s": round(open_s, 2),
        "first batch, s": round(first_s, 1),
        "main adds, MB": round((memory(os.getpid())["Anonymous"] - before) / MB),
        "worker, private MB": round(max(worker["Private"] for worker in workers) / MB, 1),
        "worker, PSS MB": round(max(worker["Pss"] for worker in workers) / MB, 1),
        "worker, RSS MB": round(max(worker["Rss"] for worker in workers) / MB, 1),
    }


if __name__ == "__main__":
    main()
