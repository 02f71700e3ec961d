"""The tiling of the configuration, so that tests hold for the values that users get."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from histo_ssl.slides.grid import Tiling
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
