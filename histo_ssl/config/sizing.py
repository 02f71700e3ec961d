"""Values that follow from the number of tiles, where a configuration leaves them open.

A method's YAML may leave values at null and hold a table `by_tiles`: from so many training tiles on, these
values. The table's rows have the shape of the configuration itself. What a person sets is never touched.
"""

from collections.abc import Iterator, Mapping
from typing import Any

TABLE = "by_tiles"


def sized(config: Mapping[str, Any], *, n_tiles: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A configuration without its table and without what the table knows left open.

    Args:
        config: nested plain values; `by_tiles` maps the least number of tiles to a row of values.
        n_tiles: tiles that are trained on.

    Returns:
        The complete configuration, and the values that were filled in by their paths.

    >>> table = {0: {"head": {"k": 512}}, 20_000: {"head": {"k": 1024}}}
    >>> sized({"temp": None, "head": {"k": None}, "by_tiles": table}, n_tiles=30_000)
    ({'temp': None, 'head': {'k': 1024}}, {'head.k': 1024})
    """
    rest = {key: value for key, value in config.items() if key != TABLE}
    rows: Mapping[int, Mapping[str, Any]] = config.get(TABLE, {})
    row = rows[max(least for least in rows if least <= n_tiles)] if rows else {}
    filled = {path: value for path, value in _leaves(row) if _at(rest, path) is None}
    return _with(rest, row), {".".join(path): value for path, value in filled.items()}


def _leaves(row: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _at(config: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = config
    for key in path:
        value = value[key]
    return value


def _with(config: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its nulls taken from the row."""
    full = dict(config)
    for key, value in row.items():
        if isinstance(value, Mapping):
            full[key] = _with(full[key], value)
        elif full[key] is None:
            full[key] = value
    return full
