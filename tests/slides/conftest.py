"""The tiling of the configuration, so that tests hold for the values that users get."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf

from histo_ssl.executors.base import Processes
from histo_ssl.slides.grid import Tiling
from histo_ssl.slides.segments import Limits
from histo_ssl.slides.survey import Recipe
from histo_ssl.slides.tissue import TissueSpec

CONF = Path(__file__).resolve().parents[2] / "conf" / "tiling"


@pytest.fixture(scope="session")
def tiling() -> Tiling:
    """Of `conf/tiling/small.yaml`: touching tiles of 128 px at 0.5 um/px."""
    with initialize_config_dir(str(CONF), version_base=None):
        made: Tiling = instantiate(compose("small"))
    return made


@pytest.fixture(scope="session")
def tissue_spec(tiling: Tiling) -> TissueSpec:
    """Of `conf/tiling/tissue/he.yaml`."""
    assert tiling.tissue is not None
    return tiling.tissue


@pytest.fixture(scope="session")
def limits() -> Limits:
    """Of `conf/data/slides.yaml`."""
    values = OmegaConf.load(CONF.parent / "data" / "slides.yaml")
    return Limits(slide_px=1e9 * values.max_gigapixels, segment_px=1e6 * values.max_segment_megapixels)


@pytest.fixture(scope="session")
def recipe(tiling: Tiling, limits: Limits) -> Recipe:
    """Of `conf/tiling/small.yaml` and `conf/data/slides.yaml`."""
    return Recipe(tiling=tiling, limits=limits, mpp_if_unknown=None)


@pytest.fixture
def here() -> Processes:
    """No process but the test's own."""
    return Processes(n=0, timeout_s=math.inf, memory_gb=math.inf)


@pytest.fixture
def write_jpeg(smooth: NDArray[np.uint8], tmp_path: Path) -> Callable[..., str]:
    """A function that writes a module's image `smooth` in tiles of 64 px of a lossy codec."""

    def write(**options: object) -> str:
        path = tmp_path / "slide.tif"
        options = {"photometric": "rgb", "compression": "jpeg", **options}
        with tifffile.TiffWriter(path) as tiff:
            tiff.write(smooth, tile=(64, 64), metadata=None, **options)
        return str(path)

    return write
