"""The report: pages that open from disk and can be sent around, a Markdown twin, the scores as CSV.

`index.html` is the overview. Each run and each tile set has a page of its own, with its pictures in it.
"""

import base64
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from histo_ssl.folders.artifacts import exclusive, sweep, write_text
from histo_ssl.report import scores
from histo_ssl.report.comparisons import ComparisonRow, comparisons_csv
from histo_ssl.report.overview import overview
from histo_ssl.report.pages import Pages, script_hash
from histo_ssl.report.plots import Picture
from histo_ssl.report.runs import read_results, read_runs, read_tile_sets
from histo_ssl.report.sections import run_section
from histo_ssl.report.study import label, study_csv, study_tables
from histo_ssl.report.tables import csv_text
from histo_ssl.report.tile_sets import tile_link

TEMPLATES = Path(__file__).parent / "templates"
MARKDOWN_SPECIALS = str.maketrans({c: f"\\{c}" for c in "\\`*[]|"} | {"\n": " ", "\r": " "})


def build_report(runs_dir: Path, *, comparisons: Sequence[ComparisonRow] = ()) -> Path:
    """Write `report/index.html`, its pages, `report.md` and CSV from what is finished under `runs_dir`.

    Each file is whole at any moment; the overview comes last. Pages of what has not changed stay.

    Args:
        runs_dir: of all runs.
        comparisons: of their results in pairs, by `histo_ssl.comparing`.

    Returns:
        The overview, `<runs_dir>/report/index.html`.
    """
    runs = read_runs(runs_dir)
    tables = study_tables(read_results(runs_dir))
    sections = [run_section(run) for run in runs]
    links = [tile_link(tile_set) for tile_set in read_tile_sets(runs_dir)]
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
        "runs": sections,
        "rows": overview(sections),
        "links": links,
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
        pages = Pages(
            report=report, templates=templates, runs=sections, links=links, floors=content["floors"]
        )
        pages.write()
        write_text(report / "index.html", templates.get_template("index.html.j2").render(content))
    return report / "index.html"


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
        "script_hash": lambda name: script_hash(environment.get_template(name).render()),
        "study_label": label,
        "words": scores.words,
    }
    environment.globals |= {"FLOORS": scores.FLOORS}
    return environment
