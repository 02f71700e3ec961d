import json
from collections import Counter
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
import yaml
from hydra.utils import instantiate
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2hed
from tiffslide import TiffSlide

from histo_ssl.data.sources import open_source
from histo_ssl.data.synthetic import SLIDE_STREAM, SyntheticSlides
from histo_ssl.drawing.layout import SlideClass, Tissue, draw_layout
from histo_ssl.slides.grid import Tiling

YAML = Path(__file__).resolve().parents[2] / "conf" / "data" / "synthetic.yaml"
SMALL = {"n_slides": 2, "size_px": 600, "region_um": 75, "pen_share": 0.5, "fold_share": 0.0}


def slides(**changes) -> SyntheticSlides:
    values = yaml.safe_load(YAML.read_text())
    values.pop("_target_")
    return SyntheticSlides(**{**values, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides of 300 um, the first with a pen mark."""
    folder = tmp_path_factory.mktemp("synthetic")
    assert slides(**SMALL).write(folder, n_processes=1)["slides"] == 2
    return folder


@pytest.fixture(scope="module")
def second(folder: Path) -> np.ndarray:
    """The slide without a pen mark, as tiffslide reads it."""
    with TiffSlide(folder / "slides" / "P02S1.tif") as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]


def test_the_same_seed_gives_the_same_bytes_and_a_slide_does_not_depend_on_their_number(
    folder: Path, tmp_path: Path
) -> None:
    slides(**{**SMALL, "n_slides": 1}).write(tmp_path, n_processes=1)
    once, again = contents(folder), contents(tmp_path)
    assert set(again) - {"manifest.csv"} == {
        "slides/P01S1.tif",
        "annotations/P01S1.png",
        "annotations/classes.json",
        "nuclei/P01S1.png",
    }
    assert all(once[name] == again[name] for name in again if name != "manifest.csv")


@pytest.mark.slow
def test_the_number_of_processes_changes_no_byte(folder: Path, tmp_path: Path) -> None:
    slides(**SMALL).write(tmp_path, n_processes=2)
    assert contents(tmp_path) == contents(folder)


def test_another_seed_gives_another_slide(folder: Path, tmp_path: Path) -> None:
    slides(**{**SMALL, "n_slides": 1, "seed": 2}).write(tmp_path, n_processes=1)
    with (
        TiffSlide(tmp_path / "slides" / "P01S1.tif") as other,
        TiffSlide(folder / "slides" / "P01S1.tif") as one,
    ):
        difference = np.asarray(one.read_region((0, 0), 0, (600, 600))).astype(float)
        difference -= np.asarray(other.read_region((0, 0), 0, (600, 600)))
    assert np.abs(difference).mean() > 10


@pytest.mark.parametrize("library", [TiffSlide, openslide.OpenSlide])
def test_both_slide_readers_find_the_resolution_and_the_levels(folder: Path, library) -> None:
    with library(str(folder / "slides" / "P01S1.tif")) as slide:
        name = "tiffslide" if library is TiffSlide else "openslide"
        assert float(slide.properties[f"{name}.mpp-x"]) == pytest.approx(0.5, rel=1e-6)
        assert float(slide.properties[f"{name}.mpp-y"]) == pytest.approx(0.5, rel=1e-6)
        assert slide.level_dimensions == ((600, 600), (150, 150))
        assert slide.level_downsamples == pytest.approx((1, 4))
        fine = np.asarray(slide.read_region((0, 0), 0, (600, 600)))[..., :3].astype(float)
        coarse = np.asarray(slide.read_region((0, 0), 1, (150, 150)))[..., :3]
    means = fine.reshape(150, 4, 150, 4, 3).mean(axis=(1, 3))
    assert np.abs((coarse - means).mean(axis=2)).mean() < 4  # grey levels; JPEG blurs colours further


def test_nuclei_hold_more_haematoxylin_than_their_surroundings(folder: Path, second: np.ndarray) -> None:
    nuclei = np.asarray(Image.open(folder / "nuclei" / "P02S1.png"))
    assert nuclei.shape == (600, 600)
    assert set(np.unique(nuclei)) == {0, 255}
    haematoxylin = rgb2hed(second)[..., 0]
    around = ndimage.binary_dilation(nuclei > 0, iterations=12) & ~ndimage.binary_dilation(
        nuclei > 0, iterations=3
    )
    inside = haematoxylin[nuclei > 0]
    assert inside.mean() > 2.5 * haematoxylin[around].mean()
    assert (inside > np.quantile(haematoxylin[around], 0.9)).mean() > 0.9


def test_the_label_raster_is_the_plan_of_the_slide(folder: Path) -> None:
    labels = np.asarray(Image.open(folder / "annotations" / "P02S1.png"))
    rng = np.random.default_rng([slides().seed, SLIDE_STREAM, 1])
    layout = draw_layout(rng, side_um=300, region_um=75, tumour=Tissue.SINGLE_FILES)
    assert np.array_equal(labels, layout.labels_HW)
    assert labels.shape == (75, 75)  # 4 um/px


def test_glass_is_bright_and_tissue_is_where_the_labels_say(folder: Path, second: np.ndarray) -> None:
    labels = np.kron(np.asarray(Image.open(folder / "annotations" / "P02S1.png")), np.ones((8, 8), np.uint8))
    glass = ndimage.binary_erosion(labels == Tissue.GLASS, iterations=12)
    tissue = ndimage.binary_erosion((labels != Tissue.GLASS) & (labels != Tissue.FAT), iterations=12)
    assert second[glass].min(axis=1).mean() > 225
    assert second[tissue].min(axis=1).mean() < 180


def test_under_the_pen_nothing_is_labelled(folder: Path) -> None:
    with TiffSlide(folder / "slides" / "P01S1.tif") as slide:
        red = np.asarray(slide.read_region((0, 0), 0, (600, 600)))[..., 0].astype(float)
    labels = np.kron(np.asarray(Image.open(folder / "annotations" / "P01S1.png")), np.ones((8, 8), np.uint8))
    ink = ndimage.uniform_filter(red, 15) < 45  # darker than any tissue over 7 um
    assert ink.mean() > 0.02
    assert (labels[ink] == Tissue.GLASS).mean() > 0.98
    assert not np.asarray(Image.open(folder / "nuclei" / "P01S1.png"))[ink & (labels == Tissue.GLASS)].any()


def test_classes_are_named_and_each_slide_has_the_tumour_of_its_class(folder: Path) -> None:
    names = json.loads((folder / "annotations" / "classes.json").read_text())
    assert names["1"] == "tumour_nests"
    assert names["2"] == "single_files"
    assert "0" not in names
    manifest = pd.read_csv(folder / "manifest.csv")
    for row in manifest.itertuples():
        labels = np.asarray(Image.open(folder / "annotations" / f"{row.slide_id}.png"))
        tumours = {1, 2} & set(np.unique(labels).tolist())
        assert tumours == {int(SlideClass[row.label].value)}


def test_the_default_set_is_balanced_and_no_patient_is_in_two_splits() -> None:
    cases = list(slides().cases())
    assert len(cases) == 12
    assert len({case.slide_id for case in cases}) == 12
    for patient in {case.patient_id for case in cases}:
        facts = {(case.site, case.label, case.split) for case in cases if case.patient_id == patient}
        assert len(facts) == 1
    patients = {(case.patient_id, case.site, case.label, case.split) for case in cases}
    cells = Counter(facts[1:] for facts in patients)
    assert len(cells) == 2 * 2 * 2
    assert set(cells.values()) == {1}
    assert Counter(case.split for case in cases) == {"train": 8, "test": 4}


def test_pens_and_folds_are_on_a_quarter_of_the_slides_of_both_classes() -> None:
    cases = list(slides(n_slides=400).cases())
    for label in SlideClass:
        alike = [case for case in cases if case.label is label]
        assert np.mean([case.has_pen for case in alike]) == pytest.approx(0.25, abs=0.02)
        assert np.mean([case.has_fold for case in alike]) == pytest.approx(0.25, abs=0.02)
    default = list(slides().cases())
    assert {case.label for case in default if case.has_pen} == set(SlideClass)
    assert {case.label for case in default if case.has_fold} == set(SlideClass)


@pytest.mark.parametrize(
    ("change", "message"), [({"n_sites": 0}, "data.n_sites"), ({"test_share": 1.0}, "data.test_share")]
)
def test_an_impossible_set_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slides(**change)


def test_tiles_are_cut_from_slides_that_are_drawn_once(tmp_path: Path) -> None:
    tissue = yaml.safe_load((YAML.parents[1] / "tiling" / "tissue" / "he.yaml").read_text())
    tiling = Tiling(size_px=64, mpp=0.5, stride_px=64, min_tissue=0.5, tissue=instantiate(tissue))
    drawn = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        data = slides(**{**SMALL, "size_px": 800, "region_um": 100})
        counts = data.tile(
            tiling, folder=tmp_path / name, home=tmp_path / "home", n_processes=0, slide_timeout_s=60
        )
        drawn.append({path: path.stat().st_mtime_ns for path in (tmp_path / "home").rglob("*.tif")})
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 2
    source = open_source(tmp_path / "first")
    assert counts == {"slides": 2, "failed": 0, "tiles": len(source)}
    table = source.table()
    assert set(table["patient"]) == {"P01", "P02"}
    assert "single_files" not in set(table.loc[table["patient"] == "P01", "label"])
    assert (table["label"] != "").mean() > 0.7
