"""The page: what it says, that it says it to everyone, and that nothing escapes from it."""

import csv
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from histo_ssl.report.html import build_report

SCRIPT = "<script>alert(1)</script>"
FORMULA = '=HYPERLINK("x","y")'
VOID = {"meta", "img", "line", "br", "link", "input", "hr"}
PAGE_BYTES_PER_RUN = 400_000


class Page(HTMLParser):
    """A page as its elements, in order, and the text of its table cells."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_text()
        self.feed(self.source)
        assert self.open == [], "elements left open at the end"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, *start: str) -> list[str]:
        return next(row for row in self.rows if row[: len(start)] == list(start))


VALUES = {"encoder": 0.9, "colour": 0.8, "random": 0.7}


@pytest.fixture(scope="module")
def page(shared_runs: Any) -> Page:
    return Page(build_report(shared_runs.path))


def page_of(fake_runs: Any, *, encoder: str = "pretrain/a-b-c-0", **changes: Any) -> Page:
    fake_runs.result(encoder, "tiles/t", **{"values": VALUES, **changes})
    return Page(build_report(fake_runs.path))


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    addresses = [a[name] for _, a in page.elements for name in ("src", "href", "data", "action") if name in a]
    assert [address for address in addresses if not address.startswith(("data:image/", "#"))] == []
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    assert not re.search(r"url\(|@import|https?://", page.source)


def test_every_image_has_words_and_every_table_a_caption_and_scoped_headings(page: Page) -> None:
    images = page.all("img")
    assert len(images) == 6 + 1 + 4  # curves, views, overlays
    assert all(len(image["alt"]) > 20 for image in images)
    assert len(page.all("table")) == len(page.all("caption")) == 2 + 2 + 6 + 1  # scores, classes, confusion
    assert {heading["scope"] for heading in page.all("th")} == {"col", "row", "rowgroup"}


def test_headings_go_down_one_level_at_a_time_and_links_lead_somewhere(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert max(after - before for before, after in itertools.pairwise(levels)) == 1
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in page.all("a")} <= set(ids)


def test_names_from_outside_never_become_markup(fake_runs: Any) -> None:
    fake_runs.tile_set(n_slides=0, failed={SCRIPT: SCRIPT})
    page = page_of(
        fake_runs,
        encoder=f"pretrain/{SCRIPT.replace('/', '')}-0",
        data=SCRIPT,
        task=f'"><img src=x onerror=alert(1)>{SCRIPT}',
        notes=[SCRIPT],
    )
    assert page.all("script") == []
    assert [attributes for _, attributes in page.elements if "onerror" in attributes] == []
    assert page.text.count(SCRIPT) > 5  # data, task, note, class, slide, configuration: shown as they are
    markdown = (fake_runs.path / "report" / "report.md").read_text()
    assert "<script" not in markdown
    assert "&lt;script&gt;" in markdown
    cells = list(csv.reader((fake_runs.path / "report" / "report.csv").read_text().splitlines()))
    assert SCRIPT in {cell for row in cells for cell in row}  # a CSV file knows no markup


@pytest.mark.parametrize(("encoder", "colour"), [(0.9, 0.8), (0.8, 0.8), (0.75, 0.8), (0.81, 0.8)])
def test_the_page_marks_a_floor_exactly_when_it_wins(fake_runs: Any, encoder: float, colour: float) -> None:
    page = page_of(fake_runs, values={"encoder": encoder, "colour": colour, "random": 0.7})
    wins = colour >= encoder
    says_so = [
        cell for row in page.rows for cell in row if "below colour" in cell or "level with colour" in cell
    ]
    n_rows = 1 + 2 * 4 + 2 * 4  # overview, protocols x metrics, protocols x classes
    assert len(says_so) == (n_rows if wins else 0)
    assert len([a for a in page.all("td") if "winner" in a.get("class", "")]) == (n_rows if wins else 0)
    headline = f"{0 if wins else 1} of 1 primary scores lie above every floor"
    assert headline in page.text
    assert headline in (fake_runs.path / "report" / "report.md").read_text()


def test_the_tables_show_the_numbers_of_the_results(page: Page) -> None:
    floors = ["0.800 [0.770, 0.830]", "0.700 [0.670, 0.730]"]
    score = ["0.900 [0.870, 0.930]", "▲ above both floors", *floors]
    assert page.row("dino, vit_t synthetic") == [
        "dino, vit_t synthetic",
        "knn AUC, weighted k20",
        *score,
        "0.500",
        "",
    ]
    assert page.row("balanced accuracy") == ["balanced accuracy", *score, "0.250"]
    assert page.row("stroma")[:2] == ["stroma", "0.880 [0.850, 0.910]"]
    # 150 tiles of each class, 90 % right, the others spread over three classes
    assert page.row("stroma", "5 3 %") == ["stroma", "5 3 %", "135 90 %", "5 3 %", "5 3 %"]


def test_failed_slides_stand_first_with_their_reason(page: Page) -> None:
    place = next(i for i, row in enumerate(page.rows) if row[:2] == ["slide", "failed because"])
    assert page.rows[place + 1][:2] == [SCRIPT, "no um/px in the file: set data.mpp_override"]
    assert page.rows[place + 2][:3] == ["slide0", "", "P0"]
    assert "1.23" in page.rows[place + 2]  # mm2, rounded
    assert "1 of 5 failed." in page.text
    assert "slide0: 210 tiles" in page.text


def test_a_run_without_labels_has_its_section_and_says_why(fake_runs: Any) -> None:
    page = page_of(fake_runs, scores=[], confusion={}, notes=["No tile of these data has a label."])
    assert page.row("dino, vit_t synthetic")[-1] == "no score: No tile of these data has a label."
    assert "None: No tile of these data has a label." in page.text
    assert "Nothing has been scored yet." in page.text


def test_an_encoder_that_was_never_scored_has_its_section(fake_runs: Any) -> None:
    fake_runs.pretraining("dino-vit_s-slides-0123456789")
    page = Page(build_report(fake_runs.path))
    assert page.row("dino-vit_s-slides") == ["dino-vit_s-slides", "not scored on any task"]
    assert len(page.all("img")) == 6 + 1


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    page = Page(build_report(tmp_path))
    assert "No finished run" in page.text
    assert "No finished tile set" in page.text
    assert (tmp_path / "report" / "report.csv").read_text().count("\n") == 1  # the heading


def test_missing_files_leave_their_place_empty(fake_runs: Any) -> None:
    def nothing(folder: Path) -> None: ...

    fake_runs.finish("pretrain/imagenet-resnet50-none-0123456789", nothing)
    fake_runs.finish("tiles/x-0123456789", nothing)
    page = Page(build_report(fake_runs.path))
    assert "No curves: this encoder was not trained here." in page.text
    assert page.all("img") == []


def test_a_page_of_several_runs_stays_small(fake_runs: Any) -> None:
    tiles = fake_runs.tile_set(n_slides=14)
    for i in range(2):
        encoder = fake_runs.pretraining(f"dino-vit_t-synthetic-{i}")
        fake_runs.result(encoder, tiles, values=VALUES)
    path = build_report(fake_runs.path)
    assert path.stat().st_size < 2 * PAGE_BYTES_PER_RUN
    assert "12 of 14 overlays" in Page(path).text


def test_imagenet_s_weights_have_a_column_where_they_were_scored(fake_runs: Any) -> None:
    floors = {"colour": 0.8, "random": 0.7}
    alone = page_of(fake_runs, values={"encoder": 0.9, **floors})
    assert "ImageNet-weights floor" not in alone.text
    names = {"method": "imagenet", "backbone": "vit_s"}
    fake_runs.result("pretrain/x", "tiles/t", values={"encoder": 0.95, **floors}, **names)
    page = Page(build_report(fake_runs.path))
    cells = next(cells for cells in page.rows if cells[0] == "dino, vit_t synthetic")
    assert cells[3:7] == [
        "▼ below ImageNet-weights floor",
        "0.800 [0.770, 0.830]",
        "0.700 [0.670, 0.730]",
        "0.950 [0.920, 0.980]",
    ]
    itself = next(cells for cells in page.rows if cells[0] == "imagenet, vit_s synthetic")
    assert itself[6] == "not scored"
    markdown = (fake_runs.path / "report" / "report.md").read_text()
    headings = [line for line in markdown.splitlines() if "| ImageNet-weights floor | chance |" in line]
    assert len(headings) == 3  # of the overview and of two results
