"""Embeddings on disk, one HDF5 file per slide, and in memory with what is known of each tile.

The file's layout is the one that CLAM (arXiv:2004.09666) and TRIDENT (arXiv:2502.06750) read and write: a
data set `features` (N, D), a data set `coords` (N, 2) of the tiles' upper left corners in level-0 px, and on
`coords` attributes that say how the tiles were cut. So bags of embeddings move both ways. Where tiles
could not be read, a third one, `unreadable`, holds their places among the tiles that were listed.

Letters: N tiles, D width of an embedding.
"""

import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from histo_ssl.folders.artifacts import write_bytes

Attributes = Mapping[str, str | int | float]
Mask = NDArray[np.bool_]
Texts = NDArray[np.str_]

FEATURES, COORDS, UNREADABLE = "features", "coords", "unreadable"
EVERYBODYS, OURS = {FEATURES, COORDS}, {FEATURES, COORDS, UNREADABLE}
# HDF5 crashes the process on some broken files, so that ours carry a checksum: in the block before the HDF5
# data that every reader skips.
BLOCK, BLOCK_BYTES = b"histo_ssl sha256 ", 512
HDF5 = b"\x89HDF\r\n\x1a\n"  # what other programs' files begin with
# What h5py raises where bytes are not what they should be.
HDF5_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
MAX_EXPANSION = 1100  # deflate, which other programs may use, reaches 1,032 to 1
NOT_READABLE = "not an HDF5 file of embeddings; delete it and run the stage 'embed' again"


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingSet:
    """Embeddings of many tiles, of one slide or of many; row i of every field is the same tile.

    Raises:
        ValueError: the fields differ in length.
    """

    features: NDArray[np.float32]  # (N, D)
    coords: NDArray[np.int64]  # (N, 2), x and y in level-0 px
    row: NDArray[np.int64]  # (N,) number of the tile in its source
    slide: Texts  # (N,), as all that follow; "" where nothing is known
    patient: Texts
    site: Texts
    split: Texts
    label: Texts

    def __post_init__(self) -> None:
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{length} {name}" for name, length in lengths.items())
            raise ValueError(f"an embedding set needs one row per tile in every field, got {shown}")

    def __len__(self) -> int:
        return len(self.features)

    def subset(self, mask: Mask) -> Self:
        """The tiles where `mask` (N,) is true, in their order."""
        return type(self)(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})

    def labelled(self) -> Self:
        """The tiles that have a label."""
        return self.subset(self.label != "")


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """Content of one file of embeddings."""

    features: NDArray[np.float32]  # (N, D)
    coords: NDArray[np.int64]  # (N, 2), level-0 px
    attributes: Attributes
    unreadable: NDArray[np.int64]  # (K,) ascending places of tiles without embedding among the N + K listed

    def is_row(self) -> Mask:
        """Which (N + K,) of the listed tiles have a row here; place 1 of 3 unreadable: true, false, true."""
        mask = np.ones(len(self.features) + len(self.unreadable), dtype=bool)
        mask[self.unreadable] = False
        return mask


def write_embeddings(
    path: Path,
    *,
    features: NDArray[np.floating],
    coords: NDArray[np.integer],
    attributes: Attributes,
    unreadable: Sequence[int] = (),
) -> None:
    """Write one slide's embeddings to `path`, atomically: a reader finds the whole file or none.

    Args:
        path: HDF5 file; replaced if it is there.
        features: (N, D), finite; float16 is stored as it is, all else as float32.
        coords: (N, 2), level-0 px; stored as int64.
        attributes: stored on `coords`, where CLAM and TRIDENT look for theirs.
        unreadable: as of `Stored`.

    Raises:
        ValueError: `features` and `coords` don't belong together, or an embedding is not finite.
    """
    check_rows(path, features, coords)
    stored_as = np.float16 if features.dtype == np.float16 else np.float32
    stream = io.BytesIO()  # HDF5 on a full disk fails in ways of its own; a plain write says what is wrong
    with h5py.File(stream, "w", userblock_size=BLOCK_BYTES) as file:
        file.create_dataset(FEATURES, data=features.astype(stored_as, copy=False))
        file.create_dataset(COORDS, data=coords.astype(np.int64, copy=False)).attrs.update(attributes)
        if unreadable:
            file.create_dataset(UNREADABLE, data=np.array(unreadable, dtype=np.int64))
    content = stream.getbuffer()
    content[: len(BLOCK) + 2 * hashlib.sha256().digest_size] = _stamp(content)
    write_bytes(path, content)


def read_embeddings(path: Path) -> Stored:
    """What is in a file that we, CLAM or TRIDENT wrote.

    Of the attributes, those that are single values; CLAM has lists among its own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no HDF5 file, a data set is missing, they don't belong together, or an embedding is not
            finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of embeddings; run the stage 'embed' first")
    stored = path.read_bytes()
    is_ours, is_foreign = stored.startswith(BLOCK), stored.startswith(HDF5)
    if not (is_ours or is_foreign) or (is_ours and not stored.startswith(_stamp(memoryview(stored)))):
        raise ValueError(f"{path}: {NOT_READABLE}")
    try:
        content, attributes = _content(stored, known=OURS if is_ours else EVERYBODYS)
    except HDF5_ERRORS as error:
        raise ValueError(f"{path}: {NOT_READABLE} ({' '.join(str(error).split())})") from error
    missing = EVERYBODYS - set(content)
    if missing:
        found = ", ".join(sorted(content)) or "nothing"
        raise ValueError(
            f"{path}: '{min(missing)}' is missing; embeddings have '{FEATURES}' and '{COORDS}', "
            f"this file has {found}"
        )
    features, coords = content[FEATURES], content[COORDS]
    check_rows(path, features, coords)
    return Stored(
        features=features.astype(np.float32, copy=False),
        coords=coords.astype(np.int64, copy=False),
        attributes=attributes,
        unreadable=content.get(UNREADABLE, np.zeros(0)).astype(np.int64),
    )


def narrowed(features: NDArray[np.float32], dtype: str, *, path: Path) -> NDArray[np.floating]:
    """Features in the type that they are to be stored in; float16 rounds each by at most 1 part in 2,048.

    Args:
        features: (N, D).
        dtype: float32 or float16.
        path: of their file, for the message.

    Raises:
        ValueError: float16 can't hold one of them.
    """
    n_beyond = int((np.abs(features) > np.finfo(dtype).max).any(axis=1).sum())
    if n_beyond:
        raise ValueError(
            f"{path}: {n_beyond} of {len(features)} embeddings reach beyond {np.finfo(dtype).max:,.0f}, the "
            f"most that {dtype} holds; keep them in float32 (embedding.dtype)"
        )
    return features.astype(dtype, copy=False)


def is_ours(path: Path) -> bool:
    """Whether a file is one that we wrote, whole by its checksum, or another program's HDF5 file.

    The checksum is taken once in a process, until the file changes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is neither, or not whole.
    """
    facts = path.stat()
    return _is_ours(path, facts.st_size, facts.st_mtime_ns)


@functools.cache
def _is_ours(path: Path, n_bytes: int, modified_ns: int) -> bool:  # noqa: ARG001 (tell changed files apart)
    with path.open("rb") as file:
        start = file.read(BLOCK_BYTES)
        if start.startswith(HDF5):
            return False
        if start.startswith(BLOCK + hashlib.file_digest(file, "sha256").hexdigest().encode()):
            return True
    raise ValueError(f"{path}: {NOT_READABLE}")


def _stamp(content: memoryview) -> bytes:
    """What our files begin with: a word, and the hash of what follows the block that it stands in."""
    return BLOCK + hashlib.sha256(content[BLOCK_BYTES:]).hexdigest().encode()


def _content(
    stored: bytes, *, known: set[str]
) -> tuple[dict[str, NDArray[Any]], dict[str, str | int | float]]:
    """Every data set of a file by its name, those that are known with their content, and the attributes."""
    with h5py.File(io.BytesIO(stored), "r") as file:
        content = {str(name): np.zeros(0) for name in file}
        known = known & set(content)
        n_bytes = sum(file[name].nbytes for name in known)
        if n_bytes > MAX_EXPANSION * len(stored):
            raise ValueError(f"it says that it holds {n_bytes:,} bytes")
        content |= {name: np.asarray(file[name]) for name in known}
        return content, _single_values(file[COORDS].attrs) if COORDS in known else {}


def _single_values(stored: Mapping[str, object]) -> dict[str, str | int | float]:
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in stored.items()}
    return {name: value for name, value in plain.items() if isinstance(value, str | int | float)}


def check_rows(path: Path, features: NDArray[np.generic], coords: NDArray[np.generic]) -> None:
    """Refuse what is not one finite row of numbers and one position per tile.

    Args:
        path: of their file, for the message.
        features: expected (N, D).
        coords: expected (N, 2).

    Raises:
        ValueError: they are not.
    """
    if features.dtype.kind not in "fiu" or coords.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: features of type {features.dtype} and coords of type {coords.dtype}; "
            "expected numbers and whole numbers"
        )
    if features.ndim != 2 or coords.shape != (len(features), 2):
        raise ValueError(
            f"{path}: features {features.shape} and coords {coords.shape} don't belong together; "
            "expected (N, D) and (N, 2) for the same N tiles"
        )
    n_bad = int((~np.isfinite(features)).any(axis=1).sum())
    if n_bad:
        raise ValueError(
            f"{path}: {n_bad} of {len(features)} embeddings are not finite, so the encoder has diverged; "
            "look at its loss and train it again"
        )
