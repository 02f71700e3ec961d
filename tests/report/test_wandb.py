"""Weights & Biases, without its server."""

import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf

from histo_ssl.report.quiet import no_logger
from histo_ssl.report.wandb import is_logged_in, log_results, wandb_logger, wanted_mode

CONF = Path(__file__).resolve().parents[2] / "conf" / "logger"
WORDS = {"run_id": "bbbbbbbbbb", "name": "n", "group": "dino-vit_t", "tags": ["dino"], "config": {"seed": 0}}
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
    assert set(inspect.signature(wandb_logger).parameters) == {*words, "project"}
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
    logger = wandb_logger(project="p", folder=tmp_path / "w", **WORDS)
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
    logger = wandb_logger(project="p", folder=tmp_path / "w", **{**WORDS, "config": config})
    assert logger is not None
    assert dict(logger.experiment.config) == {"data": {"root": "s3://***@bucket/"}, "note": "key ***"}
    wandb.finish()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert [path.name for path in files if b"5ecre7" in path.read_bytes()] == []


def test_a_run_that_is_open_is_taken_up_again_and_another_is_closed(tmp_path: Path) -> None:
    first = wandb_logger(project="p", folder=tmp_path / "w", **WORDS)
    again = wandb_logger(project="p", folder=tmp_path / "w", **WORDS)
    other = wandb_logger(project="p", folder=tmp_path / "w", **{**WORDS, "run_id": "cccccccccc"})
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
        assert wandb_logger(project="p", folder=tmp_path, **WORDS) is None
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
        logger = wandb_logger(project="p", folder=tmp_path / "w", **WORDS)
    assert len(warned) == 1
    assert logger is not None
    assert modes == ["online", "offline"]


def test_other_loggers_are_left_alone(fake_runs: Any, tmp_path: Path) -> None:
    encoder = fake_runs.pretraining()
    for logger in (None, CSVLogger(tmp_path / "csv")):
        log_results(logger, runs_dir=fake_runs.path, encoder_folder=fake_runs.path / encoder)
    assert not (tmp_path / "csv").exists()
