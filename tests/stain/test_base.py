"""How normalisers meet batches, cards and targets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from PIL import Image

from histo_ssl.config.plan import Plan
from histo_ssl.config.preflight import prepared
from histo_ssl.stain.base import facts_of, from_facts, note, restained
from histo_ssl.stain.target import fitted

from .conftest import stained_tile

Make = Callable[..., Any]
KINDS = ("macenko", "reinhard")


def _batch() -> torch.Tensor:
    tiles = [stained_tile(48, seed=seed, strength=0.7 + 0.1 * seed) for seed in range(6)]
    return torch.cat([*tiles, torch.full_like(tiles[0], 238)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_tile_is_the_same_in_any_batch(normaliser: Make, kind: str) -> None:
    tiles, spec = _batch(), normaliser(kind)
    together = restained(spec, tiles)
    assert together.is_left_B.tolist() == [False] * 6 + [True]
    order = torch.tensor([6, 2, 0, 5])
    some = restained(spec, tiles[order])
    assert torch.equal(some.tiles, together.tiles[order])
    at_once = spec(tiles.flatten(2))  # as an accelerator does it
    difference = at_once.tiles[:6].int() - together.tiles.flatten(2)[:6].int()
    assert difference.abs().max() <= 1
    assert (difference != 0).double().mean() < 1e-4
    assert torch.equal(at_once.is_left_B, together.is_left_B)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_in_bfloat16_sees_the_same_tiles(normaliser: Make, kind: str) -> None:
    tiles, spec = _batch(), normaliser(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = restained(spec, tiles)
    assert torch.equal(made.tiles, restained(spec, tiles).tiles)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_makes_the_tiles_that_a_cpu_makes(normaliser: Make, kind: str) -> None:
    tiles, spec = _batch(), normaliser(kind)
    expected, made = restained(spec, tiles), restained(spec, tiles.cuda())
    assert torch.equal(made.is_left_B.cpu(), expected.is_left_B)
    difference = made.tiles.cpu().int() - expected.tiles.int()
    assert difference.abs().max() <= 1
    assert (difference != 0).double().mean() < 1e-4


def test_without_a_normaliser_tiles_are_what_they_were() -> None:
    tiles = _batch()
    made = restained(None, tiles)
    assert made.tiles is tiles
    assert not made.is_left_B.any()


@pytest.mark.parametrize("tiles", [torch.zeros(1, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_what_is_no_batch_of_8_bit_tiles_is_refused(tiles: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 3, S, S\) uint8"):
        restained(None, tiles)


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_brings_back_the_normaliser_that_was_fitted(normaliser: Make, kind: str) -> None:
    spec = normaliser(kind).fitted(stained_tile(48).flatten(2))
    facts = json.loads(json.dumps(facts_of(spec)))
    assert facts == facts_of(spec)
    tiles = _batch()
    assert torch.equal(restained(from_facts(facts), tiles).tiles, restained(spec, tiles).tiles)
    assert from_facts(facts_of(None)) is None


@pytest.mark.parametrize(
    "facts",
    [
        {"_target_": "os.system", "command": "touch pwned"},
        {"_target_": "histo_ssl.stain.base.importlib.import_module", "name": "os"},
        {"_target_": "histo_ssl.stain.target.fitted", "target": "x", "normaliser": None},
        {"_target_": "histo_ssl.stain.base.Restained", "tiles": 0, "is_left_B": 0},
        {"_target_": "histo_ssl.stain.macenko.Macenko", "white": 240.0},
        {"_target_": "histo_ssl.stain.nothing.here"},
        {},
    ],
)
def test_a_card_can_name_only_our_own_normalisers(facts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"only normalisers of histo_ssl\.stain are made"):
        from_facts(facts)


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        ("macenko", {"white": 0.0}, "white=0.0: above 0 is expected"),
        ("macenko", {"angle_tail": 1.0}, "angle_tail=1.0: .* below 1 for a share"),
        ("macenko", {"amounts": "[1.0]"}, r"amounts=\[1.0\]: numbers of the shape \(2,\)"),
        ("macenko", {"dyes": "[[0.5,0.7],[0.2,0.8]]"}, r"dyes=.*: numbers of the shape \(2, 3\)"),
        ("reinhard", {"min_tissue": 2.0}, "min_tissue=2.0: .* below 1 for a share"),
        ("reinhard", {"sds": "[a,b,c]"}, r"sds=.*: numbers of the shape \(3,\)"),
        ("reinhard", {"sds": "[0.1,-0.2,0.3]"}, r"sds=.*: above 0"),
        ("reinhard", {"means": "[1.0,nan,0.0]"}, r"means=.*: numbers of the shape \(3,\)"),
    ],
)
def test_numbers_that_nothing_could_be_normalised_with_are_refused(
    normaliser: Make, kind: str, values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InstantiationException, match=sentence):
        normaliser(kind, **values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_is_an_image_of_any_shape(normaliser: Make, tmp_path: Path, kind: str) -> None:
    pixels = stained_tile(48)[0].permute(1, 2, 0).numpy()[:, :40]
    Image.fromarray(pixels).save(tmp_path / "target.png")
    spec = fitted(target=str(tmp_path / "target.png"), normaliser=normaliser(kind))
    expected = normaliser(kind).fitted(torch.from_numpy(pixels).permute(2, 0, 1).flatten(1)[None])
    assert facts_of(spec) == facts_of(expected) != facts_of(normaliser(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_that_tells_no_dyes_is_refused_before_any_stage(
    compose: Callable[..., Plan], tmp_path: Path, kind: str
) -> None:
    for name, pixels in (("glass", np.full((9, 9, 3), 240)), ("grey", np.zeros((9, 9)))):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("none")
    sentences = {
        "glass": "it must be tissue",
        "grey": "an 8-bit RGB image is expected, not L",
        "text": "not an image that can be read",
        "nothing": "there is no such image",
    }
    for name, sentence in sentences.items():
        asked = compose(
            "method=dino", "backbone=vit_t", f"stain={kind}", f"stain.target={tmp_path}/{name}.png"
        )
        with pytest.raises(InstantiationException, match=rf"stain.target=.*{name}.png: .*{sentence}"):
            prepared(asked, known=list(asked.cfg.stages))


def test_a_target_as_large_as_a_slide_is_refused(
    compose: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    asked = compose("method=dino", "backbone=vit_t", "stain=macenko", f"stain.target={tmp_path}/large.png")
    with pytest.raises(InstantiationException, match=r"large.png: not an image that can be read .*exceeds"):
        prepared(asked, known=list(asked.cfg.stages))


def test_the_stain_is_part_of_an_encoder_only_where_there_is_one(
    compose: Callable[..., Plan], tmp_path: Path
) -> None:
    def planned(*overrides: str) -> Plan:
        return compose("method=dino", "backbone=vit_t", *overrides)

    plain, macenko = planned(), planned("stain=macenko")
    assert plain.pretrain_config.keys() == {"views", "backbone", "method", "training", "seed"}
    assert macenko.pretrain_config.keys() == {*plain.pretrain_config, "stain"}
    assert macenko.tile_folder == plain.tile_folder
    assert macenko.result_folder != plain.result_folder
    folders = []
    for name, colour in (("a", 100), ("b", 100), ("c", 150)):
        Image.fromarray(np.full((9, 9, 3), colour, np.uint8)).save(tmp_path / f"{name}.png")
        folders.append(planned("stain=macenko", f"stain.target={tmp_path}/{name}.png").pretrain_folder)
    assert folders[0] == folders[1] != folders[2]  # it is the content that counts
    frozen = compose("method=random", "backbone=vit_t", "stain=macenko")
    assert frozen.pretrain_folder != compose("method=random", "backbone=vit_t").pretrain_folder


def test_a_reader_of_scores_is_told_how_many_tiles_kept_their_colours() -> None:
    assert note(0, 9) == []
    (sentence,) = note(2, 9)
    assert sentence.startswith("2 of 9 tiles")


# Factor by which the variance over tiles of the tissue's mean optical density falls, summed over channels.
# Most tiles of nct_crc have been normalised before, with the reference that is ours, too.
@pytest.mark.parametrize(
    ("folder", "kind", "factor"),
    [
        ("nct_crc", "macenko", 2.5),
        ("nct_crc", "reinhard", 25),
        ("kather2016", "macenko", 9),
        ("kather2016", "reinhard", 100),
    ],
)
def test_real_tiles_differ_less_in_their_stain_afterwards(
    normaliser: Make, shared_data: Path, folder: str, kind: str, factor: float
) -> None:
    paths = sorted(path for path in (shared_data / folder).rglob("*") if path.is_file())
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    tiles = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    made = restained(normaliser(kind), tiles)
    assert made.is_left_B.double().mean() < 0.2  # adipose tissue and empty glass
    before, after = (_mean_densities(x[~made.is_left_B]) for x in (tiles, made.tiles))
    assert before.var(axis=0).sum() > factor * after.var(axis=0).sum()


def _mean_densities(tiles: torch.Tensor) -> Any:
    pixels = tiles.permute(0, 2, 3, 1).flatten(1, 2).numpy().astype(float)
    density = -np.log(np.maximum(pixels, 1) / 240)
    return np.array([tile[tile.max(axis=1) >= 0.15].mean(axis=0) for tile in density])
