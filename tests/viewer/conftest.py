"""A small folder of runs with planted maps, and a viewer of it that answers."""

import http.client
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.utils import instantiate

from histo_ssl.config.plan import Plan
from histo_ssl.data.slides import SlideTiles
from histo_ssl.data.sources import open_source
from histo_ssl.embeddings import write_embeddings
from histo_ssl.folders.artifacts import complete, write_bytes, write_json, write_text
from histo_ssl.folders.cells import csv_text
from histo_ssl.heads.over_slides import SlideHeads
from histo_ssl.viewer.answers import Answers
from histo_ssl.viewer.server import Server
from histo_ssl.viewer.shelf import Shelf, fill

SIZE_PX = 1200
TILES, EMBEDDINGS, RESULT = (
    "tiles/synthetic-demo-0123456789",
    "abcdef0123-0123456789",
    "dino-vit_t-slides-1122334455",
)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The folder, and what its tiles are."""

    folder: Path
    source: SlideTiles

    def tiles(self, slide: str) -> pd.DataFrame:
        table = self.source.table()
        return table[table["slide"] == slide].reset_index(drop=True)


def planted(tiles: pd.DataFrame) -> pd.DataFrame:
    """Predictions of tiles: `right` for those of the right half of the slide, `left` for the others."""
    is_right = tiles["x"] >= SIZE_PX / 2
    return tiles[["slide", "x", "y", "label"]].assign(
        subject="encoder",
        protocol="knn",
        predicted=np.where(is_right, "right", "left"),
        score_left=np.where(is_right, 0.25, 0.75),
        score_right=np.where(is_right, 0.75, 0.25),
        distance=tiles["x"] / SIZE_PX,
    )


@pytest.fixture(scope="session")
def runs(compose: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two generated slides, tiled; attention grows with y; predictions and embeddings go by the half of x."""
    root = tmp_path_factory.mktemp("view") / "runs"
    plan = compose("data.n_slides=2", "data.n_patients=2", f"data.size_px={SIZE_PX}", "data.pen_share=0")
    tiling: Any = instantiate(plan.group("tiling"))

    def tile(folder: Path) -> dict[str, int]:
        data = instantiate(plan.group("data"))
        counted: dict[str, int] = data.tile(
            tiling, folder=folder, home=root / "data", n_processes=0, slide_timeout_s=60
        )
        return counted

    complete(root / TILES, build=tile, label="tile", config={})
    source = open_source(root / TILES)
    assert isinstance(source, SlideTiles)
    made = Runs(folder=root, source=source)
    complete(
        root / "results" / RESULT, build=lambda folder: _result(folder, made), label="evaluate", config={}
    )
    card = {"encoder": {"method": "dino", "architecture": {"name": "vit"}}}
    complete(
        root / "embeddings" / EMBEDDINGS,
        build=lambda folder: _embeddings(folder, made),
        label="embed (encoder)",
        config=card,
    )
    return made


def _result(folder: Path, runs: Runs) -> dict[str, int]:
    (folder / "attention").mkdir()
    for part in runs.source.parts():
        tiles = runs.tiles(part.name)
        side = runs.source.scan(part.name).side_level0
        known = {"side": side, "attention": tiles["y"] / 10, "percentile": 100 * tiles["y"] / SIZE_PX}
        write_text(folder / "attention" / f"{part.name}.csv", csv_text(tiles[["x", "y"]].assign(**known)))
    (folder / "heads").mkdir()
    for part in runs.source.parts():
        write_bytes(folder / "heads" / f"{part.name}.npz", _heads(runs, part.name))
    tables = [planted(runs.tiles(part.name)) for part in runs.source.parts()]
    tables.append(tables[0].assign(subject="random", predicted="left"))
    write_text(folder / "predictions.csv", csv_text(pd.concat(tables)))
    facts = {"method": "dino", "backbone": "vit_t", "task": "slides", "tile_folder": TILES}
    write_json(folder / "results.json", {**facts, "encoder_folder": "pretrain/dino-abcdef0123"})
    return {"scores": 0}


def _heads(runs: Runs, slide: str) -> bytes:
    """Two heads: one looks at the upper left quarter of each tile, the other everywhere alike."""
    tiles, content = runs.tiles(slide), io.BytesIO()
    maps = np.ones((len(tiles), 2, 2, 2))
    maps[:, 0] = [[1, 0], [0, 0]]
    coords = tiles[["x", "y"]].to_numpy(dtype=np.int64)
    side = runs.source.scan(slide).side_level0
    np.savez(content, **dict(SlideHeads.of_maps(maps, coords=coords, side_level0=side).arrays()))  # type: ignore[arg-type]
    return content.getvalue()


def _embeddings(folder: Path, runs: Runs) -> dict[str, int]:
    rng = np.random.default_rng(0)
    for part in runs.source.parts():
        tiles = runs.tiles(part.name)
        is_right = (tiles["x"] >= SIZE_PX / 2).to_numpy()
        features = np.where(is_right[:, None], [1.0, 0, 0, 0], [0, 1.0, 0, 0]) + rng.normal(
            0, 0.02, (len(tiles), 4)
        )
        coords = tiles[["x", "y"]].to_numpy(dtype=np.int64)
        write_embeddings(folder / f"{part.name}.h5", features=features, coords=coords, attributes={})
    return {"tiles": len(runs.source)}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A viewer that answers."""

    server: Server
    shelf: Shelf

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    def ask(self, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> Reply:
        """The answer to a request whose path is sent as it stands; `Sec_Fetch_Site=` is a header."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host="Host" in given, skip_accept_encoding=True)
        for name, value in given.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        reply = Reply(status=answer.status, headers=dict(answer.headers), body=answer.read())
        connection.close()
        return reply

    def slide(self, name: str) -> Any:
        """What is said of a slide."""
        (found,) = [one for one in self.ask("/api/slides.json").json if one["name"] == name]
        return self.ask(f"/api/{found['id']}.json").json

    def layer(self, slide: Mapping[str, Any], words: str) -> str:
        """Number of the map whose title and variant begin with these words."""
        titles = {f"{one['variant']} {one['title']}".strip(): one["id"] for one in slide["layers"]}
        (found,) = [mark for title, mark in titles.items() if title.startswith(words)]
        assert isinstance(found, str)
        return found


def serving(shelf: Shelf) -> Iterator[Site]:
    """A viewer of a shelf, until the next step."""
    answers = Answers(shelf)
    with Server(answers, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield Site(server=server, shelf=shelf)
        server.shutdown()
        thread.join()
    answers.close()


@pytest.fixture(scope="session")
def site(runs: Runs) -> Iterator[Site]:
    """A viewer of the folder of runs."""
    yield from serving(fill([runs.folder], slides=[], values=[]))
