"""A `runs_dir` as the stages would leave it, with names that try to break out of every format."""

import functools
import importlib.util
import io
import json
import math
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histo_ssl.folders.artifacts import complete

SCRIPT = "<script>alert(1)</script>"
FORMULA = '=HYPERLINK("x","y")'
PROTOCOLS = ("weighted_k20", "euclidean_k5")
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auc")
CLASSES = ["tumour nests", "stroma", "fat", SCRIPT]
N_STEPS = 120
N_OUTPUTS = 1024
TILE_PX = 8  # of a map's tiles
N_MAPPED_SLIDES = 40
TILE_CONFIG = {"data": {"n_slides": 4}, "tiling": {"size_px": 96, "mpp": 0.5}}
VOID = {"meta", "img", "line", "br", "link", "input", "hr"}
Folder = Path


def score(subject: str, protocol: str, metric: str, label: str, value: float | None) -> dict[str, Any]:
    low, high = (None, None) if value is None else (max(0.0, value - 0.03), min(1.0, value + 0.03))
    chance = 0.5 if metric == "auc" else 0.25
    names = {"subject": subject, "protocol": protocol, "metric": metric, "label": label}
    return {**names, "value": value, "low": low, "high": high, "chance": chance}


def scores(values: dict[str, float], *, labels: list[str]) -> list[dict[str, Any]]:
    """Every subject scores its value in each protocol and metric, a little less in each later class."""
    return [
        score(subject, protocol, metric, label, value - 0.01 * place)
        for subject, value in values.items()
        for protocol in PROTOCOLS
        for metric in METRICS
        for place, label in enumerate(["", *labels] if metric == "auc" else [""])
    ]


class FakeRuns:
    """Writes finished folders below `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def finish(self, name: str, write: Callable[[Path], None], config: Any = None, **counts: int) -> Folder:
        def build(folder: Path) -> dict[str, int]:
            write(folder)
            return counts

        return complete(self.path / name, build=build, label="fake", config=config or {})

    def tile_set(
        self,
        name: str = "synthetic-small-aaaaaaaaaa",
        *,
        n_slides: int = 4,
        failed: dict[str, str] | None = None,
    ) -> str:
        rows = [
            "slide_id,path,patient_id,site,label,split,width_px,height_px,mpp,n_levels,tissue_mm2,n_tiles,seconds,reason"
        ]
        for i in range(n_slides):
            rows.append(
                f"slide{i},slides/{i}.tif,P{i},A{i % 2},IDC,,2500,2400,0.50012,3,1.23456,{210 + i},0.72345,"
            )
        for slide, reason in (failed or {}).items():
            rows.append(f"{quoted(slide)},slides/x.svs,P9,A1,ILC,,,,,,,,0.01,{quoted(reason)}")

        def write(folder: Path) -> None:
            (folder / "overlays").mkdir()
            for i in range(n_slides):
                (folder / "overlays" / f"slide{i}.png").write_bytes(picture(600, 580, seed=i))
            (folder / "status.csv").write_text("\n".join(rows) + "\n")
            source = {"kind": "slides", "tile_px": 96, "mpp": 0.5, "slides": n_slides}
            (folder / "source.json").write_text(json.dumps(source))

        self.finish(
            f"tiles/{name}",
            write,
            TILE_CONFIG if name.startswith("synthetic") else {"data": name},
            slides=n_slides,
            failed=len(failed or {}),
            tiles=211 * n_slides,
        )
        return f"tiles/{name}"

    def pretraining(self, name: str = "dino-vit_t-synthetic-bbbbbbbbbb") -> str:
        config = {**TILE_CONFIG, "method": {"n_outputs": N_OUTPUTS}, "backbone": {"name": SCRIPT}, "seed": 0}

        def write(folder: Path) -> None:
            lines = [json.dumps(metrics_row(step)) for step in range(1, N_STEPS + 1)]
            (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
            (folder / "card.json").write_text(json.dumps({"method": "dino", "mpp": 0.5}))
            (folder / "views.png").write_bytes(picture(1200, 700, seed=1))

        self.finish(f"pretrain/{name}", write, config)
        return f"pretrain/{name}"

    def result(
        self,
        encoder_folder: str,
        tile_folder: str,
        *,
        values: dict[str, float],
        asked: dict[str, Any] | None = None,
        predictions: str = "slide,x,y,label,predicted\nslide0,0,0,fat,fat\n",
        files: dict[str, bytes] | None = None,
        **changes: Any,
    ) -> Folder:
        content = {
            "schema": 1,
            **{"method": "dino", "backbone": "vit_t", "data": "synthetic", "task": "knn"},
            "encoder": {"fingerprint": "bbbbbbbbbb", "folder": encoder_folder},
            **{"encoder_folder": encoder_folder, "tile_folder": tile_folder},
            **{"primary": ["weighted_k20", "auc"], "classes": CLASSES},
            "counts": {"n_train": 1210, "n_test": 604, "n_train_groups": 16, "n_test_groups": 8},
            "notes": ["Split by patient: 16 patients in train, 8 in test."],
            "scores": scores(values, labels=CLASSES),
            "confusion": {s: {p: confusion(v) for p in PROTOCOLS} for s, v in values.items()},
            **changes,
        }
        name = f"{encoder_folder.removeprefix('pretrain/')}-{content['task']}-cccccccccc".replace("/", "_")

        def write(folder: Path) -> None:
            (folder / "results.json").write_text(json.dumps(content))
            (folder / "predictions.csv").write_text(predictions)
            for path, written in (files or {}).items():
                (folder / path).parent.mkdir(exist_ok=True)
                (folder / path).write_bytes(written)

        return self.finish(f"results/{name}", write, asked)

    def tile_map(
        self,
        encoder_folder: str,
        tile_folder: str,
        *,
        labels: list[str],
        slide: str = "s",
        scale: float = 1,
        pictures: bytes | None = None,
    ) -> Folder:
        """A map by two subjects: tile i, of slide `s<i>`, lies at (i, -i), and its picture has colour 40 i.

        After so many slides, they are the first ones again.
        """
        lines = ["slide,x,y,label,map_x,map_y,subject"]
        for place, subject in enumerate(("encoder", "colour")):
            for i, label in enumerate(labels):
                tile = f"{quoted(f'{slide}{i % N_MAPPED_SLIDES}')},{i},0,{quoted(label)}"
                lines.append(f"{tile},{scale * (i + place)},{-scale * i},{subject}")
        return self.result(
            encoder_folder,
            tile_folder,
            values={},
            predictions="\n".join(lines) + "\n",
            files={"thumbnails.png": pictures or sheet(len(labels))},
            task="umap",
            scores=[],
            confusion={},
            primary=["umap", ""],
            classes=sorted({*labels} - {""}),
            counts={"n_tiles": len(labels)},
            notes=["trustworthiness of the map 0.93"],
            thumbnail_px=TILE_PX,
        )


def quoted(text: str) -> str:
    """A cell of a CSV file."""
    return '"' + text.replace('"', '""') + '"'


def metrics_row(step: int) -> dict[str, float]:
    entropy = math.log(N_OUTPUTS) * (0.35 + 0.6 * math.exp(-step / 30))
    wobble = 0.15 * math.sin(step * 1.7)
    return {
        **{
            "step": step,
            "epoch": step / 20,
            "tiles": 64 * step,
            "loss": 3.1 + 3.8 * math.exp(-step / 40) + wobble,
        },
        **{
            "lr": 5e-4 * min(1.0, step / 12) * (0.5 + 0.5 * math.cos(math.pi * step / N_STEPS)),
            "weight_decay": 0.04,
        },
        **{
            "teacher_entropy": entropy,
            "max_entropy": math.log(N_OUTPUTS),
            "kl": 1.2 - math.exp(-step / 25),
            "centre_norm": 0.2 + step / 400,
        },
        **{
            "rankme": 10 + 30 * (1 - math.exp(-step / 50)),
            "data_s": 0.05 + 0.01 * wobble,
            "step_s": 0.41 + 0.03 * wobble,
        },
    }


def confusion(accuracy: float) -> list[list[int]]:
    n = len(CLASSES)
    hits, misses = round(150 * accuracy), round(150 * (1 - accuracy) / (n - 1))
    return [[hits if i == j else misses for j in range(n)] for i in range(n)]


@functools.cache
def sheet(n: int) -> bytes:
    """Tiles side by side as the stage `evaluate` lays them out; tile i has colour 40 i, 240 at the most."""
    columns = math.isqrt(n - 1) + 1
    pixels = np.full((TILE_PX * math.ceil(n / columns), TILE_PX * columns, 3), 255, np.uint8)
    for i in range(n):
        top, left = TILE_PX * (i // columns), TILE_PX * (i % columns)
        pixels[top : top + TILE_PX, left : left + TILE_PX] = min(40 * i, 240)
    return png_of(pixels)


def png_of(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def figures(*entries: dict[str, Any], width: int = 40) -> dict[str, bytes]:
    """A list of figures with a picture for each that it names plainly."""
    names = {entry["file"] for entry in entries if "/" not in entry["file"]}
    pictures = {f"figures/{name}": picture(width, 30, seed=2) for name in sorted(names)}
    return {"figures/figures.json": json.dumps(entries).encode(), **pictures}


@functools.cache
def picture(width: int, height: int, *, seed: int) -> bytes:
    """A PNG of pinkish blobs with noise: as hard to compress as stained tissue."""
    random = np.random.default_rng(seed)
    blobs = Image.fromarray(random.integers(120, 255, (12, 12, 3), dtype=np.uint8))
    coarse = np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC))
    pixels = coarse * [1.0, 0.8, 0.97] + random.normal(0, 12, (height, width, 1))
    return png_of(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory: pytest.TempPathFactory) -> FakeRuns:
    """For tests that only read: one run, scored, on slides of which one failed."""
    runs = FakeRuns(tmp_path_factory.mktemp("shared") / "runs")
    tiles = runs.tile_set(failed={SCRIPT: "no um/px in the file: set data.mpp_override"})
    runs.result(runs.pretraining(), tiles, values={"encoder": 0.9, "colour": 0.8, "random": 0.7})
    return runs


@pytest.fixture
def fake_runs(tmp_path: Path) -> FakeRuns:
    return FakeRuns(tmp_path / "runs")


@pytest.fixture
def wandb_server() -> Iterator[Any]:
    """The server of `wandb_server.py`, which listens."""
    spec = importlib.util.spec_from_file_location("wandb_server", Path(__file__).with_name("wandb_server.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.Server() as server:
        yield server


@pytest.fixture(scope="session")
def listed() -> Callable[..., dict[str, bytes]]:
    """Makes files of figures: `figures` above."""
    return figures


@pytest.fixture(scope="session")
def painted() -> Callable[..., bytes]:
    """Makes pictures: `picture` above."""
    return picture


class Page(HTMLParser):
    """A page as its elements, in order, and the text of its table cells."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_text()
        self.feed(self.source)
        assert self.open == [], "elements left open at the end"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, *start: str) -> list[str]:
        return next(row for row in self.rows if row[: len(start)] == list(start))


def pages(index: Path) -> dict[str, Page]:
    """All pages of a report, by their path in it."""
    report = index.parent
    return {path.relative_to(report).as_posix(): Page(path) for path in sorted(report.rglob("*.html"))}


@pytest.fixture(scope="session")
def read_pages() -> Callable[[Path], dict[str, Page]]:
    return pages
