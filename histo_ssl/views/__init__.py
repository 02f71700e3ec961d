"""Augmented tiles: batched, per-tile parameters, a pure function of (tile, epoch, seed)."""
