"""Slides that were surveyed already, kept in a folder so that a killed tile stage goes on where it was."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from histo_ssl.folders.artifacts import atomic_path, fingerprint
from histo_ssl.slides.stamps import lies_unchanged, stamp_in

SURVEYS = "surveys"  # folder, within that of the tiles, of <slide_id>.npz


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found on one slide."""

    xy_level0: NDArray[np.int32]  # (N, 2) left and top edges of its tiles
    status: Mapping[str, str | int | float]  # its row of status.csv; "reason" is "" where all is well
    is_read: bool  # or there was something wrong with the file, which may pass


class Ledger:
    """Surveys of slides that could be read.

    Args:
        folder: of the tiles.
        made_with: all that a survey depends on beside the slide and what is said of it; plain values.
    """

    def __init__(self, folder: Path, *, made_with: Any) -> None:
        self.folder = folder / SURVEYS
        self.made_with = made_with

    def find(self, row: Mapping[str, str], mpp: float | None) -> Survey | None:
        """The survey of a slide if there is one, made in the same way of the file that lies there now."""
        try:
            with self._path(row).open("rb") as file, np.load(file, allow_pickle=False) as kept:
                facts = json.loads(str(kept["facts"]))
                made_of, xy_level0 = str(kept["made_of"]), kept["xy_level0"]
        except (FileNotFoundError, BadZipFile, EOFError, KeyError, ValueError):
            return None
        if made_of != self._made_of(row, mpp) or not lies_unchanged(row["path"], stamp_in(facts)):
            return None
        return Survey(xy_level0=xy_level0, status={**row, **facts}, is_read=True)

    def keep(self, row: Mapping[str, str], mpp: float | None, survey: Survey) -> None:
        """Write down the survey of a slide, unless it could not be read: that is tried anew each time."""
        if not survey.is_read:
            return
        facts = {name: value for name, value in survey.status.items() if name not in row}
        made_of = self._made_of(row, mpp)
        with atomic_path(self._path(row)) as temporary, temporary.open("wb") as file:
            np.savez(file, xy_level0=survey.xy_level0, facts=json.dumps(facts), made_of=made_of)

    def _path(self, row: Mapping[str, str]) -> Path:
        return self.folder / f"{row['slide_id']}.npz"

    def _made_of(self, row: Mapping[str, str], mpp: float | None) -> str:
        return fingerprint({"made_with": self.made_with, "path": row["path"], "mpp": mpp})


def forget(folder: Path) -> None:
    """Remove the surveys of a tile folder, all of which the index holds by now."""
    shutil.rmtree(folder / SURVEYS, ignore_errors=True)
