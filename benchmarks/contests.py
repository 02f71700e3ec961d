"""Two ways to the same result, timed in turn: who ran, how long each round took, and what their ratio was.

Rounds alternate (A B, B A, A B, ...), so that whatever else the machine does, or however its clock drifts,
hits all alike; a round gives one ratio, peer / ours, above 1 where ours is faster. What is told is the median
of the rounds' ratios with the lowest and the highest. Processor time is that of all threads of this process
and of the processes that ended meanwhile; it is quoted where other work would blur the wall's.

Ours keeps freed memory, as in a run; before a peer's turn the allocator is set to what glibc's own rule ends
at, at its best, and gives back what it holds. So each has what its users have, though they share a process.
"""

import ctypes
import gc
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from histo_ssl.parallel import memory

Work = Callable[[int], object]  # the round's number -> whatever is made
Clock = Literal["processor", "wall"]


class CannotRunError(Exception):
    """A part that can't be measured here; says why in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What is to be timed.

    Args:
        part: of the benchmark, such as "reading".
        case: of the part, such as "grid order".
        n_items: items that a round works on: tiles, steps, searches.
        item: what one is.
        ours: our work of a round.
        peers: theirs, by name.
        targets: by the same names, the ratio that is to be reached; None where none is set.
        n_rounds: that count, after one that does not.
        clock: that is quoted.
        settle: called before each clock is read; waits for an accelerator.
    """

    part: str
    case: str
    n_items: int
    item: str
    ours: Work
    peers: Mapping[str, Work]
    targets: Mapping[str, float | None]
    n_rounds: int
    clock: Clock = "processor"
    settle: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Ours against one peer, in one case."""

    part: str
    case: str
    peer: str
    item: str
    ours_ms: float  # median over rounds, per item, by the clock that is quoted
    peer_ms: float
    ratio: float  # median of the rounds' peer / ours
    low: float
    high: float
    processor_ratio: float
    wall_ratio: float
    clock: Clock
    n_rounds: int
    target: float | None

    @property
    def name(self) -> str:
        """What it is known by in the reference."""
        return f"{self.part}: {self.case} / {self.peer}"

    @property
    def is_met(self) -> bool | None:
        """Whether the target is reached; None where none is set."""
        return None if self.target is None else self.ratio >= self.target


Seconds = tuple[float, float]  # processor, wall


def settling(device: str) -> Callable[[], None]:
    """What waits until all that a device was given is done."""
    if device == "cpu":
        return lambda: None
    import torch

    return torch.cuda.synchronize


def compete(contest: Contest) -> list[Ratio]:
    """Time ours and all peers in turn, and say how they compare, a ratio per peer."""
    works = {OURS: contest.ours, **contest.peers}
    seconds = in_turn(works, n_rounds=contest.n_rounds, settle=contest.settle)
    return [ratio_of(contest, peer, ours=seconds[OURS], theirs=seconds[peer]) for peer in contest.peers]


OURS = "ours"  # begins the names of our works
# glibc's own thresholds rise with the blocks that are freed, up to these (its DEFAULT_MMAP_THRESHOLD_MAX).
DEFAULTS = {memory.M_MMAP_THRESHOLD: 2**25, memory.M_TRIM_THRESHOLD: 2**26}


def allocate_as(name: str) -> None:
    """Set the allocator to what a run of ours has, or to what a peer's users have."""
    if not memory.keep_freed_memory() or name.startswith(OURS):
        return
    library = ctypes.CDLL(None)
    for setting, value in DEFAULTS.items():
        library.mallopt(setting, value)
    library.malloc_trim(0)


def in_turn(
    works: Mapping[str, Work], *, n_rounds: int, settle: Callable[[], None]
) -> dict[str, list[Seconds]]:
    """Seconds of every work in every round that counts; the names of ours begin with `OURS`."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in works}
    for i in range(n_rounds + 1):
        order = list(works) if i % 2 else list(reversed(works))
        for name in order:
            allocate_as(name)
            taken = timed(works[name], i, settle=settle)
            if i:  # the first round warms up
                seconds[name].append(taken)
    return seconds


def timed(work: Work, i: int, *, settle: Callable[[], None]) -> Seconds:
    """Processor and wall seconds of one round."""
    gc.collect()
    settle()
    processor, wall = processor_s(), time.perf_counter()
    work(i)
    settle()
    return processor_s() - processor, time.perf_counter() - wall


def processor_s() -> float:
    """Seconds of processor time of this process so far, and of its children that have ended."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def within(
    seconds: Sequence[Seconds],
    *,
    part: str,
    case: str,
    limit_ms: float,
    limit: str,
    item: str,
    clock: Clock,
    n_items: int = 1,
) -> Ratio:
    """How far rounds of ours stay below a time that is not to be passed, which stands where a peer would."""
    allowed = limit_ms * n_items / 1e3
    contest = Contest(
        part=part,
        case=case,
        n_items=n_items,
        item=item,
        ours=lambda i: None,  # noqa: ARG005
        peers={},
        targets={limit: 1.0},
        n_rounds=len(seconds),
        clock=clock,
    )
    return ratio_of(contest, limit, ours=seconds, theirs=[(allowed, allowed)] * len(seconds))


def ratio_of(contest: Contest, peer: str, *, ours: Sequence[Seconds], theirs: Sequence[Seconds]) -> Ratio:
    """Ours against a peer of a contest by the seconds of their rounds."""
    processor, wall = ([b[i] / a[i] for a, b in zip(ours, theirs, strict=True)] for i in range(2))
    quoted = 0 if contest.clock == "processor" else 1
    ratios = (processor, wall)[quoted]
    ours_ms, peer_ms = (
        statistics.median(1e3 * s[quoted] / contest.n_items for s in seconds) for seconds in (ours, theirs)
    )
    return Ratio(
        part=contest.part,
        case=contest.case,
        peer=peer,
        item=contest.item,
        ours_ms=ours_ms,
        peer_ms=peer_ms,
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        processor_ratio=statistics.median(processor),
        wall_ratio=statistics.median(wall),
        clock=contest.clock,
        n_rounds=contest.n_rounds,
        target=contest.targets[peer],
    )
