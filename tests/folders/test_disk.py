"""What the disk does is said in a sentence with a path, a reason and what to do."""

import errno
import os
import pickle

import pytest

from histo_ssl.config.mistakes import explain
from histo_ssl.folders.disk import REASONS, NotWrittenError, sentence


@pytest.mark.parametrize("number", sorted(REASONS))
def test_every_known_failure_has_its_words_for_writing_and_for_anything_else(number: int) -> None:
    reason, advice = REASONS[number]
    path, go_on = "/runs/x/S1.h5", "the same command goes on from here"
    not_written = NotWrittenError(number, os.strerror(number), path)
    assert str(not_written) == explain(not_written) == f"{path}: not written, {reason}; {advice}: {go_on}"
    other = OSError(number, os.strerror(number), path)
    assert explain(other) == f"{path}: {reason}; {advice}: {go_on}"
    assert explain(OSError(number, os.strerror(number))) == f"{reason}; {advice}: {go_on}"


def test_an_unknown_failure_keeps_the_systems_own_words() -> None:
    error = NotWrittenError(errno.EXDEV, os.strerror(errno.EXDEV), "/runs/x")
    assert str(error).startswith("/runs/x: not written, Invalid cross-device link; ")
    assert sentence(FileNotFoundError("no such encoder")) is None
    assert explain(FileNotFoundError("no such encoder")) == "no such encoder"


def test_it_comes_whole_from_a_worker_process() -> None:
    error = NotWrittenError(errno.ENOSPC, "No space left on device", "/runs/x")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.errno, str(again)) == (NotWrittenError, errno.ENOSPC, str(error))
