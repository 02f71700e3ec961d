"""Every YAML composes and instantiates; every value has one place."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from histo_ssl.config.plan import Plan
from histo_ssl.config.signatures import check_types

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
CHOICES = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))


def _targets(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        return ([node] if "_target_" in node else []) + [
            t for value in node.values() for t in _targets(value)
        ]
    return [t for value in node for t in _targets(value)] if isinstance(node, list) else []


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_a_choice_composes_and_its_keys_are_arguments_of_its_target(
    compose: Any, group: str, choice: str
) -> None:
    if group == "experiment":
        plan: Plan = compose(f"experiment={choice}")  # which brings its own method and backbone
    else:
        choices = {"method": "dino", "backbone": "vit_t", group: choice}
        plan = compose(*(f"{name}={value}" for name, value in choices.items()))
    values = OmegaConf.to_container(plan.cfg, resolve=True)
    values["method"], _ = plan.method(n_tiles=0)
    for node in _targets(values):
        target = get_object(node["_target_"])
        parameters = inspect.signature(target).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        given = {key for key in node if not key.startswith("_")}
        assert open_ended or given <= parameters.keys(), node["_target_"]
        if not node.get("_partial_") and node["_target_"].startswith("histo_ssl"):
            needed = {
                n for n, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD
            }
            assert needed - {"backbone"} <= given, node["_target_"]  # the stage passes the backbone


@pytest.mark.parametrize("recipe", sorted(path.stem for path in CONF.glob("method/optim/*.yaml")))
@pytest.mark.parametrize("method", ["simclr", "moco", "mocov3", "byol", "mae"])
def test_every_optimiser_trains_every_method(compose: Any, method: str, recipe: str) -> None:
    plan = compose(f"method={method}", "backbone=timm", "backbone.name=test_vit", f"method/optim={recipe}")
    config, _ = plan.method(n_tiles=2000)
    check_types(config, "method")
    built = instantiate(config, backbone=instantiate(plan.group("backbone")))
    groups = built.configure_optimizers().param_groups
    n_trained = sum(p.requires_grad for p in built.parameters())
    assert sum(len(group["params"]) for group in groups) == n_trained
    assert built.optim.lr(built.optim.warmup, tiles_per_step=256) == config["optim"]["lr_per_256"]


def test_a_queue_stays_shorter_than_the_data_and_the_largest_is_the_papers(compose: Any) -> None:
    plan = compose("method=moco", "backbone=vit_t")
    queues = {n: plan.method(n_tiles=n)[0]["queue"]["n_keys"] for n in (300, 1800, 30_000, 2_000_000)}
    assert all(n_keys < n for n, n_keys in queues.items())
    assert queues[2_000_000] == 65536
    assert plan.method(n_tiles=2_000_000)[0]["momentum"] == 0.999


@pytest.mark.parametrize(
    "path", sorted(CONF.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_a_yaml_opens_with_a_comment_that_says_what_it_is(path: Path) -> None:
    lines = path.read_text().splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# ")
    assert len(first) > 20


def test_a_task_does_not_change_the_encoder_and_a_seed_does(compose: Any) -> None:
    base = compose("method=dino", "backbone=vit_t")
    other_task = compose("method=dino", "backbone=vit_t", "task.protocol.n_bootstrap=7")
    other_seed = compose("method=dino", "backbone=vit_t", "seed=1")
    assert other_task.pretrain_folder == base.pretrain_folder
    assert other_task.result_folder != base.result_folder
    assert other_seed.pretrain_folder != base.pretrain_folder


@pytest.mark.parametrize(
    "override",
    [
        "trainer=cpu",
        "loader.n_workers=7",
        "loader.timeout_s=7",
        "max_failed_tiles=0.5",
        "on_nonfinite=skip",
        "log_every=1",
        "checkpoint_every=1",
        "n_processes=1",
        "executor=dask",
        "executor.retries=5",
        "logger=none",
        "compile=true",
        "grad_checkpointing=true",
    ],
)
def test_what_changes_no_result_changes_no_folder(compose: Any, override: str) -> None:
    base = compose("method=dino", "backbone=vit_t")
    other = compose("method=dino", "backbone=vit_t", override)
    assert other.pretrain_folder == base.pretrain_folder
    assert other.result_folder == base.result_folder


@pytest.mark.parametrize(
    "override", ["tiling.mpp=0.5", "training.epochs=5", "views=pair", "backbone=resnet18"]
)
def test_what_changes_the_encoder_changes_its_folder_and_its_results(compose: Any, override: str) -> None:
    base = compose("method=dino", "backbone=vit_t")
    other = compose(
        *{"method=dino", override} | ({"backbone=vit_t"} if "backbone" not in override else set())
    )
    assert other.pretrain_folder != base.pretrain_folder
    assert other.result_folder != base.result_folder


def test_the_study_recipe_brings_the_values_of_the_paper(compose: Any) -> None:
    plan = compose("experiment=tcga_brca_dino_vits", "data.root=/slides")
    method = plan.group("method")
    assert (method["head"]["n_outputs"], method["teacher"]["momentum"]) == (65536, 0.996)
    assert (method["teacher"]["temp"], method["optim"]["lr_per_256"]) == (0.04, 0.0005)
    assert (plan.cfg.tiling.size_px, plan.cfg.tiling.mpp, plan.cfg.training.epochs) == (256, 0.5, 100)
    assert plan.group("views.mean") == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "path", sorted((CONF / "experiment").glob("tcga_*.yaml")), ids=lambda path: path.stem
)
def test_a_recipe_says_what_it_takes_and_its_arithmetic_is_right(path: Path) -> None:
    header = " ".join(
        line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")
    ).replace(",", "")
    assert f"python -m histo_ssl experiment={path.stem} " in header
    if path.stem.endswith("_histology"):
        assert path.stem.removesuffix("_histology") in header  # where the rest is said
        return
    for word in ("Hardware:", "Hours:", "Memory:", "Expected"):
        assert word in header
    (sum_of_hours,) = re.findall(r"(\d+) x (\d+) / (\d+) / 3600 = (\d+) h", header)
    n_tiles, epochs, tiles_per_s, hours = map(int, sum_of_hours)
    assert round(n_tiles * epochs / tiles_per_s / 3600) == hours


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("max_failed_tiles=1.5", "max_failed_tiles=1.5: a share, from 0 to 1, is expected"),
        ("max_failed_tiles=few", "max_failed_tiles=few: a share"),
        ("on_nonfinite=ignore", "on_nonfinite=ignore: choose one of stop, skip"),
        ("max_nonfinite=0", "max_nonfinite=0: a whole number, 1 or more"),
        ("loader.timeout_s=-1", "loader.timeout_s=-1: a whole number, 0 or more"),
        ("loader.start_method=thread", "choose one of fork, spawn, forkserver"),
    ],
)
def test_a_value_that_no_run_could_be_made_with_is_refused(
    compose: Any, override: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        compose("method=dino", "backbone=vit_t", override).check()
