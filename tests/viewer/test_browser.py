"""The viewer in a browser: a slide of 20,000 px is moved, zoomed and seen with maps, without a complaint."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histo_ssl.viewer.shelf import fill

from ..browser import NAMES, Browser, executable
from .big import MPP, SIDE_PX, write_large_slide
from .conftest import Runs, Site, serving

TILE_SIDE = 250
TRIES = 3
PHONE_PX = 600
VIEW_MS = 200  # for everything of a changed view to be there, on two cores
# Resolves when all of the view is drawn: no image needs anything more, and the screen was painted.
SHOWN_WHERE = """
    new Promise((done) => {
      const look = () => {
        const images = [...Array(viewer.world.getItemCount()).keys()].map((i) => viewer.world.getItemAt(i));
        const isLoaded = images.every((image) => image.getFullyLoaded());
        const isShown = CONDITION && isLoaded && !viewer.world.needsDraw();
        if (isShown) done(performance.now() - window.changedAt);
        else requestAnimationFrame(look);
      };
      requestAnimationFrame(() => requestAnimationFrame(look));
    })
"""
SHOWN = SHOWN_WHERE.replace("CONDITION", "true")
NOW = "void (window.changedAt = performance.now())"  # before the event that changes the view
# What a screen reader could not name.
UNNAMED = """
    [...document.querySelectorAll('button, input, select, a')].filter(
      (one) => !(one.ariaLabel || one.textContent.trim() || (one.labels && one.labels.length)))
"""

pytestmark = pytest.mark.skipif(
    executable() is None, reason=f"no Chromium on this machine: looked for {', '.join(NAMES)} on the PATH"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A slide of 20,000 px square, 6,400 tiles with numbers and classes."""
    folder = tmp_path_factory.mktemp("large")
    write_large_slide(folder / "large.tif")
    y, x = (axis.ravel() * TILE_SIDE for axis in np.mgrid[:80, :80])
    kinds = np.array(["stroma", "tumour", "<b>fat</b>"])[(x // 5000 + y // 5000) % 3]
    values = pd.DataFrame({"x": x, "y": y, "side": TILE_SIDE, "depth": x / SIDE_PX, "kind": kinds})
    values.assign(slide="large").to_csv(folder / "values.csv", index=False)
    yield from serving(fill([], slides=[folder / "large.tif"], values=[folder / "values.csv"]))


def _open_slide(page: Browser, site: Site, name: str, *, width: int, height: int) -> None:
    address = f"http://{site.host}/slide/{site.slide(name)['id']}"
    page.open(address, width=width, height=height, is_mobile=width < PHONE_PX, is_still=True)
    page.wait_for("viewer && viewer.world.getItemCount() === 1")
    page.evaluate(SHOWN)


def _complaints(page: Browser) -> list[str]:
    """All but what OpenSeadragon says of a tile whose map was switched off meanwhile."""
    return [words for words in page.errors if "loaded before reset" not in words]


def _middle(page: Browser) -> tuple[float, float]:
    box = page.evaluate("JSON.parse(JSON.stringify(viewer.canvas.getBoundingClientRect()))")
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def _choose(page: Browser, key: str, title: str) -> float:
    """Switch to a map by its key; ms until it is there."""
    page.evaluate("viewer.canvas.focus()")
    page.evaluate(NOW)
    page.key(key)
    is_chosen = f"page.drawn && page.chosen && page.chosen.title.startsWith({title!r}) && images.length === 2"
    ms: float = page.evaluate(SHOWN_WHERE.replace("CONDITION", is_chosen))
    return ms


def _changes(page: Browser) -> Iterator[tuple[str, float]]:
    """Views: zoomed by button and wheel, dragged, moved by keys; ms until all of each is there."""
    x, y = _middle(page)
    zooms = (
        "closer",
        "closer",
        "wheel",
        "closer",
        "closer",
        "closer",
        "closer",
        "wheel",
        "closer",
        "farther",
    )
    for i, zoom in enumerate(zooms):
        page.evaluate(NOW)
        if zoom == "wheel":
            page.mouse("wheel", x, y, deltaX=0, deltaY=-240)
        else:
            page.evaluate(f"byId({zoom!r}).click()")
        yield "zoom", page.evaluate(SHOWN)
        aside = (-1) ** i * 400  # to and fro, so that the slide stays in view
        page.mouse("pressed", x, y, button="left", buttons=1, clickCount=1)
        page.evaluate(NOW)
        page.mouse("moved", x + aside, y + aside / 2, button="left", buttons=1)
        yield "drag", page.evaluate(SHOWN)
        time.sleep(0.3)  # held still, so that the slide is not thrown
        page.mouse("moved", x + aside, y + aside / 2 + 1, button="left", buttons=1)
        page.mouse("released", x + aside, y + aside / 2 + 1, button="left", buttons=0, clickCount=1)
        page.evaluate("viewer.canvas.focus()")
        page.evaluate(NOW)
        page.key("ArrowRight")
        yield "key", page.evaluate(SHOWN)


def _timed(page: Browser, site: Site) -> pd.DataFrame:
    """Median and longest ms per view change, of each kind of change with each map."""
    _open_slide(page, site, "large", width=1440, height=900)
    found = pd.DataFrame([("slide", *change) for change in _changes(page)], columns=["map", "change", "ms"])
    for key, title in (("1", "depth"), ("2", "kind")):
        page.evaluate("void viewer.viewport.goHome(true)")
        for _ in range(3):  # to the map at another level of the slide each time
            page.evaluate("byId('closer').click()")
            page.evaluate(SHOWN)
            found.loc[len(found)] = [title, "switch", _choose(page, key, title)]
            page.key(key)  # again: none
            page.wait_for("viewer.world.getItemCount() === 1")
        _choose(page, key, title)
        for change, ms in _changes(page):
            found.loc[len(found)] = [title, change, ms]
    return found.groupby(["map", "change"])["ms"].agg(["median", "max", "count"]).round()


def test_a_large_slide_moves_zooms_and_changes_maps_in_time(page: Browser, large: Site) -> None:
    tried, limits = [], []
    for _ in range(TRIES):  # others may have had the processors; each try begins with nothing kept
        for fresh in serving(large.shelf):
            tried.append(_timed(page, fresh))
            assert _complaints(page) == []
        limits.append(VIEW_MS * max(1.0, os.getloadavg()[0]))
        if (tried[-1]["median"] < limits[-1]).all():
            break
    print(f"ms per view change, of {limits[-1]:.0f} that the machine's load allows\n{tried[-1]}")
    assert (tried[-1]["median"] < limits[-1]).all(), (tried, limits)


def test_where_the_slide_is_moved_to_is_what_is_seen(page: Browser, large: Site) -> None:
    _open_slide(page, large, "large", width=1440, height=900)
    x, y = _middle(page)
    under = "(() => {const p = onSlide(new OpenSeadragon.Point(400, 300)); return [p.x, p.y]})()"
    zoom = "viewer.world.getItemAt(0).viewportToImageZoom(viewer.viewport.getZoom())"
    before = page.evaluate(zoom)
    page.mouse("wheel", x, y, deltaX=0, deltaY=-240)
    page.evaluate(SHOWN)
    assert page.evaluate(zoom) > 1.15 * before
    start, scale = np.array(page.evaluate(under)), page.evaluate(zoom)
    page.mouse("pressed", x, y, button="left", buttons=1, clickCount=1)
    for step in range(1, 6):
        page.mouse("moved", x + 20 * step, y + 10 * step, button="left", buttons=1)
    time.sleep(0.3)
    page.mouse("moved", x + 100, y + 51, button="left", buttons=1)
    page.mouse("released", x + 100, y + 51, button="left", buttons=0, clickCount=1)
    page.evaluate(SHOWN)
    moved = (start - np.array(page.evaluate(under))) * scale
    assert moved == pytest.approx([100, 51], abs=12)  # px of the screen; the last step still throws it a bit
    bar, words = page.evaluate("[byId('barline').getBoundingClientRect().width, byId('bartext').textContent]")
    um = float(words.split()[0]) * (1000 if words.endswith("mm") else 1)
    assert bar == pytest.approx(um / MPP * scale, abs=1)


def test_pointing_at_a_tile_tells_of_it_and_names_stay_text(page: Browser, large: Site) -> None:
    _open_slide(page, large, "large", width=1440, height=900)
    _choose(page, "2", "kind")
    x, y = _middle(page)
    page.mouse("moved", x - 5, y - 5)
    page.mouse("moved", x - 4, y - 6)
    page.wait_for("!byId('tile').hidden && byId('picture').complete")
    told = page.evaluate("[...byId('told').children].map((one) => one.textContent)")
    facts = dict(zip(told[::2], told[1::2], strict=True))
    assert facts["place"] == "9,750, 9,750 px"
    assert facts["kind"] == "tumour" or facts["kind"] in ("stroma", "<b>fat</b>")
    assert facts["kind"] == ["stroma", "tumour", "<b>fat</b>"][(9750 // 5000 + 9750 // 5000) % 3]
    assert float(facts["depth"]) == pytest.approx(9750 / SIDE_PX, abs=1e-4)
    assert page.evaluate("byId('picture').naturalWidth") == TILE_SIDE
    legend = page.evaluate(
        "[...document.querySelectorAll('.classes li')].map((one) => one.children[1].textContent)"
    )
    assert legend == ["<b>fat</b>", "stroma", "tumour"]
    assert page.evaluate("document.querySelectorAll('b').length") == 0
    assert _complaints(page) == []


def test_the_map_is_drawn_at_the_opacity_of_the_slider(page: Browser, large: Site) -> None:
    _open_slide(page, large, "large", width=1440, height=900)
    _choose(page, "1", "depth")
    assert page.evaluate("page.drawn.getOpacity()") == pytest.approx(0.6)
    page.key("]")
    assert page.evaluate("[page.drawn.getOpacity(), byId('percent').textContent]") == [
        pytest.approx(0.7),
        "70 %",
    ]
    page.key("1")  # again: none
    page.wait_for("viewer.world.getItemCount() === 1")


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_pages_fit_their_window_and_all_is_named_and_reached_by_keys(
    page: Browser, site: Site, runs: Runs, width: int, height: int, tmp_path: Path
) -> None:
    page.open(f"http://{site.host}/", width=width, height=height, is_mobile=width < PHONE_PX, is_still=True)
    page.wait_for("document.querySelectorAll('#slides li').length === 2")
    page.wait_for("[...document.images].every((image) => image.complete && image.naturalWidth)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.getElementById('find').focus()")
    for letter in "p02":
        page.key(letter)
    assert page.evaluate(
        "[document.getElementById('count').textContent,"
        " document.querySelectorAll('#slides li:not([hidden])').length]"
    ) == ["1 of 2", 1]
    _open_slide(page, site, "P01S1", width=width, height=height)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(f"{UNNAMED}.length") == 0
    assert page.evaluate("viewer.canvas.tabIndex") == 0
    assert page.evaluate("viewer.canvas.getAttribute('aria-label')").startswith("slide P01S1: arrows move")
    page.evaluate("viewer.canvas.focus()")
    page.key("Enter")  # the tile in the middle
    page.wait_for("byId('tile').hidden === false || byId('hint').hidden === false")
    page.key("1")
    page.wait_for("page.drawn && document.querySelector('.strip')")
    page.screenshot(tmp_path / f"slide_{width}.png")
    assert _complaints(page) == []
