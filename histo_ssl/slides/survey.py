"""Which tiles the slides of a list have. A slide that cannot be read gets a reason, and the others go on."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from histo_ssl.executors.base import Ended, Executor, Processes
from histo_ssl.executors.processes import Local
from histo_ssl.folders.artifacts import write_image
from histo_ssl.progress import Progress
from histo_ssl.slides.grid import Tiling, tile_grid
from histo_ssl.slides.index import TileIndex, write_index
from histo_ssl.slides.ledger import Ledger, Survey
from histo_ssl.slides.overlay import LONG_SIDE_PX, overlay
from histo_ssl.slides.reader import Pixels, Slide
from histo_ssl.slides.segments import Limits
from histo_ssl.slides.stores import Store, is_remote, store_for
from histo_ssl.slides.tissue import tissue_mask
from histo_ssl.units import area_mm2

log = logging.getLogger(__name__)

OVERLAYS = "overlays"  # folder of the pictures, <slide_id>.png each
MANIFEST = ("slide_id", "path", "patient_id", "site", "label", "split")
UNKNOWN: Mapping[str, str | int | float] = {
    "width_px": 0,
    "height_px": 0,
    "mpp": float("nan"),
    "n_levels": 0,
    "n_unwritten": 0,
    "tissue_mm2": 0.0,
    "n_bytes": 0,
    "modified_ns": 0,
    "digest": "",
}
FOUND = (*UNKNOWN, "n_tiles", "seconds", "reason")
NO_TILES = np.zeros((0, 2), np.int32)

Slot = tuple[Mapping[str, str], float | None]  # a row of the manifest, and the um/px that overrules its file


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a survey depends on, beside the slide and what is said of it."""

    tiling: Tiling  # how to cut, and what is tissue
    limits: Limits  # sizes that a slide must keep
    mpp_if_unknown: float | None  # um/px of slides of which neither a person nor the file says it


def survey_slides(
    slides: pd.DataFrame,
    *,
    mpps: Sequence[float | None],
    recipe: Recipe,
    folder: Path,
    processes: Processes,
    executor: Executor | None = None,
) -> TileIndex:
    """Survey all slides of a list and write their index, their status and an overlay each.

    Slides that an interrupted call surveyed in the same folder are not read again, unless they changed.

    Args:
        slides: a manifest, one row per slide.
        mpps: for each slide the um/px that overrules its file, or None.
        recipe: how.
        folder: receives `index.npy`, `status.csv`, `overlays/` and, to be removed by `forget`, `surveys/`.
        processes: how many at a time, and what each slide may take.
        executor: who does it; None: processes of this machine, and each slide is tried once.

    Returns:
        The index, its slides in the order of the list. Slides that failed have no tiles and say why.

    Raises:
        ValueError: `recipe.tiling` is not for slides.
    """
    recipe.tiling.spec  # noqa: B018  # refuses what no slide can be cut by, before the first is opened
    (folder / OVERLAYS).mkdir(parents=True, exist_ok=True)
    rows = [{str(name): str(value) for name, value in row.items()} for row in slides.to_dict("records")]
    slots: list[Slot] = list(zip(rows, mpps, strict=True))
    folder = folder.resolve()  # others that write there may stand elsewhere
    ledger = Ledger(folder, made_with=asdict(recipe))
    found = {i: survey for i, slot in enumerate(slots) if (survey := ledger.find(*slot)) is not None}
    if found:
        log.info("tile: %d of %d slides were surveyed before the interruption", len(found), len(slots))
    left = [i for i in range(len(slots)) if i not in found]
    store = store_for(row["path"] for row, _ in slots)
    work = partial(_survey_and_keep, recipe=recipe, overlays=folder / OVERLAYS, ledger=ledger, store=store)
    results = (executor or Local(retries=0)).each(work, [slots[i] for i in left], processes, folder=folder)
    with Progress("tile", n_items=len(slots), n_before=len(found), noun="slides") as progress:
        for place, result in results:
            found[left[place]] = _without_result(result) if isinstance(result, Ended) else result
            progress.advance(1)
    return _write(slides, [found[i] for i in range(len(slots))], folder=folder)


def survey(
    row: Mapping[str, str],
    mpp: float | None,
    *,
    recipe: Recipe,
    overlays: Path,
    store: Store | None = None,
) -> Survey:
    """Find the tissue and the tiles of one slide, and draw its overlay.

    Args:
        row: of the manifest; `slide_id` and `path` are used, all is passed on.
        mpp: um/px that overrules the file's, or None.
        recipe: how.
        overlays: folder that receives `<slide_id>.png`.
        store: how to read it if it is remote; None as this process was told.

    Returns:
        Tiles and status. Nothing that is wrong with the slide raises: its status says why it failed.

    Raises:
        OSError: the overlay cannot be written.
    """
    started = time.perf_counter()
    facts: dict[str, str | int | float] = dict(UNKNOWN)
    xy_level0, tiling = NO_TILES, recipe.tiling
    picture: Image.Image | None = None
    try:
        slide = Slide(row["path"], mpp=mpp, mpp_if_unknown=recipe.mpp_if_unknown, store=store)
        facts |= asdict(slide.stamp)
        facts["n_unwritten"] = slide.n_unwritten(recipe.limits)
        facts |= _facts(slide)
        thumbnail, mask_hw = _tissue(slide, tiling)
        facts["tissue_mm2"] = round(_area_mm2(slide, mask_hw), 4)
        tiles = tile_grid(mask_hw, tiling.spec, size_level0=slide.size_level0, slide_mpp=slide.mpp)
        picture = _picture(slide, thumbnail, mask_hw, tiles, tiling=tiling)
        xy_level0, reason = tiles, _shortcoming(mask_hw, tiles, tiling)
    except MemoryError:
        reason = f"{row['path']}: reading it takes more memory than there is, or data.max_memory_gb allows"
    except (FileNotFoundError, ValueError) as error:
        reason = " ".join(str(error).split())
    if picture is not None:
        write_image(overlays / f"{row['slide_id']}.png", picture)
    seconds = round(time.perf_counter() - started, 3)
    status = {**row, **facts, "n_tiles": len(xy_level0), "seconds": seconds, "reason": reason}
    return Survey(xy_level0=xy_level0, status=status, is_read=picture is not None)


def _survey_and_keep(
    slot: Slot, *, recipe: Recipe, overlays: Path, ledger: Ledger, store: Store | None
) -> Survey:
    """The survey of a slide, which is on the disk before it counts: a worker lost since may have done it."""
    if (kept := ledger.find(*slot)) is not None:
        return kept
    found = survey(*slot, recipe=recipe, overlays=overlays, store=store)
    ledger.keep(*slot, found)
    return found


def _without_result(ended: Ended[Slot]) -> Survey:
    row, _ = ended.item
    nothing: dict[str, str | int | float] = {
        "n_tiles": 0,
        "seconds": 0.0,
        "reason": f"{row['path']}: {ended.reason}",
    }
    return Survey(xy_level0=NO_TILES, status={**row, **UNKNOWN, **nothing}, is_read=False)


def _write(slides: pd.DataFrame, surveys: Sequence[Survey], *, folder: Path) -> TileIndex:
    extra = [name for name in slides.columns if name not in MANIFEST]
    columns = [*MANIFEST, *FOUND, *extra]
    status = pd.DataFrame([survey.status for survey in surveys], columns=columns)
    return write_index(folder, status=status, xy_level0=[survey.xy_level0 for survey in surveys])


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


def _picture(
    slide: Slide,
    thumbnail: Pixels,
    mask_hw: NDArray[np.bool_],
    xy_level0: NDArray[np.int32],
    *,
    tiling: Tiling,
) -> Image.Image:
    """The overlay; a small slide is read again, finer, so that its tiles can be told apart.

    Of a remote one no other level is fetched for that.
    """
    if max(thumbnail.shape) < LONG_SIDE_PX:
        assert tiling.tissue is not None
        fetched_mpp = slide.level_mpp(tiling.tissue.mpp) if is_remote(slide.path) else 0.0
        thumbnail = slide.thumbnail(max(fetched_mpp, max(slide.size_level0) * slide.mpp / LONG_SIDE_PX))
    side = tiling.spec.side_level0(slide.mpp)
    return overlay(thumbnail, mask_hw, xy_level0, side_level0=side, size_level0=slide.size_level0)
