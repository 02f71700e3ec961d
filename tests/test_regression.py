"""A regression goes the whole way, from readers' lists to a report, as BreastPathQ does."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histo_ssl import stages
from histo_ssl.config.plan import Plan
from histo_ssl.config.preflight import prepared

pytestmark = pytest.mark.slow

DINO = ["method=dino", "method.head.n_outputs=32", "method.head.n_hidden=32", "method.head.n_bottleneck=16"]


def _patches(root: Path) -> None:
    """Patches of 8 slides to learn from and 4 to test by, the redder the more; two readers of the latter."""
    rng = np.random.default_rng(0)
    for folder, table, slides in (("train", "train", range(8)), ("validation", "val", range(8, 12))):
        (root / folder).mkdir(parents=True)
        lines = ["slide,rid,y"]
        for slide in slides:
            for rid, y in enumerate(rng.uniform(size=4).round(2)):
                noise = rng.integers(-20, 21, (32, 32, 3))
                pixels = np.array([40 + 180 * y, 120, 120]) + noise
                Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{slide}_{rid}.tif")
                lines += [f"{slide},{rid},{y}"]
                lines += [f"{slide},{rid},{y + 0.02:.2f}"] if folder == "validation" else []
        (root / f"{table}_labels.csv").write_text("\n".join(lines) + "\n")


def test_cellularity_is_predicted_scored_and_shown(
    compose: Callable[..., Plan], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, runs_dir = tmp_path / "bpq", tmp_path / "runs"
    _patches(root)
    own = ["data=images", f"data.root={root}/train", "backbone=timm", "backbone.name=test_vit"]
    task = ["task=breastpathq", f"task.root={root}", "task.protocol.n_bootstrap=20", f"runs_dir={runs_dir}"]
    small = ["training.epochs=1", "training.batch_size=8", "loader.n_workers=0", "trainer=cpu", "logger=none"]
    with caplog.at_level(logging.INFO, logger="histo_ssl"):
        plan = prepared(compose(*DINO, *own, *task, *small), known=stages.STAGES)
        stages.run(plan)
    assert "online: off (the task's labels are numbers, and neighbours vote on classes)" in caplog.text
    assert not (plan.pretrain_folder / "encoder_best.safetensors").exists()
    results = json.loads((plan.result_folder / "results.json").read_text())
    scores = {(s["subject"], s["protocol"], s["metric"]): s["value"] for s in results["scores"]}
    # The mean colour tells the number, but for noise and the rounding of labels
    assert scores["colour", "ridge", "prediction_probability"] > 0.95
    assert scores["colour", "ridge", "mse"] < 0.005
    assert results["counts"] == {"n_train": 32, "n_test": 16, "n_train_groups": 8, "n_test_groups": 4}
    assert any(
        note.startswith("readers 1 and 2 agree on 16 test tiles: P_K 1.000") for note in results["notes"]
    )
    table = pd.read_csv(plan.result_folder / "predictions.csv")
    told = table[(table["subject"] == "colour") & (table["protocol"] == "ridge")]
    mse = ((told["truth"] - told["predicted"]) ** 2).mean()
    assert scores["colour", "ridge", "mse"] == pytest.approx(mse)
    assert told["label"].str.count(";").eq(1).all()
    (path,) = (runs_dir / "report" / "runs").iterdir()
    page = path.read_text()
    assert page.count('alt="Predicted against true numbers of 16 test tiles') == 3
