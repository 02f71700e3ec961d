"""The report: one page that opens from disk and can be sent around, its Markdown twin, the scores as CSV."""

import base64
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from histo_ssl.folders.artifacts import exclusive, sweep, write_text
from histo_ssl.report import scores
from histo_ssl.report.comparisons import ComparisonRow, comparisons_csv
from histo_ssl.report.maps import for_page
from histo_ssl.report.plots import Picture
from histo_ssl.report.runs import read_results, read_runs, read_tile_sets
from histo_ssl.report.sections import RunSection, run_section, tile_section
from histo_ssl.report.study import label, study_csv, study_tables
from histo_ssl.report.tables import csv_text

TEMPLATES = Path(__file__).parent / "templates"
MARKDOWN_SPECIALS = str.maketrans({c: f"\\{c}" for c in "\\`*[]|"} | {"\n": " ", "\r": " "})


def build_report(runs_dir: Path, *, comparisons: Sequence[ComparisonRow] = ()) -> Path:
    """Write `report/index.html`, `report.md` and `report.csv` from what is finished under `runs_dir`.

    Each file is whole at any moment; the page comes last.

    Args:
        runs_dir: of all runs.
        comparisons: of their results in pairs, by `histo_ssl.comparing`.

    Returns:
        The page, `<runs_dir>/report/index.html`.
    """
    runs = read_runs(runs_dir)
    tables = study_tables(read_results(runs_dir))
    content: dict[str, Any] = {
        "generated": time.strftime("%Y-%m-%d %H:%M %Z"),
        "folder": runs_dir.resolve().name,
        "floors": scores.measured_floors(result for run in runs for result in run.results),
        "study": tables,
        "comparisons": comparisons,
        "headline": scores.headline(runs),
        "axis_low": scores.axis_low(
            row for run in runs for row in map(scores.primary_row, run.results) if row
        ),
        "runs": [run_section(run, place=place) for place, run in enumerate(runs, start=1)],
        "tile_sets": [
            tile_section(t, place=place) for place, t in enumerate(read_tile_sets(runs_dir), start=1)
        ],
    }
    templates = _templates()
    report = runs_dir / "report"
    with exclusive(report, label="report"):
        sweep(report)
        write_text(report / "report.csv", csv_text(runs))
        write_text(report / "report.md", templates.get_template("report.md.j2").render(content))
        if comparisons:
            write_text(report / "comparisons.csv", comparisons_csv(comparisons))
        for table in tables:
            write_text(report / f"{table.name}.csv", study_csv(table))
        _write_maps(report, content["runs"], templates)
        write_text(report / "index.html", templates.get_template("page.html.j2").render(content))
    return report / "index.html"


def _write_maps(report: Path, runs: list[RunSection], templates: jinja2.Environment) -> None:
    """A page for each map: too large to stand inside the report."""
    template = templates.get_template("map.html.j2")
    for result in (result for run in runs for result in run.results):
        if result.tile_map:
            content = for_page(result.tile_map)
            page = template.render(title=result.tile_map.title, content=content, sheet=result.tile_map.sheet)
            write_text(report / result.map_page, page)


def data_uri(picture: Picture) -> str:
    """The picture as an address that holds the picture itself, so that the page needs no other file.

    >>> data_uri(Picture(title="", alt="", media_type="image/png", content=b"abc"))
    'data:image/png;base64,YWJj'
    """
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.content).decode()}"


def plain_markdown(text: str) -> str:
    r"""The text with everything escaped that Markdown would take for a table, a link, code or emphasis.

    >>> print(plain_markdown("a|b"))
    a\|b
    """
    return text.translate(MARKDOWN_SPECIALS)


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # names come from file names and manifests: none of them may become markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data_uri": data_uri,
        "interval": scores.interval,
        "markdown": plain_markdown,
        "number": scores.number,
        "study_label": label,
        "words": scores.words,
    }
    environment.globals |= {"FLOORS": scores.FLOORS}
    return environment
