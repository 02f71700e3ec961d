"""Physical units of slides and tiles, so that the type checker tells a level-0 pixel from a tile pixel."""

from typing import NewType

Level0Px = NewType("Level0Px", int)  # a pixel of the scan at its finest resolution
TilePx = NewType("TilePx", int)  # a pixel of a tile as the network sees it
MicronsPerPx = NewType("MicronsPerPx", float)  # side of one pixel on the glass, in um


def level0_side(side_px: TilePx, *, mpp: MicronsPerPx, slide_mpp: MicronsPerPx) -> Level0Px:
    """Side on the scan of a square of `side_px` pixels at `mpp`, rounded to nearest.

    >>> level0_side(TilePx(224), mpp=MicronsPerPx(0.5), slide_mpp=MicronsPerPx(0.25))
    448
    """
    return Level0Px(round(side_px * mpp / slide_mpp))


def area_mm2(n_px: int, *, mpp: float) -> float:
    """Area on the glass of `n_px` pixels of side `mpp` um, in square millimetres.

    >>> area_mm2(15_625, mpp=8.0)
    1.0
    """
    return n_px * mpp * mpp / 1e6
