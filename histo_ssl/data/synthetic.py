"""Generated slides of which everything is known: tissue at every place, nuclei, class, patient, site.

Real files: pyramidal, JPEG-tiled TIFFs with um/px, read like any other slide. The class of a slide lies in
how its tumour cells are ordered, in nests (IDC) or in single files (ILC), and not in their colour.
"""

import logging
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from histo_ssl.data.slides import SlideData
from histo_ssl.drawing.layout import SlideClass, Tissue, draw_layout, resized
from histo_ssl.drawing.painting import paint
from histo_ssl.drawing.scanning import fold, pen_mark, scan, site_stain
from histo_ssl.executors.base import Executor
from histo_ssl.executors.processes import forked_by_server
from histo_ssl.folders import artifacts
from histo_ssl.parallel.watch import end_with_parent
from histo_ssl.slides.grid import Tiling

log = logging.getLogger(__name__)

MANIFEST, SLIDES, ANNOTATIONS, NUCLEI = "manifest.csv", "slides", "annotations", "nuclei"
LEVEL_FACTOR = 4  # between one level of the pyramid and the next, as scanners choose it
TIFF_TILE_PX = 256
SITE_STREAM, SLIDE_STREAM = 1, 2  # one random stream per site and per slide, whatever else is drawn
UNDER_PEN = 0.3  # of a pen's ink: as much hides the tissue
GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, fall evenly and never in step with classes or sites


@dataclass(frozen=True, kw_only=True)
class Case:
    """One slide to be drawn, and what will be known of it."""

    number: int
    slide_id: str
    patient_id: str
    site: int
    label: SlideClass
    split: str
    has_pen: bool
    has_fold: bool


@dataclass(frozen=True, kw_only=True)
class SyntheticSlides:
    """A data set that draws its own slides (`conf/data/synthetic.yaml`).

    Patients take classes and sites in turn, and slides take patients in turn, so that the n-th slide is the
    same however many there are.

    Args:
        n_slides: how many to draw.
        n_patients: how many patients share them; a multiple of 2 * n_sites balances classes and sites.
        n_sites: how many sites stain them, each in its own way.
        test_share: share of the patients of each class and site that are kept for testing, 0-1.
        size_px: side of a slide, in level-0 px.
        mpp: um per level-0 px.
        region_um: mean side of a region of one tissue.
        stain_shift: how much sites differ in colour; 0: not at all, 1: as sites usually do.
        pen_share: share of the slides with a pen mark.
        fold_share: share of the slides with a fold.
        jpeg_quality: 1-100.
        seed: equal seeds give equal bytes.
        min_label_share: share of a tile that its commonest tissue must cover to be the tile's label.
        pack: the pretrain stage's; slides and tiles are the same with it.
    """

    n_slides: int
    n_patients: int
    n_sites: int
    test_share: float
    size_px: int
    mpp: float
    region_um: float
    stain_shift: float
    pen_share: float
    fold_share: float
    jpeg_quality: int
    seed: int
    min_label_share: float
    pack: bool = False

    def __post_init__(self) -> None:
        if min(self.n_slides, self.n_patients, self.n_sites) < 1:
            raise ValueError(
                f"data.n_slides={self.n_slides}, data.n_patients={self.n_patients}, "
                f"data.n_sites={self.n_sites}: each must be 1 or more"
            )
        if not 0 <= self.test_share < 1:
            raise ValueError(f"data.test_share={self.test_share}: must be 0 or more and below 1")

    def listing(self) -> dict[str, Any]:
        """Nothing: the values above determine every byte."""
        return {}

    def tile(
        self,
        tiling: Tiling,
        *,
        folder: Path,
        home: Path,
        n_processes: int,
        slide_timeout_s: float,
        executor: Executor | None = None,
    ) -> dict[str, int]:
        """Draw the slides, unless they were drawn before, and write their tile index into `folder`."""
        config = {name: value for name, value in asdict(self).items() if name != "pack"}
        slides = artifacts.complete(
            home / f"synthetic-{artifacts.fingerprint(config)}",
            build=partial(self.write, n_processes=n_processes),
            label="generated slides",
            config=config,
        )
        data = SlideData(
            root=None,
            manifest=str(slides / MANIFEST),
            mpp_override=None,
            max_failed=0.0,
            max_gigapixels=math.inf,  # our own files need no bounds
            max_segment_megapixels=math.inf,
            max_memory_gb=math.inf,
            annotations=str(slides / ANNOTATIONS),
            min_label_share=self.min_label_share,
        )
        return data.tile(
            tiling,
            folder=folder,
            home=home,
            n_processes=n_processes,
            slide_timeout_s=slide_timeout_s,
            executor=executor,
        )

    def write(self, folder: Path, *, n_processes: int) -> dict[str, int]:
        """Write slides, manifest and truth into `folder`; the counts of both come back.

        `slides/<id>.tif`, `manifest.csv`, `annotations/<id>.png` (tissue at 4 um/px) with `classes.json`,
        `nuclei/<id>.png` (255 on nuclei, at the slide's resolution).
        """
        for name in (SLIDES, ANNOTATIONS, NUCLEI):
            (folder / name).mkdir(parents=True, exist_ok=True)
        cases = list(self.cases())
        log.info("generated slides: drawing %d of %d px", len(cases), self.size_px)
        draw = partial(write_slide, folder=folder, data=self)
        if n_processes <= 1:
            n_nuclei_px = sum(map(draw, cases))
        else:
            server = forked_by_server()
            with ProcessPoolExecutor(n_processes, mp_context=server, initializer=end_with_parent) as pool:
                n_nuclei_px = sum(pool.map(draw, cases))
        names = {str(int(tissue)): tissue.name.lower() for tissue in Tissue if tissue is not Tissue.GLASS}
        artifacts.write_json(folder / ANNOTATIONS / "classes.json", names)
        artifacts.write_text(folder / MANIFEST, manifest(cases).to_csv(index=False))
        return {"slides": len(cases), "nuclei_px": n_nuclei_px}

    def cases(self) -> Iterator[Case]:
        """What is known of each slide, in the order of the manifest."""
        n_groups = len(SlideClass) * self.n_sites
        for number in range(self.n_slides):
            visit, patient = divmod(number, self.n_patients)
            rank, group = divmod(patient, n_groups)  # the patient's rank among those of its class and site
            site, label = divmod(group, len(SlideClass))
            n_alike = len(range(group, self.n_patients, n_groups))
            yield Case(
                number=number,
                slide_id=f"P{patient + 1:02d}S{visit + 1}",
                patient_id=f"P{patient + 1:02d}",
                site=site,
                label=list(SlideClass)[label],
                split="test" if rank >= n_alike - round(self.test_share * n_alike) else "train",
                has_pen=number * GOLDEN % 1 < self.pen_share,
                has_fold=(number * GOLDEN + 0.5) % 1 < self.fold_share,
            )


def manifest(cases: list[Case]) -> pd.DataFrame:
    """The slide list: one row per slide, paths relative to the list's own folder."""
    return pd.DataFrame(
        {
            "slide_id": [case.slide_id for case in cases],
            "path": [f"{SLIDES}/{case.slide_id}.tif" for case in cases],
            "patient_id": [case.patient_id for case in cases],
            "site": [f"site-{case.site + 1}" for case in cases],
            "label": [case.label.name for case in cases],
            "split": [case.split for case in cases],
        }
    )


def write_slide(case: Case, *, folder: Path, data: SyntheticSlides) -> int:
    """Draw one slide and write it with its truth; the number of its px on nuclei comes back."""
    with threadpool_limits(limits=1):  # slides run in parallel already, and BLAS's threads wait by spinning
        return _write_slide(case, folder=folder, data=data)


def _write_slide(case: Case, *, folder: Path, data: SyntheticSlides) -> int:
    rng = np.random.default_rng([data.seed, SLIDE_STREAM, case.number])
    site_rng = np.random.default_rng([data.seed, SITE_STREAM, case.site])
    side_um = data.size_px * data.mpp
    layout = draw_layout(rng, side_um=side_um, region_um=data.region_um, tumour=case.label.value)
    painting = paint(layout, mpp=data.mpp, rng=rng)
    if case.has_fold:
        painting = fold(painting, rng, mpp=data.mpp)
    ink = pen_mark(rng, side_px=data.size_px, mpp=data.mpp) if case.has_pen else None
    stain = site_stain(site_rng, shift=data.stain_shift).batch(rng)
    rgb = scan(painting, stain, rng, ink_HW=ink)
    labels, nuclei = layout.labels_HW, painting.nuclei_HW
    if ink is not None:  # what lies under the pen can't be seen, so nothing is claimed of it
        labels = np.where(resized(ink, labels.shape) < UNDER_PEN, labels, np.uint8(Tissue.GLASS))
        nuclei = nuclei & (ink < UNDER_PEN)
    with artifacts.atomic_path(folder / SLIDES / f"{case.slide_id}.tif") as path:
        write_pyramid(path, rgb, mpp=data.mpp, jpeg_quality=data.jpeg_quality)
    pictures = {ANNOTATIONS: labels, NUCLEI: nuclei.astype(np.uint8) * 255}
    for name, pixels in pictures.items():
        artifacts.write_image(folder / name / f"{case.slide_id}.png", Image.fromarray(pixels))
    return int(nuclei.sum())


def write_pyramid(path: Path, rgb: NDArray[np.uint8], *, mpp: float, jpeg_quality: int) -> None:
    """Write an image (H, W, 3) as a TIFF of JPEG tiles with levels LEVEL_FACTOR apart and um/px in its tags.

    Levels are reduced pages in a row, not sub-images, so that libtiff-based readers see them too.
    """
    level, level_mpp = Image.fromarray(rgb), mpp
    with tifffile.TiffWriter(path) as tiff:
        while True:
            tiff.write(
                np.asarray(level),
                subfiletype=0 if level_mpp == mpp else 1,
                photometric="rgb",
                tile=(TIFF_TILE_PX, TIFF_TILE_PX),
                compression="jpeg",
                compressionargs={"level": jpeg_quality},
                resolution=(1e4 / level_mpp, 1e4 / level_mpp),  # px per cm
                resolutionunit="CENTIMETER",
                software="histo_ssl",
                metadata=None,
                maxworkers=1,  # slides run in parallel already
            )
            if min(level.size) <= TIFF_TILE_PX:
                return
            level, level_mpp = level.reduce(LEVEL_FACTOR), level_mpp * LEVEL_FACTOR
