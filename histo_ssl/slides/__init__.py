"""Whole-slide images: opening, masking tissue, cutting tiles."""
