"""A `runs_dir` as the stages would leave it, with names that try to break out of every format."""

import functools
import importlib.util
import io
import json
import math
from collections.abc import Callable, Iterator
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
TILE_CONFIG = {"data": {"n_slides": 4}, "tiling": {"size_px": 96, "mpp": 0.5}}
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
            rows.append(f'"{slide}",slides/x.svs,P9,A1,ILC,,,,,,,,0.01,"{reason}"')

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

        return self.finish(f"results/{name}", write, asked)


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
def picture(width: int, height: int, *, seed: int) -> bytes:
    """A PNG of pinkish blobs with noise: as hard to compress as stained tissue."""
    random = np.random.default_rng(seed)
    blobs = Image.fromarray(random.integers(120, 255, (12, 12, 3), dtype=np.uint8))
    coarse = np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC))
    pixels = coarse * [1.0, 0.8, 0.97] + random.normal(0, 12, (height, width, 1))
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


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
