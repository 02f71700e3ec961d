"""Pages are drawn when something that they tell of has changed; many of them stay light and quick."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from histo_ssl.report import pages
from histo_ssl.report.html import build_report
from histo_ssl.report.sections import page_name

VALUES = {"encoder": 0.9, "colour": 0.8, "random": 0.7}
N_RUNS, MOST_S, MOST_BYTES = 50, 30, 20_000_000
N_MAPPED = 2000  # tiles, as conf/task/umap.yaml has it


def _times(report: Path) -> dict[str, int]:
    found = [path for folder in ("runs", "tiles", "sheets") for path in (report / folder).iterdir()]
    return {path.relative_to(report).as_posix(): path.stat().st_mtime_ns for path in found}


@pytest.fixture
def two_runs(fake_runs: Any) -> Any:
    tiles = fake_runs.tile_set()
    for name in ("a-0", "b-0"):
        fake_runs.result(fake_runs.pretraining(name), tiles, values=VALUES)
    fake_runs.tile_map("pretrain/a-0", tiles, labels=["fat", "fat", ""])
    return fake_runs


def _changed(two_runs: Any) -> set[str]:
    """Pages that another build of the report writes or removes, or adds."""
    before = _times(two_runs.path / "report")
    build_report(two_runs.path)
    after = _times(two_runs.path / "report")
    return {name for name in before | after if before.get(name) != after.get(name)}


def test_what_has_not_changed_is_not_drawn_again(two_runs: Any) -> None:
    build_report(two_runs.path)
    assert len(_times(two_runs.path / "report")) == 2 + 1 + 1
    assert _changed(two_runs) == set()


def test_a_changed_result_is_drawn_anew_on_the_pages_that_tell_of_it(two_runs: Any) -> None:
    build_report(two_runs.path)
    folder = two_runs.path / "results" / "a-0-knn-cccccccccc"
    text = (folder / "results.json").read_text()
    (folder / "results.json").write_text(text.replace("0.87", "0.86"))  # as many bytes
    assert _changed(two_runs) == {"runs/a-0.html"}
    assert "[0.860, 0.930]" in (two_runs.path / "report" / "runs" / "a-0.html").read_text()


@pytest.mark.parametrize("name", ["metrics.jsonl", "provenance.json", "views.png"])
def test_a_changed_file_of_the_training_is_seen(two_runs: Any, name: str, painted: Any) -> None:
    build_report(two_runs.path)
    path = two_runs.path / "pretrain" / "b-0" / name
    size, content = path.stat().st_size, painted(1200, 700, seed=5)
    changed = content[:size] if name == "views.png" else path.read_bytes().replace(b"1", b"2")
    path.write_bytes(changed.ljust(size, b"\0"))
    assert _changed(two_runs) == {"runs/b-0.html"}


def test_a_figure_that_came_later_is_seen(two_runs: Any, listed: Any) -> None:
    build_report(two_runs.path)
    folder = two_runs.path / "results" / "a-0-umap-cccccccccc"
    for name, content in listed({"file": "x.png", "title": "T", "alt": "A", "group": "G"}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    assert _changed(two_runs) == {"runs/a-0.html"}


def test_a_slide_that_failed_later_is_told_on_the_pages_of_its_runs(two_runs: Any) -> None:
    build_report(two_runs.path)
    (path,) = (two_runs.path / "tiles").glob("*/status.csv")
    lines = path.read_text().splitlines()
    size = path.stat().st_size
    lines[1] = lines[1].rstrip(",").rpartition(",")[0] + ",0.72345,torn"
    path.write_text("\n".join(lines)[: size - 1].ljust(size - 1) + "\n")
    (path.parent / "done.json").unlink()
    two_runs.finish(f"tiles/{path.parent.name}", lambda folder: None, json.loads("{}"))
    changed = _changed(two_runs)
    assert {"runs/a-0.html", "runs/b-0.html"} <= changed
    assert "torn" in (two_runs.path / "report" / "runs" / "a-0.html").read_text()


def test_pages_of_what_is_gone_go(two_runs: Any) -> None:
    build_report(two_runs.path)
    shutil.rmtree(two_runs.path / "pretrain" / "a-0")
    for task in ("knn", "umap"):
        shutil.rmtree(two_runs.path / "results" / f"a-0-{task}-cccccccccc")
    changed = _changed(two_runs)
    assert {"runs/a-0.html"} < changed
    assert sorted(_times(two_runs.path / "report"))[0] == "runs/b-0.html"
    assert not list((two_runs.path / "report" / "sheets").iterdir())


def test_a_page_of_another_version_of_the_program_is_drawn_anew(
    two_runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_report(two_runs.path)
    monkeypatch.setattr(pages, "_program", lambda: "another")
    assert {name.partition("/")[0] for name in _changed(two_runs)} == {"runs", "tiles"}


def test_where_the_runs_lie_makes_no_difference(two_runs: Any, tmp_path: Path) -> None:
    build_report(two_runs.path)
    shutil.copytree(two_runs.path, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "report")
    build_report(tmp_path / "moved")
    for name in _times(two_runs.path / "report"):
        assert (two_runs.path / "report" / name).read_bytes() == (
            tmp_path / "moved/report" / name
        ).read_bytes()


def test_a_name_makes_a_file_that_every_disk_takes_and_no_two_names_the_same() -> None:
    odd = [
        "pretrain/a b",
        "pretrain/a?b",
        "pretrain/../x",
        f"pretrain/{'x' * 300}",
        f"pretrain/{'x' * 301}",
        "b",
    ]
    names = [page_name(name) for name in odd]
    assert len(set(names)) == len(names)
    assert all(len(name) < 120 and not set(name) & set('/\\:*?"<>| ') for name in names)
    assert not any(name.startswith(".") for name in names)


def _many_runs(runs: Any, listed: Any, painted: Any) -> None:
    """Fifty runs with scores, a map, six figures and the attention of four slides each; two tile sets."""
    tiles = [runs.tile_set(f"synthetic-{i}", n_slides=14) for i in range(2)]
    entries = [
        {
            "file": f"{i}.png",
            "title": f"Head {i}",
            "alt": f"Attention of head {i} over a region.",
            "group": "Heads",
        }
        for i in range(6)
    ]
    looks = {
        f"attention/s{i}{kind}.png": painted(1000, 600, seed=i) for i in range(4) for kind in ("", "_tiles")
    }
    mapped = {"scale": 1.2345, "pictures": painted(2880, 2880, seed=1)}
    labels = [("fat", "stroma", "nests", "")[i % 4] for i in range(N_MAPPED)]
    for i in range(N_RUNS):
        encoder = runs.pretraining(f"dino-vit_t-synthetic-{i:010}")
        score = 0.6 + 0.005 * i
        runs.result(encoder, tiles[0], values={**VALUES, "encoder": score})
        runs.result(
            *(encoder, tiles[1]),
            values={**VALUES, "encoder": score},
            task="slides",
            files={**listed(*entries, width=900), **looks},
        )
        runs.tile_map(encoder, tiles[0], labels=labels, slide="TCGA-A1-A0SB-01Z-00-DX1.", **mapped)


@pytest.mark.slow
def test_a_report_of_fifty_runs_is_light_and_quick(fake_runs: Any, listed: Any, painted: Any) -> None:
    _many_runs(fake_runs, listed, painted)
    began, began_cpu = time.perf_counter(), time.process_time()
    report = build_report(fake_runs.path).parent
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    began = time.perf_counter()
    build_report(fake_runs.path)
    again_s = time.perf_counter() - began
    sizes = [path.stat().st_size for path in report.rglob("*") if path.is_file()]
    print(f"{seconds:.1f} s ({cpu_s:.1f} s of CPU), again {again_s:.1f} s, {sum(sizes) / 1e6:.1f} MB")
    assert len(sizes) == N_RUNS + 2 + 1 + 3  # tile sets, a sheet; overview, Markdown, CSV
    assert sum(sizes) < MOST_BYTES
    assert cpu_s < MOST_S  # of this process: others on the machine don't count
    assert again_s < seconds / 2
    assert "best of 50" in (report / "index.html").read_text()
