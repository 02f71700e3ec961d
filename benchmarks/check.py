"""Whether ratios have fallen since they were last kept: `python benchmarks/check.py FILE`; 1 if one has.

    python benchmarks/bench.py --json runs/bench.json && python benchmarks/check.py runs/bench.json
    python benchmarks/check.py runs/bench.json --keep        keeps its ratios as the new reference

`benchmarks/reference.json` holds ratios alone, since seconds differ from machine to machine, and the share by
which they may be below. A ratio of the reference that was not measured is told of, and fails unless its part
said why it can't run.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).with_name("reference.json")


def main() -> int:
    """Compare, or keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, help="what bench.py --json wrote")
    parser.add_argument("--reference", type=Path, default=REFERENCE)
    parser.add_argument("--keep", action="store_true", help="take its ratios for the reference; others stay")
    asked = parser.parse_args()
    if not asked.measured.is_file():
        raise SystemExit(f"{asked.measured}: there is no such file; `make bench` writes it")
    measured, reference = (json.loads(path.read_text()) for path in (asked.measured, asked.reference))
    if asked.keep:
        kept = {**reference["ratios"], **{row["name"]: round(row["ratio"], 2) for row in measured["ratios"]}}
        asked.reference.write_text(json.dumps({**reference, "ratios": kept}, indent=1) + "\n")
        return 0
    fallen, told = compare(measured, reference)
    print("\n".join([*fallen, *told]))
    print(f"{len(reference['ratios'])} ratios in the reference, {len(fallen)} have fallen or are missing")
    return 1 if fallen else 0


def compare(measured: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Sentences on what has fallen or is missing, and on all that is only to be known.

    Args:
        measured: as `bench.py --json` writes it.
        reference: `ratios` by name, and `tolerance`, the share of a ratio that it may lose.
    """
    found = {row["name"]: row["ratio"] for row in measured["ratios"]}
    fallen, told = [], []
    for name, kept in reference["ratios"].items():
        part = name.partition(":")[0]
        if name in found:
            floor = (1 - reference["tolerance"]) * kept
            sentence = f"{name}: {found[name]:.2f}, {kept:.2f} kept, {floor:.2f} is the least"
            (fallen if found[name] < floor else told).append(sentence)
        elif part in measured["left out"]:
            told.append(f"{name}: not measured; {measured['left out'][part]}")
        else:
            fallen.append(f"{name}: not measured, {kept:.2f} kept")
    new = {name: ratio for name, ratio in found.items() if name not in reference["ratios"]}
    told += [f"{name}: {ratio:.2f}, not in the reference" for name, ratio in new.items()]
    return fallen, told


if __name__ == "__main__":
    sys.exit(main())
