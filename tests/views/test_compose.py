import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode

from histo_ssl.views.compose import Views
from histo_ssl.views.draws import Draws, uniforms
from histo_ssl.views.geometry import random_boxes
from histo_ssl.views.sheet import GAP_PX, contact_sheet
from histo_ssl.views.view import COLUMNS, N_DRAWS, View

Recipe = Callable[..., Views]
RECIPES = ["multicrop", "multicrop_histology", "pair"]
IDS = torch.tensor([3, 0, 10**12, 17, 5, 6, 99])


def unnormalised(views: Views) -> Views:
    return Views(kinds=views.kinds, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def test_sides_are_dinos_at_256_px_and_shares_of_other_tiles(recipe: Recipe) -> None:
    views = recipe("multicrop")
    assert views.n_views == 10
    assert views.sides(256) == [224, 224] + [96] * 8
    assert views.sides(64) == [64, 64] + [32] * 8  # 56 and 24 px lie half-way between multiples of 16
    assert recipe("pair").sides(224) == [192, 192]


def reference(kind: View, tile: Tensor, u: Draws) -> Tensor:
    """One view of one tile through torchvision's functions, operation by operation."""
    u = {name: u[name][0] for name in COLUMNS}  # this view's numbers
    px = tile.shape[-1]
    start, size = random_boxes(
        u["area"][None], u["ratio"][None], u["corner"][None], scale=kind.scale, ratios=kind.ratio, tile_px=px
    )
    quarters = int(4 * u["quarters"])
    source = (tile.mT if quarters % 2 else tile).float() / 255
    box = [int(n) for n in torch.cat([start, size], dim=1).flatten()]
    x = F.resized_crop(
        source, *box, [kind.side_px(px)] * 2, interpolation=InterpolationMode(kind.interpolation)
    )
    x = torch.rot90(x.mT if quarters % 2 else x, quarters, dims=(1, 2)).clamp(0, 1)
    x = F.vertical_flip(x) if u["flip_rows_p"] < kind.flip_rows_p else x
    x = F.horizontal_flip(x) if u["flip_columns_p"] < kind.flip_columns_p else x
    if u["jitter_p"] < kind.jitter_p:
        for name in ("brightness", "contrast", "saturation"):
            low, high = 1 - getattr(kind, name), 1 + getattr(kind, name)
            x = getattr(F, f"adjust_{name}")(x, (low + (high - low) * u[name]).item())
        x = F.adjust_hue(x, (kind.hue * (2 * u["hue"] - 1)).item())
    x = F.rgb_to_grayscale(x, 3) if u["grey_p"] < kind.grey_p else x
    if u["blur_p"] < kind.blur_p:
        low, high = kind.blur_sigma_px
        x = F.gaussian_blur(x, [13, 13], [(low + (high - low) * u["sigma"]).item()] * 2)
    return F.solarize(x, 0.5) if u["solarise_p"] < kind.solarise_p else x


@pytest.mark.parametrize("name", ["multicrop", "pair"])
def test_every_view_is_what_torchvision_makes_of_the_same_numbers(
    recipe: Recipe, tiles: Tensor, name: str
) -> None:
    views = unnormalised(recipe(name))
    made = views(tiles, ids=IDS, epoch=2, seed=1)
    numbered = [kind for kind in views.kinds.values() for _ in range(kind.count)]
    for v, kind in enumerate(numbered):
        for i in range(len(tiles)):
            at = {"epoch": torch.tensor([2]), "view": torch.tensor([v]), "seed": 1}
            u = Draws(u_ND=uniforms(IDS[i : i + 1], **at, n_draws=N_DRAWS), columns=COLUMNS)
            expected = reference(kind, tiles[i], u)
            # Weights are known to 1e-4 (see test_geometry), which the jitter may multiply by 1.8 three times.
            torch.testing.assert_close(made[v][i], expected, atol=6e-4, rtol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_the_views_of_a_tile_are_the_same_in_every_batch(recipe: Recipe, tiles: Tensor, name: str) -> None:
    views = recipe(name)
    together = views(tiles, ids=IDS, epoch=3, seed=1)
    for rows in ([0], [6], [4, 2], [6, 5, 4, 3, 2, 1, 0], [1, 1, 3, 3, 3]):
        apart = views(tiles[rows], ids=IDS[rows], epoch=3, seed=1)
        assert all(torch.equal(a, b[rows]) for a, b in zip(apart, together, strict=True))


def test_the_views_of_a_tile_do_not_depend_on_the_number_of_threads(recipe: Recipe, tiles: Tensor) -> None:
    n_threads, views, made = torch.get_num_threads(), recipe("multicrop_histology"), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            made.append(views(tiles[:4], ids=IDS[:4], epoch=0, seed=0))
    finally:
        torch.set_num_threads(n_threads)
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_another_id_epoch_seed_or_view_gives_another_view(recipe: Recipe, tiles: Tensor) -> None:
    views = recipe("pair")
    same = tiles[:1].expand(2, -1, -1, -1)
    one, two = (v[0] for v in views(same, ids=IDS[:2], epoch=0, seed=0))
    other_id = views(same, ids=IDS[:2], epoch=0, seed=0)[0][1]
    other_epoch = views(same, ids=IDS[:2], epoch=1, seed=0)[0][0]
    other_seed = views(same, ids=IDS[:2], epoch=0, seed=1)[0][0]
    for other in (two, other_id, other_epoch, other_seed):
        assert (one - other).abs().mean() > 0.05


def test_each_tile_may_be_in_an_epoch_of_its_own(recipe: Recipe, tiles: Tensor) -> None:
    views = recipe("pair")
    mixed = views(tiles, ids=IDS, epoch=torch.tensor([0, 1, 0, 1, 0, 1, 0]), seed=0)[1]
    for epoch in (0, 1):
        alone = views(tiles, ids=IDS, epoch=epoch, seed=0)[1]
        assert torch.equal(mixed[epoch::2], alone[epoch::2])


def test_the_kind_tile_gives_the_tile_itself_normalised(recipe: Recipe, tiles: Tensor) -> None:
    views = recipe("pair", "kind@kinds.both=tile", "kinds.both.count=1")
    (made,) = views(tiles, ids=IDS, epoch=0, seed=0)
    mean, std = (torch.tensor(values)[:, None, None] for values in (views.mean, views.std))
    assert torch.equal(made, (tiles.float() / 255 - mean) / std)


@pytest.mark.parametrize("name", RECIPES)
def test_values_lie_between_0_and_1_before_normalisation(recipe: Recipe, tiles: Tensor, name: str) -> None:
    tiles[0], tiles[1] = 0, 255
    for view in unnormalised(recipe(name))(tiles, ids=IDS, epoch=0, seed=0):
        assert view.dtype == torch.float32
        assert view.min() >= 0
        assert view.max() <= 1


def test_grey_views_are_as_many_as_their_probability_says(recipe: Recipe, tiles: Tensor) -> None:
    n, views = 500, unnormalised(recipe("pair"))
    first, _ = views(tiles[:1, :, :16, :16].expand(n, -1, -1, -1), ids=torch.arange(n), epoch=0, seed=0)
    n_grey = (first[:, 0] == first[:, 1]).all(dim=(1, 2)).sum().item()
    assert n_grey / n == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / n) ** 0.5)  # four SDs


def test_autocast_leaves_views_in_float32(recipe: Recipe, tiles: Tensor) -> None:
    views = recipe("pair")
    expected = views(tiles, ids=IDS, epoch=0, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = views(tiles, ids=IDS, epoch=0, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


def test_the_sheet_shows_each_tile_and_its_views(recipe: Recipe, tiles: Tensor) -> None:
    views = recipe("pair", "kind@kinds.both=tile", "kinds.both.hue=0.0")
    sheet = contact_sheet(views, tiles, ids=IDS, epoch=0, seed=0)
    assert sheet.shape == (7 * (64 + GAP_PX) + GAP_PX, 3 * (64 + GAP_PX) + GAP_PX, 3)
    top = GAP_PX + 5 * (64 + GAP_PX)
    for column in range(3):
        left = GAP_PX + column * (64 + GAP_PX)
        assert np.array_equal(sheet[top : top + 64, left : left + 64], tiles[5].permute(1, 2, 0).numpy())
    assert (sheet[:GAP_PX] == 255).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"interpolation": "nearest"}, "interpolation is 'nearest'; choose one of: bilinear, bicubic"),
        ({"grey_p": 20}, "grey_p is 20; choose a probability from 0 to 1"),
        ({"scale": (1.0, 0.4)}, r"scale is \(1.0, 0.4\); choose two numbers with 0 < low <= high"),
    ],
)
def test_a_view_that_cannot_be_made_is_refused(
    recipe: Recipe, change: dict[str, object], sentence: str
) -> None:
    kind = recipe("pair").kinds["both"]
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(kind, **change)


def test_float_tiles_are_refused(recipe: Recipe, images: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"got tiles \(7, 3, 64, 64\) of torch.float32; expected \(B, 3, S, S\) uint8"
    ):
        recipe("pair")(images, ids=IDS, epoch=0, seed=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", RECIPES)
def test_a_gpu_makes_the_same_views_and_is_never_waited_for(recipe: Recipe, tiles: Tensor, name: str) -> None:
    views, on_gpu, ids = recipe(name), tiles.cuda(), IDS.cuda()
    views(on_gpu, ids=ids, epoch=0, seed=0)  # libraries start up here
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = views(on_gpu, ids=ids, epoch=0, seed=0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(made, views(tiles, ids=IDS, epoch=0, seed=0), strict=True):
        torch.testing.assert_close(
            a.cpu(), b, atol=1e-2, rtol=0
        )  # of values up to 2.6: less than a grey level
