"""What the page of a run shows beside its tables: curves, pictures, figures, maps, and how it was made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from histo_ssl.folders.artifacts import PROVENANCE, read_json
from histo_ssl.report.curves import Curve, curves
from histo_ssl.report.facts import Facts, configuration_groups, provenance_facts
from histo_ssl.report.figures import ListedFigures, read_figures
from histo_ssl.report.maps import for_page, read_map, sheet_name
from histo_ssl.report.photographs import Allowance, Wanted, photographs
from histo_ssl.report.plots import Picture
from histo_ssl.report.runs import Result, Run
from histo_ssl.report.scatter import scatters
from histo_ssl.report.sections import RunSection
from histo_ssl.report.survival import survival_curves

VIEWS_SIDE_PX = 1400
LOOK_SIDE_PX, MAX_LOOKS = 1200, 4
FIGURE_SIDE_PX = 1600


@dataclass(frozen=True, kw_only=True)
class ResultPictures:
    """Of one task of a run."""

    figures: list[tuple[str, list[Picture]]]  # by group
    looks: list[Picture]  # attention over slides
    n_left_out: int  # pictures that the page had no room for, or that can't be read
    warnings: list[str]
    scatters: list[Picture]  # predicted against true, where labels are numbers
    survival: list[Picture]  # curves of high and low risk
    tile_map: Mapping[str, object] | None
    sheet: str  # file of the tiles' pictures, below `report/sheets`
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class RunPictures:
    """Of one run."""

    curves: list[Curve]
    views: Picture | None
    results: list[ResultPictures]
    facts: Facts
    configuration: list[tuple[str, Facts]]


def run_pictures(section: RunSection, budget: Allowance, *, sheet_bytes: int) -> RunPictures:
    """All that is to be seen of a run; what of it are pictures keeps within the allowance."""
    run = section.run
    listed = [read_figures(result.folder) for result in run.results]
    wanted = [one for figures in listed for one in _figures(figures)]
    wanted += [one for result in run.results for one in _looks(result.folder)]
    views = views_wanted(run)
    taken = photographs([*views, *wanted], budget)
    return RunPictures(
        curves=curves(run.metrics),
        views=next((taken[one.path] for one in views if one.path in taken), None),
        results=[
            _result_pictures(result, figures, taken, sheet_bytes=sheet_bytes)
            for result, figures in zip(run.results, listed, strict=True)
        ],
        facts=provenance_facts(run.provenance),
        configuration=configuration_groups(run.provenance.get("config") or {}),
    )


def _result_pictures(
    result: Result, listed: ListedFigures, taken: Mapping[Path, Picture], *, sheet_bytes: int
) -> ResultPictures:
    by_group: dict[str, list[Picture]] = {}
    for figure in listed.figures:
        if figure.path in taken:
            by_group.setdefault(figure.group, []).append(taken[figure.path])
    looks = _looks(result.folder)
    paths = [*(figure.path for figure in listed.figures), *(one.path for one in looks)]
    tile_map = read_map(result)
    return ResultPictures(
        figures=list(by_group.items()),
        looks=[taken[one.path] for one in looks if one.path in taken],
        n_left_out=sum(path not in taken for path in paths),
        warnings=listed.warnings,
        scatters=scatters(result),
        survival=survival_curves(result),
        tile_map=for_page(tile_map) if tile_map else None,
        sheet=sheet_name(result, n_bytes=sheet_bytes) if tile_map else "",
        facts=_facts(result.folder / PROVENANCE),
    )


def views_wanted(run: Run) -> list[Wanted]:
    """The sheet of views that pretraining left, if it did."""
    if run.views is None:
        return []
    return [
        Wanted(
            path=run.views,
            title="Views of a few tiles, as the method saw them in pretraining",
            alt=f"Contact sheet: views of a few tiles as {run.title} saw them in pretraining.",
            max_side_px=VIEWS_SIDE_PX,
        )
    ]


def _figures(listed: ListedFigures) -> list[Wanted]:
    return [
        Wanted(path=one.path, title=one.title, alt=one.alt, max_side_px=FIGURE_SIDE_PX)
        for one in listed.figures
    ]


def _looks(folder: Path) -> Sequence[Wanted]:
    """Maps of attention and the tiles that drew most and least of it, of the first few slides."""
    every = (folder / "attention").glob("*.png")
    slides = sorted(path for path in every if not path.stem.endswith("_tiles"))[:MAX_LOOKS]
    return [
        Wanted(
            path=path,
            title=f"{slide.stem}: {what}",
            alt=f"Slide {slide.stem}, {what}.",
            max_side_px=LOOK_SIDE_PX,
        )
        for slide in slides
        for path, what in (
            (slide, "attention of its tiles"),
            (slide.with_name(f"{slide.stem}_tiles.png"), "tiles with the highest and the lowest"),
        )
        if path.exists()
    ]


def _facts(path: Path) -> Facts:
    try:
        return provenance_facts(read_json(path))
    except (FileNotFoundError, json.JSONDecodeError):
        return []
