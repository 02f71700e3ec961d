"""Weights & Biases, without its server."""

import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from histo_ssl.config.filters import filters
from histo_ssl.report import wandb as ours
from histo_ssl.report.quiet import no_logger
from histo_ssl.report.wandb import is_logged_in, log_encoder, log_results, wandb_logger, wanted_mode

CONF = Path(__file__).resolve().parents[2] / "conf" / "logger"
WORDS = {"run_id": "bbbbbbbbbb", "name": "n", "tags": ["dino", "vit_t"], "config": {"seed": 0}}
START = {**WORDS, "project": "p", "group": None}
VALUES = {"encoder": 0.9, "colour": 0.8, "random": 0.7}


@pytest.fixture(autouse=True)
def logged_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.finish()
    wandb.teardown()  # it keeps what it read of the environment


def test_logging_is_offline_unless_the_user_is_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wanted_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wanted_mode() is None  # W&B reads the variable itself


def test_a_netrc_entry_counts_for_its_own_server_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    (tmp_path / "netrc").write_text("machine other.example.org\n  login user\n  password x\n")
    assert not is_logged_in()
    (tmp_path / "netrc").write_text("machine wandb.example.org\n  login user\n  password x\n")
    assert is_logged_in()


def test_both_choices_of_logger_take_the_same_words(tmp_path: Path) -> None:
    words = set(inspect.signature(no_logger).parameters)
    assert set(inspect.signature(wandb_logger).parameters) == {*words, "project", "group"}
    assert instantiate(OmegaConf.load(CONF / "none.yaml"))(folder=tmp_path, **WORDS) is None


def test_an_offline_run_holds_the_tables_and_pictures_of_the_report(fake_runs: Any, tmp_path: Path) -> None:
    encoder, tiles = fake_runs.pretraining(), fake_runs.tile_set()
    fake_runs.result(encoder, tiles, values=VALUES)
    logger = instantiate(OmegaConf.load(CONF / "wandb.yaml"))(folder=tmp_path / "w", **WORDS)
    logger.log_metrics({"loss": 1.5}, step=1)
    log_results(logger, runs_dir=fake_runs.path, encoder_folder=fake_runs.path / encoder)
    summary = dict(logger.experiment.summary)
    wandb.finish()
    assert {name: summary[f"knn/{name}"] for name in VALUES} == VALUES
    (run,) = (tmp_path / "w" / "wandb").glob("offline-run-*-bbbbbbbbbb")
    (table,) = run.glob("files/media/table/knn/scores*.json")
    content = json.loads(table.read_text())
    first = dict(zip(content["columns"], content["data"][0], strict=True))
    assert (first["encoder"], first["colour"], first["random"]) == (0.9, 0.8, 0.7)
    assert (first["metric"], first["verdict"]) == ("accuracy", "above both floors")
    assert len(list(run.glob("files/media/table/knn/confusion/**/*.json"))) == 6  # subjects x protocols
    assert len(list(run.glob("files/media/images/**/*.jpg"))) == 1 + 4  # views, overlays


def _sync(folder: Path, server: Any, *, n_runs: int = 1) -> None:
    """Send what lies in a folder by W&B's own command."""
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(runs) == n_runs
    for run in runs:
        command = [sys.executable, "-m", "wandb", "sync", str(run)]
        environment = os.environ | server.environment
        sent = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
        assert sent.returncode == 0, sent.stderr
        assert list(run.glob("*.synced")), sent.stderr


def test_wandbs_own_sync_sends_the_config_the_curves_the_tables_and_the_pictures_of_an_offline_run(
    fake_runs: Any, wandb_server: Any, compose: Any, tmp_path: Path
) -> None:
    encoder, tiles = fake_runs.pretraining(), fake_runs.tile_set()
    result = fake_runs.result(encoder, tiles, values=VALUES)
    views = fake_runs.path / encoder / "views.png"
    for name in ("attention/slide0.png", "attention/slide0_tiles.png", "figures/roc.png"):
        (result / name).parent.mkdir(exist_ok=True)
        (result / name).write_bytes(views.read_bytes())
    words = {"title": "ROC", "alt": "a curve", "group": "curves"}
    figures = [{"file": "roc.png", **words}, {"file": "../../pretrain/x.png", **words}]
    (result / "figures" / "figures.json").write_text(json.dumps(figures))
    (fake_runs.path / encoder / "encoder.safetensors").write_bytes(b"weights")
    plan = compose("method=dino", "backbone=vit_t", "tiling.mpp=0.7", "seed=3", "training.batch_size=16")
    logger = wandb_logger(folder=tmp_path / "w", **{**START, "config": filters(plan)})
    for step in (1, 2, 3):
        logger.log_metrics({"loss": 1.0 / step, "lr": 0.5}, step=step)
    log_encoder(logger, folder=fake_runs.path / encoder)
    log_results(logger, runs_dir=fake_runs.path, encoder_folder=fake_runs.path / encoder)
    wandb.finish()
    _sync(tmp_path / "w", wandb_server)
    assert (wandb_server.runs[0]["name"], wandb_server.runs[0]["groupName"]) == ("bbbbbbbbbb", "dino-vit_t")
    flat = {"method": "dino", "backbone": "vit_t", "task": "knn", "data": "synthetic", "mpp": 0.7, "seed": 3}
    assert flat.items() <= wandb_server.config.items()
    assert wandb_server.config["batch_size"] == 16
    assert wandb_server.config["config"]["training"]["epochs"] == plan.cfg.training.epochs
    assert wandb_server.curve("loss") == {1: [1.0], 2: [0.5], 3: [pytest.approx(1 / 3)]}
    ((_, table),) = _named(wandb_server.files, "media/table/knn/scores")
    content = json.loads(table)
    first = dict(zip(content["columns"], content["data"][0], strict=True))
    assert [first[name] for name in ("encoder", "low", "high")] == pytest.approx([0.9, 0.87, 0.93])
    assert [first[f"colour{end}"] for end in ("", " low", " high")] == pytest.approx([0.8, 0.77, 0.83])
    assert len(_named(wandb_server.files, "media/table/knn/confusion/")) == 6  # subjects x protocols
    assert len(_named(wandb_server.files, "media/images/knn/attention/")) == 2
    assert len(_named(wandb_server.files, "media/images/knn/curves/")) == 1  # none from outside of the folder
    assert all(body[:2] == b"\xff\xd8" for name, body in wandb_server.files.items() if name.endswith(".jpg"))
    (artifact,) = [each for each in wandb_server.artifacts if each["artifactTypeName"] == "encoder"]
    assert artifact["artifactCollectionName"] == Path(encoder).name
    assert json.loads(artifact["metadata"]) == {"method": "dino", "mpp": 0.5}


def _named(files: dict[str, bytes], beginning: str) -> list[tuple[str, bytes]]:
    return [(name, body) for name, body in files.items() if name.startswith(beginning)]


def test_a_training_that_makes_steps_again_sends_none_of_them_twice(
    wandb_server: Any, tmp_path: Path
) -> None:
    for first in (1, 3):  # killed after step 4, whose checkpoint was of step 2
        logger = wandb_logger(folder=tmp_path / "w", **START)
        for step in range(first, 5 if first == 1 else 8):
            logger.log_metrics({"loss": 10.0 * step}, step=step)
            if step == 6:
                logger.log_metrics({"knn": 0.5}, step=step)  # of the same step, from elsewhere
        wandb.finish()
    _sync(tmp_path / "w", wandb_server, n_runs=2)
    assert wandb_server.curve("loss") == {step: [10.0 * step] for step in range(1, 8)}
    assert wandb_server.curve("knn") == {6: [0.5]}
    assert {run["name"] for run in wandb_server.runs[::2]} == {"bbbbbbbbbb"}
    for torn in (b"{", b"[1]", b'{"loss": "x"}'):
        (tmp_path / "w" / "wandb" / "sent-bbbbbbbbbb.json").write_bytes(torn)
        assert ours._read(tmp_path / "w" / "wandb" / "sent-bbbbbbbbbb.json") == {}


def test_what_is_not_written_anywhere_does_not_count_as_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = wandb_logger(folder=tmp_path / "w", **START)
    assert logger is not None
    logger.log_metrics({"loss": 1.0}, step=1)
    assert not logger.sent.exists()


def test_the_jobs_of_a_sweep_have_its_group_and_others_that_of_their_encoder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    groups = []
    for number, sweep in enumerate(["", "2026-01-01_10-00-00"]):
        if sweep:
            monkeypatch.setenv("HISTO_SSL_SWEEP", sweep)
        made = instantiate(OmegaConf.load(CONF / "wandb.yaml"))
        logger = made(folder=tmp_path / "w", **{**WORDS, "run_id": str(number)})
        groups.append(logger.experiment.group)
    assert groups == ["dino-vit_t", "2026-01-01_10-00-00"]


def test_ranks_other_than_0_start_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert wandb_logger(folder=tmp_path / "w", **START) is None
    assert not (tmp_path / "w").exists()


def test_trouble_in_the_middle_of_a_run_is_one_warning_and_nothing_more_is_sent(tmp_path: Path) -> None:
    logger = wandb_logger(folder=tmp_path / "w", **START)
    assert logger is not None
    asked: list[int] = []

    def fail(step: int) -> None:
        asked.append(step)
        raise ConnectionResetError("Connection lost")

    with pytest.warns(UserWarning, match=r"W&B takes no more of this run \(Connection lost\)") as warned:
        logger.send(lambda: fail(1))
    logger.send(lambda: fail(2))  # a warning would be an error here
    assert (asked, len(warned)) == ([1], 1)
    logger.log_metrics({"loss": 1.0}, step=3)
    assert not logger.sent.exists()


def test_a_server_that_goes_away_does_not_keep_a_run_from_ending(
    wandb_server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ours, "FINISH_S", 3.0)
    for name, value in wandb_server.environment.items():
        monkeypatch.setenv(name, value)
    logger = wandb_logger(folder=tmp_path / "w", **START)
    assert logger is not None
    logger.log_metrics({"loss": 1.0}, step=1)
    wandb_server.shutdown()
    wandb_server.server_close()
    started = time.monotonic()
    logger.log_metrics({"loss": 1.0}, step=2)
    assert time.monotonic() - started < 1
    wandb.finish()
    assert time.monotonic() - started < 20  # of which 3 s wait for the server


def test_a_server_that_was_never_there_does_not_keep_a_run_from_starting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ours, "START_S", 2.0)
    for name, value in {"BASE_URL": "http://127.0.0.1:9", "API_KEY": "x" * 40, "MODE": "online"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    started = time.monotonic()
    with pytest.warns(UserWarning, match="W&B is not to be reached .*: logging offline, `wandb sync`"):
        logger = wandb_logger(folder=tmp_path / "w", **START)
    assert time.monotonic() - started < 20
    assert logger is not None
    assert len(list((tmp_path / "w" / "wandb").glob("offline-run-*-bbbbbbbbbb"))) == 1


def test_an_offline_run_holds_the_plots_of_predicted_numbers(fake_runs: Any, tmp_path: Path) -> None:
    encoder = fake_runs.pretraining()
    names = {"subject": "encoder", "protocol": "ridge", "metric": "mse", "label": ""}
    fake_runs.result(
        encoder,
        "tiles/t",
        values={},
        predictions="subject,protocol,truth,predicted\nencoder,ridge,0.5,0.25\nencoder,ridge,1,0.75\n",
        scores=[{**names, "value": 0.0625, "low": None, "high": None, "chance": 0.1}],
        **{"confusion": {}, "classes": [], "primary": ["ridge", "mse"], "task": "breastpathq"},
    )
    logger = wandb_logger(folder=tmp_path / "w", **START)
    log_results(logger, runs_dir=fake_runs.path, encoder_folder=fake_runs.path / encoder)
    assert logger is not None
    assert logger.experiment.summary["breastpathq/encoder"] == 0.0625
    wandb.finish()
    (run,) = (tmp_path / "w" / "wandb").glob("offline-run-*-bbbbbbbbbb")
    assert len(list(run.glob("files/media/images/breastpathq/predicted/*.jpg"))) == 1


def test_the_configuration_sent_to_wandb_holds_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "5ecre7" * 7)
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = {"data": {"root": "s3://key:5ecre7@bucket/"}, "note": f"key {'5ecre7' * 7}"}
    logger = wandb_logger(folder=tmp_path / "w", **{**START, "config": config})
    assert logger is not None
    assert dict(logger.experiment.config) == {"data": {"root": "s3://***@bucket/"}, "note": "key ***"}
    wandb.finish()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert [path.name for path in files if b"5ecre7" in path.read_bytes()] == []


def test_a_run_that_is_open_is_taken_up_again_and_another_is_closed(tmp_path: Path) -> None:
    first = wandb_logger(folder=tmp_path / "w", **START)
    again = wandb_logger(folder=tmp_path / "w", **START)
    other = wandb_logger(folder=tmp_path / "w", **{**START, "run_id": "cccccccccc"})
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.experiment is again.experiment
    assert (again.version, other.experiment.id) == ("bbbbbbbbbb", "cccccccccc")


def test_trouble_at_wandb_is_one_warning_and_no_logger(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(**_: Any) -> None:
        raise wandb.errors.UsageError("bad key")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.warns(UserWarning, match="W&B is off for this run: bad key") as warned:
        assert wandb_logger(folder=tmp_path, **START) is None
    assert len(warned) == 1


def test_a_server_out_of_reach_turns_logging_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    start, modes = wandb.init, []

    def unreachable(**words: Any) -> Any:
        modes.append(words["mode"])
        if words["mode"] == "online":
            raise wandb.errors.CommError("timed out")
        return start(**words)

    monkeypatch.setattr(wandb, "init", unreachable)
    with pytest.warns(UserWarning, match="not to be reached") as warned:
        logger = wandb_logger(folder=tmp_path / "w", **START)
    assert len(warned) == 1
    assert logger is not None
    assert modes == ["online", "offline"]


def test_other_loggers_are_left_alone(fake_runs: Any, tmp_path: Path) -> None:
    encoder = fake_runs.pretraining()
    for logger in (None, CSVLogger(tmp_path / "csv")):
        log_results(logger, runs_dir=fake_runs.path, encoder_folder=fake_runs.path / encoder)
    assert not (tmp_path / "csv").exists()
