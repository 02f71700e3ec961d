"""The program beside a worker: what it leaves behind, and how it hands errors on."""

import pickle
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from histo_ssl.executors.base import Processes
from histo_ssl.executors.child import Child, Work

LIMITS = Processes(n=1, timeout_s=60, memory_gb=4)
MODULE = """
import tempfile

class Two(Exception):
    def __init__(self, slide, reason):
        super().__init__(f"{slide}: {reason}")

class Held(ValueError):
    def __init__(self, text):
        super().__init__(text)
        self.file = open("/dev/null")

def work(item):
    if item == "two":
        raise Two("s1", "torn")
    if item == "held":
        raise Held("torn")
    if item == "plain":
        raise ValueError("torn")
    return tempfile.mkdtemp()
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    (tmp_path / "errand.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    made = Child(memory_gb=LIMITS.memory_gb)
    yield made
    made.end()
    sys.modules.pop("errand", None)


def _done(child: Child, item: str) -> object:
    import errand  # type: ignore[import-not-found]

    work = Work(name="errand", pickled=pickle.dumps(errand.work))
    return child.done(work, item, LIMITS, is_wanted=lambda: True)


def test_its_temporary_files_end_with_it(child: Child) -> None:
    made = Path(str(_done(child, "a folder")))
    assert made.is_dir()
    child.end()
    assert not made.exists()
    assert not Path(child.folder).exists()


def test_its_temporary_files_end_with_its_worker(child: Child) -> None:
    made = Path(str(_done(child, "a folder")))
    assert child.process.stdin is not None
    child.process.stdin.close()  # as the worker's end does
    child.process.wait(30)
    assert not made.exists()


def test_errors_that_can_not_be_pickled_are_handed_on_in_words(child: Child) -> None:
    for item, kind, words in (
        ("two", RuntimeError, "Two: s1: torn"),
        ("held", RuntimeError, "Held: torn"),
        ("plain", ValueError, "torn"),
    ):
        with pytest.raises(kind, match=f"^{words}$"):
            _done(child, item)
