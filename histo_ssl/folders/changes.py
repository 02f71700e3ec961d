"""What differs between new work and the finished or begun work most like it, in a line for the log."""

import json
from collections.abc import Mapping
from typing import Any

N_NAMED = 3  # changed settings that a line names; the others are counted
LONGEST = 40  # characters of a value
ABSENT = "nothing"
LISTING = "listing"  # the setting that stands for the files of the data

Listing = Mapping[str, Any]  # what a data set lists: a noun -> items -> what is known of each


def difference(config: Any, listing: Listing, others: Mapping[str, Mapping[str, Any]]) -> str:
    """How new work differs from the nearest other, the one with the fewest settings changed.

    Args:
        config: the new work's settings, plain values.
        listing: the files that it reads; empty where it reads none.
        others: by name, what other work was made of: `config` and `listing`.

    Returns:
        Such as "nearest is dino-ab12: training.epochs 3 -> 5, seed 0 -> 1"; "" where there is no other.
    """
    new = leaves(config)
    changed = {name: _changed(leaves(other.get("config")), new) for name, other in others.items()}
    if not changed:
        return ""
    name = min(sorted(changed), key=lambda name: len(changed[name]))
    old_listing = others[name].get(LISTING) or {}
    files = _listing_changes(old_listing, listing)
    settings = [words for key, words in changed[name].items() if not (files and key == LISTING)]
    more = f" and {len(settings) - N_NAMED} more" if len(settings) > N_NAMED else ""
    said = [*files, *settings[:N_NAMED]]
    return f"nearest is {name}: {', '.join(said) or 'the same settings under another name'}{more}"


def leaves(config: Any, path: str = "") -> dict[str, Any]:
    """Every value of nested mappings by its path; a list is a value.

    >>> leaves({"a": {"b": 1, "c": [2]}, "d": None})
    {'a.b': 1, 'a.c': [2], 'd': None}
    """
    if not isinstance(config, Mapping):
        return {path: config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= leaves(value, f"{path}.{key}" if path else str(key))
    return found


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Path -> "path old -> new" of every value that differs, in the order of the new ones; each said once."""
    paths = [*new, *(path for path in old if path not in new)]
    changes = {
        path: f"{_shown(old, path)} -> {_shown(new, path)}"
        for path in paths
        if path not in old or path not in new or old[path] != new[path]
    }
    return {path: f"{path} {words}" for path, words in changes.items() if not _is_echo(path, changes)}


def _is_echo(path: str, changes: Mapping[str, str]) -> bool:
    """Whether an end of the path changed in the same way: the configuration says there what it is here."""
    ends = (path[place + 1 :] for place, letter in enumerate(path) if letter == ".")
    return any(changes.get(end) == changes[path] for end in ends)


def _shown(values: Mapping[str, Any], path: str) -> str:
    if path not in values:
        return ABSENT
    value = values[path]
    text = value if isinstance(value, str) and value else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _listing_changes(old: Listing, new: Listing) -> list[str]:
    """Such as ["slides: 1 added, 1 of another size"]."""
    nouns = [noun for noun in {**old, **new} if isinstance(new.get(noun, old.get(noun)), Mapping)]
    counted = {noun: _item_changes(old.get(noun) or {}, new.get(noun) or {}) for noun in nouns}
    return [f"{noun}: {', '.join(parts)}" for noun, parts in counted.items() if parts]


def _item_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    both = [name for name in new if name in old and old[name] != new[name]]
    resized = [name for name in both if _size(old[name]) != _size(new[name])]
    numbers = {
        "added": len(new.keys() - old.keys()),
        "gone": len(old.keys() - new.keys()),
        "of another size": len(resized),
        "described otherwise": len(both) - len(resized),
    }
    return [f"{n} {words}" for words, n in numbers.items() if n]


def _size(item: Any) -> Any:
    return item.get("bytes") if isinstance(item, Mapping) else None
