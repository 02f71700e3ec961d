"""How long patients lived, and whether they died then, as a list of slides says it in texts.

Letters: n slides.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.tasks.cases import PATIENT, SLIDE

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

TIME, EVENT, CENSORSHIP = "time", "event", "censorship"
YES = {
    "1": True,
    "1.0": True,
    "true": True,
    "yes": True,
    "0": False,
    "0.0": False,
    "false": False,
    "no": False,
}


def times(cases: pd.DataFrame) -> Floats:
    """Times (n,) in whatever unit they came.

    Args:
        cases: one row per slide, text: slide, patient, time.

    Raises:
        ValueError: one is no number above 0; names the slide.
    """
    time_n = pd.to_numeric(cases[TIME], errors="coerce").to_numpy(dtype=np.float64)
    bad = ~(np.isfinite(time_n) & (time_n > 0))
    if bad.any():
        row = cases.iloc[int(bad.argmax())]
        raise ValueError(
            f"{int(bad.sum())} of {len(cases)} times are no numbers above 0, such as {row[TIME]!r} of "
            f"{row[SLIDE]}: correct task.labels, or leave the cell empty to leave the slide out"
        )
    return time_n


def events(cases: pd.DataFrame) -> Mask:
    """Whether the patient of each slide died (n,), by a column `event`, or its opposite, `censorship`.

    Args:
        cases: one row per slide, text: slide, patient, and event or censorship.

    Raises:
        ValueError: there is neither, a cell says neither yes nor no, or the two contradict each other.
    """
    names = [name for name in (EVENT, CENSORSHIP) if name in cases and (cases[name] != "").any()]
    if not names:
        raise ValueError(
            "nobody's event is known: task.labels needs a column event (1 died, 0 last seen alive), or "
            "censorship (1 last seen alive); task.labels.columns says which of the CSV's it is"
        )
    died = [_said(cases, name) ^ (name == CENSORSHIP) for name in names]
    _check_alike(died, cases)
    return died[0]


def check_patients(cases: pd.DataFrame) -> None:
    """Refuse a patient whose slides have several times, or several events: which of them would be the bag's?

    Args:
        cases: one row per slide: patient, time (a number) and event (bool).

    Raises:
        ValueError: names the first such patient.
    """
    for name, noun in ((TIME, "times"), (EVENT, "events")):
        n_values = cases.groupby(PATIENT)[name].nunique()
        if (n_values > 1).any():
            raise ValueError(
                f"task.unit=patient: {int((n_values > 1).sum())} patients, such as {n_values.idxmax()}, have "
                f"slides of several {noun}: give all slides of a patient the same, or say task.unit=slide"
            )


def _said(cases: pd.DataFrame, name: str) -> Mask:
    """Whether the cells (n,) of a column say yes."""
    said = cases[name].str.lower()
    bad = ~said.isin(YES)
    if bad.any():
        row = cases.iloc[int(bad.to_numpy().argmax())]
        raise ValueError(
            f"{int(bad.sum())} of {len(cases)} cells of {name} say neither 0 nor 1, such as {row[name]!r} of "
            f"{row[SLIDE]}: correct task.labels (event 1: died; censorship 1: last seen alive), or leave "
            "the cell of the time empty to leave the slide out"
        )
    is_yes: Mask = said.map(YES).to_numpy(dtype=bool)
    return is_yes


def _check_alike(died: Sequence[Mask], cases: pd.DataFrame) -> None:
    differs = died[0] ^ died[-1]
    if differs.any():
        raise ValueError(
            f"event and censorship contradict each other for {int(differs.sum())} of {len(cases)} slides, "
            f"such as {cases[SLIDE].iloc[int(differs.argmax())]}: one says died, the other last seen "
            "alive; correct them, or take one of the two columns away"
        )
