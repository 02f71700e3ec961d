"""Which tiles the slides of a list have. A slide that cannot be read gets a reason, and the others go on."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.artifacts import write_image
from histo_ssl.disk import NotWrittenError
from histo_ssl.progress import Progress
from histo_ssl.slides.grid import Tiling, tile_grid
from histo_ssl.slides.index import TileIndex, write_index
from histo_ssl.slides.overlay import LONG_SIDE_PX, overlay
from histo_ssl.slides.reader import Pixels, Slide
from histo_ssl.slides.tissue import tissue_mask
from histo_ssl.units import area_mm2

OVERLAYS = "overlays"  # folder of the pictures, <slide_id>.png each
MANIFEST = ("slide_id", "path", "patient_id", "site", "label", "split")
UNKNOWN = {"width_px": 0, "height_px": 0, "mpp": float("nan"), "n_levels": 0, "tissue_mm2": 0.0}
FOUND = (*UNKNOWN, "n_tiles", "seconds", "reason")


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found on one slide."""

    xy_level0: NDArray[np.int32]  # (N, 2) left and top edges of its tiles
    mask_hw: NDArray[np.bool_]  # tissue, over the whole scan; (0, 0) for a slide that failed
    status: Mapping[str, str | int | float]  # its row of status.csv; "reason" is "" where all is well


def survey_slides(
    slides: pd.DataFrame,
    *,
    mpps: Sequence[float | None],
    mpp_if_unknown: float | None,
    tiling: Tiling,
    folder: Path,
    n_processes: int,
    executor: Executor | None = None,
) -> TileIndex:
    """Survey all slides of a list and write their index, their status and an overlay each.

    Args:
        slides: a manifest, one row per slide.
        mpps: for each slide the um/px that overrules its file, or None.
        mpp_if_unknown: um/px of slides that neither `mpps` nor their files say, or None.
        tiling: how to cut, and what is tissue.
        folder: receives `index.npy`, `status.csv` and `overlays/`.
        n_processes: slides surveyed at a time where no executor is given; 0 or 1: in this process.
        executor: of a cluster, say.

    Returns:
        The index, its slides in the order of the list. Slides that failed have no tiles and say why.

    Raises:
        ValueError: `tiling` is not for slides.
    """
    tiling.spec  # noqa: B018  # refuses what no slide can be cut by, before the first is opened
    (folder / OVERLAYS).mkdir(parents=True, exist_ok=True)
    rows = [{str(name): str(value) for name, value in row.items()} for row in slides.to_dict("records")]
    work = partial(survey, mpp_if_unknown=mpp_if_unknown, tiling=tiling, overlays=folder / OVERLAYS)
    found: list[Mapping[str, str | int | float]] = []
    xy_level0 = []
    n_workers = min(n_processes, len(rows))
    with (
        _mapping(executor, n_workers) as each,
        Progress("tile", n_items=len(rows), noun="slides") as progress,
    ):
        for result in each(work, rows, mpps):
            found.append(result.status)
            xy_level0.append(result.xy_level0)
            progress.advance(1)
    extra = [name for name in slides.columns if name not in MANIFEST]
    status = pd.DataFrame(found, columns=[*MANIFEST, *FOUND, *extra])
    return write_index(folder, status=status, xy_level0=xy_level0)


def survey(
    row: Mapping[str, str],
    mpp: float | None,
    *,
    mpp_if_unknown: float | None,
    tiling: Tiling,
    overlays: Path,
) -> Survey:
    """Find the tissue and the tiles of one slide, and draw its overlay.

    Args:
        row: of the manifest; `slide_id` and `path` are used, all is passed on.
        mpp: um/px that overrules the file's, or None.
        mpp_if_unknown: um/px where neither `mpp` nor the file says it, or None.
        tiling: how to cut, and what is tissue.
        overlays: folder that receives `<slide_id>.png`.

    Returns:
        Tiles, mask and status. Nothing that is wrong with the slide raises: its status says why it failed.
    """
    started = time.perf_counter()
    facts: dict[str, str | int | float] = dict(UNKNOWN)
    mask_hw, xy_level0 = np.zeros((0, 0), bool), np.zeros((0, 2), np.int32)
    try:
        slide = Slide(row["path"], mpp=mpp, mpp_if_unknown=mpp_if_unknown)
        facts |= _facts(slide)
        thumbnail, mask_hw = _tissue(slide, tiling)
        facts["tissue_mm2"] = round(_area_mm2(slide, mask_hw), 4)
        tiles = tile_grid(mask_hw, tiling.spec, size_level0=slide.size_level0, slide_mpp=slide.mpp)
        _draw(slide, thumbnail, mask_hw, tiles, tiling=tiling, path=overlays / f"{row['slide_id']}.png")
        xy_level0, reason = tiles, _shortcoming(mask_hw, tiles, tiling)
    except NotWrittenError:  # the disk's fault, not the slide's
        raise
    except (MemoryError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    seconds = round(time.perf_counter() - started, 3)
    status = {**row, **facts, "n_tiles": len(xy_level0), "seconds": seconds, "reason": reason}
    return Survey(xy_level0=xy_level0, mask_hw=mask_hw, status=status)


def _facts(slide: Slide) -> dict[str, int | float]:
    width, height = slide.size_level0
    return {"width_px": width, "height_px": height, "mpp": float(slide.mpp), "n_levels": slide.n_levels}


def _tissue(slide: Slide, tiling: Tiling) -> tuple[Pixels, NDArray[np.bool_]]:
    """Thumbnail and tissue mask, (h, w, 3) and (h, w)."""
    assert tiling.tissue is not None  # Tiling.spec sees to it
    thumbnail = slide.thumbnail(tiling.tissue.mpp)
    return thumbnail, tissue_mask(thumbnail, tiling.tissue, max(tiling.tissue.mpp, slide.mpp))


def _area_mm2(slide: Slide, mask_hw: NDArray[np.bool_]) -> float:
    width, height = slide.size_level0
    return float(mask_hw.mean()) * area_mm2(width * height, mpp=slide.mpp)


def _shortcoming(mask_hw: NDArray[np.bool_], xy_level0: NDArray[np.int32], tiling: Tiling) -> str:
    """Why a slide that was read well has no tiles; empty if it has some."""
    if len(xy_level0):
        return ""
    if not mask_hw.any():
        return (
            "no tissue found: nothing on this slide has the colour, density and texture of a stained section"
        )
    return (
        f"no tile of {tiling.size_px} px at {tiling.mpp:g} um/px fits in the scan with "
        f"{tiling.min_tissue:.0%} tissue; lower tiling.size_px or tiling.min_tissue"
    )


def _draw(
    slide: Slide,
    thumbnail: Pixels,
    mask_hw: NDArray[np.bool_],
    xy_level0: NDArray[np.int32],
    *,
    tiling: Tiling,
    path: Path,
) -> None:
    """Write the overlay; a small slide is read again, finer, so that its tiles can be told apart."""
    if max(thumbnail.shape) < LONG_SIDE_PX:
        thumbnail = slide.thumbnail(max(slide.size_level0) * slide.mpp / LONG_SIDE_PX)
    side = tiling.spec.side_level0(slide.mpp)
    picture = overlay(thumbnail, mask_hw, xy_level0, side_level0=side, size_level0=slide.size_level0)
    write_image(path, picture)


@contextmanager
def _mapping(executor: Executor | None, n_processes: int) -> Iterator[Callable[..., Iterable[Survey]]]:
    """A `map` over slides that keeps their order: the executor's, a process pool's, or Python's own."""
    if executor is not None:
        yield executor.map
    elif n_processes <= 1:
        yield map
    else:
        # Spawned, since a fork would copy the locks of the threads that decode and compute here.
        with ProcessPoolExecutor(n_processes, mp_context=get_context("spawn")) as pool:
            yield pool.map
