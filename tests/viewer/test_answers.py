"""What the viewer answers: slides, pixels, maps at known places, facts of tiles."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from histo_ssl.slidemaps.colors import Scale, palette
from histo_ssl.slides.reader import Slide
from histo_ssl.viewer.answers import PAGE
from histo_ssl.viewer.pyramid import TILE_PX
from histo_ssl.viewer.shelf import fill

from .conftest import EMBEDDINGS, RESULT, SIZE_PX, TILES, Runs, Site


def _pixels(body: bytes) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(body))).astype(np.int64)


def _layer(site: Site, slide: str, words: str, spot: str) -> NDArray[np.int64]:
    found = site.slide(slide)
    reply = site.ask(f"/layer/{found['id']}/{site.layer(found, words)}/{spot}.png")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "image/png")
    return _pixels(reply.body)


def test_all_slides_are_listed_with_what_the_list_says_of_them(site: Site, runs: Runs) -> None:
    slides = site.ask("/api/slides.json").json
    assert [slide["name"] for slide in slides] == ["P01S1", "P02S1"]
    assert dict(slides[0]["facts"])["tiles"] == str(len(runs.tiles("P01S1")))
    assert dict(slides[0]["facts"])["patient"] == "P01"
    assert {(slide["width"], slide["height"]) for slide in slides} == {(SIZE_PX, SIZE_PX)}


def test_tiles_of_the_highest_level_are_the_slide_but_for_jpeg(site: Site) -> None:
    slide = site.slide("P01S1")
    shown = site.shelf.slides[slide["id"]]
    scan = Slide(shown.slide.path).thumbnail(shown.mpp or 0).astype(int)
    for column, row in ((0, 0), (1, 1), (2, 2)):
        got = _pixels(site.ask(f"/tile/{slide['id']}/{slide['maxLevel']}/{column}_{row}.jpg").body)
        expected = scan[row * TILE_PX : (row + 1) * TILE_PX, column * TILE_PX : (column + 1) * TILE_PX]
        assert got.shape == expected.shape
        assert np.abs(got - expected).mean() < 4  # of quality 85, on cells


def test_the_thumbnail_is_the_slide_made_smaller(site: Site) -> None:
    slide = site.slide("P01S1")
    shown = site.shelf.slides[slide["id"]]
    got = _pixels(site.ask(slide["thumbnail"]).body)
    assert shown.mpp is not None
    expected = np.asarray(
        Image.fromarray(Slide(shown.slide.path).thumbnail(shown.mpp)).resize(
            got.shape[1::-1], Image.Resampling.BOX
        )
    )
    assert got.shape == (300, 300, 3)
    assert np.abs(got[2:-2, 2:-2] - expected[2:-2, 2:-2]).mean() < 5


def test_a_map_of_numbers_has_the_colour_of_the_tile_at_its_place(site: Site, runs: Runs) -> None:
    tiles = runs.tiles("P01S1")
    side = runs.source.scan("P01S1").side_level0
    layer = np.concatenate(
        [
            np.concatenate(
                [_layer(site, "P01S1", "attention", f"11/{column}_{row}") for column in range(3)], axis=1
            )
            for row in range(3)
        ]
    )
    scale = Scale(colormap="viridis", low=0, high=100)
    assert layer.shape == (SIZE_PX, SIZE_PX, 4)
    for x, y in tiles[["x", "y"]].to_numpy():
        expected = [*scale.rgb(np.array([100 * y / SIZE_PX]))[0].tolist(), 255]
        assert layer[y + side // 2, x + side // 2].tolist() == expected
        assert (layer[y : y + side, x : x + side] == expected).all()
    covered = np.zeros((SIZE_PX, SIZE_PX), dtype=bool)
    for x, y in tiles[["x", "y"]].to_numpy():
        covered[y : y + side, x : x + side] = True
    assert (layer[..., 3] == np.where(covered, 255, 0)).all()


def test_heads_are_drawn_patch_by_patch_and_how_narrow_they_are_tile_by_tile(site: Site, runs: Runs) -> None:
    slide = site.slide("P01S1")
    side = runs.source.scan("P01S1").side_level0
    whole = [
        (x, y)
        for x, y in runs.tiles("P01S1")[["x", "y"]].to_numpy()
        if x + side <= TILE_PX and y + side <= TILE_PX
    ]
    scale = Scale(colormap="inferno", low=0, high=4)
    dark, bright = scale.rgb(np.array([0.0, 4.0])).tolist()
    head = _layer(site, "P01S1", "head 1 attention of heads", "11/0_0")
    assert whole
    for x, y in whole:
        quarter = head[y : y + side // 2, x : x + side // 2, :3]
        assert (quarter[1:-1, 1:-1] == bright).all()
        assert (head[y + side // 2 + 1 : y + side - 1, x + 1 : x + side - 1, :3] == dark).all()
    told = [
        site.ask(f"/api/{slide['id']}/{site.layer(slide, words)}/at/{x + 1}_{y + 1}.json").json["facts"][0]
        for words in ("head 1 how narrow", "head 2 how narrow", "mean of heads how narrow")
        for x, y in whole[:1]
    ]
    assert [value for _, value in told] == ["2", "0", "1"]
    far = _layer(site, "P01S1", "head 1 attention of heads", "9/0_0")  # a quarter of the size
    x, y = whole[0]
    assert (far[y // 4 + 2 : y // 4 + 14, x // 4 + 2 : x // 4 + 14, :3] == bright).all()
    mark = site.layer(slide, "mean of heads attention")
    legend = site.ask(f"/api/{slide['id']}/{mark}.json").json
    assert [layer["variant"] for layer in slide["layers"] if layer["isFirst"]] == [
        *["mean of heads"] * 2,
        "8 clusters",
    ]
    assert legend["ends"] == ["0", "4"]
    assert (legend["tiles"], legend["noun"]) == (4 * len(runs.tiles("P01S1")), "patches")


def test_a_map_of_classes_has_the_colours_of_the_legend(site: Site, runs: Runs) -> None:
    slide = site.slide("P02S1")
    mark = site.layer(slide, "predicted, knn")
    legend = site.ask(f"/api/{slide['id']}/{mark}.json").json
    assert (legend["kind"], legend["names"]) == ("classes", ["left", "right"])
    tiles = runs.tiles("P02S1")
    assert legend["shares"][1] == pytest.approx((tiles["x"] >= SIZE_PX / 2).mean(), abs=1e-4)
    assert legend["colours"] == [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in palette(2).tolist()]
    half = _layer(site, "P02S1", "predicted, knn", "10/0_0")  # half as many pixels
    side = runs.source.scan("P02S1").side_level0
    for x, y in tiles[["x", "y"]].to_numpy():
        middle = ((y + side // 2) // 2, (x + side // 2) // 2)
        if max(middle) < TILE_PX:
            assert half[middle][:3].tolist() == palette(2)[int(x >= SIZE_PX / 2)].tolist()


def test_clusters_find_what_was_planted_and_are_numbered_by_size(site: Site, runs: Runs) -> None:
    slide = site.slide("P01S1")
    mark = site.layer(slide, "4 clusters")
    legend = site.ask(f"/api/{slide['id']}/{mark}.json").json
    assert legend["names"] == [f"cluster {i}" for i in (1, 2, 3, 4)]
    sides: dict[str, set[bool]] = {}
    for x, y in runs.tiles("P01S1")[["x", "y"]].to_numpy():
        told = site.ask(f"/api/{slide['id']}/{mark}/at/{x + 1}_{y + 1}.json").json
        name, cluster = told["facts"][0]
        assert name == "cluster of 4"
        sides.setdefault(cluster, set()).add(bool(x >= SIZE_PX / 2))
    assert all(len(found) == 1 for found in sides.values())  # no cluster has tiles of both halves


def test_a_tile_is_told_of_where_it_is_pointed_at_and_nothing_elsewhere(site: Site, runs: Runs) -> None:
    slide = site.slide("P01S1")
    mark = site.layer(slide, "predicted, knn")
    side = runs.source.scan("P01S1").side_level0
    tiles = runs.tiles("P01S1")
    row = tiles.iloc[7]
    told = site.ask(f"/api/{slide['id']}/{mark}/at/{row['x'] + side - 1}_{row['y'] + side - 1}.json").json
    half = "right" if row["x"] >= SIZE_PX / 2 else "left"
    facts = dict(told["facts"])
    assert (told["tile"], told["x"], told["y"], told["side"]) == (7, row["x"], row["y"], side)
    assert (facts["predicted"], facts["score"]) == (half, "0.75")
    assert facts.get("label", "") == row["label"]
    assert float(facts["distance"]) == pytest.approx(row["x"] / SIZE_PX, abs=1e-4)
    picture = _pixels(site.ask(f"/picture/{slide['id']}/{mark}/7.jpg").body)
    expected = site.shelf.slides[slide["id"]].slide.thumbnail(0.5)[row["y"] :, row["x"] :][:side, :side]
    assert np.abs(picture - expected).mean() < 4
    assert site.ask(f"/api/{slide['id']}/{mark}/at/999999_5.json").json is None


def test_floors_are_not_mixed_into_the_maps_of_an_encoder(site: Site) -> None:
    titles = [layer["title"] for layer in site.slide("P01S1")["layers"]]
    assert [title.partition(" (")[0] for title in titles] == [
        "attention",
        *["attention of heads"] * 3,
        *["how narrow heads are"] * 3,
        *("predicted, knn", "distance, knn"),
        *["clusters"] * 8,
        "labels of tiles",
    ]


def test_a_browser_that_has_a_tile_is_told_so(site: Site) -> None:
    slide = site.slide("P01S1")
    first = site.ask(slide["thumbnail"])
    again = site.ask(slide["thumbnail"], If_None_Match=first.headers["ETag"])
    assert (again.status, again.body) == (304, b"")
    assert site.ask("/api/slides.json").headers["Cache-Control"] == "no-store"


def test_head_answers_as_get_does_but_for_the_body(site: Site) -> None:
    got, head = (site.ask("/", method=method) for method in ("GET", "HEAD"))
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(got.body))


def test_pages_ask_no_other_machine() -> None:
    for path in PAGE.iterdir():
        text = path.read_text()
        if path.name.startswith("openseadragon"):
            assert "sourceMappingURL" not in text
            continue
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), path.name
        assert "innerHTML" not in text
        assert "style=" not in text


@pytest.mark.parametrize("part", [f"results/{RESULT}", f"embeddings/{EMBEDDINGS}", TILES, "results"])
def test_any_folder_of_a_run_leads_to_its_slides(runs: Runs, part: str) -> None:
    shelf = fill([runs.folder / part], slides=[], values=[])
    titles = {layer.title.partition(" (")[0] for layer in shelf.layers(next(iter(shelf.slides))).values()}
    assert sorted(shown.name for shown in shelf.slides.values()) == ["P01S1", "P02S1"]
    assert "clusters" in titles
    assert ("attention" in titles) == (not part.startswith("embeddings"))


def test_a_folder_that_is_none_of_a_run_is_told_in_a_sentence(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no slides were tiled there; a folder of runs, or one of"):
        fill([tmp_path], slides=[], values=[])
    with pytest.raises(FileNotFoundError, match="there is no such finished folder"):
        fill([runs.folder / "results" / "nothing"], slides=[], values=[])
    with pytest.raises(FileNotFoundError, match="there is no such slide"):
        fill([], slides=[tmp_path / "a.svs"], values=[])


def test_slides_of_no_run_are_shown_and_one_that_is_none_says_why(
    coordinate_slide: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"no slide")
    shelf = fill([], slides=[Path(coordinate_slide), broken], values=[])
    good, bad = shelf.slides.values()
    assert (good.name, good.size_level0, good.mpp, good.reason) == ("slide", (700, 600), 0.5, "")
    assert "cannot be read as a slide" in bad.reason


def test_a_table_of_ones_own_is_a_map(coordinate_slide: str, tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text(
        "slide,x,y,side,depth,kind\nslide,0,0,100,1.5,'=a\nslide,100,0,100,,b\nother,0,0,100,9,b\n"
    )
    shelf = fill([], slides=[Path(coordinate_slide)], values=[table])
    (slide,) = shelf.slides
    depth, kind = (layer.read() for layer in shelf.layers(slide).values())
    assert [depth.drawn.text(0), depth.drawn.text(1)] == ["1.5", ""]
    assert depth.drawn.facts()["ends"] == ["1.5", "9"]  # of all slides, so that they can be compared
    assert [kind.drawn.text(0), kind.drawn.text(1)] == ["=a", "b"]
    assert kind.told(0) == [("depth", "1.5")]


def test_numbers_of_clusters_are_classes_in_their_order(coordinate_slide: str, tmp_path: Path) -> None:
    table = tmp_path / "slide.csv"
    table.write_text("x,y,side,cluster\n0,0,100,10\n100,0,100,9\n200,0,100,\n")
    shelf = fill([], slides=[Path(coordinate_slide)], values=[table])
    (layer,) = shelf.layers(next(iter(shelf.slides))).values()
    drawn = layer.read().drawn
    assert drawn.facts()["names"] == ["9", "10"]
    assert [drawn.text(i) for i in range(3)] == ["10", "9", "none"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("slide,x,y,depth\nslide,1,2,3\n", "nobody says how large the tiles of slide are"),
        ("slide,x,y,side,depth\nslide,1,b,5,3\n", "column y: a number in every row is expected"),
    ],
)
def test_a_table_that_says_too_little_is_told_in_a_sentence(
    coordinate_slide: str, tmp_path: Path, text: str, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / "mine.csv"
    table.write_text(text)
    shelf = fill([], slides=[Path(coordinate_slide)], values=[table])
    layers = list(shelf.layers(next(iter(shelf.slides))).values())
    if layers:
        with pytest.raises(ValueError, match=sentence):
            layers[0].read()
    else:
        assert sentence in caplog.text
