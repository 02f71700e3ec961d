"""Bags: the features of all tiles of a slide, or of a patient's slides, read when they are needed.

A set of bags holds names and sizes, no features and no open file: 700 bags of 10,000 x 384 cost no memory,
and any process may read any of them.

Letters: n bags, N tiles of a bag, D width of a feature vector.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from histo_ssl.mil.features import TENSOR_SUFFIX, FeatureFile, Features, Ints, open_features

Texts = NDArray[np.str_]

SUFFIXES = (".h5", TENSOR_SUFFIX)  # files of the first have positions, and are taken where both are there
N_NAMED = 5  # slides that an error names


class Bags(Protocol):
    """Bags by number; picklable and without open files, so that any worker may read any bag."""

    ids: Texts  # (n,) names of slides, or of patients
    n_tiles: Ints  # (n,)
    dim: int  # D

    def read(self, i: int) -> Features:
        """Features (N, D) of a whole bag, in the type that they are stored in."""

    def sample(self, i: int, rows: Ints) -> Features:
        """Features (len(rows), D) of some tiles of a bag; `rows` ascend."""

    def coords(self, i: int) -> Ints:
        """(N, 2) left and top edges of a bag's tiles, in level-0 px of their slides."""

    def slides(self, i: int) -> Texts:
        """(N,) the slide of each tile of a bag."""


class SlideBags:
    """One bag per slide, from a folder of files of any layout that `mil.layouts` knows.

    Files may lie in folders of the folder, as CLAM's in `h5_files` and `pt_files` do: of several that have a
    slide's name, HDF5 goes before tensors, and then the one that is nearest to the top.

    Args:
        folder: of the files, `<slide>.h5` or `<slide>.pt`.
        slides: names of the slides, one per bag.
        slide_mpp: um/px of each slide's level 0, NaN where it is not known; for positions in um.

    Raises:
        FileNotFoundError: slides have no file; names them.
        ValueError: a file can't be read, two files are one slide's, a file holds no tile, or two are of
            different encoders or widths.
    """

    def __init__(
        self, folder: Path, slides: Sequence[str], *, slide_mpp: Sequence[float] | None = None
    ) -> None:
        if not len(slides):
            raise ValueError(f"{folder}: bags of no slide are asked for; one slide or more is expected")
        self.ids = np.array(slides, dtype=str)
        self.slide_mpp = [math.nan] * len(slides) if slide_mpp is None else [float(mpp) for mpp in slide_mpp]
        self.files = [open_features(path) for path in _paths(folder, slides)]
        self.n_tiles = np.array([file.n_tiles for file in self.files], dtype=np.int64)
        self.dim = self.files[0].dim
        _check_alike(self.files)
        _check_none_empty(folder, self.ids, self.n_tiles)

    def read(self, i: int) -> Features:
        """Features (N, D) of a whole bag, in the type that they are stored in."""
        return self.files[i].read()

    def sample(self, i: int, rows: Ints) -> Features:
        """Features (len(rows), D) of some tiles of a bag; `rows` ascend."""
        return self.files[i].read(rows)

    def coords(self, i: int) -> Ints:
        """(N, 2) left and top edges of a bag's tiles, in level-0 px."""
        return self.files[i].coords(slide_mpp=self.slide_mpp[i])

    def slides(self, i: int) -> Texts:
        """(N,) the bag's slide, for each tile."""
        return np.full(self.n_tiles[i], self.ids[i])


class PatientBags:
    """One bag per patient, of all tiles of its slides; patients in the order of their names.

    Args:
        bags: one per slide.
        patients: whose each slide is.

    Raises:
        ValueError: a slide has no patient, or not each slide is somebody's.
    """

    def __init__(self, bags: Bags, patients: Sequence[str]) -> None:
        if len(patients) != len(bags.ids):
            raise ValueError(
                f"{len(patients)} patients for {len(bags.ids)} slides; one for each slide is expected"
            )
        nobodys = [str(name) for name, patient in zip(bags.ids, patients, strict=True) if not patient]
        if nobodys:
            raise ValueError(
                f"{len(nobodys)} of {len(patients)} slides have no patient: {_named(nobodys)}; fill the "
                "column, or say task.unit=slide"
            )
        self._bags, self.dim = bags, bags.dim
        self.ids, place = np.unique(np.array(patients, dtype=str), return_inverse=True)
        self._slides = [np.flatnonzero(place == i) for i in range(len(self.ids))]
        self.n_tiles = np.array([bags.n_tiles[slides].sum() for slides in self._slides], dtype=np.int64)

    def read(self, i: int) -> Features:
        """Features (N, D) of all slides of a patient, one after the other."""
        return np.concatenate([self._bags.read(slide) for slide in self._of(i)])

    def sample(self, i: int, rows: Ints) -> Features:
        """Features (len(rows), D) of some tiles of a patient; `rows` ascend."""
        starts = np.cumsum([0, *self._bags.n_tiles[self._slides[i]]])
        cuts = np.searchsorted(rows, starts)
        parts = zip(self._of(i), starts, cuts, cuts[1:], strict=False)
        return np.concatenate([self._bags.sample(slide, rows[a:b] - start) for slide, start, a, b in parts])

    def coords(self, i: int) -> Ints:
        """(N, 2) left and top edges of a bag's tiles, in level-0 px of their slides."""
        return np.concatenate([self._bags.coords(slide) for slide in self._of(i)])

    def slides(self, i: int) -> Texts:
        """(N,) the slide of each tile of a bag."""
        return np.concatenate([self._bags.slides(slide) for slide in self._of(i)])

    def _of(self, i: int) -> Iterator[int]:
        return map(int, self._slides[i])


def _paths(folder: Path, slides: Sequence[str]) -> list[Path]:
    """The file of each slide."""
    there: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES:
            there.setdefault(path.stem, []).append(path)
    missing = [slide for slide in slides if slide not in there]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(slides)} slides have no file of embeddings: {_named(missing)}"
            "; make them, or leave the slides out of the labels"
        )
    return [_nearest(there[slide]) for slide in slides]


def _nearest(paths: Sequence[Path]) -> Path:
    """Of several files of a slide the one to read."""
    by_rank: dict[tuple[int, int], list[Path]] = {}
    for path in paths:
        by_rank.setdefault((SUFFIXES.index(path.suffix), len(path.parts)), []).append(path)
    first, *others = by_rank[min(by_rank)]
    if others:
        raise ValueError(
            f"{first} and {others[0]}: two files of one slide; name the folder of one encoder's files"
        )
    return first


def _check_alike(files: Sequence[FeatureFile]) -> None:
    first = files[0]
    for file in files:
        if file.dim != first.dim:
            raise ValueError(
                f"{file.path}: features {file.dim} wide, those of {first.path.name} are {first.dim}; bags of "
                "one task come from one encoder"
            )
        encoders = file.layout.encoder, first.layout.encoder
        if encoders[0] != encoders[1] and all(encoders):
            raise ValueError(
                f"{file.path}: features of the encoder {encoders[0]}, those of {first.path.name} are of "
                f"{encoders[1]}: bags of one task come from one encoder"
            )


def _check_none_empty(folder: Path, ids: Texts, n_tiles: Ints) -> None:
    empty = [str(name) for name in ids[n_tiles == 0]]
    if empty:
        raise ValueError(
            f"{folder}: {len(empty)} of {len(ids)} slides have no tile: {_named(empty)}; leave them out of "
            "the labels"
        )


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:N_NAMED]) + (", ..." if len(names) > N_NAMED else "")
