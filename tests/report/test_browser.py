"""In a browser: pages open from disk without an error, tables sort, the map shows tiles, all can be read."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from histo_ssl.report.html import build_report

SCRIPT = "<script>window.broken=1</script>"
ATTACK = f'"><img src=x onerror=window.broken=1>{SCRIPT}'
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3 (AA)
MAP_X, MAP_Y, MARGIN = 4, -4, 16

# Least contrast of any text against what lies behind it, by WCAG's relative luminance; and where it is.
CONTRAST = """
(() => {
  const parse = text => [...text.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const light = rgb => rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const over = (top, below) => below.map((v, i) => top[i] * top[3] + v * (1 - top[3]));
  const behind = element => !element ? [255, 255, 255]
    : over(parse(getComputedStyle(element).backgroundColor), behind(element.parentElement));
  let least = [99, ""];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, box = element.getBoundingClientRect();
    if (!walk.currentNode.textContent.trim() || !box.width) continue;
    if (element.closest("script, noscript, style, .classes [aria-hidden]")) continue;
    const style = getComputedStyle(element), back = behind(element);
    const ink = over(parse(element.closest("svg") ? style.fill : style.color), back);
    const [a, b] = [light(ink), light(back)].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
    if (ratio < least[0]) least = [ratio, walk.currentNode.textContent.trim()];
  }
  return least;
})()
"""


@pytest.fixture(scope="session")
def driver() -> ModuleType:
    """The module `tests/browser.py`."""
    path = Path(__file__).parents[1] / "browser.py"
    spec = importlib.util.spec_from_file_location("browser", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser(driver: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if driver.executable() is None:
        pytest.skip(f"no Chromium on this machine: looked for {', '.join(driver.NAMES)} on the PATH")
    with driver.Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, shared_runs: Any, listed: Any) -> Path:
    """Four runs, one of them not scored, with all kinds of content and names that try to break out."""
    runs = type(shared_runs)(tmp_path_factory.mktemp("seen") / "runs")
    tiles = runs.tile_set(failed={ATTACK: ATTACK})
    entry = {"file": "a.png", "title": ATTACK, "alt": ATTACK, "group": ATTACK}
    for name, method, value in (("a-0", "dino", 0.7), ("b-0", "moco", 0.9), ("c-0", ATTACK, 0.8)):
        encoder = runs.pretraining(name)
        values = {"encoder": value, "colour": 0.75, "random": 0.6}
        runs.result(encoder, tiles, values=values, method=method, files=listed(entry), notes=[ATTACK])
    runs.tile_map("pretrain/a-0", tiles, labels=["fat", f"</{ATTACK}", "", "fat", "fat"], slide=f"</{ATTACK}")
    runs.pretraining("d-0")
    return build_report(runs.path).parent


def _column(browser: Any, column: int) -> list[str]:
    cells = f"[...document.querySelectorAll('#runs tbody tr')].map(r => r.cells[{column}])"
    script = f"{cells}.map(c => (c?.innerText ?? '').split('\\n')[0])"
    found: list[str] = browser.evaluate(script)
    return found


def _centre(browser: Any, element: str) -> tuple[float, float]:
    script = f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center', behavior: 'instant'}});"
    script += " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    x, y = browser.evaluate(script)
    return x, y


def _press_heading(browser: Any, name: str) -> str:
    """Click on a column's heading; what it then says of its order comes back."""
    find = f"[...document.querySelectorAll('#runs th button')].find(b => b.textContent === '{name}')"
    browser.click(*_centre(browser, find))
    order: str = browser.evaluate(f"{find}.closest('th').getAttribute('aria-sort')")
    return order


@pytest.mark.parametrize("width", [1440, 390])
def test_every_page_opens_from_disk_without_an_error_and_within_the_window(
    browser: Any, report: Path, width: int
) -> None:
    pages = sorted(report.rglob("*.html"))
    assert len(pages) == 1 + 4 + 1
    for page in pages:
        browser.open(page.as_uri(), width=width)
        browser.frame()
        assert browser.errors == [], page.name
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, page.name
        assert browser.evaluate("window.broken") is None, page.name
        wide = "[...document.querySelectorAll('table')].every(t => t.closest('.scroll'))"
        assert browser.evaluate(wide), page.name


def test_a_column_is_sorted_by_its_heading_best_first_and_what_has_no_score_last(
    browser: Any, report: Path
) -> None:
    browser.open((report / "index.html").as_uri())
    scores = ["0.700", "0.900", "0.800"]
    assert _column(browser, 4)[0] == scores[0]
    assert _press_heading(browser, "encoder") == "descending"
    assert _column(browser, 4)[:3] == ["0.900", "0.800", "0.700"]
    assert _column(browser, 0)[4] == "d"  # neither scored nor a map
    assert _press_heading(browser, "encoder") == "ascending"
    assert _column(browser, 4)[:3] == ["0.700", "0.800", "0.900"]
    assert _column(browser, 0)[4] == "d"
    assert _press_heading(browser, "method") == "ascending"
    assert _column(browser, 0) == [ATTACK, "d", "dino", "dino", "moco"]
    assert browser.evaluate("document.querySelectorAll('[aria-sort]').length") == 1
    assert _press_heading(browser, "encoder against floors") == "descending"
    assert [text[0] for text in _column(browser, 5)[:2]] == ["▲", "△"]
    assert browser.errors == []


def test_the_box_leaves_out_rows_without_its_words_and_says_how_many_there_are(
    browser: Any, report: Path
) -> None:
    browser.open((report / "index.html").as_uri())
    browser.evaluate("document.querySelector('input').focus()")
    browser.call("Input.insertText", text="DINO knn")
    shown = "[...document.querySelectorAll('#runs tbody tr')].filter(r => r.offsetHeight).length"
    assert browser.evaluate(shown) == 1
    assert browser.evaluate("document.querySelector('.filter output').textContent") == "1 of 5 rows"


def test_headings_sort_by_keyboard_and_what_has_the_focus_is_seen(browser: Any, report: Path) -> None:
    browser.open((report / "index.html").as_uri())
    browser.press("Tab", code=9)
    assert browser.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().x") >= 0
    seen = []
    for _ in range(30):
        browser.press("Tab", code=9)
        style = "getComputedStyle(document.activeElement)"
        assert browser.evaluate(f"{style}.outlineStyle") != "none"
        seen.append(browser.evaluate("document.activeElement.textContent"))
        if seen[-1] == "backbone":
            break
    browser.press("Enter", code=13)
    assert browser.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"
    assert "method" in seen


def _shown(browser: Any) -> tuple[bool, str, str]:
    """Whether a tile is shown, its words, and where in the sheet it is."""
    script = (
        "(() => { const t = document.querySelector('.tip'), s = getComputedStyle(t.querySelector('.tile'));"
    )
    script += " return [!t.hidden && t.offsetHeight > 160, t.innerText.trim(), s.backgroundPosition]; })()"
    is_shown, text, place = browser.evaluate(script)
    return is_shown, text, place


@pytest.mark.parametrize("width", [1440, 390])
def test_pointing_at_a_tile_on_the_map_shows_it(browser: Any, report: Path, width: int) -> None:
    browser.open((report / "runs" / "a-0.html").as_uri(), width=width, height=900)
    x, y = _centre(browser, "document.querySelector('.stage')")
    w, h = browser.evaluate("(s => [s.clientWidth, s.clientHeight])(document.querySelector('.stage'))")
    at = [
        (x - w / 2 + MARGIN + (w - 2 * MARGIN) * i / MAP_X, y - h / 2 + MARGIN + (h - 2 * MARGIN) * i / 4)
        for i in range(5)
    ]
    browser.move(x + w / 4, y - h / 4)  # far from all
    assert not _shown(browser)[0]
    for i, columns in ((3, 3), (1, 3), (4, 3)):
        browser.move(at[i][0] + 2, at[i][1] + 2)
        is_shown, text, place = _shown(browser)
        assert is_shown
        assert text.endswith(f"</{ATTACK}{i} at {i}, 0")
        assert place == f"{-160 * (i % columns)}px {-160 * (i // columns)}px"
    sheet = "document.querySelector('.map').dataset.sheet"
    loaded = f"new Promise(d => {{ const i = new Image(); i.onload = () => d(i.width); i.src = {sheet}; }})"
    assert browser.evaluate(loaded) == 24  # three columns of 8 px: the picture behind it is there
    assert browser.errors == []
    assert browser.evaluate("window.broken") is None


def test_the_map_is_walked_by_arrow_keys_and_shown_by_another_subject(browser: Any, report: Path) -> None:
    browser.open((report / "runs" / "a-0.html").as_uri(), height=900)
    browser.evaluate("document.querySelector('canvas').focus({preventScroll: true})")
    told = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
        browser.press(key)
        told.append(_shown(browser)[1][-5:])
    assert told == [f"{ATTACK}0"[-5:], " 1, 0", " 2, 0", " 1, 0"]
    browser.press("Escape")
    assert not _shown(browser)[0]
    browser.click(*_centre(browser, "document.querySelectorAll('.subjects input')[1]"))
    assert browser.evaluate("document.querySelectorAll('.subjects input')[1].checked")
    assert browser.errors == []


def test_all_text_can_be_told_from_its_ground(browser: Any, report: Path) -> None:
    for page in sorted(report.rglob("*.html")):
        browser.open(page.as_uri())
        browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        ratio, text = browser.evaluate(CONTRAST)
        assert ratio >= LEAST_CONTRAST, f"{page.name}: {text}"


def test_who_wants_no_motion_gets_none(browser: Any, report: Path) -> None:
    browser.open((report / "index.html").as_uri())
    moving = "getComputedStyle(document.documentElement).scrollBehavior"
    assert browser.evaluate(moving) == "smooth"
    browser.call(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}]
    )
    assert browser.evaluate(moving) == "auto"
    browser.call("Emulation.setEmulatedMedia", features=[])


def test_on_paper_tables_are_whole_and_what_is_for_the_hand_is_gone(browser: Any, report: Path) -> None:
    browser.open(
        (report / "index.html").as_uri(), width=1032
    )  # A4 across, without its margins, at 96 px per inch
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.evaluate("document.querySelector('#runs').getBoundingClientRect().right") <= 1032
        hidden = "[...document.querySelectorAll('nav, .filter')].every(e => !e.offsetHeight)"
        assert browser.evaluate(hidden)
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
