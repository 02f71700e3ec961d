"""What counts as finished, and what a broken or missing file does."""

import json
import math
from pathlib import Path
from typing import Any

from histo_ssl.report.runs import read_results, read_runs, read_tile_sets

VALUES = {"encoder": 0.9, "colour": 0.8, "random": 0.7}


def test_a_folder_without_its_done_mark_is_left_out(fake_runs: Any) -> None:
    tiles, encoder = fake_runs.tile_set(), fake_runs.pretraining()
    result = fake_runs.result(encoder, tiles, values=VALUES)
    assert [run.name for run in read_runs(fake_runs.path)] == [encoder]
    for folder in (result, fake_runs.path / encoder, fake_runs.path / tiles):
        (folder / "done.json").unlink()
    assert read_runs(fake_runs.path) == []
    assert read_tile_sets(fake_runs.path) == []


def test_a_result_belongs_to_the_run_that_it_names_also_when_that_folder_is_gone(fake_runs: Any) -> None:
    fake_runs.result("pretrain/gone-vit_t-x-0123456789", "tiles/gone", values=VALUES)
    (run,) = read_runs(fake_runs.path)
    assert run.title == "gone-vit_t-x"
    assert [result.method for result in run.results] == ["dino"]
    assert (run.metrics, run.provenance, run.views) == ([], {}, None)


def test_scores_are_found_by_subject_protocol_metric_and_class(fake_runs: Any) -> None:
    fake_runs.result("pretrain/a-b-c-0", "tiles/t", values=VALUES)
    (result,) = read_results(fake_runs.path)
    estimate = result.scores["colour", "euclidean_k5", "auc", "stroma"]  # second class: 0.8 - 0.02
    assert (estimate.value, estimate.chance) == (0.8 - 0.02, 0.5)
    assert (estimate.low, estimate.high) == (0.78 - 0.03, 0.78 + 0.03)


def test_a_null_in_the_scores_is_read_as_nan(fake_runs: Any) -> None:
    row = {"subject": "encoder", "protocol": "p", "metric": "auc", "label": "", "value": 0.5}
    scores = [{**row, "low": None, "high": None, "chance": None}]
    fake_runs.result("pretrain/a-b-c-0", "tiles/t", values={}, scores=scores, primary=["p", "auc"])
    (result,) = read_results(fake_runs.path)
    estimate = result.scores["encoder", "p", "auc", ""]
    assert estimate.value == 0.5
    assert all(map(math.isnan, (estimate.low, estimate.high, estimate.chance)))


def test_a_step_trained_twice_counts_once_and_a_line_cut_short_not_at_all(fake_runs: Any) -> None:
    def write(folder: Path) -> None:
        rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 2.0, "note": "x"}]
        rows.insert(1, {"step": 2, "online_knn_auc": 0.5})
        lines = [json.dumps(row) for row in rows]
        (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "lo']))

    fake_runs.finish("pretrain/a-b-c-0", write)
    (run,) = read_runs(fake_runs.path)
    assert run.metrics == [{"step": 1.0, "loss": 3.0}, {"step": 2.0, "online_knn_auc": 0.5, "loss": 2.0}]


def test_failed_slides_come_first_and_are_counted(fake_runs: Any) -> None:
    fake_runs.tile_set(n_slides=2, failed={"bad1": "unreadable", "bad2": "no um/px"})
    (tile_set,) = read_tile_sets(fake_runs.path)
    assert [row["slide_id"] for row in tile_set.status] == ["bad1", "bad2", "slide0", "slide1"]
    assert tile_set.n_failed == 2
    assert tile_set.counts == {"slides": 2, "failed": 2, "tiles": 422}


KEY = ("weighted_k20", "auc", "")
QUESTION = {"protocol": {"k": 20}, "listing": "abc"}


def test_a_score_stands_beside_imagenet_s_weights_where_these_were_asked_the_same(fake_runs: Any) -> None:
    def scored(encoder: str, value: float, **changes: Any) -> None:
        asked = {**QUESTION, "encoder": encoder, **changes.pop("asked", {})}
        values = {"encoder": value, "colour": 0.5, "random": 0.4}
        fake_runs.result(f"pretrain/{encoder}", "tiles/t", values=values, asked=asked, **changes)

    scored("a", 0.9, backbone="vit_s")
    scored("b", 0.8, backbone="resnet50")
    scored("c", 0.7, backbone="vit_s", asked={"listing": "other tiles"})
    scored("d", 0.86, method="imagenet", backbone="resnet50")
    scored("e", 0.85, method="imagenet", backbone="vit_s")
    found = {result.encoder_folder: result for result in read_results(fake_runs.path)}
    floors = {
        name.removeprefix("pretrain/"): result.scores[("imagenet", *KEY)].value
        for name, result in found.items()
        if ("imagenet", *KEY) in result.scores
    }
    assert floors == {"a": 0.85, "b": 0.86}  # of its own backbone; none for c, nor for themselves
    assert found["pretrain/a"].notes[-1].startswith("the ImageNet-weights floor is vit_s as timm has it")


def test_without_its_own_backbone_imagenet_s_weights_are_those_of_another_and_named(fake_runs: Any) -> None:
    for encoder, method, backbone in (("a", "dino", "vit_s"), ("b", "imagenet", "resnet50_trunc")):
        values = {"encoder": 0.9 if method == "dino" else 0.8, "colour": 0.5, "random": 0.4}
        names = {"method": method, "backbone": backbone}
        fake_runs.result(f"pretrain/{encoder}", "tiles/t", values=values, asked=QUESTION, **names)
    first, _ = read_results(fake_runs.path)
    assert first.scores[("imagenet", *KEY)].value == 0.8
    assert "resnet50_trunc" in first.notes[-1]
