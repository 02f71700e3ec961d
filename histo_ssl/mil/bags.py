"""Bags: all embeddings of a slide, or of a patient's slides, read when they are needed.

A set of bags holds names and sizes, no features and no open file: 700 bags of 10,000 x 384 cost no memory,
and any process may read any of them.

Letters: n bags, N tiles of a bag, D width of an embedding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from histo_ssl.embeddings import open_features

Ints = NDArray[np.int64]
N_NAMED = 5  # slides that an error names


class Bags(Protocol):
    """Bags by number. Picklable and without open handles, so that any worker may read any bag."""

    ids: NDArray[np.str_]  # (n,) names of slides, or of patients
    n_tiles: Ints  # (n,)
    dim: int  # D

    def read(self, i: int) -> NDArray[np.floating]:
        """Features (N, D) of a whole bag."""

    def sample(self, i: int, rows: Ints) -> NDArray[np.floating]:
        """Features (len(rows), D) of some tiles of a bag; `rows` ascend."""

    def coords(self, i: int) -> Ints:
        """(N, 2) left and top edges of a bag's tiles, in level-0 px of their slides."""

    def slides(self, i: int) -> NDArray[np.str_]:
        """(N,) the slide of each tile of a bag."""


class SlideBags:
    """One bag per file of embeddings.

    Args:
        folder: of the files, `<slide>.h5`.
        slides: names of the slides, one per bag.

    Raises:
        FileNotFoundError: slides have no file; names them.
        ValueError: a file can't be read, is of another width than the others, or holds no tile.
    """

    def __init__(self, folder: Path, slides: Sequence[str]) -> None:
        self.ids = np.array(slides, dtype=str)
        missing = [slide for slide in slides if not (folder / f"{slide}.h5").is_file()]
        if missing:
            named = ", ".join(missing[:N_NAMED]) + (", ..." if len(missing) > N_NAMED else "")
            raise FileNotFoundError(
                f"{folder}: {len(missing)} of {len(slides)} slides have no file of embeddings: {named}; "
                "embed them, or leave them out of the labels"
            )
        self._files = [open_features(folder / f"{slide}.h5") for slide in slides]
        self.n_tiles = np.array([file.n_tiles for file in self._files], dtype=np.int64)
        self.dim = self._files[0].dim
        self._check()

    def read(self, i: int) -> NDArray[np.floating]:
        """Features (N, D) of a whole bag."""
        return self._files[i].read()

    def sample(self, i: int, rows: Ints) -> NDArray[np.floating]:
        """Features (len(rows), D) of some tiles of a bag; `rows` ascend."""
        return self._files[i].read(rows)

    def coords(self, i: int) -> Ints:
        """(N, 2) left and top edges of a bag's tiles, in level-0 px."""
        return self._files[i].coords()

    def slides(self, i: int) -> NDArray[np.str_]:
        """(N,) the bag's slide, again and again."""
        return np.full(self.n_tiles[i], self.ids[i])

    def _check(self) -> None:
        for name, file in zip(self.ids, self._files, strict=True):
            if file.dim != self.dim:
                raise ValueError(
                    f"{file.path}: embeddings {file.dim} wide, those of {self.ids[0]} are {self.dim}: bags "
                    "of one task come from one encoder"
                )
            if not file.n_tiles:
                raise ValueError(f"{file.path}: no tile; leave the slide {name} out of the labels")


class PatientBags:
    """One bag per patient, of all tiles of its slides.

    Args:
        bags: one per slide.
        patients: whose each slide is.
    """

    def __init__(self, bags: Bags, patients: Sequence[str]) -> None:
        self._bags, self.dim = bags, bags.dim
        self.ids, place = np.unique(np.array(patients, dtype=str), return_inverse=True)
        self._slides = [np.flatnonzero(place == i) for i in range(len(self.ids))]
        self.n_tiles = np.array([bags.n_tiles[slides].sum() for slides in self._slides], dtype=np.int64)

    def read(self, i: int) -> NDArray[np.floating]:
        """Features (N, D) of all slides of a patient, one after the other."""
        return np.concatenate([self._bags.read(int(slide)) for slide in self._slides[i]])

    def sample(self, i: int, rows: Ints) -> NDArray[np.floating]:
        """Features (len(rows), D) of some tiles of a patient; `rows` ascend."""
        starts = np.cumsum([0, *self._bags.n_tiles[self._slides[i]]])
        cuts = np.searchsorted(rows, starts)
        parts = zip(self._slides[i], starts, cuts, cuts[1:], strict=False)
        return np.concatenate(
            [self._bags.sample(int(slide), rows[a:b] - start) for slide, start, a, b in parts]
        )

    def coords(self, i: int) -> Ints:
        """(N, 2) left and top edges of a bag's tiles, in level-0 px of their slides."""
        return np.concatenate([self._bags.coords(int(slide)) for slide in self._slides[i]])

    def slides(self, i: int) -> NDArray[np.str_]:
        """(N,) the slide of each tile of a bag."""
        return np.concatenate([self._bags.slides(int(slide)) for slide in self._slides[i]])
