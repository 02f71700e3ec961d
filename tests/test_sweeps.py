"""Sweeps: what jobs leave behind, the table at the end, and what several shells or a failing job change."""

import json
import re
import signal
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from histo_ssl import cli, sweeps
from histo_ssl.cli import JobFailedError, with_tasks
from histo_ssl.folders.artifacts import write_json
from histo_ssl.sweeps import Outcome, differing, primary_score, read_outcomes, say, table_text

SMALL = [
    *("method.head.n_outputs=32", "method.head.n_hidden=32", "method.head.n_bottleneck=16"),
    *("views.kinds.local.count=2", "training.epochs=2", "training.batch_size=8", "loader.n_workers=0"),
    *("n_processes=1", "trainer=cpu", "logger=none", "data.n_slides=8", "data.size_px=800"),
    *("data.region_um=100", "tiling.stride_px=32"),
]
DINO = ["method=dino", "backbone=timm", "backbone.name=test_vit"]


def _outcome(number: int, *overrides: str, reason: str = "", results: list[str] | None = None) -> Outcome:
    return Outcome(
        number=number, overrides=list(overrides), seconds=130.0, reason=reason, results=results or []
    )


def _write_result(folder: Path, value: float | None) -> str:
    folder.mkdir()
    score = {"subject": "encoder", "protocol": "p", "metric": "auc", "label": "", "low": 0.5, "high": 0.9}
    other = {**score, "subject": "colour", "value": 0.1}
    content = {"task": folder.name, "primary": ["p", "auc"], "scores": [other, {**score, "value": value}]}
    (folder / "results.json").write_text(json.dumps(content))
    return str(folder)


def test_the_primary_score_is_the_encoders_own(tmp_path: Path) -> None:
    found = primary_score(Path(_write_result(tmp_path / "a", 0.75)))
    assert found == {"task": "a", "protocol": "p", "metric": "auc", "value": 0.75, "low": 0.5, "high": 0.9}
    assert primary_score(Path(_write_result(tmp_path / "b", None))) is None  # not defined on its test
    assert primary_score(tmp_path / "gone") is None


def test_the_table_tells_jobs_by_what_differs_and_says_why_some_failed(tmp_path: Path) -> None:
    done = _outcome(0, "seed=0", "task=knn", results=[_write_result(tmp_path / "a", 0.75)])
    text = table_text([done, _outcome(1, "seed=1", "task=knn", reason="labels are missing")])
    lines = text.splitlines()
    assert lines[0] == "sweep: 2 jobs, 1 failed"
    assert re.fullmatch(r"\s*0\s+seed=0\s+0\.750\s+\[0\.500, 0\.900\]\s+2 min\s*", lines[3])
    assert re.fullmatch(r"\s*1\s+seed=1\s+failed\s+2 min\s*", lines[4])
    assert lines[5] == "job 1 failed: labels are missing"
    assert "task=knn" not in text


def test_what_chooses_among_jobs_goes_by_the_first_task_alone(tmp_path: Path) -> None:
    results = [_write_result(tmp_path / "umap", None), _write_result(tmp_path / "knn", 0.75)]
    for order, expected in ((results, None), (results[::-1], 0.75)):
        write_json(tmp_path / sweeps.FILE, asdict(_outcome(0, "a=1", results=order)))
        assert sweeps.score_of(tmp_path) == expected


def test_a_sweep_that_was_told_to_end_says_that_there_may_be_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0").mkdir()
    write_json(tmp_path / "0" / sweeps.FILE, asdict(_outcome(0, "a=1")))
    for error, words in (
        (SystemExit(143), "sweep stopped; of the 1 job begun, 0 failed"),
        (RuntimeError("a job failed"), "sweep: 1 job, 0 failed"),
    ):
        sweeps.Sweep.folders.append(tmp_path)
        with pytest.raises(type(error)), sweeps.told():
            raise error
        assert words in capsys.readouterr().out


def test_scores_of_several_tasks_of_a_job_are_named(tmp_path: Path) -> None:
    results = [
        _write_result(tmp_path / name, value)
        for name, value in (("knn", 0.75), ("umap", None), ("slides", 0.5))
    ]
    text = table_text([_outcome(0, results=results)])
    assert text.startswith("sweep: 1 job, 0 failed")
    assert re.search(r"knn 0\.750 +\[0\.500, 0\.900\] .*\n +slides 0\.500 +\[0\.500, 0\.900\]", text)
    assert "umap" not in text  # it has no score


def test_one_job_alone_differs_from_none() -> None:
    assert differing([_outcome(0, "a=1", "b=2")]) == [["a=1", "b=2"]]


def test_the_first_to_say_why_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say(reason="nobody asked")
    monkeypatch.setenv(sweeps.OUTCOME, str(tmp_path / "said.json"))
    say(reason="the first rank's")
    say(reason="the second rank's")
    assert json.loads((tmp_path / "said.json").read_text()) == {"reason": "the first rank's"}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a sweep's job, as Hydra knows it."""
    names = SimpleNamespace
    known = names(
        job=names(num=3),
        overrides=names(task=["seed=1"]),
        runtime=names(output_dir=str(tmp_path / "monday" / "3")),
        sweep=names(dir=str(tmp_path / "monday")),
    )
    monkeypatch.setattr(sweeps.HydraConfig, "get", lambda: known)
    monkeypatch.delenv(sweeps.SWEEP, raising=False)
    return tmp_path / "monday" / "3"


@pytest.mark.parametrize(
    ("said", "status", "reason"),
    [
        ({"results": ["r"]}, "0", ""),
        ({"reason": "no labels"}, "1", "no labels"),
        # killed: it could say nothing
        (
            None,
            "-9",
            "killed by SIGKILL, as a system does that has no memory left; the same command goes on from here",
        ),
        (None, "-11", "killed by SIGSEGV; the same command goes on from here"),
        (None, "3", "ended with status 3"),
    ],
)
def test_what_a_job_came_to_is_kept_however_it_ended(
    job: Path, said: dict[str, Any] | None, status: str, reason: str
) -> None:
    with sweeps.recorded() as variables:
        assert variables[sweeps.SWEEP] == "monday"  # which a dashboard groups its jobs by
        if said:
            Path(variables[sweeps.OUTCOME]).write_text(json.dumps(said))
        variables["status"] = status
    (outcome,) = read_outcomes(job.parent)
    assert (outcome.number, outcome.overrides, outcome.reason) == (3, ["seed=1"], reason)
    assert outcome.results == (said or {}).get("results", [])


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (143, SystemExit(143)),  # it has answered the signal
        (-signal.SIGTERM, SystemExit(143)),  # it was not ready to answer yet
        (-signal.SIGINT, SystemExit(130)),
        (-signal.SIGKILL, JobFailedError("a job of the sweep failed: seed=1")),
        (1, JobFailedError("a job of the sweep failed: seed=1")),
    ],
)
def test_a_sweep_ends_with_a_job_that_was_told_to_however_far_that_had_come(
    job: Path, monkeypatch: pytest.MonkeyPatch, status: int, expected: BaseException
) -> None:
    monkeypatch.setattr(cli, "_sources", lambda _: [])
    monkeypatch.setattr(cli, "_run", lambda *_: status)
    with pytest.raises(type(expected), match=str(expected)):
        cli._job_of_sweep(sweeps.HydraConfig.get())
    assert read_outcomes(job.parent)


def test_what_a_job_said_before_it_was_started_again_counts_no_more(job: Path) -> None:
    for said, status in (({"reason": "no room"}, "1"), ({"results": ["r"]}, "0")):
        with sweeps.recorded() as variables:
            assert not Path(variables[sweeps.OUTCOME]).exists()
            Path(variables[sweeps.OUTCOME]).write_text(json.dumps(said))
            variables["status"] = status
    assert [outcome.reason for outcome in read_outcomes(job.parent)] == [""]


def test_several_tasks_of_one_job_are_one_and_those_after_it() -> None:
    assert with_tasks(["task=[ knn , umap ]"]) == ["task=knn", "also_tasks=[umap]"]
    assert with_tasks(["task=knn", "stages=[tile]"]) == ["task=knn", "stages=[tile]"]
    assert with_tasks(["task=[knn,umap,knn]"]) == ["task=knn", "also_tasks=[umap]"]


@pytest.mark.slow
def test_two_tasks_of_a_job_share_its_training_and_its_report(warm: Any, tmp_path: Path) -> None:
    done = warm.run("-m", "histo_ssl", *DINO, *SMALL, "task=[knn,umap]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = sorted(path.name[:14] for path in (tmp_path / "runs/results").iterdir() if path.is_dir())
    assert results == ["dino-timm-knn-", "dino-timm-umap"]
    assert done.stdout.count("report: open") == 1
    wrong = warm.run("-m", "histo_ssl", *DINO, *SMALL, "seed=1", "task=[knn,survival]", cwd=tmp_path)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: none of 8 slides has a label")
    assert len([path for path in (tmp_path / "runs/pretrain").iterdir() if path.is_dir()]) == 1  # not trained


@pytest.mark.slow
def test_jobs_of_a_sweep_share_encoders_whoever_starts_it_and_a_second_time_none_is_trained(
    warm: Any, tmp_path: Path
) -> None:
    shared = [word for word in SMALL if "head" not in word and "views" not in word]  # of DINO alone
    sweep = ["-m", "histo_ssl", "-m", "method=dino,simclr", *DINO[1:], "task=knn,labelled", *shared]
    sweep += ["training.epochs=1", "online=none"]
    shells = [warm.start(*sweep, cwd=tmp_path) for _ in range(2)]
    for shell in shells:
        assert shell.wait(600) == 0, shell.stderr
    runs = tmp_path / "runs"
    trained = [path for path in (runs / "pretrain").iterdir() if path.is_dir()]
    assert len(trained) == 2
    assert len([path for path in (runs / "results").iterdir() if path.is_dir()]) == 4
    for folder in trained:  # none was trained twice over
        steps = [json.loads(line).get("step") for line in (folder / "metrics.jsonl").read_text().splitlines()]
        own = [step for step in steps if step is not None]
        assert own == sorted(own)
    again = warm.run(*sweep, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("pretrain: done before") == 4
    assert "sweep: 4 jobs, 0 failed" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(["launcher=joblib", "seed=0,1"], id="joblib"),
        pytest.param(["hydra/launcher=submitit_local", "seed=0,1"], id="submitit"),
        pytest.param(["sweeper=optuna", "hydra.sweeper.n_trials=2", "seed=choice(0,1)"], id="optuna"),
    ],
)
def test_other_launchers_and_sweepers_run_the_same_jobs(warm: Any, tmp_path: Path, how: list[str]) -> None:
    words = [*DINO, *SMALL, "training.epochs=1", "stages=[tile,pretrain,embed,evaluate]", *how]
    swept = warm.run("-m", "histo_ssl", "-m", *words, cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    (folder,) = (tmp_path / "runs/sweeps").iterdir()
    outcomes = read_outcomes(folder)
    assert len(outcomes) == 2
    assert all(len(outcome.primary()) == 1 for outcome in outcomes)
    assert "sweep: 2 jobs, 0 failed" in swept.stdout
