"""Damaged slides by the thousand: what the reader makes of files of which some bytes are not what they were.

    python benchmarks/mutants.py --n 10000

Mutant i is made from one of the seeds below by one of the mutations below, both drawn from a generator that
i seeds, so that any of them can be made again: `--first 4711 --n 1`. Each is surveyed and then read tile by
tile, in child processes that can be ended. A tile that differs from the intact slide's, without an error, is
counted by what was touched: the bytes of the stored tiles under it, the metadata, or neither.
"""

import argparse
import json
import logging
import os
import re
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import tifffile
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from numpy.random import Generator
from numpy.typing import NDArray

from histo_ssl.config.choices import conf_dir
from histo_ssl.executors.base import Ended, Processes
from histo_ssl.executors.processes import each
from histo_ssl.slides.grid import TileSpec
from histo_ssl.slides.reader import Slide
from histo_ssl.slides.segments import Limits
from histo_ssl.slides.survey import Recipe, survey
from histo_ssl.units import MicronsPerPx, TilePx

MPP = 0.5
TILE_PX = 80
REFUSED = (ValueError, FileNotFoundError, OSError, MemoryError)  # all else is a bug of ours
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "slides" / "CMU-1-Small-Region.svs"
SHARE_OF_REAL = 0.02  # of the mutants; it is surveyed for a second, the small seeds for some hundredths
FIELDS = (1, 2, 4, 8)  # bytes of the numbers in a TIFF
EXTREMES = (0, 1, 2, 255, 65_535, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1)

Bytes = bytearray
Mutation = Callable[[Bytes, NDArray[np.int64], Generator], None]


# --- seeds -------------------------------------------------------------------------------------------------


def picture(w: int, h: int) -> NDArray[np.uint8]:
    """Pink texture with glass around it, so that there is something to survey: (h, w, 3)."""
    random = np.random.default_rng(0)
    pixels = random.normal(242, 0.7, (h, w, 3))
    inner = slice(h // 16, -h // 16), slice(w // 16, -w // 16)
    shape = pixels[inner].shape
    grain = random.random((shape[0] // 8 + 1, shape[1] // 8 + 1, 1)).repeat(8, axis=0).repeat(8, axis=1)
    pixels[inner] = np.array([225, 170, 205]) - grain[: shape[0], : shape[1]] * np.array([60, 80, 50])
    return pixels.round().clip(0, 255).astype(np.uint8)


def write_seed(path: Path, *, bigtiff: bool = False, byteorder: str = "<", **options: object) -> None:
    """A slide of 320 x 280 px with a level of half its size."""
    options = {"tile": (64, 64), "photometric": "rgb", "metadata": None, **options}
    options |= {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    pixels = picture(320, 280)
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as tiff:
        tiff.write(pixels, **options)
        tiff.write(pixels[::2, ::2], subfiletype=1, **options)


def write_aperio(path: Path) -> None:
    """The tiles of a corner of a real Aperio slide, byte for byte: RGB JPEGs with shared tables."""
    with tifffile.TiffFile(REAL) as tiff, tifffile.TiffWriter(path) as cut:
        page = tiff.pages.first
        columns = -(-page.imagewidth // page.tilewidth)
        wanted = [row * columns + column for row in range(5, 8) for column in range(3, 6)]
        segments = []
        for i in wanted:
            tiff.filehandle.seek(page.dataoffsets[i])
            segments.append(tiff.filehandle.read(page.databytecounts[i]))
        cut.write(
            iter(segments),
            shape=(3 * page.tilelength, 3 * page.tilewidth, 3),
            dtype=np.uint8,
            tile=(page.tilelength, page.tilewidth),
            compression="jpeg",
            jpegtables=page.jpegtables,
            photometric="rgb",
            description=page.description,
            metadata=None,
        )


SEEDS: dict[str, Callable[[Path], None]] = {
    "jpeg": partial(write_seed, compression="jpeg", compressionargs={"level": 85}),
    "jpeg_rgb": partial(
        write_seed, compression="jpeg", compressionargs={"level": 85, "outcolorspace": "rgb"}
    ),
    "jpeg2000": partial(write_seed, compression="APERIO_JP2000_RGB", compressionargs={"level": 40}),
    "deflate": partial(write_seed, compression="deflate", predictor=True),
    "lzw": partial(write_seed, compression="lzw"),
    "lzw_strips": partial(write_seed, compression="lzw", tile=None, rowsperstrip=64),
    "raw_bigtiff": partial(write_seed, bigtiff=True),
    "jpeg_big_endian": partial(write_seed, compression="jpeg", byteorder=">"),
    "aperio": write_aperio,
}


@dataclass(frozen=True)
class Seed:
    """An intact slide: its bytes, where its stored tiles lie, and its tiles as they should be read."""

    content: bytes
    segments: NDArray[
        np.int64
    ]  # (n, 7): level, left, top, right, bottom at level 0, start and end in the file
    metadata: NDArray[np.int64]  # positions of all other bytes
    tiles: dict[tuple[int, int, float], NDArray[np.uint8]]  # by x, y at level 0 and um/px


@cache
def seed(path: Path) -> Seed:
    """What is known of an intact slide."""
    rows = []
    with tifffile.TiffFile(path) as tiff:
        levels = tiff.series[0].levels
        for i, level in enumerate(levels):
            page = level[0]
            h, w, scale = *page.chunks[:2], levels[0].shape[1] / level.shape[1]
            for index, (start, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
                row, column = divmod(index, -(-page.imagewidth // w))
                box = (column * w * scale, row * h * scale, (column + 1) * w * scale, (row + 1) * h * scale)
                rows.append((i, *box, start, start + size))
    content, segments = path.read_bytes(), np.array(rows).round().astype(np.int64)
    is_metadata = np.ones(len(content), bool)
    for start, end in segments[:, -2:]:
        is_metadata[start:end] = False
    return Seed(content, segments, is_metadata.nonzero()[0], tiles(path, places(path)))


def places(path: Path) -> list[tuple[int, int, float]]:
    """Where tiles are read: all of a small slide, some of a large one; at its own um/px and at twice that."""
    w, h = Slide(str(path), mpp=MPP).size_level0
    step = max(TILE_PX, round(max(w, h) / 6 / TILE_PX) * TILE_PX)
    return [(x, y, mpp) for mpp in (MPP, 2 * MPP) for y in range(0, h, step) for x in range(0, w, step)]


def tiles(path: Path, wanted: list[tuple[int, int, float]]) -> dict[tuple[int, int, float], object]:
    """The tiles at some places, or the errors in their stead."""
    slide, read = Slide(str(path), mpp=MPP), {}
    for x, y, mpp in wanted:
        spec = TileSpec(
            size_px=TilePx(TILE_PX), mpp=MicronsPerPx(mpp), stride_px=TilePx(TILE_PX), min_tissue=0
        )
        try:
            read[x, y, mpp] = slide.read((x, y), spec)
        except REFUSED as error:
            read[x, y, mpp] = error
    return read


# --- mutations ---------------------------------------------------------------------------------------------


def flip_bits(content: Bytes, _: NDArray[np.int64], random: Generator) -> None:
    """One to eight bits, anywhere."""
    for position in random.integers(len(content), size=random.integers(1, 9)):
        content[position] ^= 1 << int(random.integers(8))


def flip_metadata(content: Bytes, metadata: NDArray[np.int64], random: Generator) -> None:
    """One to four bits of header, tags or tables."""
    for position in random.choice(metadata, size=random.integers(1, 5)):
        content[position] ^= 1 << int(random.integers(8))


def change_number(content: Bytes, metadata: NDArray[np.int64], random: Generator) -> None:
    """A number of the metadata: an extreme, one more or less, or another number of the file."""
    size = int(random.choice(FIELDS))
    at = int(random.choice(metadata)) // 2 * 2
    old = int.from_bytes(content[at : at + size], "little")
    other = int(random.choice(metadata))
    new = random.choice([*EXTREMES, old + 1, max(0, old - 1), old * 2, old // 2, len(content)]) % 2 ** (
        8 * size
    )
    copied = int.from_bytes(content[other : other + size], "little")
    content[at : at + size] = int(copied if random.random() < 0.2 else new).to_bytes(size, "little")


def truncate(content: Bytes, _: NDArray[np.int64], random: Generator) -> None:
    """The end is missing."""
    del content[int(random.integers(len(content))) :]


def splice(content: Bytes, _: NDArray[np.int64], random: Generator) -> None:
    """A stretch is copied to another place, over what was there or moving what follows."""
    size = int(2 ** random.uniform(0, np.log2(len(content) / 2)))
    start, to = (int(place) for place in random.integers(len(content) - size, size=2))
    content[to : to + (size if random.random() < 0.7 else 0)] = content[start : start + size]


def zero_run(content: Bytes, _: NDArray[np.int64], random: Generator) -> None:
    """A stretch was never written to the disk, or is noise."""
    size = int(2 ** random.uniform(0, np.log2(len(content) / 2)))
    start = int(random.integers(len(content) - size))
    content[start : start + size] = bytes(size) if random.random() < 0.7 else random.bytes(size)


MUTATIONS: tuple[Mutation, ...] = (flip_bits, flip_metadata, change_number, truncate, splice, zero_run)


# --- what becomes of one -----------------------------------------------------------------------------------


def judge(number: int, *, folder: Path, recipe: Recipe) -> dict[str, object]:
    """Make mutant `number`, survey it, read its tiles, and count what came out."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("error")
    random = np.random.default_rng(number)
    seeds = sorted((folder / "seeds").iterdir())
    use_real = REAL.is_file() and random.random() < SHARE_OF_REAL
    origin = REAL if use_real else seeds[int(random.integers(len(seeds)))]
    intact = seed(origin)
    mutation = MUTATIONS[int(random.integers(len(MUTATIONS)))]
    content = bytearray(intact.content)
    mutation(content, intact.metadata, random)
    path = folder / f"{os.getpid()}{origin.suffix}"
    path.write_bytes(content)
    started = time.perf_counter()
    found: dict[str, object] = {"number": number, "seed": origin.stem, "mutation": mutation.__name__}
    try:
        row = {"slide_id": str(os.getpid()), "path": str(path)}
        found["reason"] = survey(row, MPP, recipe=recipe, overlays=folder).status["reason"]
        found |= compared(tiles(path, list(intact.tiles)), intact, content)
    except Exception as error:  # noqa: BLE001 (this is what is looked for)
        found["bug"] = f"{type(error).__name__}: {error}"
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found | {"seconds": time.perf_counter() - started, "peak_mb": peak_mb}


def compared(read: dict[tuple[int, int, float], object], intact: Seed, content: Bytes) -> dict[str, int]:
    """Numbers of tiles that are equal, refused, or differ, by what was touched."""
    before, after = (np.frombuffer(data, np.uint8) for data in (intact.content, bytes(content)))
    n = min(len(before), len(after))
    is_touched = np.ones(len(before), bool)
    is_touched[:n] = before[:n] != after[:n]
    touched = np.array([is_touched[start:end].any() for start, end in intact.segments[:, -2:]])
    counts: Counter[str] = Counter()
    for (x, y, mpp), tile in read.items():
        if isinstance(tile, Exception):
            counts["refused"] += 1
        elif np.array_equal(tile, intact.tiles[x, y, mpp]):
            counts["equal"] += 1
        elif is_touched[intact.metadata].any():
            counts["differ, metadata touched"] += 1
        else:
            reach = 4 * mpp / MPP  # the resampling filter sees so far beyond the tile
            side = TILE_PX * mpp / MPP + reach
            _, left, top, right, bottom, _, _ = intact.segments.T
            is_under = (left < x + side) & (right > x - reach) & (top < y + side) & (bottom > y - reach)
            counts["differ, tile's bytes touched" if touched[is_under].any() else "differ, untouched"] += 1
    return dict(counts)


# --- all of them -------------------------------------------------------------------------------------------


def results(first: int, n: int, *, folder: Path, processes: Processes) -> Iterator[dict[str, object]]:
    """What became of the mutants of some numbers."""
    (folder / "seeds").mkdir()
    for name, write in SEEDS.items():
        if name != "aperio" or REAL.is_file():
            write(folder / "seeds" / f"{name}{'.svs' if name == 'aperio' else '.tif'}")
    with initialize_config_dir(str(conf_dir()), version_base=None):
        cfg = compose("config", overrides=["data=slides", "tiling=small"])
    limits = Limits(slide_px=1e9 * cfg.data.max_gigapixels, segment_px=1e6 * cfg.data.max_segment_megapixels)
    recipe = Recipe(tiling=instantiate(cfg.tiling), limits=limits, mpp_if_unknown=None)
    work = partial(judge, folder=folder, recipe=recipe)
    for result in each(work, range(first, first + n), processes):
        yield {"number": result.item, "ended": result.reason} if isinstance(result, Ended) else result


def summary(found: list[dict[str, object]]) -> dict[str, object]:
    """Figures of all mutants together."""
    alive = [one for one in found if "ended" not in one]
    tile_counts: Counter[str] = Counter()
    by_seed: dict[str, Counter[str]] = {}
    for one in alive:
        counts = {key: n for key, n in one.items() if key in ("equal", "refused") or key.startswith("differ")}
        tile_counts.update(counts)
        by_seed.setdefault(str(one["seed"]), Counter()).update(counts)
    reasons = Counter(kind_of(str(one.get("reason", ""))) for one in alive)
    return {
        "mutants": len(found),
        "surveyed well": reasons.pop("", 0),
        "refused by the survey": dict(reasons.most_common()),
        "bugs": [one for one in alive if "bug" in one],
        "crashes": [one for one in found if "crashed" in str(one.get("ended"))],
        "hangs": [one for one in found if "did not finish" in str(one.get("ended"))],
        "peak_mb": round(max((float(str(one["peak_mb"])) for one in alive), default=0)),
        "slowest_s": round(max((float(str(one["seconds"])) for one in alive), default=0), 2),
        "tiles": dict(tile_counts),
        "tiles by seed": {name: dict(counts) for name, counts in sorted(by_seed.items())},
        "untouched and yet different": [one["number"] for one in alive if one.get("differ, untouched")],
    }


def kind_of(reason: str) -> str:
    """A reason without what differs from slide to slide."""
    text = re.sub(r"^\S+: (cannot be read as a slide: )?", "", reason)
    return re.sub(r"\d[\d.,e+]*|0x\w+|'.*?'|b\".*\"", "N", text)[:70]


def main() -> None:
    """Print the figures as JSON; exit status 1 for a bug, crash, hang, or wrong pixel of intact bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--timeout-s", type=float, default=20)
    parser.add_argument("--memory-gb", type=float, default=1, help="beyond what a process takes at rest")
    parser.add_argument("--each", action="store_true", help="print every mutant too")
    args = parser.parse_args()
    started, found = time.monotonic(), []
    processes = Processes(n=args.processes, timeout_s=args.timeout_s, memory_gb=args.memory_gb)
    with tempfile.TemporaryDirectory() as folder:
        for one in results(args.first, args.n, folder=Path(folder), processes=processes):
            found.append(one)
            if args.each:
                print(json.dumps(one))
    figures = summary(found) | {"minutes": round((time.monotonic() - started) / 60, 2)}
    print(json.dumps(figures, indent=2))
    wrong = ("bugs", "crashes", "hangs", "untouched and yet different")
    sys.exit(any(figures[key] for key in wrong))


if __name__ == "__main__":
    main()
