"""Regions in windows: planted logits come back as one softmax, and no border of a window can be seen."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from histo_ssl.backbones.timm import timm_backbone
from histo_ssl.encode import Card, Encoder
from histo_ssl.heads.attending import Attention, HaematoxylinAlone, Heads
from histo_ssl.heads.regions import Windows, attended, blended

WINDOWS = Windows(side_px=64, stride_px=32, patch_px=16)


def _planted(tiles: Tensor) -> Attention:
    """Two heads, a softmax within the window of what is written in the patches: their red, their green."""
    logits = tiles[:, :2].double().unfold(2, 16, 16).unfold(3, 16, 16).mean((-2, -1)) / 32
    maps = logits.flatten(2).softmax(-1).view_as(logits).numpy()
    return Attention(maps_BHhw=maps, prefix_BH=np.zeros(maps.shape[:2]))


def _region(rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    patches = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return patches.repeat(16, axis=0).repeat(16, axis=1)


def _borders(length: int, windows: Windows, cells: int) -> NDArray[np.bool_]:
    """Which steps from one cell to the next cross the border of a window."""
    starts = [start // windows.cell_px for start in windows.starts(length)]
    side = windows.side_px // windows.cell_px
    edges = {edge for start in starts for edge in (start, start + side)}
    return np.array([step + 1 in edges for step in range(cells - 1)])


def _seams(found: NDArray[np.float64], windows: Windows) -> tuple[float, float]:
    """Mean absolute difference of neighbouring patches across borders of windows, and elsewhere."""
    across, inside = [], []
    for axis, length in ((1, found.shape[1]), (2, found.shape[2])):
        steps = np.moveaxis(np.abs(np.diff(found, axis=axis)), axis, 0)
        is_border = _borders(length * windows.cell_px, windows, length)
        across.append(steps[is_border].ravel())
        inside.append(steps[~is_border].ravel())
    return float(np.concatenate(across).mean()), float(np.concatenate(inside).mean())


def test_windows_of_the_same_logits_make_one_softmax_over_the_region() -> None:
    region = _region(10, 14)
    found = attended(region, _planted, WINDOWS)
    logits = region[::16, ::16, :2].transpose(2, 0, 1) / 32
    expected = np.exp(logits) / np.exp(logits).sum(axis=(1, 2), keepdims=True)
    # the tie of factors to 1 costs a thousandth or so of each logarithm
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_without_matching_the_same_windows_disagree() -> None:
    region = _region(10, 14)
    maps = [
        _planted(torch.from_numpy(region[top : top + 64, left : left + 64].copy()).permute(2, 0, 1)[None])
        for top in range(0, 97, 32)
        for left in range(0, 161, 32)
    ]
    places = [(top // 16, left // 16) for top in range(0, 97, 32) for left in range(0, 161, 32)]
    raw = blended(np.concatenate([one.maps_BHhw for one in maps]), places)
    logits = region[::16, ::16, :2].transpose(2, 0, 1) / 32
    ratio = raw / np.exp(logits)
    assert (ratio / ratio.mean(axis=(1, 2), keepdims=True)).std() > 0.2  # what matching is for


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (5, 4), (7, 11), (3, 4)])
def test_every_region_is_covered_and_each_head_sums_to_one(rows: int, columns: int) -> None:
    found = attended(_region(rows, columns), _planted, WINDOWS)
    assert found.shape == (2, rows, columns)
    assert found.sum(axis=(1, 2)).tolist() == pytest.approx([1, 1])


def test_a_single_window_is_what_the_heads_say_of_it() -> None:
    region = _region(4, 4)
    (expected,) = _planted(torch.from_numpy(region).permute(2, 0, 1)[None]).maps_BHhw
    np.testing.assert_allclose(attended(region, _planted, WINDOWS), expected, rtol=1e-12)


def test_a_stride_between_patches_makes_finer_cells() -> None:
    windows = Windows(side_px=64, stride_px=24, patch_px=16)
    assert windows.cell_px == 8
    assert attended(_region(7, 7), _planted, windows).shape == (2, 14, 14)


@pytest.mark.parametrize(("side", "stride"), [(60, 32), (64, 64), (64, 0)])
def test_windows_that_don_t_overlap_or_are_not_made_of_patches_are_refused(side: int, stride: int) -> None:
    with pytest.raises(ValueError, match="a multiple of the patch, 16 px, and a stride between"):
        Windows(side_px=side, stride_px=stride, patch_px=16)


def _encoder() -> Encoder:
    torch.manual_seed(0)
    backbone: Any = timm_backbone(name="test_vit", drop_path=0.0)
    for name, parameter in backbone.named_parameters():
        if "qkv" in name:
            torch.nn.init.normal_(parameter, std=0.2)  # fresh weights attend to all alike
    card = Card(
        architecture={},
        dim=64,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        tile_px=64,
        mpp=None,
        method="test",
        fingerprint="f",
    )
    return Encoder(backbone.eval(), card)


@pytest.mark.parametrize("stride", [24, 32, 48])
def test_no_border_of_a_window_is_seen_in_a_vits_map(stride: int) -> None:
    windows = Windows(side_px=64, stride_px=stride, patch_px=16)
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    region = np.asarray(Image.fromarray(noise).resize((400, 400), Image.Resampling.BICUBIC))
    across, inside = _seams(attended(region, Heads(_encoder()), windows), windows)
    assert across <= inside


def _preferring_borders(tiles: Tensor) -> Attention:
    """One head that sees noise, and gives the outermost patches of its window half as much again."""
    (planted,) = _planted(tiles).maps_BHhw.swapaxes(0, 1)[:1]
    bias = np.full((4, 4), 1.5)
    bias[1:3, 1:3] = 1.0
    return Attention(maps_BHhw=(planted * bias)[:, None], prefix_BH=np.zeros((len(planted), 1)))


@pytest.mark.parametrize("stride", [24, 32])
def test_what_a_vit_does_at_borders_alone_leaves_no_seam(stride: int) -> None:
    windows = Windows(side_px=64, stride_px=stride, patch_px=16)
    noise = np.random.default_rng(0).integers(120, 136, (28, 28, 3), dtype=np.uint8)
    region = noise.repeat(16, axis=0).repeat(16, axis=1)
    across, inside = _seams(attended(region, _preferring_borders, windows), windows)
    assert across <= inside


def test_windows_that_are_only_put_together_show_their_borders() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    region = np.asarray(Image.fromarray(noise).resize((400, 400), Image.Resampling.BICUBIC))
    heads, pasted = Heads(_encoder()), np.zeros((2, 24, 24))
    for top in range(0, 384, 64):
        for left in range(0, 384, 64):
            tile = torch.from_numpy(region[top : top + 64, left : left + 64].copy()).permute(2, 0, 1)[None]
            place = (slice(None), slice(top // 16, top // 16 + 4), slice(left // 16, left // 16 + 4))
            pasted[place] = heads(tile).maps_BHhw[0]
    is_border = np.arange(1, 24) % 4 == 0
    steps = np.abs(np.diff(pasted, axis=1))
    across, inside = steps[:, is_border].mean(), steps[:, ~is_border].mean()
    assert across > inside


def test_no_border_of_a_window_is_seen_on_a_real_region(shared_data: Path) -> None:
    path = shared_data / "regions" / "her2st_C2_x2600_y3600_4096.jpg"
    if not path.is_file():
        pytest.skip(f"no {path}")
    region = np.asarray(Image.open(path).convert("RGB"))[1000:1912, 1000:1912]
    windows = Windows.finer(side_px=64, patch_px=16, overlap=0.5)  # as configured
    across, inside = _seams(attended(region, Heads(_encoder()), windows), windows)
    assert across <= inside


@pytest.mark.parametrize(
    ("side", "patch", "overlap", "stride"),
    [(224, 16, 0.5, 104), (64, 16, 0.5, 24), (256, 16, 0.5, 120), (224, 14, 0.5, 105), (64, 16, 1.0, 8)],
)
def test_a_stride_overlaps_as_asked_or_more_in_cells_of_half_a_patch(
    side: int, patch: int, overlap: float, stride: int
) -> None:
    windows = Windows.finer(side_px=side, patch_px=patch, overlap=overlap)
    assert windows.stride_px == stride
    assert windows.cell_px == patch // 2


def test_haematoxylin_over_a_region_is_the_regions_own() -> None:
    region = _region(6, 6)
    found = attended(region, HaematoxylinAlone(16), WINDOWS)
    (whole,) = HaematoxylinAlone(16)(torch.from_numpy(region).permute(2, 0, 1)[None]).maps_BHhw
    np.testing.assert_allclose(found, whole, rtol=0.05)
