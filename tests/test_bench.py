"""How the benchmarks time two ways in turn, and what counts as fallen behind."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def contests() -> ModuleType:
    return _module("contests")


def _contest(contests: ModuleType, now: dict[str, float], order: list[str], **changes: Any) -> Any:
    def work(name: str, seconds: tuple[float, ...]) -> Any:
        def run(i: int) -> None:
            order.append(name)
            now["now"] += seconds[i]

        return run

    values = {
        "part": "reading",
        "case": "grid",
        "n_items": 10,
        "item": "tile",
        "ours": work("ours", (9.0, 1.0, 2.0, 4.0)),
        "peers": {"theirs": work("theirs", (9.0, 3.0, 4.0, 4.0))},
        "targets": {"theirs": 2.0},
        "n_rounds": 3,
    }
    return contests.Contest(**{**values, **changes})


@pytest.fixture
def clock(contests: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    now = {"now": 0.0}
    monkeypatch.setattr(contests, "processor_s", lambda: now["now"])
    monkeypatch.setattr(contests.time, "perf_counter", lambda: 2 * now["now"])
    return now


def test_the_ratio_is_the_median_of_the_rounds_and_the_first_round_does_not_count(
    contests: ModuleType, clock: dict[str, float]
) -> None:
    (row,) = contests.compete(_contest(contests, clock, []))
    assert (row.low, row.ratio, row.high) == (1.0, 2.0, 3.0)
    assert (row.ours_ms, row.peer_ms) == (200.0, 400.0)  # medians of 2 s and 4 s over 10 tiles
    assert row.is_met
    assert row.name == "reading: grid / theirs"


def test_the_wall_is_quoted_where_it_is_asked_for(contests: ModuleType, clock: dict[str, float]) -> None:
    (row,) = contests.compete(_contest(contests, clock, [], clock="wall", targets={"theirs": None}))
    assert (row.ours_ms, row.peer_ms) == (400.0, 800.0)
    assert row.is_met is None


def test_rounds_begin_with_ours_and_with_theirs_in_turn(
    contests: ModuleType, clock: dict[str, float]
) -> None:
    order: list[str] = []
    contests.compete(_contest(contests, clock, order))
    assert order == ["theirs", "ours", "ours", "theirs"] * 2


def test_a_time_that_must_not_be_passed_stands_where_a_peer_would(contests: ModuleType) -> None:
    rounds = [(1.0, 2.0), (2.0, 4.0), (3.0, 5.0)]
    row = contests.within(
        rounds, part="start", case="help", limit_ms=8e3, limit="8 s", item="start", clock="wall"
    )
    assert (row.low, row.ratio, row.high, row.is_met) == (1.6, 2.0, 4.0, True)
    assert (row.ours_ms, row.peer_ms) == (4e3, 8e3)


def test_processor_time_counts_children_that_ended(contests: ModuleType) -> None:
    before = contests.processor_s()
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert contests.processor_s() - before >= 0.2


REFERENCE = {"tolerance": 0.2, "ratios": {"reading: grid / theirs": 2.0, "step: DINO / theirs": 3.0}}


@pytest.mark.parametrize(
    ("ratios", "left_out", "n_fallen"),
    [
        ({"reading: grid / theirs": 1.61, "step: DINO / theirs": 9.0}, {}, 0),
        ({"reading: grid / theirs": 1.59, "step: DINO / theirs": 3.0}, {}, 1),
        ({"reading: grid / theirs": 2.0}, {"step": "lightly is not here"}, 0),
        ({"reading: grid / theirs": 2.0}, {}, 1),
        ({"reading: grid / theirs": 2.0, "step: DINO / theirs": 3.0, "knn: new / theirs": 0.1}, {}, 0),
    ],
)
def test_a_ratio_that_fell_or_is_missing_without_a_word_fails(
    ratios: dict[str, float], left_out: dict[str, str], n_fallen: int, tmp_path: Path
) -> None:
    rows = [{"name": name, "ratio": ratio} for name, ratio in ratios.items()]
    measured = {"ratios": rows, "left out": left_out}
    fallen, told = _module("check").compare(measured, REFERENCE)
    assert len(fallen) == n_fallen
    assert len(fallen) + len(told) == len(REFERENCE["ratios"].keys() | ratios.keys())  # type: ignore[attr-defined]
    for name, content in (("measured", measured), ("reference", REFERENCE)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    command = [sys.executable, str(BENCHMARKS / "check.py"), str(tmp_path / "measured.json")]
    done = subprocess.run([*command, "--reference", str(tmp_path / "reference.json")], check=False)
    assert done.returncode == (1 if n_fallen else 0)


@pytest.mark.slow
def test_growth_measures_every_part_and_draws_them(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "growth.py"), "--short", "--sizes", "100"]
    given = ["--folder", str(tmp_path), "--json", str(tmp_path / "g.json"), "--plot", str(tmp_path / "g.svg")]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *given], check=True, capture_output=True, env=settings)
    (row,) = json.loads((tmp_path / "g.json").read_text())["rows"]
    assert (row["tiles"], row["slides"]) == (128, 2)
    for part in ("read in the middle", "train", "embed", "tile"):
        assert 0 <= row[f"{part}, ms"] < 1000  # a tick of the clock is 10 ms; a step of reading may be less
    for part in ("read", "train", "embed", "tile"):
        assert 20 < row[f"{part}, main MB"] <= row[f"{part}, all MB"]
    assert row["train, ms"] > 0
    assert "<svg" in (tmp_path / "g.svg").read_text()
