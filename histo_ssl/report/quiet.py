"""The logger for those who want none: what it would show is in `metrics.jsonl` and in the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def no_logger(*, folder: Path, run_id: str, name: str, tags: list[str], config: Mapping[str, Any]) -> None:
    """No logger, asked for with the words that every other logger takes."""
