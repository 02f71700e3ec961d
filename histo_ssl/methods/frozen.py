"""Encoders that are not trained here: timm's supervised weights, random ones, and other people's checkpoints.

They take the place of a method, so that a sweep over methods has its baselines in it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from histo_ssl.backbones import BackboneFactory
from histo_ssl.backbones.families import HALVES, IMAGENET, Rgb
from histo_ssl.backbones.hub import is_repository, repository_weights, supervised_weights
from histo_ssl.backbones.weights import Weights, load_weights, read_weights

log = logging.getLogger(__name__)

FEATURE_SUFFIXES = (".h5", ".pt")
ASSUMED_PX = 224  # side of the tile that an encoder is tried on where nobody knows what it was trained on


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """How tiles must reach an encoder, for its card.

    Args:
        mean: subtracted from RGB in 0-1.
        std: divides it afterwards.
        tile_px: side of the tiles that it was trained on; None where nobody knows.
        mpp: their um/px; None where nobody knows or it saw no tissue.
        chosen_on: as of the encoder's card.
        stain: as of the encoder's card.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    tile_px: int | None
    mpp: float | None
    chosen_on: tuple[str, ...] = ()
    stain: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class GivenFeatures:
    """In place of an encoder: features that are there already, read by tasks on slides alone.

    Args:
        path: folder of a file per slide.
    """

    path: str | None

    def files(self) -> dict[str, Path]:
        """The file of each slide by the slide's name, sorted.

        Raises:
            FileNotFoundError: there is no such folder, or no file in it.
        """
        folder = Path(self.path or "")
        found = {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix in FEATURE_SUFFIXES}
        if self.path is None or not found:
            raise FileNotFoundError(
                f"method.path={self.path}: no .h5 or .pt there; the folder of CLAM's, TRIDENT's or STAMP's "
                "features is expected"
            )
        return found


class FrozenMethod:
    """An encoder that is there from the start."""

    def __init__(self, *, encoder: nn.Module, feeding: Feeding) -> None:
        self._encoder = encoder.eval()
        self.feeding = feeding

    def encoder(self) -> nn.Module:
        """The backbone, in evaluation mode."""
        return self._encoder

    @torch.inference_mode()
    def check(self) -> None:
        """Show the encoder a tile.

        Raises:
            ValueError: what comes out is not one finite row of features.
        """
        px = self.feeding.tile_px or ASSUMED_PX
        features = self._encoder(torch.zeros(1, 3, px, px))
        if features.shape != (1, self._encoder.num_features) or not features.isfinite().all():
            raise ValueError(
                f"the encoder makes {tuple(features.shape)} of one tile of {px} px; expected "
                f"(1, {self._encoder.num_features}), finite: use a backbone that ends in pooled features"
            )


class RandomWeights(FrozenMethod):
    """The floor of every method: the backbone as it is born."""

    def __init__(
        self, *, backbone: BackboneFactory, seed: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Draw the weights.

        Args:
            backbone: called once.
            seed: of the weights.
            mean: subtracted from red, green and blue in 0-1.
            std: divides what is left.
        """
        torch.manual_seed(seed)
        feeding = Feeding(mean=_rgb(mean, "mean"), std=_rgb(std, "std"), tile_px=None, mpp=None)
        super().__init__(encoder=backbone(), feeding=feeding)


class ImageNet(FrozenMethod):
    """timm's supervised weights: what is had without any histology."""

    def __init__(self, *, backbone: BackboneFactory, tags: Mapping[str, str]) -> None:
        """Load the weights from timm's place on the hub, or the hub's cache.

        Args:
            backbone: called once; an architecture of timm.
            tags: architecture -> which of timm's weights; timm's default for those that are not listed.

        Raises:
            FileNotFoundError: they are neither in the cache nor to be reached.
            ValueError: timm has no such weights.
        """
        encoder = backbone()
        weights = supervised_weights(encoder, tags)
        load_weights(encoder, weights)
        assert weights.normalisation is not None
        mean, std = weights.normalisation
        super().__init__(
            encoder=encoder, feeding=Feeding(mean=mean, std=std, tile_px=weights.tile_px, mpp=None)
        )


class Checkpoint(FrozenMethod):
    """Somebody's weights in the configured backbone."""

    def __init__(
        self,
        *,
        backbone: BackboneFactory,
        path: str | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        tile_px: int | None,
        mpp: float | None,
    ) -> None:
        """Load the weights.

        Args:
            backbone: called once; must be the architecture that the weights were trained in.
            path: a file, or a hub repository (`hf-hub:owner/name`), or a folder in its layout (`local-dir:`).
            mean: subtracted from red, green and blue in 0-1; None: as the weights say.
            std: divides what is left; None: as the weights say.
            tile_px: side of the tiles that they were trained on; None: as the weights say, if they do.
            mpp: um/px of those tiles; None: as the weights say, if they do.

        Raises:
            FileNotFoundError: there is no such file or repository.
            ValueError: the weights don't fit, or nobody says which mean and SD they want.
        """
        if path is None:
            raise ValueError(
                "method.path is missing: give a checkpoint, hf-hub:owner/name or local-dir:folder"
            )
        weights = repository_weights(path) if is_repository(path) else read_weights(Path(path))
        encoder = backbone()
        load_weights(encoder, weights)
        said_mean, said_std = weights.normalisation or (None, None)
        feeding = Feeding(
            mean=_chosen(mean, said_mean, key="mean", weights=weights),
            std=_chosen(std, said_std, key="std", weights=weights),
            tile_px=tile_px or weights.tile_px,
            mpp=mpp or weights.mpp,
            chosen_on=weights.chosen_on,
            stain=weights.stain,
        )
        log.info("weights: RGB is normalised by mean %s and SD %s", feeding.mean, feeding.std)
        super().__init__(encoder=encoder, feeding=feeding)


def _chosen(asked: Sequence[float] | None, said: Rgb | None, *, key: str, weights: Weights) -> Rgb:
    """Three numbers, from the configuration if it has them, else from the weights."""
    if asked is not None:
        return _rgb(asked, key)
    if said is None:
        row = ("mean", "std").index(key)
        raise ValueError(
            f"{weights.origin} does not say which {key} its RGB is normalised by: set method.{key}, "
            f"{list(IMAGENET[row])} for the official DINO's and torchvision's, {list(HALVES[row])} for the "
            f"study's and HIPT's"
        )
    return said


def _rgb(values: Sequence[float], key: str) -> Rgb:
    if len(values) != 3:
        raise ValueError(f"method.{key}={list(values)}: three numbers, for red, green and blue, are expected")
    red, green, blue = (float(value) for value in values)
    return red, green, blue
