"""Tiles as if one laboratory had stained them all: a pure function of each tile."""
