"""Ours against what users would otherwise pick, side by side in one run: `python benchmarks/bench.py`.

    python benchmarks/bench.py [--parts reading views ...] [--json FILE] [--device cpu|cuda]

Each part runs in a fresh process and times ours and its peers in turn (`contests.py`). Prints a line per
ratio, peer / ours, with its target; a part that can't run says why in a sentence. `--json` keeps all of it,
for `benchmarks/check.py`.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import sys
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contests import CannotRunError, Ratio, processor_s

PARTS = ("reading", "loader", "views", "step", "embedding", "knn", "start")
PEERS = ("openslide-python", "openslide-bin", "tiffslide", "lightly", "kornia", "torchvision", "scikit-learn")
OURS = ("torch", "timm", "numpy", "pillow", "simplejpeg")
# Threads that wait spin by default, which is counted as work wherever more threads than cores are ready.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}


def main() -> int:
    """Run the parts; 1 if one of them broke."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=" ".join(PARTS)
    )
    parser.add_argument("--json", type=Path, help="where all ratios go")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    asked = parser.parse_args()
    os.environ.update({name: value for name, value in WAITING.items() if name not in os.environ})
    found: dict[str, Any] = {"machine": machine(asked.device), "ratios": [], "left out": {}}
    found |= {"seconds": {}, "processor seconds": {}}
    print(_heading(found["machine"]), flush=True)
    for part in asked.parts:
        began, spent = time.monotonic(), processor_s()
        rows, sentence = run(part, asked.device)
        found["seconds"][part] = round(time.monotonic() - began, 1)
        found["processor seconds"][part] = round(processor_s() - spent, 1)
        found["ratios"] += [{**asdict(row), "name": row.name, "met": row.is_met} for row in rows]
        if sentence:
            found["left out"][part] = sentence
            print(f"{part}: {sentence}", flush=True)
        for row in rows:
            print(line(row), flush=True)
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=1) + "\n")
    print(_took(found["seconds"], found["processor seconds"]))
    return 0


def _took(seconds: dict[str, float], processor: dict[str, float]) -> str:
    parts = ", ".join(f"{part} {s:.0f} ({processor[part]:.0f})" for part, s in seconds.items())
    minutes, busy = (sum(each.values()) / 60 for each in (seconds, processor))
    return f"took {minutes:.1f} minutes ({busy:.1f} of processor time); s of each part: {parts}"


def run(part: str, device: str) -> tuple[list[Ratio], str]:
    """Ratios of a part, measured in a fresh process, or a sentence on why there are none."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(part, device, theirs))
    process.start()
    theirs.close()
    try:
        answer: tuple[list[Ratio], str] = ours.recv()
    except EOFError:
        raise SystemExit(f"part {part} broke; its error stands above") from None
    process.join()
    return answer


def _measure(part: str, device: str, answers: Any) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        answers.send((importlib.import_module(part).measure(device), ""))
    except CannotRunError as error:
        answers.send(([], str(error)))


def line(row: Ratio) -> str:
    """One ratio as a line of the table."""
    verdict = {None: "no target", True: "met", False: "NOT MET"}[row.is_met]
    target = "" if row.target is None else f" of {row.target:g}"
    other = {"processor": f"wall {row.wall_ratio:.2f}", "wall": f"processor {row.processor_ratio:.2f}"}
    clocks = f"{row.clock} time; {other[row.clock]}"
    return (
        f"{row.name:<52} {row.ours_ms:>9.3g} {row.peer_ms:>9.3g} ms/{row.item:<6} "
        f"{row.ratio:>6.2f} [{row.low:.2f}, {row.high:.2f}]{target}: {verdict} ({clocks})"
    )


def _heading(facts: dict[str, Any]) -> str:
    return (
        f"{facts['processor']}, {facts['cores']} cores; {facts['device']}\n"
        f"{'part: case / peer':<52} {'ours':>9} {'peer':>9} {'':<9} ratio peer/ours [lowest, highest]"
    )


def machine(device: str) -> dict[str, Any]:
    """What the ratios depend on beside the code."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],
        "device": _device(device),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in (*PEERS, *OURS)},
    }


def _device(device: str) -> str:
    if device == "cpu":
        return "no GPU is used"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "there is no GPU that torch can use"


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    names = (
        [line for line in facts.read_text().splitlines() if line.startswith("model name")]
        if facts.exists()
        else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
