"""Holds a configuration against the signatures that it fills, before any work begins."""

import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object

OURS = "histo_ssl."
WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def check_types(config: Any, path: str) -> None:
    """Stop at the first value that the function named by `_target_` does not take.

    Args:
        config: a group of the configuration, plain values.
        path: where it stands, such as "tiling".

    Raises:
        ValueError: a value has the wrong type, and says which types are right; or no parameter has its
            name, as where an experiment sets it for another choice.
    """
    # What is said in several places by interpolation is changed where its path is shortest.
    for node_path, node in sorted(_nodes(config, path), key=lambda found: found[0].count(".")):
        _check_names(node, node_path)
        hints = _hints(str(node["_target_"]))
        for key, value in node.items():
            allowed = _plain_types(hints.get(key))
            if allowed and not _fits(value, allowed):
                expected = " or ".join(WORDS[kind] for kind in allowed)
                raise ValueError(f"{node_path}.{key}={value!r}: {expected} is expected")


def _check_names(node: Mapping[str, Any], path: str) -> None:
    """Refuse a value that a node's target has no parameter for."""
    made = get_object(str(node["_target_"]))
    parameters = inspect.signature(made).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return
    names = [one.name for one in parameters]
    unknown = [key for key in node if not key.startswith("_") and key not in names]
    if unknown:
        raise ValueError(
            f"{path}.{unknown[0]}: {made.__name__} takes no such value, but {', '.join(names)}; where an "
            f"experiment sets it for another choice, say '~{path}.{unknown[0]}'"
        )


def _nodes(config: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping below that names a target of ours, with its path."""
    if not isinstance(config, Mapping):
        return
    if str(config.get("_target_", "")).startswith(OURS):
        yield path, config
    for key, value in config.items():
        yield from _nodes(value, f"{path}.{key}")


def _hints(target: str) -> dict[str, Any]:
    made = get_object(target)
    return get_type_hints(made.__init__ if inspect.isclass(made) else made)


def _plain_types(hint: Any) -> tuple[type, ...]:
    """The types of a hint, if a person could type them all: (int, NoneType) for `int | None`."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    plain = tuple(getattr(option, "__supertype__", option) for option in options)
    return plain if all(option in WORDS for option in plain) else ()


def _fits(value: Any, allowed: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed) or (isinstance(value, int) and float in allowed)
