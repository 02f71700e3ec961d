"""Draws tissue, nuclei and scans of which everything is known."""
