"""Figures that tasks leave behind: taken by plain names alone, with a sentence about each that is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from histo_ssl.report.figures import read_figures
from histo_ssl.report.html import build_report

ENTRY = {"file": "x.png", "title": "Head 3", "alt": "Attention of head 3 over a region.", "group": "Heads"}


@pytest.fixture
def result(tmp_path: Path, listed: Any) -> Path:
    """A folder with one figure."""
    for name, content in listed(ENTRY).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def _listing(folder: Path, entries: Any) -> None:
    (folder / "figures" / "figures.json").write_text(json.dumps(entries))


def test_a_listed_figure_is_taken_with_its_words(result: Path) -> None:
    (figure,) = read_figures(result).figures
    assert figure.path == result / "figures" / "x.png"
    assert (figure.title, figure.alt, figure.group) == ("Head 3", ENTRY["alt"], "Heads")
    assert read_figures(result).warnings == []


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.png", "/etc/x.png", "sub/x.png", "..\\x.png", "C:x.png", ".hidden.png", "x.svg", ""),
        *("x.png\0", "gone.png", "link.png", "x\n.png"),
    ],
)
def test_a_file_elsewhere_is_left_out_and_the_others_stay(result: Path, name: str) -> None:
    (result / "secret.png").write_bytes((result / "figures" / "x.png").read_bytes())
    (result / "figures" / "link.png").symlink_to(result / "secret.png")
    _listing(result, [{**ENTRY, "file": name}, ENTRY])
    found = read_figures(result)
    assert [figure.path.name for figure in found.figures] == ["x.png"]
    (sentence,) = found.warnings
    assert sentence.startswith("a figure in figures/figures.json was left out: ")
    assert repr(name) in sentence


@pytest.mark.parametrize("entry", [None, "x.png", {}, {**ENTRY, "title": 3}, {"file": "x.png"}, [ENTRY]])
def test_an_entry_without_its_words_is_left_out(result: Path, entry: Any) -> None:
    _listing(result, [entry])
    found = read_figures(result)
    assert found.figures == []
    assert "the texts file, title, alt, group are expected of each" in found.warnings[0]


@pytest.mark.parametrize("text", ["", "{}", "[", '{"file": "x.png"}', "[" * 100_000, "\xff"])
def test_a_list_that_is_none_gives_a_sentence(result: Path, text: str) -> None:
    (result / "figures" / "figures.json").write_bytes(text.encode("latin-1"))
    (sentence,) = read_figures(result).warnings
    assert sentence == "figures/figures.json is no JSON list of figures; its figures are left out"


def test_the_run_s_page_shows_them_in_groups_and_says_what_it_left_out(
    fake_runs: Any, listed: Any, read_pages: Any, caplog: pytest.LogCaptureFixture
) -> None:
    others = [
        {**ENTRY, "file": "y.png", "title": "Table", "group": "Head x phenotype"},
        {**ENTRY, "file": "z.png"},
    ]
    files = listed(ENTRY, *others, {**ENTRY, "file": "../../a.png"})
    files["figures/z.png"] = b"no picture"
    fake_runs.result("pretrain/a-0", "tiles/t", values={"encoder": 0.9}, files=files)
    page = read_pages(build_report(fake_runs.path))["runs/a-0.html"]
    headings = [text for text in ("Heads", "Head x phenotype") if f"<h3>{text}</h3>" in page.source]
    assert headings == ["Heads", "Head x phenotype"]
    assert [image["alt"] for image in page.all("img")] == [ENTRY["alt"]] * 2
    assert all(image["src"].startswith("data:image/png;") for image in page.all("img"))  # sharp, as they came
    assert "'../../a.png' is not the plain name of a PNG file in figures/." in page.text
    assert "1 more picture in results/" in page.text
    assert "z.png can't be shown" in caplog.text
