"""Folders are finished or known not to be; files are whole or not there."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from histo_ssl import artifacts
from histo_ssl.provenance import provenance


def _write_hello(folder: Path) -> dict[str, int]:
    artifacts.write_text(folder / "hello.txt", "hello")
    return {"files": 1}


def _append_line(folder: Path) -> dict[str, int]:
    with (folder.parent / "builds.log").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return _write_hello(folder)


def _complete_from_another_process(folder: Path) -> None:
    artifacts.complete(folder, build=_append_line, label="test", config={})


def test_fingerprint_depends_on_values_and_inputs_but_not_on_the_order_of_keys() -> None:
    a = artifacts.fingerprint({"x": 1, "y": [1, 2]}, "in")
    assert a == artifacts.fingerprint({"y": [1, 2], "x": 1}, "in")
    others = [
        artifacts.fingerprint({"x": 1, "y": [2, 1]}, "in"),
        artifacts.fingerprint({"x": 1, "y": [1, 2]}),
        artifacts.fingerprint({"x": "1", "y": [1, 2]}, "in"),
    ]
    assert len({a, *others}) == 4


def test_fingerprint_is_the_same_on_every_machine() -> None:
    # printf '%s' '[{"a":1},[]]' | sha256sum | head -c 10
    assert artifacts.fingerprint({"a": 1}) == "32029d59aa"


def test_a_file_keeps_its_old_content_when_the_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    artifacts.write_text(path, "old")

    def fail() -> None:
        with artifacts.atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_folder_is_not_built_again(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    for _ in range(2):
        artifacts.complete(folder, build=_append_line, label="test", config={"a": 1})
    assert len((tmp_path / "builds.log").read_text().splitlines()) == 1
    assert artifacts.counts(folder) == {"files": 1}
    assert json.loads((folder / "provenance.json").read_text())["config"] == {"a": 1}


@pytest.mark.parametrize("damage", ["remove", "truncate", "remove the mark", "truncate the mark"])
def test_a_damaged_folder_is_not_done_and_gets_built_again(tmp_path: Path, damage: str) -> None:
    folder = artifacts.complete(tmp_path / "work", build=_write_hello, label="test", config={})
    victim = folder / (artifacts.DONE if "mark" in damage else "hello.txt")
    victim.unlink() if "remove" in damage else victim.write_text("h")
    assert not artifacts.is_done(folder)
    artifacts.complete(folder, build=_write_hello, label="test", config={})
    assert artifacts.is_done(folder)
    assert (folder / "hello.txt").read_text() == "hello"


def test_a_failed_build_leaves_its_files_but_no_mark(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, int]:
        artifacts.write_text(folder / "part.txt", "kept for the next start")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        artifacts.complete(tmp_path / "work", build=fail, label="test", config={})
    assert (tmp_path / "work" / "part.txt").exists()
    assert not artifacts.is_done(tmp_path / "work")


def test_what_a_killed_process_left_half_written_is_swept_before_the_next_build(tmp_path: Path) -> None:
    leftover = tmp_path / "work" / "sub" / f"{artifacts.TEMPORARY}0000-x.h5"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half")
    artifacts.complete(tmp_path / "work", build=_write_hello, label="test", config={})
    assert not leftover.exists()


@pytest.mark.slow
def test_of_four_processes_that_start_at_once_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    folder = tmp_path / "work"
    processes = [context.Process(target=_complete_from_another_process, args=(folder,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert len((tmp_path / "builds.log").read_text().splitlines()) == 1


def test_provenance_names_versions_and_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-123")
    made = provenance({"a": 1}, started=0.0)
    assert {"python", "torch", "lightning"} <= made["versions"].keys()
    assert made["started"].startswith(("1970-01-01", "1969-12-31"))
    assert "secret-123" not in json.dumps(made)
