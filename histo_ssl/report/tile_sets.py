"""What the report shows of each tile set: its counts, what failed and why, where its tiles lie."""

from dataclasses import dataclass

from histo_ssl.report.facts import plain
from histo_ssl.report.photographs import Allowance, Wanted, photographs
from histo_ssl.report.plots import Picture
from histo_ssl.report.runs import Run, TileSet
from histo_ssl.report.sections import page_name

OVERLAY_SIDE_PX, MAX_OVERLAYS = 560, 12
MAX_STATUS_ROWS = 200
MAX_FAILED_ROWS = 20  # on the page of a run, which links to the whole list
STATUS_COLUMNS = {  # column of status.csv -> heading
    **{
        "slide_id": "slide",
        "path": "file",
        "reason": "failed because",
        "patient_id": "patient",
        "site": "site",
        "label": "label",
    },
    **{
        "split": "split",
        "width_px": "width, px",
        "height_px": "height, px",
        "mpp": "µm/px",
        "n_levels": "levels",
    },
    **{"tissue_mm2": "tissue, mm²", "n_tiles": "tiles", "seconds": "time, s"},
}
DECIMALS = {"mpp": 3, "tissue_mm2": 2, "seconds": 1}  # of the columns that are measured


@dataclass(frozen=True, kw_only=True)
class TileLink:
    """A tile set as the other pages tell of it."""

    tile_set: TileSet
    page: str  # file below `report/tiles`
    failed: list[tuple[str, str]]  # slide or file, reason; the first few


@dataclass(frozen=True, kw_only=True)
class TileSection:
    """One tile set."""

    tile_set: TileSet
    facts: list[tuple[str, str]]
    headings: list[str]
    rows: list[list[str]]
    overlays: list[Picture]


def tile_link(tile_set: TileSet) -> TileLink:
    """Where the tile set's page is, and what failed."""
    failed = [row for row in tile_set.status if row.get("reason")][:MAX_FAILED_ROWS]
    return TileLink(
        tile_set=tile_set,
        page=page_name(tile_set.name),
        failed=[(row.get("slide_id") or row.get("path") or "", row["reason"]) for row in failed],
    )


def links_of(run: Run, links: list[TileLink]) -> list[TileLink]:
    """The tile sets that a run was trained or scored on, in the order of the links."""
    scored = {result.tile_folder for result in run.results}
    return [link for link in links if link.tile_set.name in scored or is_trained_on(run, link)]


def is_trained_on(run: Run, link: TileLink) -> bool:
    """Whether the run's own configuration is that of the tile set."""
    return bool(link.tile_set.config) and link.tile_set.config == run.tile_config


def tile_section(tile_set: TileSet, allowance: Allowance) -> TileSection:
    """The tile set with its first overlays as pictures and its status table, failed slides first."""
    columns = [name for name in STATUS_COLUMNS if any(row.get(name) for row in tile_set.status)]
    if "slide_id" in columns and "path" in columns:
        columns.remove("path")  # a page that is sent around need not tell where on whose disk a slide lies
    rows = tile_set.status[:MAX_STATUS_ROWS]
    return TileSection(
        tile_set=tile_set,
        facts=[(name.replace("_", " "), plain(value)) for name, value in tile_set.source.items()],
        headings=[STATUS_COLUMNS[name] for name in columns],
        rows=[[tidy(row.get(name) or "", column=name) for name in columns] for row in rows],
        overlays=_overlays(tile_set, allowance),
    )


def tidy(text: str, *, column: str) -> str:
    """A cell of status.csv with as many decimals as a reader needs.

    >>> tidy("0.4990234", column="mpp"), tidy("CMU-1", column="slide_id"), tidy("", column="mpp")
    ('0.499', 'CMU-1', '')
    """
    if not text or column not in DECIMALS:
        return text
    return f"{float(text):.{DECIMALS[column]}f}"


def _overlays(tile_set: TileSet, allowance: Allowance) -> list[Picture]:
    n_tiles = {row.get("slide_id", ""): row.get("n_tiles", "") for row in tile_set.status}
    wanted = [
        Wanted(
            path=path,
            title=f"{path.stem}: {n_tiles.get(path.stem) or 'unknown number of'} tiles",
            alt=f"Slide {path.stem} with the outline of its tissue and the grid of its tiles.",
            max_side_px=OVERLAY_SIDE_PX,
        )
        for path in tile_set.overlays[:MAX_OVERLAYS]
    ]
    return list(photographs(wanted, allowance).values())
