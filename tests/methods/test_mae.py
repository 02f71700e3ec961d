"""MAE's patches, masks, decoder and loss, against loops and lightly's patches."""

import math
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightly.models.utils import patchify
from torch import Tensor

from histo_ssl.methods.mae import normalised, patches_of


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_patches_are_lightlys() -> None:
    x = rows(2, 3, 32, 32)
    assert torch.equal(patches_of(x, side_px=8), patchify(x, 8))


def test_views_that_patches_do_not_divide_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"patches of 16 px, got views of 100 px: use a multiple of it, such as 96"
    ):
        patches_of(rows(1, 3, 100, 100), side_px=16)


def test_a_patchs_pixels_are_normalised_by_themselves() -> None:
    patches = 5.0 + 3.0 * rows(2, 4, 12)
    values = patches[1, 2].tolist()
    mean = sum(values) / 12
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / 11 + 1e-6)
    assert normalised(patches)[1, 2].tolist() == pytest.approx([(v - mean) / sd for v in values], rel=1e-4)
    assert normalised(torch.full((1, 1, 12), 7.0)).tolist() == [[[0.0] * 12]]  # glass


def recorded(mae: Any, view: Tensor) -> dict[str, Any]:
    """What one step feeds its network and gets from it."""
    seen: dict[str, Any] = {}

    def note(_: Any, inputs: Any, options: Any, out: Any) -> None:
        seen.update(order=inputs[1], n_seen=options["n_seen"], painted=out[1], features=out[0])

    handle = mae.network.register_forward_hook(note, with_kwargs=True)
    seen["out"] = mae.step([view])
    handle.remove()
    return seen


def test_loss_is_the_mean_over_hidden_patches_alone(build: Any) -> None:
    mae, _ = build("mae")
    view = rows(3, 3, 64, 64)
    seen = recorded(mae, view)
    assert seen["n_seen"] == 4  # a quarter of 16
    target, terms = normalised(patchify(view, 16)), []
    for b in range(3):
        for place in seen["order"][b, 4:].tolist():
            terms.append((seen["painted"][b, place] - target[b, place]).square().mean().item())
    assert len(terms) == 3 * 12
    assert seen["out"]["loss"].item() == pytest.approx(sum(terms) / 36, rel=1e-5)
    grey = [
        target[b, place].square().mean().item() for b in range(3) for place in seen["order"][b, 4:].tolist()
    ]
    assert seen["out"]["chance"].item() == pytest.approx(sum(grey) / 36, rel=1e-5)


def test_nothing_of_a_hidden_patch_is_seen(build: Any) -> None:
    mae, _ = build("mae")
    view = rows(2, 3, 64, 64)
    seen = recorded(mae, view)
    hidden = torch.ones(2, 16)
    hidden.scatter_(1, seen["order"][:, :4], 0.0)
    other = view + 9.0 * hidden.view(2, 1, 4, 1, 4, 1).expand(2, 3, 4, 16, 4, 16).reshape(2, 3, 64, 64)
    mae.n_seen_tiles = 0
    again = recorded(mae, other)
    assert torch.equal(again["order"], seen["order"])
    assert torch.equal(again["painted"], seen["painted"])
    assert torch.equal(again["features"], seen["features"])


def test_the_decoder_puts_tokens_back_where_their_patches_were(build: Any) -> None:
    mae, _ = build("mae")
    decoder = mae.network.decoder
    seen: list[Tensor] = []
    decoder.blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens, order = rows(1, 3, 64), torch.tensor([[2, 0, 1, 3]])  # a class token and two patches
    decoder(tokens, order, n_seen=2)
    from histo_ssl.backbones.vit import sincos_LD

    embedded, positions = decoder.embed(tokens)[0], sincos_LD(2, 2, n_features=16)
    mask = decoder.mask_token[0, 0]
    expected = [embedded[0], embedded[2] + positions[0], mask + positions[1], embedded[1] + positions[2]]
    torch.testing.assert_close(seen[0][0], torch.stack([*expected, mask + positions[3]]))


def test_masks_differ_by_tile_and_step_and_repeat_with_them(build: Any) -> None:
    mae, _ = build("mae")
    first = mae._order(50, 16)
    assert all(sorted(order) == list(range(16)) for order in first.tolist())
    assert len({tuple(order[:4]) for order in first.tolist()}) > 40
    # 50 tiles x 4 of 16: each patch is seen 12.5 times, SD sqrt(50 x 1/4 x 3/4) = 3.1
    counts = torch.bincount(first[:, :4].flatten(), minlength=16)
    assert counts.min() >= 1
    assert counts.max() <= 28
    mae.after_step(0.0)
    torch.manual_seed(123)  # ranks and workers have states of their own
    assert torch.equal(mae._order(50, 16), first)
    mae.after_step(0.0)
    mae.__class__ = type("Later", (type(mae),), {"global_step": 1})
    assert not torch.equal(mae._order(50, 16), first)


def test_masks_of_accumulated_batches_are_those_of_one_batch(build: Any) -> None:
    mae, _ = build("mae")
    whole = mae._order(8, 16)
    mae.after_step(0.0)
    assert torch.equal(torch.cat([mae._order(4, 16), mae._order(4, 16)]), whole)


def test_each_run_has_masks_of_its_own_whose_seed_is_in_the_checkpoint(tiny_method: Any) -> None:
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(instantiate(tiny_method("mae")["method"], _convert_="all"))
    assert made[0].mask_seed == made[1].mask_seed != made[2].mask_seed
    assert "mask_seed" in made[0].state_dict()


@pytest.mark.parametrize(
    ("overrides", "backbone", "sentence"),
    [
        ([], "test_resnet", r"hides patches of a ViT, got a ResNet: choose a backbone such as vit_t"),
        (["method.masked=1.0"], "test_vit", r"masked=1.0: a share between 0 and 1"),
    ],
)
def test_what_cannot_be_masked_is_refused(
    build: Any, overrides: list[str], backbone: str, sentence: str
) -> None:
    with pytest.raises(InstantiationException, match=sentence):
        build("mae", *overrides, backbone=backbone)


def test_more_than_one_view_is_refused(build: Any) -> None:
    mae, views = build("mae")
    with pytest.raises(ValueError, match="mae takes one view of a tile, got 2: use views=single"):
        mae.step(views * 2)
