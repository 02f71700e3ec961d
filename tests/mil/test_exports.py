"""What we write for other programs, and for ourselves, they read by their own ways of reading."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histo_ssl.embeddings import write_embeddings
from histo_ssl.mil.exports import Cut, write_bag
from histo_ssl.mil.features import open_features

FEATURES = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
COORDS = 512 * np.stack([np.arange(9) % 3, np.arange(9) // 3], axis=1)
CUT = Cut(slide="S1", slide_mpp=0.25, mpp=0.5, tile_px=256, overlap_px=0)


def _write(path: Path, layout: str, *, coords: np.ndarray = COORDS, features: np.ndarray = FEATURES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bag(path, features=features, coords=coords, layout=layout, encoder="dino-vit_s", cut=CUT)
    return path


def test_clam_reads_its_layout_for_training_and_for_maps(programs: Any, tmp_path: Path) -> None:
    _write(tmp_path / "pt_files" / "S1.pt", "clam")
    _write(tmp_path / "h5_files" / "S1.h5", "clam")
    np.testing.assert_array_equal(programs.read_as_clam(tmp_path, "S1", use_h5=False)[0], FEATURES)
    features, coords = programs.read_as_clam(tmp_path, "S1", use_h5=True)
    np.testing.assert_array_equal(features, FEATURES)
    np.testing.assert_array_equal(coords, COORDS)
    assert (features.dtype, coords.dtype) == (np.float32, np.int32)


def test_trident_reads_its_layout_with_how_the_tiles_were_cut(programs: Any, tmp_path: Path) -> None:
    features, coords, cut = programs.read_as_trident(_write(tmp_path / "S1.h5", "trident"))
    np.testing.assert_array_equal(features, FEATURES[None])
    np.testing.assert_array_equal(coords, COORDS[None])
    assert (cut["patch_size"], cut["patch_size_level0"], cut["overlap"]) == (256, 512, 0)
    assert cut["level0_magnification"] / cut["target_magnification"] == 2
    assert (cut["level0_magnification"], cut["target_magnification"]) == (40, 20)


def test_stamp_reads_its_layout_in_um(programs: Any, tmp_path: Path) -> None:
    features, coords_um, tile_um, mpp = programs.read_as_stamp(_write(tmp_path / "S1.h5", "stamp"))
    np.testing.assert_array_equal(features, FEATURES.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(coords_um, COORDS * 0.25)
    assert (tile_um, mpp) == (128, 0.5)


def test_clam_and_trident_read_the_files_of_the_stage_embed_as_they_are(
    programs: Any, tmp_path: Path
) -> None:
    path = tmp_path / "h5_files" / "S1.h5"
    path.parent.mkdir()
    for features in (FEATURES, FEATURES.astype(np.float16)):
        write_embeddings(path, features=features, coords=COORDS, attributes={"tile_px": 256, "mpp": 0.5})
        clams_features, clams_coords = programs.read_as_clam(tmp_path, "S1", use_h5=True)
        np.testing.assert_array_equal(clams_features, features)
        np.testing.assert_array_equal(clams_coords, COORDS)
        tridents_features, tridents_coords, cut = programs.read_as_trident(path)
        np.testing.assert_array_equal(tridents_features, features.astype(np.float32)[None])
        np.testing.assert_array_equal(tridents_coords, COORDS[None])
        assert cut["tile_px"] == 256


@pytest.mark.parametrize("layout", ["clam", "trident", "stamp"])
def test_what_was_written_for_a_program_is_read_back_as_its_layout(tmp_path: Path, layout: str) -> None:
    found = open_features(_write(tmp_path / "S1.h5", layout))
    np.testing.assert_allclose(found.read(), FEATURES, rtol=2**-11 if layout == "stamp" else 0)
    np.testing.assert_array_equal(found.coords(slide_mpp=0.25), COORDS)
    assert found.layout.name == layout
    assert found.layout.encoder == ("" if layout == "clam" else "dino-vit_s")
    assert found.layout.side_level0(0.25) == (None if layout == "clam" else 512)


def test_what_a_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"S1\.h5: no layout 'hest'; choose one of clam, trident, stamp"):
        _write(tmp_path / "S1.h5", "hest")
    with pytest.raises(ValueError, match=r"S1\.pt: files of stamp end in \.h5"):
        _write(tmp_path / "S1.pt", "stamp")
    with pytest.raises(ValueError, match=r"S1\.h5: coords up to 2,147,483,648; CLAM stores 32 bits"):
        _write(tmp_path / "S1.h5", "clam", coords=COORDS + 2**31 - COORDS.max())
    with pytest.raises(ValueError, match=r"S1\.h5: 9 of 9 embeddings reach beyond 65,504"):
        _write(tmp_path / "S1.h5", "stamp", features=FEATURES + 1e5)
    with pytest.raises(ValueError, match=r"9 of 9 embeddings are not finite"):
        _write(tmp_path / "S1.h5", "trident", features=FEATURES * np.nan)
    assert list(tmp_path.iterdir()) == []
