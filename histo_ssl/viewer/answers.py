"""What each address of the viewer answers: pages, facts as JSON, tiles of slides as JPEG and of maps as PNG.

Addresses are matched whole against a few patterns of numbers; slides and maps are looked up in the table that
was made at the start. No address becomes a path of a file.
"""

import io
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo_ssl.viewer.layers import Layer
from histo_ssl.viewer.maps import TileMap
from histo_ssl.viewer.memory import Memory
from histo_ssl.viewer.pyramid import TILE_PX, NotThereError, Pyramid, slide_pixels, square_pixels
from histo_ssl.viewer.shelf import Shelf
from histo_ssl.viewer.tilesets import Shown

PAGE = Path(__file__).with_name("page")
KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
JPEG, PNG, JSON = "image/jpeg", "image/png", "application/json"
KEPT_BYTES = 2**28  # of pictures
KEPT_MAPS = 64
JPEG_QUALITY = 85
PICTURE_PX = 256  # side of a tile's picture
WORKERS = max(2, min(8, os.cpu_count() or 2))  # threads that read slides, each with files of its own open

NUMBER, PLACE = r"([0-9a-f]{10})", r"([0-9]{1,9})"
ROUTES = {
    "index": r"/",
    "page": rf"/slide/{NUMBER}",
    "static": r"/static/([a-z]+(?:\.min)?\.(?:js|css|svg))",
    "slides": r"/api/slides\.json",
    "slide": rf"/api/{NUMBER}\.json",
    "map": rf"/api/{NUMBER}/{NUMBER}\.json",
    "at": rf"/api/{NUMBER}/{NUMBER}/at/{PLACE}_{PLACE}\.json",
    "tile": rf"/tile/{NUMBER}/{PLACE}/{PLACE}_{PLACE}\.jpg",
    "layer": rf"/layer/{NUMBER}/{NUMBER}/{PLACE}/{PLACE}_{PLACE}\.png",
    "picture": rf"/picture/{NUMBER}/{NUMBER}/{PLACE}\.jpg",
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A body with its kind."""

    body: bytes
    kind: str
    status: HTTPStatus = HTTPStatus.OK
    is_kept: bool = False  # whether a browser may keep it: its address names its content


class Answers:
    """Of a shelf."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf, self.is_closed = shelf, False
        self._pictures: Memory[bytes] = Memory(limit=KEPT_BYTES, size=len)
        self._maps: Memory[TileMap] = Memory(limit=KEPT_MAPS, size=lambda _: 1)
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="slides")
        self._files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in KINDS}
        self._routes = {name: re.compile(pattern) for name, pattern in ROUTES.items()}

    def close(self) -> None:
        """Read no more."""
        self.is_closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def of(self, address: str) -> Answer:
        """What an address, as it was sent, answers.

        Raises:
            NotThereError: there is nothing at that address.
            ValueError: a file can't be read.
        """
        for name, pattern in self._routes.items():
            found = pattern.fullmatch(address)
            if found:
                answer: Callable[..., Answer] = getattr(self, f"_{name}")
                return answer(*found.groups())
        raise NotThereError("no such address")

    def _index(self) -> Answer:
        return self._static("index.html")

    def _page(self, slide: str) -> Answer:
        self._slide_of(slide)
        return self._static("slide.html")

    def _static(self, name: str) -> Answer:
        if name not in self._files:
            raise NotThereError(f"no file {name}")
        return Answer(body=self._files[name], kind=KINDS[Path(name).suffix])

    def _slides(self) -> Answer:
        return _json([_facts(shown) for shown in self._shelf.slides.values()])

    def _slide(self, slide: str) -> Answer:
        shown = self._slide_of(slide)
        layers = [
            {
                **{"id": layer.id, "title": layer.title, "variant": layer.variant},
                **{"isFirst": layer.is_first, "isOfTiles": layer.is_of_tiles},
            }
            for layer in self._shelf.layers(slide).values()
        ]
        pyramid = Pyramid(size_level0=shown.size_level0)
        levels = {"tilePx": TILE_PX, "minLevel": pyramid.min_level, "maxLevel": pyramid.max_level}
        return _json({**_facts(shown), **levels, "mpp": shown.mpp, "layers": layers})

    def _map(self, slide: str, layer: str) -> Answer:
        found = self._map_of(self._layer_of(slide, layer))
        tiles = {"tiles": len(found.tiles), "noun": found.noun, "side": found.tiles.side_level0}
        return _json({**tiles, **found.drawn.facts()})

    def _at(self, slide: str, layer: str, x: str, y: str) -> Answer:
        found = self._map_of(self._layer_of(slide, layer))
        i = found.at(int(x), int(y))
        if i is None:
            return _json(None)
        left, top = found.tiles.xy_level0[i].tolist()
        told = [(found.drawn.label, found.drawn.text(i)), *found.told(i)]
        return _json({"tile": i, "x": left, "y": top, "side": found.tiles.side_level0, "facts": told})

    def _tile(self, slide: str, level: str, column: str, row: str) -> Answer:
        shown = self._slide_of(slide)
        spot = Pyramid(size_level0=shown.size_level0).spot(int(level), column=int(column), row=int(row))
        return self._picture_of((slide, spot), JPEG, lambda: _jpeg(slide_pixels(shown.slide, spot)))

    def _layer(self, slide: str, layer: str, level: str, column: str, row: str) -> Answer:
        shown = self._slide_of(slide)
        spot = Pyramid(size_level0=shown.size_level0).spot(int(level), column=int(column), row=int(row))
        found = self._map_of(self._layer_of(slide, layer))
        frame = spot.frame(shown.mpp)
        return self._picture_of((slide, layer, spot), PNG, lambda: _png(found.layer(frame), frame.size_px))

    def _picture(self, slide: str, layer: str, tile: str) -> Answer:
        shown, found = self._slide_of(slide), self._map_of(self._layer_of(slide, layer))
        if int(tile) >= len(found.tiles):
            raise NotThereError(f"tile {tile}: there are {len(found.tiles)}")
        x, y = found.tiles.xy_level0[int(tile)].tolist()
        side = found.tiles.side_level0

        def make() -> bytes:
            return _jpeg(square_pixels(shown.slide, (x, y), side_level0=side, side_px=PICTURE_PX))

        return self._picture_of((slide, x, y, side), JPEG, make)

    def _slide_of(self, slide: str) -> Shown:
        if slide not in self._shelf.slides:
            raise NotThereError(f"no slide {slide}")
        return self._shelf.slides[slide]

    def _layer_of(self, slide: str, layer: str) -> Layer:
        self._slide_of(slide)
        layers = self._shelf.layers(slide)
        if layer not in layers:
            raise NotThereError(f"no map {layer}")
        return layers[layer]

    def _map_of(self, layer: Layer) -> TileMap:
        return self._maps.of((layer.slide, layer.id), layer.read)

    def _picture_of(self, key: tuple[Any, ...], kind: str, make: Callable[[], bytes]) -> Answer:
        body = self._pictures.of(key, lambda: self._pool.submit(make).result())
        return Answer(body=body, kind=kind, is_kept=True)


def _facts(shown: Shown) -> dict[str, Any]:
    w, h = shown.size_level0
    return {
        "id": shown.id,
        "name": shown.name,
        "width": w,
        "height": h,
        "facts": list(shown.facts.items()),
        "reason": shown.reason,
        "thumbnail": f"/tile/{shown.id}/{_thumbnail_level(shown)}/0_0.jpg",
    }


def _thumbnail_level(shown: Shown) -> int:
    """The finest level that is a single tile."""
    return Pyramid(size_level0=shown.size_level0).min_level


def _json(content: Any) -> Answer:
    return Answer(body=json.dumps(content).encode(), kind=JSON)


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="jpeg", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def _png(layer: NDArray[np.uint8] | None, size_px: tuple[int, int]) -> bytes:
    """A part of a map; fully transparent where it has none."""
    stream = io.BytesIO()
    image = Image.new("RGBA", size_px) if layer is None else Image.fromarray(layer)
    image.save(stream, format="png", compress_level=1)
    return stream.getvalue()
