"""Slide lists, image folders, generated slides, and the batches made of them."""
