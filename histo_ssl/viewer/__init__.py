"""Slides with maps of their tiles as layers, in a browser on the same machine or as pictures of any size."""
