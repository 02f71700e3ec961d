"""One kind of view: its parameters, and how they and a handful of random numbers make views of tiles.

Order of the operations: turn, flip, crop and resize; stain; colour jitter; grey; blur; solarise. It is
DINO's (the official code of arXiv:2104.14294, after BYOL, arXiv:2006.07733, appendix B), with the turns and
the stain that histology adds. We differ from pipelines of torchvision and PIL in three points: the order
inside of the colour jitter is fixed (brightness, contrast, saturation, hue; ColorJitter draws it), images
stay in floating point between the operations, and the blur is a Gaussian (PIL's is three box blurs).

N: views to make.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from histo_ssl.views import color, geometry
from histo_ssl.views.draws import Draws, between, columns
from histo_ssl.views.stain import stain_jitter

# How many random numbers a view needs under each name; those in `_p` decide whether an operation happens. The
# place of a number is its address: a new name goes last, or every view changes.
WIDTHS = {
    "area": geometry.N_TRIES,
    "ratio": geometry.N_TRIES,
    "corner": 2,
    "flip_rows_p": 1,
    "flip_columns_p": 1,
    "quarters": 1,
    "stain_p": 1,
    "alpha": 3,
    "beta": 3,
    "jitter_p": 1,
    "brightness": 1,
    "contrast": 1,
    "saturation": 1,
    "hue": 1,
    "grey_p": 1,
    "blur_p": 1,
    "sigma": 1,
    "solarise_p": 1,
}
COLUMNS = columns(WIDTHS)
N_DRAWS = sum(WIDTHS.values())


@dataclass(frozen=True, kw_only=True)
class View:
    """How one kind of view is cut and coloured. Probabilities end in `_p`; pairs are (low, high)."""

    count: int  # views of this kind per tile
    side: float  # share of the tile's side, rounded to a multiple of 16 px
    scale: Sequence[float]  # share of the tile's area that is cut out
    ratio: Sequence[float]  # width over height of what is cut out
    interpolation: str  # bilinear or bicubic, both antialiased
    flip_rows_p: float
    flip_columns_p: float
    quarter_turns: bool  # 0 to 3 of them, equally likely
    stain_p: float
    stain_alpha: float  # the amount of each dye times 1 +- this
    stain_beta: float  # the amount of each dye plus 0 +- this, in optical density
    jitter_p: float
    brightness: float  # factor 1 +- this, not below 0; so are the next two
    contrast: float
    saturation: float
    hue: float  # shift 0 +- this, in turns of the colour circle
    grey_p: float
    blur_p: float
    blur_sigma_px: Sequence[float]  # in pixels of the view, as in the papers
    solarise_p: float
    solarise_threshold: float  # of values in [0, 1]

    def __post_init__(self) -> None:
        """Refuses what no view can be made with."""
        if self.interpolation not in geometry.KERNELS:
            known = ", ".join(geometry.KERNELS)
            raise ValueError(f"views: interpolation is {self.interpolation!r}; choose one of: {known}")
        for name, value in vars(self).items():
            if name.endswith("_p") and not 0 <= value <= 1:
                raise ValueError(f"views: {name} is {value}; choose a probability from 0 to 1")
        for name in ("scale", "ratio", "blur_sigma_px"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"views: {name} is ({low}, {high}); choose two numbers with 0 < low <= high")

    def side_px(self, tile_px: int) -> int:
        """Side of the views of a tile of `tile_px`, at least 16. A share of 0.875 of 256 px is 224 px."""
        return geometry.BLOCK * max(1, int(self.side * tile_px / geometry.BLOCK + 0.5))


def framed(view: View, sources: Tensor, u: Draws) -> Tensor:
    """The turned, flipped, cropped and resized views, before any colour.

    Args:
        view: the kind of view.
        sources: (2B, 3, S, S) uint8, see `geometry.with_transposes`.
        u: random numbers of N = count x B views, in the order (view, tile).

    Returns:
        (N, 3, s, s) float32 in [0, 1].
    """
    tile_px = sources.shape[-1]
    start_N2, size_N2 = geometry.random_boxes(
        u["area"], u["ratio"], u["corner"], scale=view.scale, ratios=view.ratio, tile_px=tile_px
    )
    frames = geometry.random_frames(
        start_N2,
        size_N2,
        tile_N=torch.arange(len(sources) // 2, device=sources.device).repeat(view.count),
        flip_N2=torch.stack(
            [u[name] < getattr(view, name) for name in ("flip_rows_p", "flip_columns_p")], dim=1
        ),
        quarters_N=(4 * u["quarters"]).long() * view.quarter_turns,
    )
    box_px = geometry.largest_box_px(scale=view.scale, ratios=view.ratio, tile_px=tile_px)
    side_px = view.side_px(tile_px)
    return geometry.resample(
        sources, frames, side_px=side_px, box_px=box_px, interpolation=view.interpolation
    )


def stained(view: View, x: Tensor, u: Draws) -> Tensor:
    """Views with more or less of each dye."""
    alpha_N3 = between(u["alpha"], 1 - view.stain_alpha, 1 + view.stain_alpha)
    return stain_jitter(x, alpha_N3=alpha_N3, beta_N3=between(u["beta"], -view.stain_beta, view.stain_beta))


def jittered(view: View, x: Tensor, u: Draws) -> Tensor:
    """Views of another brightness, contrast, saturation and hue, drawn as in torchvision's ColorJitter."""

    def factor(name: str) -> Tensor:
        strength = getattr(view, name)
        return between(u[name], max(0.0, 1 - strength), 1 + strength)

    x = color.contrast(color.brightness(x, factor("brightness")), factor("contrast"))
    x = color.saturation(x, factor("saturation"))
    return color.hue(x, between(u["hue"], -view.hue, view.hue)) if view.hue else x


def greyed(view: View, x: Tensor, u: Draws) -> Tensor:  # noqa: ARG001 - one signature for all operations
    """Views without colour."""
    return color.grey(x)


def blurred(view: View, x: Tensor, u: Draws) -> Tensor:
    """Views out of focus, with a kernel as long as the widest blur of this kind asks (or the view allows)."""
    low, high = view.blur_sigma_px
    radius_px = min(color.blur_radius_px(high), x.shape[-1] - 1)
    return color.blur(x, between(u["sigma"], low, high), radius_px=radius_px)


def solarised(view: View, x: Tensor, u: Draws) -> Tensor:  # noqa: ARG001 - one signature for all operations
    """Views with their bright values turned over."""
    return color.solarise(x, threshold=view.solarise_threshold)


Operation = Callable[[View, Tensor, Draws], Tensor]
OPERATIONS: dict[str, Operation] = {
    "stain_p": stained,
    "jitter_p": jittered,
    "grey_p": greyed,
    "blur_p": blurred,
    "solarise_p": solarised,
}


def coloured(view: View, x: Tensor, u: Draws) -> Tensor:
    """Views (N, 3, s, s) in [0, 1] after each operation has met its probability. Writes into `x`.

    A CPU computes only the views that an operation meets; elsewhere all are computed and then chosen from,
    since an index that depends on the data would make the host wait for the device.
    """
    for draw, operation in OPERATIONS.items():
        p = getattr(view, draw)
        if p == 0:
            continue
        is_met_N = u[draw] < p
        if x.device.type == "cpu":
            met = is_met_N.nonzero().squeeze(1)
            if len(met) > 0:
                x.index_copy_(0, met, operation(view, x.index_select(0, met), u.of(met)))
        else:
            x = torch.where(color.per_view(is_met_N), operation(view, x, u), x)
    return x
