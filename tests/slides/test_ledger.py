"""A tile stage that was interrupted goes on where it was, and ends where an unbroken one ends."""

import os
import pickle
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histo_ssl.executors.base import Processes
from histo_ssl.slides import survey as survey_module
from histo_ssl.slides.index import STATUS, TileIndex
from histo_ssl.slides.ledger import SURVEYS, forget
from histo_ssl.slides.survey import Recipe, survey_slides

Surveyed = Callable[..., TileIndex]


@pytest.fixture
def slides(write_slide: Callable[..., str], tmp_path: Path) -> pd.DataFrame:
    """Four slides of tissue, and one file that is none."""
    (tmp_path / "text.svs").write_text("no slide")
    paths = [str(tmp_path / "text.svs")]
    for i in range(4):
        pixels = np.full((512, 512, 3), 242, np.uint8)
        random = np.random.default_rng(i)
        grain = random.random((24, 24, 1)).repeat(16, axis=0).repeat(16, axis=1)
        pixels[64:448, 64:448] = np.array([225, 170, 205]) - grain * np.array([60, 80, 50])
        paths.append(write_slide([pixels], mpp=0.5, name=f"{i}.tif"))
    ids = [Path(path).stem for path in paths]
    return pd.DataFrame(
        {"slide_id": ids, "path": paths, "patient_id": "", "site": "", "label": "", "split": ""}
    )


@pytest.fixture
def surveyed(slides: pd.DataFrame, recipe: Recipe, here: Processes, tmp_path: Path) -> Surveyed:
    """A function that surveys the slides in this process."""

    def run(folder: str, recipe: Recipe = recipe, slides: pd.DataFrame = slides) -> TileIndex:
        mpps = [None] * len(slides)
        return survey_slides(slides, mpps=mpps, recipe=recipe, folder=tmp_path / folder, processes=here)

    return run


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the slides that are read, as they are read; after "stop" is put first, none is any more."""
    ids: list[str] = []
    survey = survey_module.survey

    def noted(row: dict[str, str], *args: object, **options: object) -> object:
        if len(ids) == 3 and "go" not in ids:
            raise KeyboardInterrupt
        ids.append(row["slide_id"])
        return survey(row, *args, **options)

    monkeypatch.setattr(survey_module, "survey", noted)
    return ids


def assert_same(one: TileIndex, other: TileIndex) -> None:
    np.testing.assert_array_equal(one.tiles, other.tiles)
    pd.testing.assert_frame_equal(one.slides.drop(columns="seconds"), other.slides.drop(columns="seconds"))


def interrupted(surveyed: Surveyed, read: list[str]) -> None:
    """Stop after three of the five slides, and let the next go to its end."""
    with pytest.raises(KeyboardInterrupt):
        surveyed("tiles")
    assert read == ["text", "0", "1"]
    read[:] = ["go"]


def test_slides_that_were_surveyed_are_not_read_again(surveyed: Surveyed, read: list[str]) -> None:
    interrupted(surveyed, read)
    resumed = surveyed("tiles")
    assert read == ["go", "text", "2", "3"]  # what could not be read is tried anew
    assert_same(resumed, surveyed("unbroken"))
    assert resumed.slides["n_tiles"].tolist() == [0, 12, 12, 12, 12]  # of 16 each, less four corners


def test_a_slide_that_changed_is_read_again(
    surveyed: Surveyed, read: list[str], slides: pd.DataFrame
) -> None:
    interrupted(surveyed, read)
    Path(slides["path"][1]).write_bytes(Path(slides["path"][4]).read_bytes())
    assert_same(surveyed("tiles"), surveyed("unbroken"))
    assert read[:5] == ["go", "text", "0", "2", "3"]


def test_a_survey_made_otherwise_is_not_taken(surveyed: Surveyed, read: list[str], recipe: Recipe) -> None:
    interrupted(surveyed, read)
    other = replace(recipe, tiling=replace(recipe.tiling, min_tissue=0.9))
    assert_same(surveyed("tiles", other), surveyed("unbroken", other))
    assert read[:6] == ["go", "text", "0", "1", "2", "3"]


def test_what_the_manifest_says_now_holds(surveyed: Surveyed, read: list[str], slides: pd.DataFrame) -> None:
    interrupted(surveyed, read)
    resumed = surveyed("tiles", slides=slides.assign(label=list("abcde")))
    assert resumed.slides["label"].tolist() == list("abcde")
    assert read == ["go", "text", "2", "3"]


def test_torn_surveys_are_made_again_and_all_are_forgotten_in_the_end(
    surveyed: Surveyed, read: list[str], tmp_path: Path
) -> None:
    interrupted(surveyed, read)
    kept = tmp_path / "tiles" / SURVEYS
    content = (kept / "0.npz").read_bytes()
    for torn in (b"", content[:100], content[: len(content) // 2], b"text" * 99):
        (kept / "0.npz").write_bytes(torn)
        read[:] = ["go"]
        surveyed("tiles")
        assert read[:3] == ["go", "text", "0"]
    forget(tmp_path / "tiles")
    assert not kept.exists()
    assert len(TileIndex(tmp_path / "tiles")) == 48


@pytest.mark.slow
def test_a_tile_stage_that_is_killed_ends_like_one_that_is_not(
    surveyed: Surveyed, read: list[str], slides: pd.DataFrame, recipe: Recipe, tmp_path: Path
) -> None:
    third = Path(slides["path"][3])
    third.rename(tmp_path / "elsewhere.tif")
    os.mkfifo(third)  # opening it waits, so the stage is still at it when it is killed
    (tmp_path / "call.pickle").write_bytes(pickle.dumps((slides, recipe, tmp_path / "tiles")))
    script = tmp_path / "tile.py"
    script.write_text(
        textwrap.dedent("""
            import pickle, sys
            from pathlib import Path
            from histo_ssl.executors.base import Processes
            from histo_ssl.slides.survey import survey_slides

            if __name__ == "__main__":
                slides, recipe, folder = pickle.loads(Path(sys.argv[1]).read_bytes())
                processes = Processes(n=1, timeout_s=60, memory_gb=4)
                survey_slides(slides, mpps=[None] * 5, recipe=recipe, folder=folder, processes=processes)
        """)
    )
    kept = tmp_path / "tiles" / SURVEYS
    with subprocess.Popen([sys.executable, str(script), str(tmp_path / "call.pickle")]) as process:
        deadline = time.monotonic() + 120
        while len(list(kept.glob("[0-9].npz"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
    assert not (tmp_path / "tiles" / STATUS).exists()
    (tmp_path / "elsewhere.tif").rename(third)
    read[:] = ["go"]
    resumed = surveyed("tiles")
    assert read == ["go", "text", "2", "3"]
    assert_same(resumed, surveyed("unbroken"))
    for slide_id in "0123":
        name = f"overlays/{slide_id}.png"
        assert (tmp_path / "tiles" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
