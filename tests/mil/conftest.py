"""Bags, models and other programs' files that tests of several files share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor

from histo_ssl.mil.base import BagModel

CONF = Path(__file__).resolve().parents[2] / "conf" / "task" / "models"
Build = Callable[..., BagModel]
Array = NDArray[np.generic]


@pytest.fixture
def build() -> Build:
    """A model of `conf/task/models/`, in double precision, so that tolerances can be tight."""

    def built(name: str, *, dim: int = 6, n_classes: int = 2, seed: int = 0, **values: Any) -> BagModel:
        torch.manual_seed(seed)
        config = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml")[name], values)
        model: BagModel = instantiate(config)(dim=dim, n_classes=n_classes)
        return model.double()

    return built


@pytest.fixture
def bags() -> list[Tensor]:
    """Seven bags, some of one tile, some smaller than 2 x 8, some larger."""
    generator = torch.Generator().manual_seed(1)
    lengths = (20, 1, 2, 3, 7, 40, 15)
    return [torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in lengths]


class Programs:
    """Writes and reads files of features as other programs do, by the names and shapes of their sources."""

    @staticmethod
    def clams_file(path: Path, features: Array, coords: Array) -> None:
        """As CLAM: batch by batch into data sets that grow, in chunks of 32 rows, without attributes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for name, array in {
                "features": features.astype(np.float32),
                "coords": coords.astype(np.int32),
            }.items():
                first, rest = array[:5], array[5:]
                shape = array.shape[1:]
                data = file.create_dataset(
                    name, shape=first.shape, maxshape=(None, *shape), chunks=(32, *shape), dtype=array.dtype
                )
                data[:] = first
                data.resize(len(array), axis=0)
                data[len(first) :] = rest

    @staticmethod
    def clams_tensor(path: Path, features: Array) -> None:
        """As CLAM, for its training."""
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.from_numpy(features.astype(np.float32)), path)

    @staticmethod
    def tridents_file(path: Path, features: Array, coords: Array, *, encoder: str | None = None) -> None:
        """As TRIDENT: chunks of one row; how the tiles were cut stands on the coords."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for name, array in {"features": features, "coords": coords.astype(np.int64)}.items():
                shape = array.shape[1:]
                data = file.create_dataset(
                    name, shape=array.shape, maxshape=(None, *shape), chunks=(1, *shape), dtype=array.dtype
                )
                data[:] = array
            file["features"].attrs.update({"name": path.stem, "savetodir": str(path.parent)})
            if encoder:
                file["features"].attrs["encoder"] = encoder
            cut = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "overlap": 0}
            about = {
                "target_magnification": 20,
                "name": path.stem,
                "level0_width": 90_000,
                "level0_height": 80_000,
            }
            file["coords"].attrs.update({**cut, **about})

    @staticmethod
    def stamps_file(path: Path, features: Array, coords_um: Array, *, version: str = "2.3.0") -> None:
        """As STAMP: half precision, positions in um, all else in attributes of the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["coords"] = coords_um.astype(np.float32)
            file["feats"] = features.astype(np.float16)
            if version.startswith("1"):
                file.attrs["extractor"] = "ctranspath"
                return
            file.attrs.update(
                {"stamp_version": version, "extractor": "uni2", "unit": "um", "code_hash": "1a2b3c4d"}
            )
            if version.startswith("2.0"):
                file.attrs["tile_size"] = 256.0
            else:
                file.attrs.update({"tile_size_um": 256.0, "tile_size_px": 224, "feat_type": "tile"})

    @staticmethod
    def read_as_clam(folder: Path, slide: str, *, use_h5: bool) -> tuple[Array, Array | None]:
        """Features as CLAM's data set takes them for its training, or for maps with coords."""
        if not use_h5:
            return torch.load(folder / "pt_files" / f"{slide}.pt", weights_only=True).numpy(), None
        with h5py.File(folder / "h5_files" / f"{slide}.h5", "r") as file:
            features, coords = file["features"][:], file["coords"][:]
        return torch.from_numpy(features).numpy(), coords

    @staticmethod
    def read_as_trident(path: Path) -> tuple[Array, Array, dict[str, object]]:
        """A batch (1, N, D), coords (1, N, 2) and what is on these, as TRIDENT's slide encoders take them."""
        with h5py.File(path, "r") as file:
            coords, features = file["coords"][:], file["features"][:]
            attributes = dict(file["coords"].attrs)
        return (
            torch.from_numpy(features).float().unsqueeze(0).numpy(),
            torch.from_numpy(coords).unsqueeze(0).numpy(),
            attributes,
        )

    @staticmethod
    def read_as_stamp(path: Path) -> tuple[Array, Array, float, float]:
        """Features in float32, positions in um, side of a tile in um and its um/px, as STAMP takes them."""
        with h5py.File(path, "r") as file:
            feats, coords = torch.from_numpy(file["feats"][:]).float().numpy(), file["coords"][:]
            assert tuple(map(int, file.attrs["stamp_version"].split("."))) <= (
                2,
                3,
                0,
            )  # a later one is refused
            side = float(file.attrs["tile_size_um"])
            return feats, coords, side, side / int(file.attrs["tile_size_px"])


@pytest.fixture
def programs() -> Programs:
    """CLAM, TRIDENT and STAMP."""
    return Programs()
