"""Layouts of checkpoints that are known by the names of their tensors.

As written by facebookresearch/dino, moco and moco-v3, lightning-bolts, mahmoodlab/HIPT (DINO's), timm,
and this framework.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Rgb = tuple[float, float, float]

IMAGENET: tuple[Rgb, Rgb] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, SD
HALVES: tuple[Rgb, Rgb] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Width of a ViT -> attention heads. The shapes of weights do not tell how many heads they were trained with.
DEIT_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}  # arXiv:2012.12877, table 1, which DINO follows
MOCOV3_HEADS = {384: 12, 768: 12, 1024: 16, 1280: 16}  # vits.py of moco-v3


@dataclass(frozen=True, kw_only=True)
class Family:
    """A layout of checkpoints.

    Args:
        name: for people.
        prefix: begins the names of the encoder's tensors.
        sign: begins the name of a tensor in every such file; "": the prefix does.
        container: key under which the file must keep its tensors; None: any.
        normalisation: mean and SD of the RGB that such encoders take; None: files of this kind differ.
        n_heads: width of a ViT -> its attention heads; empty: files of this kind differ.
    """

    name: str
    prefix: str
    sign: str = ""
    container: str | None = None
    normalisation: tuple[Rgb, Rgb] | None = None
    n_heads: Mapping[int, int] = field(default_factory=dict)


OURS = "histo_ssl"
# Which network of a method of ours holds its encoder: DINO; SimCLR and MAE; MoCo; MoCo v3; BYOL
OWN_ENCODERS = ("teacher", "network", "query", "base", "online")

FAMILIES = (  # the first that fits
    # Official ones take ImageNet's mean and SD, the study's and HIPT's take halves.
    Family(name="DINO", prefix="backbone.", container="teacher", n_heads=DEIT_HEADS),
    Family(
        name="MoCo v3",
        prefix="base_encoder.",
        normalisation=IMAGENET,
        n_heads=MOCOV3_HEADS,
    ),
    Family(name="MoCo v2", prefix="encoder_q.", normalisation=IMAGENET),
    *(Family(name=OURS, prefix=f"{network}.backbone.") for network in OWN_ENCODERS),
    # The study's; those of lightning-bolts itself take ImageNet's.
    Family(name="SimCLR of lightning-bolts", prefix="encoder.", sign="encoder.conv1", normalisation=HALVES),
    Family(name="a backbone", prefix="backbone."),
    Family(name="timm or torchvision", prefix=""),
)


def recognised(tensors: Iterable[str], container: str | None) -> Family:
    """The first family that fits.

    Args:
        tensors: their names, without what wrappers put before them.
        container: key that the file keeps them under; None: none.
    """
    names = list(tensors)
    return next(
        family
        for family in FAMILIES
        if family.container in (None, container)
        and any(name.startswith(family.sign or family.prefix) for name in names)
    )
