"""The command line as a newcomer meets it: help, mistakes, exit status."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from histo_ssl.cli import JobFailedError, _one_sentence, with_variant
from histo_ssl.config.mistakes import FULL_ERROR, explain

REPOSITORY = Path(__file__).resolve().parents[1]


def _run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    settings.pop(FULL_ERROR, None)
    command = [sys.executable, "-m", "histo_ssl", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=settings | environment, capture_output=True, text=True, check=False
    )


def test_help_is_written_for_this_program_and_needs_no_torch(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    helped = _run("--help", cwd=tmp_path)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert helped.returncode == 0
    for word in ("python -m histo_ssl method=dino", "backbone: ", "vit_s", "runs/report/index.html"):
        assert word in helped.stdout
    assert seconds < 1.0  # of processor, however busy the machine is; .43 where it is not


def test_the_configuration_of_a_run_is_printed_without_starting_it(tmp_path: Path) -> None:
    printed = _run("--cfg", "job", "method=dino", "backbone=vit_t", cwd=tmp_path)
    assert printed.returncode == 0
    assert "_target_: histo_ssl.methods.dino.DINO" in printed.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["method=dino", "backbone=vit_t", "tiling.mppp=1"],
            "error: tiling.mppp: no such key; did you mean mpp? tiling has ",
        ),
        (
            ["method=dino", "backbone=vit_q"],
            "error: backbone=vit_q: no such choice; did you mean vit_",
        ),
        (["method=dino", "bakbone=vit_t"], "error: bakbone: no such"),
        (
            ["method=dino", "backbone=vit_t", "task=slides", "task/models=[clam]"],
            "error: task/models=clam: no such choice; did you mean clam_sb? task/models has abmil, clam_mb",
        ),
        (
            ["backbone=vit_t"],
            "error: method=... is missing; choose one of byol, checkpoint, dino, features, imagenet",
        ),
        (
            ["method=dino", "backbone=vit_t", "stages=[tyle]"],
            "error: stages=['tyle']: no such stage; the stages are tile",
        ),
        (
            ["method=dino", "backbone=vit_t", "trainin.epochs=2"],
            "error: trainin: no such key; did you mean training?",
        ),
        (
            ["method=random", "backbone=vit_t", "task=regression", "task.data.csv=a.csv"],
            "error: task.data.csv: no such key; did you mean data.csv? task.data has no values of its own",
        ),
        (
            ["method=random", "backbone=vit_t", "task=images", "task.root=/nowhere"],
            "error: task.root=/nowhere: no such folder; expected: task.root=<folder with a folder per class>",
        ),
        (
            ["method=dino", "backbone=vit_t", "data.root=/a=b"],
            "error: data.root=/a=b: /a=b can't be read as a value; if it is one text, put it into two pairs",
        ),
        (
            ["method=dino", "backbone=vit_t", "data.root=/a (1)"],
            "error: data.root=/a (1): /a (1) can't be read as a value; if it is one text, put it into two ",
        ),
        (
            ["method=dino", "backbone=vit_t,resnet18"],
            "error: backbone=vit_t,resnet18: vit_t,resnet18 can't be read as a value; if it is one text, ",
        ),
        (["method=dino", "backbone"], "error: backbone: key=value is expected"),
        (
            ["method=dino", "backbone=vit_t", "task=labelled", "task/protocols=[]"],
            "error: task/protocols=[]: one or more are expected; choose among fewshot, knn, least_squares, ",
        ),
        (
            ["method=dino", "backbone=vit_t", "task=slides", "task/models=[]"],
            "error: task/models=[]: one or more are expected; choose among abmil, clam_mb, ",
        ),
    ],
)
def test_a_typo_gets_one_sentence_with_the_valid_choices(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    failed = _run(*arguments, cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith(sentence)
    assert len(failed.stderr.strip().splitlines()) == 1


def test_a_text_in_the_quotes_that_the_sentence_asks_for_is_taken_as_it_is(tmp_path: Path) -> None:
    for value in ("/a=b", "/a (1)", "/a,b", "/a'b", "/a{b}"):
        quoted = f'data.root="{value}"'
        printed = _run(
            "--cfg",
            "job",
            "--package",
            "data",
            "method=dino",
            "backbone=vit_t",
            "data=images",
            quoted,
            cwd=tmp_path,
        )
        assert OmegaConf.create(printed.stdout)["root"] == value


@pytest.mark.slow
def test_the_jobs_of_a_sweep_find_the_configuration_where_the_sweep_did(warm: Any, tmp_path: Path) -> None:
    (tmp_path / "tiling").mkdir()
    (tmp_path / "tiling" / "mine.yaml").write_text("defaults: [demo, _self_]\n")
    (tmp_path / "other.yaml").write_text("defaults: [config, _self_]\ntraining: {epochs: 0}\n")
    sweep = ["-m", "histo_ssl", "-m", "-cd", tmp_path, "method=dino", "backbone=vit_t", "stages=[]"]
    found = warm.run(*sweep, "tiling=mine", "logger=none", cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    named = warm.run(*sweep, "-cn", "other", cwd=tmp_path)
    assert named.returncode == 1
    assert "error: training.epochs=0: a whole number, 1 or more" in named.stderr


def test_the_traceback_is_there_for_those_who_ask(tmp_path: Path) -> None:
    failed = _run("method=dino", "backbone=vit_q", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert failed.returncode == 1
    assert "Traceback (most recent call last)" in failed.stderr


def test_a_failed_job_is_told_without_a_hint_whatever_launcher_hands_it_on() -> None:
    raised = compile("raise JobFailedError('a job of the sweep failed: seed=1')", "launcher.py", "exec")
    with (
        pytest.raises(SystemExit, match=r"^error: a job of the sweep failed: seed=1$"),
        _one_sentence(wants_traceback=False, also=(JobFailedError,)),
    ):
        exec(raised, {"JobFailedError": JobFailedError})  # in a frame that is not ours


def test_one_sentence_names_the_library_that_an_error_comes_from() -> None:
    try:
        int("x")
    except ValueError as error:
        ours = explain(error)  # raised here, outside of the package: the traceback helps
    assert ours == "invalid literal for int() with base 10: 'x' (ValueError; HYDRA_FULL_ERROR=1 shows where)"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["experiment=table1", "method=dino"], ["experiment=table1/dino", "method=dino"]),
        (["method=simclr", "a=1", "experiment=table2"], ["method=simclr", "a=1", "experiment=table2/simclr"]),
        (["experiment=table1"], ["experiment=table1"]),
        (["experiment=table1", "method=random"], ["experiment=table1", "method=random"]),
        (
            ["experiment=tcga_brca_dino_vits", "method=dino"],
            ["experiment=tcga_brca_dino_vits", "method=dino"],
        ),
        (["method=dino"], ["method=dino"]),
    ],
)
def test_an_experiment_takes_the_form_that_it_has_for_a_method(given: list[str], read: list[str]) -> None:
    assert with_variant(given) == read


@pytest.mark.parametrize(
    ("method", "backbone", "epochs"),
    [
        ("imagenet", "resnet50_trunc", 3),
        ("simclr", "resnet50", 100),
        ("dino", "vit_s", 100),
        ("moco", "resnet50", 100),
        ("mocov3", "vit_s_12heads", 100),
    ],
)
def test_the_studys_tables_take_each_methods_own_recipe(
    compose: Any, method: str, backbone: str, epochs: int
) -> None:
    for table, task in (("table1", "tcga_brca_subtype"), ("table2", "crc100k")):
        plan = compose(f"experiment={table}/{method}")
        chosen = {name: plan.choices[name] for name in ("method", "backbone", "task")}
        assert chosen == {"method": method, "backbone": backbone, "task": task}
        assert plan.cfg.training.epochs == epochs
