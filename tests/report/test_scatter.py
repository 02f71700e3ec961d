"""Scores and plots of tasks whose labels are numbers."""

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histo_ssl.folders.cells import csv_text
from histo_ssl.report.html import build_report
from histo_ssl.report.plots import Picture
from histo_ssl.report.runs import Estimate, read_results
from histo_ssl.report.scatter import MAX_POINTS, scatters, spread
from histo_ssl.report.scores import ScoreRow, axis_low, number, words
from histo_ssl.report.tables import scores_text
from histo_ssl.tasks.base import NUMBER_METRICS
from histo_ssl.tasks.bootstrap import Asked
from histo_ssl.tasks.number_scores import Numbers, number_scores

OFF = {"encoder": 0.1, "colour": 0.5, "random": 1.0}  # how far each subject's predictions are from the truth
VIOLET = 25  # by how much blue is above green in a drawn point, at the least; all else is grey


def _predictions(truth: np.ndarray[Any, np.dtype[np.float64]], off: float, protocol: str) -> Any:
    return truth + (off if protocol == "ridge" else 3.0) * np.where(np.arange(len(truth)) % 2, 1, -1)


def _extent(picture: Picture) -> tuple[int, int]:
    """Height and width, in px, of what the points of a plot cover."""
    rgb = np.asarray(Image.open(io.BytesIO(picture.content)).convert("RGB")).astype(int)
    rows, columns = np.nonzero(rgb[..., 2] - rgb[..., 1] > VIOLET)
    return int(np.ptp(rows)), int(np.ptp(columns))


@pytest.fixture
def runs_dir(fake_runs: Any) -> Path:
    """A finished regression of 40 tiles by two protocols, as the task writes it."""
    truth = np.linspace(-1, 2, 40)
    test = Numbers(rating_MJ=truth[:, None], group_M=np.arange(40))
    tables, scores = [], []
    for subject, off in OFF.items():
        for protocol in ("least_squares", "ridge"):
            predicted = _predictions(truth, off, protocol)
            asked = Asked(subject=subject, protocol=protocol, n_bootstrap=20, seed=0)
            scores += [asdict(score) for score in number_scores(predicted, test, truth, asked)]
            columns = {"subject": subject, "protocol": protocol, "truth": truth, "predicted": predicted}
            tables.append(pd.DataFrame(columns))
    fake_runs.result(
        "pretrain/a-b-c-0",
        "tiles/t",
        values={},
        predictions=csv_text(pd.concat(tables)),
        scores=scores,
        **{"confusion": {}, "classes": [], "primary": ["ridge", "mse"], "task": "breastpathq"},
    )
    path: Path = fake_runs.path
    return path


def test_the_primary_protocol_is_drawn_for_each_subject(runs_dir: Path) -> None:
    (result,) = read_results(runs_dir)
    pictures = scatters(result)
    assert [picture.title for picture in pictures] == [
        "encoder, ridge",
        "colour floor, ridge",
        "random-weights floor, ridge",
    ]
    assert all("40 test tiles" in picture.alt for picture in pictures)
    # Truth reaches from -1 to 2, the predictions .1, .5 or 1 further on both sides, on axes of one length.
    heights, widths = np.array([_extent(picture) for picture in pictures]).T
    np.testing.assert_allclose(heights / widths, [(3 + 2 * off) / 3 for off in OFF.values()], rtol=0.04)
    np.testing.assert_allclose(widths, widths[0], atol=2)


def test_classes_are_not_drawn(fake_runs: Any) -> None:
    fake_runs.result("pretrain/a-b-c-0", "tiles/t", values={"encoder": 0.9})
    (result,) = read_results(fake_runs.path)
    assert scatters(result) == []


def test_the_page_shows_the_plots_and_no_confusion(runs_dir: Path) -> None:
    index = build_report(runs_dir)
    (path,) = (index.parent / "runs").iterdir()
    page = path.read_text()
    assert page.count("<h3>Predicted against true</h3>") == 1
    assert page.count('alt="Predicted against true numbers of 40 test tiles by ') == 3
    assert "Confusion matrix" not in page
    assert "Scores per class" not in page
    assert 'class="strip"' not in index.read_text()  # an error has no place on an axis up to 1
    assert "1 of 1 primary scores lie above every floor" in page  # although its MSE is the lowest number


def test_the_terminal_names_each_metric_and_says_which_is_to_be_low(runs_dir: Path) -> None:
    text = scores_text(runs_dir)
    for metric in NUMBER_METRICS:
        assert f"  {words(metric)}" in text
    (line,) = [line for line in text.splitlines() if "MSE (less is better) *" in line]
    # .1 off everywhere: .01; floors .25 and 1; the variance of 40 even steps of 3/39 is .788
    assert line.split()[5:] == [
        "0.010",
        "[0.010,",
        "0.010]",
        "0.250",
        "1.000",
        "0.788",
        "better",
        "than",
        "both",
        "floors",
    ]


def test_a_page_holds_few_of_many_points() -> None:
    pairs = [(float(i), float(i)) for i in range(4 * MAX_POINTS + 1)]
    kept = spread(pairs, MAX_POINTS)
    assert len(kept) <= MAX_POINTS
    assert kept[-1][0] > 0.99 * len(pairs)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (-0.5, "-0.500"), (0.0031, "0.0031"), (999.5, "999.500"), (1e6, "1,000,000")],
)
def test_errors_of_any_size_show_their_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_an_axis_up_to_one_makes_no_room_for_errors() -> None:
    scored = Estimate(value=0.8, low=0.75, high=0.85, chance=0.5)
    tiny = Estimate(value=0.02, low=0.01, high=0.03, chance=0.06)
    rows = [
        ScoreRow(
            protocol="ridge", metric=metric, label="", is_primary=True, encoder=e, floors={}, chance=e.chance
        )
        for metric, e in (("prediction_probability", scored), ("mse", tiny))
    ]
    assert axis_low(rows) == 0.5
