"""How something was made, in lines that a reader can take in: configuration and provenance."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

PROVENANCE_FACTS = ("command", "started", "seconds", "git_commit", "hardware", "versions")
OTHERS = "the run itself"  # group of the values that stand in none
Facts = list[tuple[str, str]]  # name and value


def provenance_facts(provenance: Mapping[str, Any]) -> Facts:
    """Command, times, commit, hardware and versions, those that are known."""
    return [
        (name.replace("_", " "), plain(provenance[name])) for name in PROVENANCE_FACTS if provenance.get(name)
    ]


def configuration_groups(config: Mapping[str, Any]) -> list[tuple[str, Facts]]:
    """Every value by its path, as it would be given on the command line, in the groups of the configuration.

    >>> configuration_groups({"seed": 0, "method": {"head": {"n": 8}, "sides": [1, 2]}})
    [('method', [('method.head.n', '8'), ('method.sides', '[1, 2]')]), ('the run itself', [('seed', '0')])]
    """
    groups = [(name, list(_paths(name, value))) for name, value in config.items() if _is_branch(value)]
    others = [(name, _value(value)) for name, value in config.items() if not _is_branch(value)]
    return [*groups, *([(OTHERS, others)] if others else [])]


def plain(value: Any) -> str:
    """A value of a JSON file as a line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return " ".join(map(plain, value))
    return value if isinstance(value, str) else json.dumps(value)


def _paths(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if not _is_branch(value):
        yield path, _value(value)
        return
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for name, entry in entries:
        yield from _paths(f"{path}.{name}", entry)


def _is_branch(value: Any) -> bool:
    """Whether there are names below the value: a mapping, or a list of mappings; neither empty."""
    if isinstance(value, list):
        return any(isinstance(entry, dict) for entry in value)
    return isinstance(value, dict) and bool(value)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
