"""A configuration that someone hands over is data: it names nothing but what the list allows."""

from pathlib import Path
from typing import Any

import pytest

from histo_ssl.config.targets import ALLOWED, check_configuration, check_targets, is_allowed


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.run",
        "hydra.utils.instantiate",
        "torch.load",
        "torch.optimizers_of_a_stranger.Adam",  # only the beginning of the name is right
        "histo_ssl.folders.artifacts.write_text",  # ours, but no seam
        "histo_ssl.data.slides.np.load",  # a module's own imports are within its reach
        "histo_ssl.slides.fetching.fsspec.open",
        "histo_ssl.data.images.os.system",
        "histo_ssl.data.images._write_csv",
        "torch.optim.Adam.__init__.__globals__",
        "histo_ssl.data.slides",  # a module
        "histo_ssl.data.base.STATUS",  # a constant
        7,
        None,
    ],
)
def test_what_is_not_on_the_list_is_refused_wherever_it_hides(target: Any) -> None:
    assert not is_allowed(target, ALLOWED)
    for config in ({"_target_": target}, {"a": [{"b": [[{"_target_": target}]]}]}):
        with pytest.raises(ValueError, match=r"^data\..*_target_=.*may not name this; if you trust it, say"):
            check_targets(config, "data", more=())


@pytest.mark.parametrize(
    "target",
    [
        "histo_ssl.methods.dino.DINO",
        "histo_ssl.backbones.timm.timm_backbone",
        "histo_ssl.report.wandb.wandb_logger",
        "lightning.Trainer",
        "lightning.pytorch.strategies.DDPStrategy",
        "torch.optim.AdamW",
    ],
)
def test_what_the_house_is_made_of_is_allowed(target: str) -> None:
    check_targets({"_target_": target}, "x", more=())


def test_the_command_line_extends_the_list_by_a_package_and_no_further() -> None:
    check_targets({"_target_": "fractions.Fraction"}, "x", more=["fractions"])
    with pytest.raises(ValueError, match=r"allowed_targets=\[fractions\]"):
        check_targets({"_target_": "fractions.math.sqrt"}, "x", more=["fractions"])
    with pytest.raises(ValueError, match="may not name this"):
        check_targets({"_target_": "fractionsx.F"}, "x", more=["fractions"])


def test_a_file_that_extends_the_list_is_refused_and_the_command_line_is_not() -> None:
    check_configuration({"allowed_targets": ["a", "b.c"]}, {}, ["seed=1", "allowed_targets=[a,b.c]"])
    for overrides in ([], ["allowed_targets=[a]"]):
        with pytest.raises(ValueError, match="allowed_targets is set by a file; only the command line"):
            check_configuration({"allowed_targets": ["a", "b"]}, {}, overrides)
    with pytest.raises(ValueError, match=r"allowed_targets=a: a list is expected"):
        check_configuration({"allowed_targets": "a"}, {}, ["allowed_targets=a"])


EVIL = {
    "callback": "hydra: {callbacks: {x: {_target_: os.system, command: touch pwned}}}",
    "log handler": "hydra: {job_logging: {handlers: {x: {'()': os.system, command: touch pwned}}}}",
    "log file": "hydra: {job_logging: {handlers: {x: {class: logging.FileHandler, filename: pwned}}}}",
    "log stream": "hydra: {job_logging: {handlers: {console: {stream: 'ext://antigravity.x'}}}}",
    "other log": "hydra: {hydra_logging: {handlers: {x: {'()': os.system, command: touch pwned}}}}",
    "launcher": "hydra: {launcher: {_target_: subprocess.run, args: [touch, pwned]}}",
    "sweeper": "hydra: {sweeper: {params: {allowed_targets: '[os]'}}}",
    "environment": "hydra: {job: {env_set: {LD_PRELOAD: ./evil.so}}}",
    "list": "allowed_targets: [os]",
    "target": "trainer: {plugins: [{a: [{_target_: os.system, _args_: [touch pwned]}]}]}",
    "own group": "stranger: {_target_: os.system, command: touch pwned}",
    "credentials": "data: {n_slides: 'https://me:hunter22@host/slides'}",
}


@pytest.mark.slow
@pytest.mark.parametrize("content", EVIL.values(), ids=EVIL.keys())
def test_an_experiment_file_that_is_an_attack_ends_in_a_sentence_and_runs_nothing(
    warm: Any, tmp_path: Path, content: str
) -> None:
    (tmp_path / "their" / "experiment").mkdir(parents=True)
    path = tmp_path / "their" / "experiment" / "evil.yaml"
    path.write_text(f"# @package _global_\n{content}\n")
    failed = warm.run(
        "-m",
        "histo_ssl",
        "-cd",
        str(path.parents[1]),
        "method=dino",
        "backbone=vit_t",
        "experiment=evil",
        cwd=tmp_path,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert len(failed.stderr.strip().splitlines()) == 1
    assert "hunter22" not in failed.stderr + failed.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["their"]


@pytest.mark.slow
def test_a_sweep_over_attacks_runs_none_of_them(warm: Any, tmp_path: Path) -> None:
    (tmp_path / "their" / "experiment").mkdir(parents=True)
    for name in ("callback", "log handler"):
        path = tmp_path / "their" / "experiment" / f"{name[:3]}.yaml"
        path.write_text(f"# @package _global_\n{EVIL[name]}\n")
    failed = warm.run(
        *(
            "-m",
            "histo_ssl",
            "-m",
            "-cd",
            str(tmp_path / "their"),
            "method=dino",
            "backbone=vit_t",
            "experiment=log,cal",
        ),
        cwd=tmp_path,
    )
    assert failed.returncode == 1
    assert not (tmp_path / "pwned").exists()
    assert "a configuration may not name this" in failed.stderr
