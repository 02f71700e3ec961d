"""What a process frees it has for its next arrays."""

import ctypes
import subprocess
import sys

import pytest

from histo_ssl.parallel.memory import keep_freed_memory

FAULTS = """
import resource, sys
import numpy as np
from histo_ssl.parallel.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
    assert keep_freed_memory()  # may be said again

def n_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for round in range(3):
    before = n_faults()
    for _ in range(20):
        np.empty(48 * 2**20, np.uint8)[::4096] = 1
print(n_faults() - before)
"""


def _has_glibc() -> bool:
    try:
        return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    except (OSError, TypeError):
        return False


@pytest.mark.skipif(not _has_glibc(), reason="only glibc's malloc can be told")
def test_arrays_of_48_mb_come_without_page_faults() -> None:
    def n_faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    # numpy asks for huge pages of 2 MB, of which 20 arrays have 480 at least, and 4 kB ones at their ends
    assert n_faults("leave") >= 480
    assert n_faults("keep") <= 20


@pytest.mark.skipif(_has_glibc(), reason="another C library")
def test_elsewhere_nothing_happens() -> None:
    assert not keep_freed_memory()
