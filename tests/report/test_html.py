"""The pages: what they say, that they say it to everyone, and that nothing escapes from them."""

import csv
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from histo_ssl.report.html import build_report
from histo_ssl.report.pages import script_hash

SCRIPT = "<script>alert(1)</script>"
VALUES = {"encoder": 0.9, "colour": 0.8, "random": 0.7}
INDEX = "index.html"


@pytest.fixture(scope="module")
def site(shared_runs: Any, read_pages: Any) -> Any:
    """Pages of one run, scored, on slides of which one failed."""
    return read_pages(build_report(shared_runs.path))


@pytest.fixture(scope="module")
def run_page(site: Any) -> Any:
    return site["runs/dino-vit_t-synthetic-bbbbbbbbbb.html"]


@pytest.fixture(scope="module")
def tile_page(site: Any) -> Any:
    return site["tiles/synthetic-small-aaaaaaaaaa.html"]


@pytest.fixture
def site_of(fake_runs: Any, read_pages: Any) -> Any:
    """Makes the pages of a report after a result was added; gives the overview and the run's page."""

    def make(*, encoder: str = "pretrain/a-b-c-0", **changes: Any) -> tuple[Any, Any]:
        fake_runs.result(encoder, "tiles/t", **{"values": VALUES, **changes})
        pages = read_pages(build_report(fake_runs.path))
        return pages[INDEX], next(page for name, page in pages.items() if name.startswith("runs/"))

    return make


@pytest.fixture(scope="module")
def full_site(
    tmp_path_factory: pytest.TempPathFactory, read_pages: Any, listed: Any, shared_runs: Any
) -> Any:
    """Pages with everything that there is, all of whose names try to break out."""
    runs = type(shared_runs)(tmp_path_factory.mktemp("full") / "runs")
    tiles = runs.tile_set(failed={SCRIPT: SCRIPT})
    encoder = runs.pretraining(f"dino{SCRIPT.replace('/', '')}-0")
    entry = {"file": "a.png", "title": SCRIPT, "alt": f'"{SCRIPT}', "group": SCRIPT}
    files = listed(entry, {**entry, "file": f"../{SCRIPT}.png"})
    names = {"data": SCRIPT, "task": f'"><img src=x onerror=alert(1)>{SCRIPT}', "notes": [SCRIPT]}
    runs.result(encoder, tiles, values=VALUES, files=files, **names)
    runs.tile_map(encoder, tiles, labels=["fat", f"</{SCRIPT}", ""], slide=f"</{SCRIPT}")
    return read_pages(build_report(runs.path))


def test_the_pages_need_nothing_but_each_other(full_site: Any) -> None:
    for page in full_site.values():
        addresses = [a[name] for _, a in page.elements for name in ("src", "href", "data-sheet") if name in a]
        others = [address for address in addresses if not address.startswith(("data:image/", "#"))]
        assert all((page.path.parent / address.partition("#")[0]).is_file() for address in others), others
        assert page.all("link") == page.all("iframe") == page.all("form") == []
        assert not re.search(r"url\((?!\"\$)|@import|https?://", page.source.replace(SCRIPT, ""))


def test_a_page_s_policy_lets_its_own_script_run_and_no_other(full_site: Any) -> None:
    for page in full_site.values():
        (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
        assert "default-src 'none'" in policy
        kinds = [attributes.get("type", "") for attributes in page.all("script")]
        programs = [
            text for text, kind in zip(page.scripts, kinds, strict=True) if kind != "application/json"
        ]
        allowed = re.search(r"script-src (.*)", policy)
        assert allowed
        assert allowed[1] == (" ".join(f"'{script_hash(text)}'" for text in programs) or "'none'")


def test_every_image_has_words_and_every_table_a_caption_and_scoped_headings(full_site: Any) -> None:
    for page in full_site.values():
        assert all(len(image["alt"]) > 20 for image in page.all("img"))
        drawn = [svg for svg in page.all("svg") if svg.get("class") in ("curve", "strip")]
        assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in drawn)
        assert len(page.all("table")) == len(page.all("caption")) > 0
        assert {heading["scope"] for heading in page.all("th")} <= {"col", "row", "rowgroup"}


def test_the_run_s_page_has_its_curves_its_pictures_and_its_tables(run_page: Any, tile_page: Any) -> None:
    assert len([svg for svg in run_page.all("svg") if svg.get("class") == "curve"]) == 6
    assert len(run_page.all("img")) == 1  # views
    assert len(tile_page.all("img")) == 4  # overlays
    assert len(run_page.all("table")) == 1 + 2 + 6 + 1  # scores, classes, confusion, failed


def test_headings_go_down_one_level_at_a_time_and_links_lead_somewhere(full_site: Any) -> None:
    ids = {page.path: [a["id"] for _, a in page.elements if "id" in a] for page in full_site.values()}
    for page in full_site.values():
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert max(after - before for before, after in itertools.pairwise(levels)) == 1
        assert len(ids[page.path]) == len(set(ids[page.path]))
        assert len(page.all("main")) == len(page.all("header")) == 1
        for link in page.all("a"):
            address, _, anchor = link["href"].partition("#")
            aim = (page.path.parent / address).resolve() if address else page.path
            assert not anchor or anchor in ids[aim], link["href"]
        labels = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
        assert set(labels) <= set(ids[page.path])


def test_the_overview_leads_to_every_page_and_every_page_back(full_site: Any) -> None:
    links = {link["href"].partition("#")[0] for link in full_site[INDEX].all("a")}
    assert {name for name in full_site if name != INDEX} <= links
    for name, page in full_site.items():
        assert name == INDEX or any(a["href"].startswith("../index.html#") for a in page.all("a"))


def test_names_from_outside_never_become_markup(full_site: Any) -> None:
    kinds = [a for page in full_site.values() for a in page.all("script") if a]
    assert kinds == [{"type": "application/json"}]
    assert [a for page in full_site.values() for _, a in page.elements if "onerror" in a] == []
    told = {name.partition("/")[0]: page.text.count(SCRIPT) for name, page in full_site.items()}
    assert told[INDEX] > 3  # data, task, failed slide and its reason: shown as they are
    assert told["runs"] > 10  # and class, note, figure, configuration, slide
    assert told["tiles"] > 1
    folder = full_site[INDEX].path.parent
    markdown = (folder / "report.md").read_text()
    assert "<script" not in markdown
    assert "&lt;script&gt;" in markdown
    cells = list(csv.reader((folder / "report.csv").read_text().splitlines()))
    assert SCRIPT in {cell for row in cells for cell in row}  # a CSV file knows no markup


@pytest.mark.parametrize(("encoder", "colour"), [(0.9, 0.8), (0.8, 0.8), (0.75, 0.8), (0.81, 0.8)])
def test_the_pages_mark_a_floor_exactly_when_it_wins(site_of: Any, encoder: float, colour: float) -> None:
    index, page = site_of(values={"encoder": encoder, "colour": colour, "random": 0.7})
    wins = colour >= encoder
    for shown, n_rows in ((index, 1), (page, 2 * 4 + 2 * 4)):  # protocols x metrics, protocols x classes
        cells = [cell for row in shown.rows for cell in row]
        says_so = [cell for cell in cells if "below colour" in cell or "level with colour" in cell]
        assert len(says_so) == (n_rows if wins else 0)
        marked = [a for a in shown.all("td") if "winner" in a.get("class", "")]
        assert len(marked) == (n_rows if wins else 0)
    headline = f"{0 if wins else 1} of 1 primary scores lie above every floor"
    assert headline in index.text
    assert headline in (index.path.parent / "report.md").read_text()


def test_the_tables_show_the_numbers_of_the_results(site: Any, run_page: Any) -> None:
    floors = ["0.800 [0.770, 0.830]", "0.700 [0.670, 0.730]"]
    score = ["0.900 [0.870, 0.930]", "▲ above both floors", *floors]
    row = site[INDEX].row("dino", "vit_t")
    assert row == ["dino", "vit_t", "synthetic", "knn AUC, weighted k20", *score, "0.500", ""]
    assert run_page.row("balanced accuracy") == ["balanced accuracy", *score, "0.250"]
    assert run_page.row("stroma")[:2] == ["stroma", "0.880 [0.850, 0.910]"]
    # 150 tiles of each class, 90 % right, the others spread over three classes
    assert run_page.row("stroma", "5 3 %") == ["stroma", "5 3 %", "135 90 %", "5 3 %", "5 3 %"]


def test_failed_slides_stand_first_with_their_reason(site: Any, run_page: Any, tile_page: Any) -> None:
    place = next(i for i, row in enumerate(tile_page.rows) if row[:2] == ["slide", "failed because"])
    reason = "no um/px in the file: set data.mpp_override"
    assert tile_page.rows[place + 1][:2] == [SCRIPT, reason]
    assert tile_page.rows[place + 2][:3] == ["slide0", "", "P0"]
    assert "1.23" in tile_page.rows[place + 2]  # mm2, rounded
    assert "slide0: 210 tiles" in tile_page.text
    assert [SCRIPT, reason] in run_page.rows
    assert f"1 of 5 failed. {SCRIPT}: {reason}" in site[INDEX].row("synthetic-small-aaaaaaaaaa")
    assert "Scored on tiles/synthetic-small-aaaaaaaaaa" in run_page.text


def test_the_configuration_is_told_by_the_names_that_the_command_line_takes(run_page: Any) -> None:
    names = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", run_page.source)
    assert ("method.n_outputs", "1024") in names
    assert ("backbone.name", SCRIPT.replace("<", "&lt;").replace(">", "&gt;")) in names
    n_groups = 4 + 1  # data, tiling, method, backbone; the rest
    assert len(run_page.all("details")) == 3 + n_groups  # classes, matrices, how it was scored


def test_a_run_without_labels_has_its_page_and_says_why(site_of: Any) -> None:
    index, page = site_of(scores=[], confusion={}, notes=["No tile of these data has a label."])
    assert index.row("dino", "vit_t")[-1] == "no score: No tile of these data has a label."
    assert "None: No tile of these data has a label." in page.text
    assert "Nothing has been scored yet." in index.text


def test_an_encoder_that_was_never_scored_has_its_page(fake_runs: Any, read_pages: Any) -> None:
    fake_runs.pretraining("dino-vit_s-slides-0123456789")
    pages = read_pages(build_report(fake_runs.path))
    assert pages[INDEX].row("dino-vit_s-slides")[-1] == "not scored on any task"
    page = pages["runs/dino-vit_s-slides-0123456789.html"]
    assert "no finished result names this encoder" in page.text
    assert len([svg for svg in page.all("svg") if svg.get("class") == "curve"]) == 6


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path, read_pages: Any) -> None:
    (page,) = read_pages(build_report(tmp_path)).values()
    assert "No finished run" in page.text
    assert "No finished tile set" in page.text
    assert (tmp_path / "report" / "report.csv").read_text().count("\n") == 1  # the heading


def test_missing_files_leave_their_place_empty(fake_runs: Any, read_pages: Any) -> None:
    def nothing(folder: Path) -> None: ...

    fake_runs.finish("pretrain/imagenet-resnet50-none-0123456789", nothing)
    fake_runs.finish("tiles/x-0123456789", nothing)
    pages = read_pages(build_report(fake_runs.path))
    page = pages["runs/imagenet-resnet50-none-0123456789.html"]
    assert "No curves: this encoder was not trained here." in page.text
    assert [image for page in pages.values() for image in page.all("img")] == []


def test_imagenet_s_weights_have_a_column_where_they_were_scored(
    fake_runs: Any, site_of: Any, read_pages: Any
) -> None:
    floors = {"colour": 0.8, "random": 0.7}
    alone, _ = site_of(values={"encoder": 0.9, **floors})
    assert "ImageNet-weights floor" not in alone.text
    names = {"method": "imagenet", "backbone": "vit_s"}
    fake_runs.result("pretrain/x", "tiles/t", values={"encoder": 0.95, **floors}, **names)
    pages = read_pages(build_report(fake_runs.path))
    page = pages[INDEX]
    assert page.row("dino")[5:9] == [
        "▼ below ImageNet-weights floor",
        "0.800 [0.770, 0.830]",
        "0.700 [0.670, 0.730]",
        "0.950 [0.920, 0.980]",
    ]
    assert page.row("imagenet")[8] == "not scored"
    assert (
        "ImageNet-weights floor" in pages["runs/a-b-c-0.html"].text
    )  # drawn anew: its result has not changed
    markdown = (fake_runs.path / "report" / "report.md").read_text()
    headings = [line for line in markdown.splitlines() if "| ImageNet-weights floor | chance |" in line]
    assert len(headings) == 3  # of the overview and of two results
