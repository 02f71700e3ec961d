"""Part `views`: the ten views of DINO's multi-crop of 256 px tiles, on one thread, against three libraries.

Settings are the paper's on all sides: two views of 224 px, eight of 96 px, the same ranges and probabilities.
Ours is `views=multicrop` as configured, with turns and flips of rows on top of it. lightly gets PIL images,
as its `DINOTransform` is meant to be used; torchvision's v2 transforms get uint8 tensors, one tile at a time,
since they draw once per call; kornia gets the whole batch and draws per tile. On a GPU kornia alone competes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from contests import CannotRunError, Contest, Ratio, Work, compete, settling
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from reading import drawn
from torch import Tensor

from histo_ssl.config.choices import conf_dir

N_TILES, N_ROUNDS, TILE_PX = 48, 5, 256
SIDES = [224] * 2 + [96] * 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATIO, SIGMAS, KERNEL_PX = (3 / 4, 4 / 3), (0.1, 2.0), 13  # torchvision's and lightly's; 3 sigmas either way
# side, scale, count, probability of blur and of solarisation
KINDS = ((224, (0.4, 1.0), 1, 1.0, 0.0), (224, (0.4, 1.0), 1, 0.1, 0.2), (96, (0.05, 0.4), 8, 0.5, 0.0))
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}


def measure(device: str) -> list[Ratio]:
    """Ratios to all of them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if device == "cuda" and not torch.cuda.is_available():
        raise CannotRunError("there is no GPU that torch can use")
    tiles = cut(drawn()).to(device)
    peers: dict[str, Work] = {}
    try:
        peers["kornia"] = by_kornia(tiles)
        if device == "cpu":
            peers |= {"lightly": by_lightly(tiles), "torchvision v2": by_torchvision(tiles)}
    except ImportError as error:
        raise CannotRunError(f"a peer is not here ({error}); install histo_ssl[bench]") from error
    ours = by_us(tiles)
    for name, work in {"ours": ours, **peers}.items():
        _check(name, work(0))
    targets = {"lightly": 1.3, "kornia": 2.5, "torchvision v2": 2.5} if device == "cpu" else {"kornia": None}
    contest = Contest(
        part="views",
        case="DINO, 10 views of 256 px",
        n_items=N_TILES,
        item="tile",
        ours=ours,
        peers=peers,
        targets=targets,
        n_rounds=N_ROUNDS,
        clock="processor" if device == "cpu" else "wall",
        settle=settling(device),
    )
    return compete(contest)


def cut(scan: np.ndarray) -> Tensor:
    """Tiles (N, 3, S, S) uint8 of a drawn scan."""
    places = [(y, x) for y in range(0, len(scan), TILE_PX) for x in range(0, len(scan), TILE_PX)][:N_TILES]
    tiles = np.stack([scan[y : y + TILE_PX, x : x + TILE_PX] for y, x in places])
    return torch.from_numpy(tiles).permute(0, 3, 1, 2).contiguous()


def multicrop() -> Any:
    """Our `views=multicrop`."""
    import hydra

    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("config", overrides=["method=dino", "backbone=vit_s"])
    return instantiate(OmegaConf.to_container(cfg.views, resolve=True))


def by_us(tiles: Tensor) -> Work:
    """Ten batches of views."""
    views, ids = multicrop(), torch.arange(len(tiles), device=tiles.device)
    return lambda i: views(tiles, ids=ids, epoch=i, seed=0)


def by_lightly(tiles: Tensor) -> Work:
    """A list of ten views per tile, as its data set would return them."""
    from lightly.transforms.dino_transform import DINOTransform

    transform = DINOTransform(n_local_views=8)  # its other defaults are the paper's
    images = [Image.fromarray(tile.permute(1, 2, 0).numpy()) for tile in tiles]
    return lambda i: [transform(image) for image in images]  # noqa: ARG005


def by_torchvision(tiles: Tensor) -> Work:
    """The same by transforms of torchvision v2."""
    from torchvision.transforms import v2

    def kind(side: int, scale: tuple[float, float], blur_p: float, solarise_p: float) -> Callable[..., Any]:
        return v2.Compose(
            [
                v2.RandomResizedCrop(
                    side, scale=scale, ratio=RATIO, interpolation=v2.InterpolationMode.BICUBIC, antialias=True
                ),
                v2.RandomHorizontalFlip(0.5),
                v2.RandomApply([v2.ColorJitter(**JITTER)], p=0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(KERNEL_PX, SIGMAS)], p=blur_p),
                v2.RandomSolarize(128, p=solarise_p),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    kinds = [(kind(side, scale, blur, solarise), n) for side, scale, n, blur, solarise in KINDS]
    return lambda i: [[make(tile) for make, n in kinds for _ in range(n)] for tile in tiles]  # noqa: ARG005


def by_kornia(tiles: Tensor) -> Work:
    """Ten batches of views by kornia's augmentations."""
    import kornia.augmentation as K

    def kind(side: int, scale: tuple[float, float], blur_p: float, solarise_p: float) -> Any:
        return K.AugmentationSequential(
            K.RandomResizedCrop((side, side), scale=scale, ratio=RATIO, resample="BICUBIC"),
            K.RandomHorizontalFlip(p=0.5),
            K.ColorJitter(**JITTER, p=0.8),
            K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur((KERNEL_PX, KERNEL_PX), SIGMAS, p=blur_p),
            *([K.RandomSolarize(0.0, 0.0, p=solarise_p)] if solarise_p else []),
            K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
            data_keys=["input"],
        )

    kinds = [(kind(side, scale, blur, solarise), n) for side, scale, n, blur, solarise in KINDS]

    @torch.no_grad()
    def work(i: int) -> list[Tensor]:  # noqa: ARG001
        batch = tiles.float() / 255
        return [make(batch) for make, n in kinds for _ in range(n)]

    return work


def _check(name: str, made: Any) -> None:
    """Stop unless ten views of the right sides came out, normalised alike."""
    is_batched = isinstance(made[0], Tensor)
    views = made if is_batched else [torch.stack(list(same)) for same in zip(*made, strict=True)]
    sides = [view.shape[-1] for view in views]
    spread = torch.stack([view.std() for view in views]).mean().item()
    if sides != SIDES or len(views[0]) != N_TILES or not 0.3 < spread < 3:
        raise AssertionError(f"{name} made views of {sides} px with a standard deviation of {spread:.2f}")
