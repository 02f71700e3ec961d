"""Haematoxylin by colour deconvolution, against scikit-image's."""

import numpy as np
import torch
from skimage.color import separate_stains

from histo_ssl.stain.dyes import DYES, WHITE, haematoxylin


def test_amounts_are_scikit_images_but_for_its_unit() -> None:
    tile = np.random.default_rng(0).integers(30, 256, (24, 24, 3), dtype=np.uint8)
    ours = haematoxylin(torch.from_numpy(tile).permute(2, 0, 1)[None])[0].numpy()
    unit = np.array(DYES) / np.linalg.norm(DYES, axis=1, keepdims=True)
    theirs = separate_stains(tile, np.linalg.inv(unit))[..., 0]  # never below 0, in units of -log(1e-6)
    np.testing.assert_allclose(ours, -np.log(1e-6) * theirs, atol=1e-4)


def test_white_holds_none_and_pure_dye_its_amount() -> None:
    dye = np.array(DYES[0]) / np.linalg.norm(DYES[0])
    pixel = WHITE * np.exp(-0.8 * dye)
    tile = torch.tensor(np.array([pixel.round(), [WHITE] * 3])).T.reshape(1, 3, 1, 2).to(torch.uint8)
    found = haematoxylin(tile).flatten().tolist()
    assert abs(found[0] - 0.8) < 0.01  # 8 bits
    assert found[1] == 0.0


def test_eosin_alone_holds_no_haematoxylin() -> None:
    dye = np.array(DYES[1]) / np.linalg.norm(DYES[1])
    tile = torch.tensor((WHITE * np.exp(-dye)).round()).reshape(1, 3, 1, 1).to(torch.uint8)
    assert haematoxylin(tile).item() < 0.01
