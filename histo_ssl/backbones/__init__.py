"""Architectures that turn tiles into features.

A YAML of `conf/backbone/` is a partial call: a factory that builds the same architecture every time it is
called. Its module maps (B, 3, s, s) to (B, D) and says D as `num_features`.
"""

from typing import Protocol

from torch import nn


class BackboneFactory(Protocol):
    """Builds one backbone per call, with fresh weights.

    `factory()` is the backbone as configured, with its drop path: a student. `factory(drop_path=0.0)` is the
    same architecture, with the same parameters under the same names, that drops nothing: its teacher.
    """

    def __call__(self, *, drop_path: float = ...) -> nn.Module:
        """A module from (B, 3, s, s) to (B, num_features), s any multiple of the patch."""
