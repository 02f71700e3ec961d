"""One slide's features in a file of any layout: looked at when it is opened, read in whole or in part later.

Our own files carry a checksum, which is taken when they are opened (10 ms for 10,000 x 384 in float32): HDF5
must not see broken bytes, and what was finite when it was written still is. Features of other programs are
looked at for NaN whenever they are read. A file that changes after it was opened is refused.

Letters: N tiles, D width of a feature vector.
"""

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histo_ssl.embeddings import HDF5_ERRORS, MAX_EXPANSION, is_ours
from histo_ssl.mil.layouts import COORDS, FEATS, FEATURES, TENSOR, Layout, LayoutError, layout_of

Ints = NDArray[np.int64]
Features = NDArray[np.floating]  # float16 where they are stored so, float32 otherwise
Block = Callable[[int, int], NDArray[Any]]  # rows from one number to another, as they are stored

TENSOR_SUFFIX = ".pt"
SPARSE = 16  # where fewer rows than 1 in so many are wanted, each is read by itself
BLOCK_ROWS = 256  # otherwise so many at a time, if one of them is wanted
ERRORS = (*HDF5_ERRORS, EOFError, pickle.UnpicklingError)
MAX_WHY = 200  # letters of a library's reason


@dataclass(frozen=True, kw_only=True)
class FeatureFile:
    """The features of one slide; holds no open file, so that any process may read it."""

    path: Path
    layout: Layout
    shape: tuple[int, ...]  # as stored: (N, D), or with an axis of length 1 before or between
    coords_shape: tuple[int, ...]
    dtype: str  # as stored
    offset: int | None  # of the features, where they lie in the file as they are
    chunk_rows: int  # that HDF5 reads together
    state: tuple[int, int]  # size and time of change when it was opened
    is_checked: bool  # whether the features are known to be finite

    @property
    def n_tiles(self) -> int:
        """N."""
        return self.shape[self.tile_axis]

    @property
    def dim(self) -> int:
        """D."""
        return self.shape[-1]

    @property
    def tile_axis(self) -> int:
        """0, or 1 for a shape (1, N, D)."""
        return _tile_axis(self.shape)

    def read(self, rows: Ints | None = None) -> Features:
        """Features (N, D), or (len(rows), D) of some tiles, in the type that they are stored in.

        Args:
            rows: numbers of tiles, ascending; of a file that is not chunked, no others are read where they
                are few.

        Raises:
            FileNotFoundError: the file is gone.
            ValueError: it has changed, can't be read, or holds a NaN.
        """
        assert rows is None or (np.diff(rows, prepend=0, append=self.n_tiles - 1) >= 0).all()
        self._check_unchanged()
        with _sentences(self.path), self._blocks() as block:
            stored = block(0, self.n_tiles) if rows is None else self._gathered(rows, block)
        features = _floats(stored)
        if not self.is_checked:
            _check_finite(features, path=self.path)
        return features

    def coords(self, *, slide_mpp: float) -> Ints:
        """(N, 2) left and top edges of the tiles in level-0 px.

        Args:
            slide_mpp: um/px of level 0, which layouts with positions in um need; NaN: not known.

        Raises:
            ValueError: the file has changed, has none, or they can't be told in px.
        """
        self._check_unchanged()
        stored = np.zeros((self.n_tiles, 2))
        if self.layout.has_coords:
            with _sentences(self.path), _opened(self.path) as file:
                stored = file[COORDS][()].reshape(self.n_tiles, 2)
        return self.layout.level0(stored, slide_mpp=slide_mpp, path=self.path)

    def _check_unchanged(self) -> None:
        if _state(self.path) != self.state:
            raise ValueError(f"{self.path}: it has changed while it was in use; start again")

    @contextmanager
    def _blocks(self) -> Iterator[Block]:
        """What reads rows of the open file."""
        if self.layout.name == TENSOR:
            tensor = _tensor(self.path).reshape(self.n_tiles, self.dim)
            yield lambda start, stop: _array(tensor[start:stop])
        elif self.offset is not None:
            with self.path.open("rb", buffering=0) as raw:
                yield partial(self._raw, raw)
        else:
            with _opened(self.path) as file:
                stored = _features_of(file)
                yield lambda start, stop: stored[self._place(start, stop)].reshape(stop - start, self.dim)

    def _raw(self, raw: io.FileIO, start: int, stop: int) -> NDArray[Any]:
        """Rows of a file that holds them as they are."""
        assert self.offset is not None
        rows = np.empty((stop - start, self.dim), np.dtype(self.dtype))
        raw.seek(self.offset + start * self.dim * rows.itemsize)
        left = rows.view(np.uint8).reshape(-1).data
        while n_bytes := raw.readinto(left):  # the system hands over 2 GiB at most
            left = left[n_bytes:]
        if len(left):
            raise EOFError(f"it ends {len(left)} bytes too early")
        return rows

    def _place(self, start: int, stop: int) -> tuple[slice, ...]:
        return (slice(None),) * self.tile_axis + (slice(start, stop),)

    def _block_rows(self, n_wanted: int) -> int:
        """How many rows to read together."""
        if self.offset is None:
            return self.chunk_rows
        return 1 if n_wanted * SPARSE < self.n_tiles else BLOCK_ROWS

    def _gathered(self, rows: Ints, block: Block) -> NDArray[Any]:
        """Some rows, from blocks that hold one of them; the others are not read."""
        size = self._block_rows(len(rows))
        found = np.empty((len(rows), self.dim), np.dtype(self.dtype))
        number = rows // size
        starts = np.flatnonzero(np.diff(number, prepend=-1))
        for first, last in zip(starts, [*starts[1:], len(rows)], strict=False):
            start = int(number[first]) * size
            of_block = block(start, min(start + size, self.n_tiles))
            found[first:last] = of_block[rows[first:last] - start]
        return found


def open_features(path: Path) -> FeatureFile:
    """The features of a slide in a file of ours, of CLAM, TRIDENT or STAMP, or in a tensor of torch's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is none of these, or its parts don't belong together.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of features")
    found = _open_tensor(path) if path.suffix == TENSOR_SUFFIX else _open_hdf5(path)
    if np.dtype(found.dtype).kind not in "fiu":
        raise ValueError(f"{path}: features of type {np.dtype(found.dtype)}; numbers are expected")
    is_squeezable = len(found.shape) == 3 and 1 in found.shape[:2]
    if len(found.shape) != 2 and not is_squeezable:
        raise ValueError(f"{path}: features {found.shape}; (N, D) is expected, a row for each of N tiles")
    if found.layout.has_coords and found.coords_shape not in ((found.n_tiles, 2), (1, found.n_tiles, 2)):
        raise ValueError(
            f"{path}: features {found.shape} and coords {found.coords_shape} don't belong together; expected "
            "(N, D) and (N, 2) for the same N tiles"
        )
    return found


def _open_hdf5(path: Path) -> FeatureFile:
    state, is_checked = _state(path), is_ours(path)
    with _sentences(path), _opened(path) as file:
        layout = layout_of(file, is_ours=is_checked, path=path)
        stored, coords = _features_of(file), file[COORDS]
        if stored.nbytes + coords.nbytes > MAX_EXPANSION * state[0]:
            raise ValueError(f"it says that it holds {stored.nbytes + coords.nbytes:,} bytes")
        is_plain = not stored.is_virtual and stored.id.get_create_plist().get_nfilters() == 0
        if is_plain and stored.id.get_storage_size() < stored.nbytes:
            raise ValueError(
                f"of {stored.nbytes:,} bytes of features only {stored.id.get_storage_size():,} were written"
            )
        is_raw = stored.chunks is None and not stored.external
        return FeatureFile(
            path=path,
            layout=layout,
            shape=stored.shape,
            coords_shape=coords.shape,
            dtype=stored.dtype.str,
            offset=stored.id.get_offset() if is_raw else None,
            chunk_rows=stored.chunks[_tile_axis(stored.shape)] if stored.chunks else BLOCK_ROWS,
            state=state,
            is_checked=is_checked,
        )


def _open_tensor(path: Path) -> FeatureFile:
    state, tensor = _state(path), _tensor(path)
    return FeatureFile(
        path=path,
        layout=Layout(name=TENSOR, has_coords=False),
        shape=tuple(tensor.shape),
        coords_shape=(),
        dtype=_array(tensor).dtype.str,
        offset=None,
        chunk_rows=1,
        state=state,
        is_checked=False,
    )


def _tensor(path: Path) -> Tensor:
    """The tensor that a file of torch's holds; its bytes are read when they are looked at."""
    with _sentences(path):
        content = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    if not isinstance(content, Tensor):
        raise LayoutError(
            f"{path}: it holds a {type(content).__name__}; one tensor (N, D) of features is expected"
        )
    if content.numel() * content.element_size() > path.stat().st_size:
        raise LayoutError(f"{path}: it says that it holds {content.numel():,} numbers, more than fit into it")
    return content.detach()


def _array(tensor: Tensor) -> NDArray[Any]:
    """As numpy has it, which knows no bfloat16."""
    array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _floats(stored: NDArray[Any]) -> Features:
    dtype = np.float16 if stored.dtype.kind == "f" and stored.dtype.itemsize == 2 else np.float32
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, and is refused for it
        return stored.astype(dtype, copy=False)


def _check_finite(features: Features, *, path: Path) -> None:
    n_bad = int((~np.isfinite(features)).any(axis=1).sum())
    if n_bad:
        raise ValueError(
            f"{path}: {n_bad} of {len(features)} feature vectors are not finite; have its program make the "
            "file again, or leave the slide out of the labels"
        )


def _features_of(file: Any) -> Any:
    return file[FEATS if FEATS in file else FEATURES]


def _tile_axis(shape: tuple[int, ...]) -> int:
    return int(len(shape) == 3 and shape[0] == 1)


def _state(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _opened(path: Path) -> Any:
    return h5py.File(path, "r", locking="best-effort")  # some networks' disks have no locks


@contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """What h5py and torch raise at bytes that are not what they should be, as one sentence."""
    try:
        yield
    except LayoutError:
        raise
    except ERRORS as error:
        why = " ".join(str(error).split())[:MAX_WHY]
        raise ValueError(f"{path}: it can't be read as a file of features ({why})") from error
