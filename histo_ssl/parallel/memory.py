"""Freed memory that a process keeps for its next arrays.

A view, a tile or an activation is some hundred kB to some MB. glibc's malloc asks the system for such blocks
and gives them back when they are freed, so that every array begins with page faults: a fifth of the time that
views take, a twentieth of a training step's. Elsewhere than on glibc nothing happens.
"""

import ctypes

# Parameters of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**31 - 1  # free memory that a process holds on to, the most that mallopt's int can say
BLOCK_BYTES = 2**30  # larger blocks go back to the system at once


def keep_freed_memory() -> bool:
    """Make this process, and those that it forks, keep up to 2 GiB of what it frees; False where it can't."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; none by that name; Windows
        return False
    settings = {M_MMAP_THRESHOLD: BLOCK_BYTES, M_TRIM_THRESHOLD: KEPT_BYTES}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
