"""What is kept, what is forgotten, and that nothing is made twice."""

import threading
import time

import pytest

from histo_ssl.viewer.memory import Memory


def test_the_least_recently_used_is_forgotten_when_the_limit_is_passed() -> None:
    memory: Memory[bytes] = Memory(limit=10, size=len)
    made: list[str] = []

    def make(name: str, n_bytes: int) -> bytes:
        made.append(name)
        return b"x" * n_bytes

    for name in ("a", "b", "a", "c", "a", "b"):  # 4 bytes each: two are kept
        memory.of(name, lambda name=name: make(name, 4))  # type: ignore[misc]
    assert made == ["a", "b", "c", "b"]
    assert len(memory) == 2


def test_what_several_ask_for_at_a_time_is_made_once() -> None:
    memory: Memory[int] = Memory(limit=10, size=lambda _: 1)
    made: list[int] = []

    def make() -> int:
        made.append(1)
        time.sleep(0.05)
        return 7

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(memory.of("k", make))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), found) == (1, [7] * 8)


def test_what_could_not_be_made_is_tried_again() -> None:
    memory: Memory[int] = Memory(limit=10, size=lambda _: 1)

    def fail() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        memory.of("k", fail)
    assert memory.of("k", lambda: 3) == 3
