from itertools import product

import pytest
import torch
import torchvision.transforms.v2.functional as F
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from histo_ssl.views.geometry import (
    KERNELS,
    Frames,
    band,
    largest_box_px,
    random_boxes,
    random_frames,
    resample,
    with_transposes,
)

# Positions are float32 up to 64 px, so each weight is known to some 1e-5; a grey level is 1/255 = 4e-3.
WEIGHTS_ATOL = 1e-4


def frame(
    box: tuple[float, float, float, float], *, source: int = 0, flip: tuple[bool, bool] = (False, False)
) -> Frames:
    top, left, height, width = box
    return Frames(
        source=torch.tensor([source]),
        start=torch.tensor([[top, left]]),
        size=torch.tensor([[height, width]]),
        flip=torch.tensor([flip]),
    )


@pytest.mark.parametrize("interpolation", KERNELS)
@pytest.mark.parametrize("side_px", [16, 48, 64])
def test_a_crop_is_resized_as_by_torchvision(tiles: Tensor, interpolation: str, side_px: int) -> None:
    for top, left, height, width in [
        (0, 0, 64, 64),
        (3, 7, 31, 23),
        (40, 0, 9, 64),
        (1, 62, 63, 2),
        (20, 30, 1, 1),
    ]:
        expected = F.resized_crop(
            tiles.float() / 255,
            top,
            left,
            height,
            width,
            [side_px, side_px],
            interpolation=InterpolationMode(interpolation),
            antialias=True,
        )
        for i in (0, 3):
            whole = frame((float(top), float(left), float(height), float(width)), source=i)
            made = resample(tiles, whole, side_px=side_px, box_px=64, interpolation=interpolation)
            torch.testing.assert_close(made[0], expected[i].clamp(0, 1), atol=WEIGHTS_ATOL, rtol=0)


@pytest.mark.parametrize("interpolation", KERNELS)
def test_a_box_of_the_views_size_gives_the_pixels_themselves(tiles: Tensor, interpolation: str) -> None:
    made = resample(
        tiles, frame((16.0, 5.0, 48.0, 48.0), source=2), side_px=48, box_px=64, interpolation=interpolation
    )
    assert torch.equal(made[0], tiles[2, :, 16:64, 5:53].float() / 255)


def test_a_fractional_box_samples_positions_between_pixels() -> None:
    position = torch.arange(64, dtype=torch.uint8)
    ramp = position.expand(1, 3, 64, 64)  # every pixel is its own column
    box = (10.0, 12.25, 16.0, 16.0)
    made = 255 * resample(ramp, frame(box), side_px=16, box_px=16, interpolation="bilinear")
    # Output i looks at 12.25 + i + 0.5 and the centre of column c is at c + 0.5. The last output reads
    # column 27 alone: the centre of the next one, 28.5, is outside of the box, which ends at 28.25.
    expected = torch.tensor([12.25 + i for i in range(15)] + [27.0])
    torch.testing.assert_close(made[0, 0, 3], expected, atol=1e-3, rtol=0)


def test_weights_of_every_output_sum_to_one_for_any_box() -> None:
    u = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    size = 1 + 63 * u[:, 0]
    start = u[:, 1] * (64 - size)
    for interpolation in KERNELS:
        _, weights = band(start, size, u[:, 0] > 0.5, side_px=48, box_px=64, interpolation=interpolation)
        torch.testing.assert_close(weights.sum(dim=2), torch.ones(200, 3, 16), atol=1e-5, rtol=0)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_turns_and_flips_are_those_of_torch(tiles: Tensor, quarters: int) -> None:
    for flip in product([False, True], repeat=2):
        box = torch.tensor([[0.0, 0.0]]), torch.tensor([[64.0, 64.0]])
        frames = random_frames(
            *box, tile_N=torch.tensor([4]), flip_N2=torch.tensor([flip]), quarters_N=torch.tensor([quarters])
        )
        made = resample(with_transposes(tiles), frames, side_px=64, box_px=64, interpolation="bicubic")
        turned = torch.rot90(tiles[4], quarters, dims=(1, 2))
        expected = turned.flip([axis + 1 for axis in (0, 1) if flip[axis]])
        assert torch.equal(made[0], expected.float() / 255)


def test_a_flipped_crop_is_the_flip_of_the_crop(tiles: Tensor) -> None:
    box = (3.0, 9.0, 41.0, 30.0)
    plain = resample(tiles, frame(box), side_px=32, box_px=64, interpolation="bicubic")
    flipped = resample(tiles, frame(box, flip=(False, True)), side_px=32, box_px=64, interpolation="bicubic")
    torch.testing.assert_close(
        flipped, plain.flip(3), atol=1e-6, rtol=0
    )  # windows differ, so does the order of sums


@pytest.mark.parametrize("scale", [(0.05, 0.4), (0.4, 1.0), (0.9, 1.0)])
def test_boxes_are_distributed_as_torchvisions(scale: tuple[float, float]) -> None:
    n, ratios = 3000, (3 / 4, 4 / 3)
    u = torch.rand(n, 22, generator=torch.Generator().manual_seed(1))
    start, size = random_boxes(u[:, :10], u[:, 10:20], u[:, 20:], scale=scale, ratios=ratios, tile_px=256)
    image = torch.empty(3, 256, 256)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        drawn = [RandomResizedCrop.get_params(image, list(scale), list(ratios)) for _ in range(n)]
    theirs = torch.tensor(drawn, dtype=torch.float)  # top, left, height, width
    ours = torch.cat([start, size], dim=1)
    area_and_ratio = [(x[:, 2] * x[:, 3], x[:, 3] / x[:, 2]) for x in (ours, theirs)]
    pairs = [*zip(ours.unbind(1), theirs.unbind(1), strict=True), *zip(*area_and_ratio, strict=True)]
    for mine, reference in pairs:
        assert stats.ks_2samp(mine.numpy(), reference.numpy()).pvalue > 0.01


def test_boxes_lie_inside_of_the_tile_and_reach_its_edges() -> None:
    u = torch.rand(20_000, 22, generator=torch.Generator().manual_seed(1))
    u[0, 20:], u[1, 20:] = 0, 1 - 2**-24  # the least and the largest number that can be drawn
    start, size = random_boxes(
        u[:, :10], u[:, 10:20], u[:, 20:], scale=(0.05, 0.4), ratios=(3 / 4, 4 / 3), tile_px=96
    )
    assert start.min() == 0
    assert (start + size).max() == 96
    assert size.max() <= largest_box_px(scale=(0.05, 0.4), ratios=(3 / 4, 4 / 3), tile_px=96) == 71  # 70.1


def test_a_box_that_never_fits_is_the_whole_tile() -> None:
    wide = torch.ones(1, 10) * 0.999
    start, size = random_boxes(wide, wide, torch.rand(1, 2), scale=(0.9, 1.0), ratios=(0.5, 2.0), tile_px=64)
    assert start.tolist() == [[0, 0]]
    assert size.tolist() == [[64, 64]]
