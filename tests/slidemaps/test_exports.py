"""Exports read back as what they were made of, by strict readers."""

import csv
import io
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histo_ssl.slidemaps.exports import Classification, geojson, table
from histo_ssl.slidemaps.frame import Tiles
from histo_ssl.slidemaps.percentiles import percentiles

XY = [[0, 0], [100, 0], [70_000, 150_000], [-20, 40]]
TILES = Tiles(xy_level0=np.array(XY), side_level0=256)


def strict(text: str) -> Any:
    """JSON that is JSON by RFC 8259: no NaN, no Infinity, no name twice in an object."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs)
        return dict(pairs)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, object_pairs_hook=once, parse_constant=refuse)


def features_of(text: str) -> list[dict[str, Any]]:
    """The features of a collection, each held against RFC 7946 and against what QuPath's reader takes."""
    content = strict(text)
    assert set(content) == {"type", "features"}
    assert content["type"] == "FeatureCollection"
    for feature in content["features"]:
        assert set(feature) == {"type", "properties", "geometry"}
        assert feature["type"] == "Feature"
        assert set(feature["geometry"]) == {"type", "coordinates"}
        assert feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        assert len(ring) == 5
        assert ring[0] == ring[-1]  # closed
        area = sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(ring)) / 2
        assert area == 256**2  # above 0: anticlockwise by its numbers (RFC 7946, 3.1.6)
        properties = feature["properties"]
        assert set(properties) <= {"objectType", "classification", "measurements"}
        assert properties["objectType"] in ("tile", "detection")
        for value in properties.get("measurements", {}).values():
            assert type(value) in (int, float)
        if "classification" in properties:
            assert set(properties["classification"]) == {"name", "color"}
            assert len(properties["classification"]["color"]) == 3
    return list(content["features"])


def test_a_tile_in_full() -> None:
    text = geojson(
        Tiles(xy_level0=np.array([[10, 20]]), side_level0=256),
        object_type="tile",
        measurements={"attention": np.array([0.25]), "percentile": np.array([99.5])},
        classification=Classification(names=np.array(["IDC"]), colors={"IDC": (200, 0, 1)}),
    )
    assert text == (
        '{"type":"FeatureCollection","features":[{"type":"Feature","properties":{"objectType":"tile",'
        '"classification":{"name":"IDC","color":[200,0,1]},"measurements":{"attention":0.25,"percentile":99.5}},'
        '"geometry":{"type":"Polygon","coordinates":[[[10,20],[266,20],[266,276],[10,276],[10,20]]]}}]}\n'
    )


def test_every_tile_reads_back_with_its_place_and_its_numbers() -> None:
    scores = np.array([0.1, 1e-300, -3.5e20, 1 / 3])
    found = features_of(geojson(TILES, object_type="detection", measurements={"score": scores}))
    assert [feature["geometry"]["coordinates"][0][0] for feature in found] == XY
    assert [feature["geometry"]["coordinates"][0][2] for feature in found] == [
        [x + 256, y + 256] for x, y in XY
    ]
    assert [feature["properties"]["measurements"]["score"] for feature in found] == scores.tolist()
    assert {feature["properties"]["objectType"] for feature in found} == {"detection"}


def test_a_number_that_is_not_known_is_left_out_of_its_tile() -> None:
    nan = float("nan")
    numbers = {"a": np.array([1.0, nan, nan, 4.0]), "b": np.array([nan, 2.0, nan, 5.0])}
    found = features_of(geojson(TILES, object_type="tile", measurements=numbers))
    measured = [feature["properties"].get("measurements") for feature in found]
    assert measured == [{"a": 1.0}, {"b": 2.0}, None, {"a": 4.0, "b": 5.0}]


def test_tiles_without_class_have_none() -> None:
    classes = Classification(names=np.array(["x", "", "y", "x"]), colors={"x": (1, 2, 3), "y": (4, 5, 6)})
    found = features_of(geojson(TILES, object_type="tile", measurements={}, classification=classes))
    x, y = {"name": "x", "color": [1, 2, 3]}, {"name": "y", "color": [4, 5, 6]}
    assert [feature["properties"].get("classification") for feature in found] == [x, None, y, x]


@given(st.text(min_size=1).filter(lambda text: text.strip() and "\0" not in text))
def test_any_name_is_carried_by_json_and_never_breaks_it(name: str) -> None:
    tiles = Tiles(xy_level0=np.array([[0, 0]]), side_level0=256)
    classes = Classification(names=np.array([name]), colors={name: (0, 0, 0)})
    text = geojson(tiles, object_type="tile", measurements={name: np.ones(1)}, classification=classes)
    (found,) = features_of(text)
    assert found["properties"]["measurements"] == {name: 1.0}
    assert found["properties"]["classification"]["name"] == " ".join(name.split())  # QuPath takes one line


def test_no_tile_is_an_empty_collection() -> None:
    none = Tiles(xy_level0=np.zeros((0, 2), dtype=int), side_level0=256)
    assert features_of(geojson(none, object_type="tile", measurements={"a": np.zeros(0)})) == []


def test_what_no_reader_could_take_is_refused() -> None:
    with pytest.raises(ValueError, match="measurement a of shape \\(3,\\) for 4 tiles"):
        geojson(TILES, object_type="tile", measurements={"a": np.zeros(3)})
    with pytest.raises(ValueError, match="'a' has 1 infinite values"):
        geojson(TILES, object_type="tile", measurements={"a": np.array([0, 1, np.inf, 2])})
    with pytest.raises(ValueError, match="measurement ' '"):
        geojson(TILES, object_type="tile", measurements={" ": np.zeros(4)})
    classes = Classification(names=np.array(["x", "", "y", "x"]), colors={"x": (1, 2, 3)})
    with pytest.raises(ValueError, match="\\['y'\\] have no colour"):
        geojson(TILES, object_type="tile", measurements={}, classification=classes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_table_reads_back_to_the_last_digit(dtype: type) -> None:
    scores = np.array([1 / 3, -1e-8, 3.0, 0.1], dtype=dtype)
    percent = percentiles(scores)
    text = table(TILES, {"score": scores, "percentile": percent, "class": np.array(["a,b", '"', "=1", ""])})
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(rows[0]) == ["x", "y", "side", "score", "percentile", "class"]
    assert [[int(row["x"]), int(row["y"])] for row in rows] == XY
    assert {row["side"] for row in rows} == {"256"}
    np.testing.assert_array_equal(np.array([row["score"] for row in rows]).astype(dtype), scores)
    assert [float(row["percentile"]) for row in rows] == [62.5, 12.5, 87.5, 37.5]
    assert [row["class"] for row in rows] == ["a,b", '"', "'=1", ""]


def test_a_table_refuses_columns_that_are_not_the_tiles() -> None:
    with pytest.raises(ValueError, match="column score of shape \\(2,\\) for 4 tiles"):
        table(TILES, {"score": np.zeros(2)})
    with pytest.raises(ValueError, match="columns \\['x'\\]"):
        table(TILES, {"x": np.zeros(4)})
