"""Folders are finished or known not to be; files are whole or not there."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histo_ssl.folders import artifacts
from histo_ssl.folders.disk import NotWrittenError
from histo_ssl.folders.provenance import provenance

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FILES = {"a.txt": 1, "sub/b.txt": 22}


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


def _shuffled(content: Any, order: Any) -> Any:
    """The same content with the keys of every mapping in another order."""
    if isinstance(content, dict):
        return {key: _shuffled(content[key], order) for key in sorted(content, key=order)}
    return [_shuffled(value, order) for value in content] if isinstance(content, list) else content


@given(PLAIN)
def test_fingerprint_is_free_of_order_at_any_depth(content: Any) -> None:
    made = {artifacts.fingerprint(_shuffled(content, order)) for order in (str, hash, lambda key: key[::-1])}
    assert len(made) == 1


@given(PLAIN, PLAIN)
def test_fingerprints_are_equal_exactly_where_the_contents_are(one: Any, other: Any) -> None:
    texts = [json.dumps(content, sort_keys=True) for content in (one, other)]  # tells 1 from 1.0 and true
    assert (artifacts.fingerprint(one) == artifacts.fingerprint(other)) == (texts[0] == texts[1])


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 2))
def test_a_file_is_the_old_or_the_new_one_wherever_the_write_fails(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes, at: int
) -> None:
    path = tmp_path_factory.mktemp("atomic") / "file"
    artifacts.write_bytes(path, old)
    with pytest.MonkeyPatch.context() as patch:
        _fail(patch, at=at, error=OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(NotWrittenError):
            artifacts.write_bytes(path, new)
    assert path.read_bytes() in (old, new)
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def _fail(patch: pytest.MonkeyPatch, *, at: int, error: OSError) -> None:
    """Let the disk fail at the n-th of what it does: flushes of files and folders, renames."""
    calls = iter(range(10**6))

    def failing(call: Any) -> Any:
        def made(*arguments: Any, **words: Any) -> Any:
            if next(calls) == at:
                raise error
            return call(*arguments, **words)

        return made

    patch.setattr(os, "fsync", failing(os.fsync))
    patch.setattr(os, "rename", failing(os.rename))
    patch.setattr(os, "replace", failing(os.replace))


def _write_files(folder: Path) -> dict[str, int]:
    for name, size in FILES.items():
        artifacts.write_bytes(folder / name, b"x" * size)
    return {"files": len(FILES)}


def _mark(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("done") / "work"
    artifacts.complete(folder, build=_write_files, label="test", config={"a": 1})
    return folder, json.loads((folder / artifacts.DONE).read_text())


@given(content=PLAIN)
def test_any_content_in_the_place_of_a_done_mark_is_no_mark(
    tmp_path_factory: pytest.TempPathFactory, content: Any
) -> None:
    folder, mark = _mark(tmp_path_factory)
    assert artifacts.is_done(folder)
    for wrong in (content, mark | {"files": content}, mark | {"counts": content}, mark | {"digest": content}):
        (folder / artifacts.DONE).write_text(json.dumps(wrong))
        assert not artifacts.is_done(folder)


@given(data=st.data())
def test_a_done_mark_with_other_bytes_means_the_same_or_is_no_mark(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder, mark = _mark(tmp_path_factory)
    content = bytearray((folder / artifacts.DONE).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / artifacts.DONE).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    if artifacts.is_done(folder):
        assert json.loads(content) == mark


@pytest.mark.parametrize(
    "garbage", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"files": {"a": 1}}']
)
def test_garbage_in_the_place_of_a_done_mark_is_no_mark(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / artifacts.DONE).write_bytes(garbage)
    assert not artifacts.is_done(tmp_path)


def test_a_folder_in_the_place_of_a_done_mark_is_no_mark(tmp_path: Path) -> None:
    (tmp_path / artifacts.DONE).mkdir()
    assert not artifacts.is_done(tmp_path)
    assert not artifacts.is_done(tmp_path / "none")
    (tmp_path / "file").touch()
    assert not artifacts.is_done(tmp_path / "file")


@pytest.mark.parametrize("vanishes", ["work", "."])
def test_a_folder_that_vanishes_while_it_is_written_is_not_called_done(tmp_path: Path, vanishes: str) -> None:
    folder = tmp_path / "runs" / "work"

    def build(folder: Path) -> dict[str, int]:
        artifacts.write_text(folder / "first.txt", "1")
        shutil.rmtree(tmp_path / "runs" / vanishes)
        artifacts.write_text(folder / "second.txt", "2")
        return {}

    with pytest.raises(NotWrittenError, match=r"not written, its folder has vanished; .*goes on from here$"):
        artifacts.complete(folder, build=build, label="test", config={})
    assert not artifacts.is_done(folder)
    artifacts.complete(folder, build=_write_files, label="test", config={})
    assert artifacts.is_done(folder)


def test_what_a_folder_is_made_of_is_there_from_the_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        artifacts.complete(
            tmp_path / "work",
            build=_raise,
            label="test",
            config={"root": "s3://k:hunter22@b/"},
            listing={"slides": {"a": {"bytes": 1}}},
        )
    assert json.loads((tmp_path / "work" / artifacts.CONFIG).read_text()) == {
        "work": "test",
        "config": {"root": "s3://***@b/"},
        "listing": {"slides": {"a": {"bytes": 1}}},
    }


def _raise(folder: Path) -> dict[str, int]:
    raise RuntimeError


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


def _hold_for_ever(folder: Path) -> None:
    def build(folder: Path) -> dict[str, int]:
        artifacts.write_text(folder.parent / "holds", "")
        time.sleep(600)
        return {}

    artifacts.complete(folder, build=build, label="test", config={})


@pytest.mark.slow
def test_a_lock_dies_with_its_process_and_who_waits_takes_over(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    folder = tmp_path / "work"
    holder = context.Process(target=_hold_for_ever, args=(folder,))
    holder.start()
    while not (tmp_path / "holds").exists():
        time.sleep(0.05)
    waiting = context.Process(target=_complete_from_another_process, args=(folder,))
    waiting.start()
    waiting.join(timeout=3)
    assert waiting.is_alive()
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    waiting.join(timeout=60)
    holder.join()
    assert waiting.exitcode == 0
    assert artifacts.is_done(folder)


def test_provenance_names_versions_and_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-123")
    made = provenance({"a": 1}, started=0.0)
    assert {"python", "torch", "lightning"} <= made["versions"].keys()
    assert made["started"].startswith(("1970-01-01", "1969-12-31"))
    assert "secret-123" not in json.dumps(made)
