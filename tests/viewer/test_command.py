"""The command: its help, its mistakes in a sentence, how it ends, and pictures of slides."""

import re
import signal
import socket
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo_ssl.slidemaps.colors import palette
from histo_ssl.slidemaps.frame import Frame
from histo_ssl.slidemaps.picture import places
from histo_ssl.viewer.command import main
from histo_ssl.viewer.poster import write_poster
from histo_ssl.viewer.shelf import fill

from ..conftest import Warm
from .conftest import SIZE_PX, Runs

ADDRESS = r"2 slides at (http://127\.0\.0\.1:\d+/)"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_is_answers_and_ends_without_a_traceback(
    warm: Warm, runs: Runs, tmp_path: Path, signum: signal.Signals
) -> None:
    program = warm.start("-m", "histo_ssl", "view", runs.folder, "--port", "0", "--no-browser", cwd=tmp_path)
    give_up_at = time.monotonic() + 60
    said = Path(program.streams["stdout"])
    while not (said.is_file() and (found := re.search(ADDRESS, said.read_text()))):
        assert time.monotonic() < give_up_at, "it does not start"
        time.sleep(0.05)
    with urllib.request.urlopen(found[1], timeout=30) as answer:
        assert b"<title>Slides</title>" in answer.read()
    program.send_signal(signum)
    assert program.wait(30) == 128 + signum
    assert program.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{folder}/nothing"], "no slides were tiled there; a folder of runs, or one of its folders"),
        ([], "nothing given: no slides there to show"),
        (["{folder}", "--values", "{folder}/none.csv"], "there is no such CSV"),
        (["{folder}", "--png", "P01"], "--png P01: no such slide; there are 2, such as "),
        (
            ["{folder}", "--png", "P01S1", "--layer", "attn"],
            "--layer attn: no such map; there are attention (",
        ),
        (["{folder}", "--png", "P01S1", "--layer", "clusters"], "--layer clusters: fits 8 maps"),
        (["{folder}", "--png", "P01S1", "--width", "5000"], "1 to 1200 px of P01S1 and 0 to 1 are expected"),
    ],
)
def test_mistakes_are_told_in_a_sentence(runs: Runs, arguments: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word.format(folder=runs.folder) for word in arguments])
    assert str(ended.value).startswith("error: ")
    assert sentence in str(ended.value)
    assert "\n" not in str(ended.value)


def test_a_port_that_is_taken_is_told_in_a_sentence(runs: Runs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"error: port {port} can't be had"):
            main([str(runs.folder), "--port", str(port), "--no-browser"])


@pytest.mark.parametrize("width", [300, SIZE_PX])
def test_a_picture_of_any_size_has_the_map_at_its_place(runs: Runs, tmp_path: Path, width: int) -> None:
    shelf = fill([runs.folder], slides=[], values=[])
    to = tmp_path / "map.png"
    write_poster(shelf, to, slide="P02S1", layer="predicted", width_px=width, opacity=1)
    with Image.open(to) as image:
        pixels = np.asarray(image)
    (left, top) = places(1, Frame.whole((1, 1), size_px=(width, width), slide_mpp=None))[0]
    slide = pixels[top : top + width, left : left + width]
    side = runs.source.scan("P02S1").side_level0
    for x, y in runs.tiles("P02S1")[["x", "y"]].to_numpy():
        middle = tuple(int((edge + side / 2) * width / SIZE_PX) for edge in (y, x))
        assert slide[middle].tolist() == palette(2)[int(x >= SIZE_PX / 2)].tolist()


def test_the_command_writes_the_picture_that_it_names(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "clusters.png"
    main([str(runs.folder), "--png", "P01S1", "--layer", "8 clusters", "--width", "400", "--to", str(to)])
    assert capsys.readouterr().out == f"{to}\n"
    with Image.open(to) as image:
        assert image.width > 400 + 260
