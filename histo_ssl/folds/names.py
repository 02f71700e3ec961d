"""What slides are called, by lists that leave a scanner's suffix or add it."""

from collections.abc import Sequence

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".h5", ".pt")
N_NAMED = 3  # slides or patients that a sentence names


def bare(name: str) -> str:
    """A slide's name without its folder and a scanner's suffix.

    >>> bare("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF.svs"), bare("a/b.tif"), bare("c.1")
    ('TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF', 'b', 'c.1')
    """
    last = name.rpartition("/")[2]
    suffix = next((suffix for suffix in SUFFIXES if last.lower().endswith(suffix)), "")
    return last.removesuffix(last[len(last) - len(suffix) :]) if suffix else last


def some(names: Sequence[str]) -> str:
    """The first of some names, and that there are more.

    >>> some(["a", "b"]), some(["a", "b", "c", "d"])
    ('a, b', 'a, b, c, ...')
    """
    return ", ".join(names[:N_NAMED]) + (", ..." if len(names) > N_NAMED else "")
