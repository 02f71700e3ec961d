"""A training small enough to be run many times in a test: 2 epochs of 4 steps, some 30 ms each.

As a program (`python tiny.py FOLDER N_WORKERS`) it trains in a folder that a test prepared.
"""

import contextlib
import json
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer, seed_everything

from histo_ssl.data.base import TileSource
from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.data.loading import Loading
from histo_ssl.methods.base import SSLMethod
from histo_ssl.parallel import ranks
from histo_ssl.signals import Stopped, answered_by, stop
from histo_ssl.training.fit import METRICS, Limits, Recording, train
from histo_ssl.training.recording import read_metrics
from histo_ssl.views.compose import Views

N_STEPS = 8
IN_PROCESS = Loading(n_workers=0, start_method="fork", timeout_s=0)
STRICT = Limits(max_failed_tiles=0.0, on_nonfinite="stop", max_nonfinite=1)


class Diary(Callback):
    """Notes the tiles of every batch, by its number in the whole training."""

    def __init__(self) -> None:
        self.ids: dict[int, list[int]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.ids[batch_idx] = batch["ids"].tolist()


class Journal(Callback):
    """Appends the tiles of every step to a file, where they outlive a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"batch": batch_idx, "ids": batch["ids"].tolist()}) + "\n")


class Poison(Callback):
    """Makes the views of a batch, by its number, and of a rank not finite."""

    def __init__(self, *batches: int, rank: int = 0) -> None:
        self.batches, self.rank = batches, rank

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx in self.batches and trainer.global_rank == self.rank:
            batch["views"][0][0] = torch.nan


class Odd:
    """A source of tiles whose rows, some of them, do something else than being read."""

    def __init__(self, source: TileSource, odd: dict[int, Callable[[], None]]) -> None:
        self.source, self.odd = source, odd
        self.tile_px, self.mpp = source.tile_px, source.mpp

    def __len__(self) -> int:
        return len(self.source)

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.source, name)

    def read(self, i: int) -> Any:
        self.odd.get(i, nothing)()
        return self.source.read(i)


def nothing() -> None:
    pass


def tear() -> None:
    raise ValueError("torn.svs: cannot be read")


class TearOnRank:
    """Fails on one rank alone."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self) -> None:
        if int(os.environ["LOCAL_RANK"]) == self.rank:
            tear()


class At(Callback):
    """Does something when a step is over: raises an error, sends a signal."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.action()


def run_training(
    folder: Path,
    *,
    source: TileSource,
    views: Views,
    method: dict[str, Any],
    callbacks: Sequence[Callback] = (),
    every: int = 3,
    accumulate: int = 1,
    epochs: int = 2,
    loading: Loading = IN_PROCESS,
    limits: Limits = STRICT,
    **settings: Any,
) -> SSLMethod:
    folder.mkdir(exist_ok=True)
    seed_everything(0, verbose=False)
    data = TileDataModule(
        source=source,
        rows=np.arange(len(source)),
        views=views,
        batch_size=4,
        epochs=epochs,
        accumulate=accumulate,
        seed=0,
        loading=loading,
    )
    module: SSLMethod = instantiate(method, _convert_="all")
    logger = settings.pop("logger", None)

    def trainer(**given: Any) -> Trainer:
        given["callbacks"] = [*callbacks, *given["callbacks"]]
        fixed = {"accelerator": "cpu", "devices": 1, "accumulate_grad_batches": accumulate}
        return Trainer(default_root_dir=str(folder), **{**fixed, **settings, **given})

    recording = Recording(checkpoint_every=every, log_every=1)
    train(
        module,
        data,
        folder=folder,
        trainer=trainer,
        logger=logger,
        online=None,
        recording=recording,
        limits=limits,
    )
    return module


def timeless(folder: Path) -> list[dict[str, float]]:
    """What was logged, without what a clock measured."""
    return [
        {name: value for name, value in line.items() if name not in ("data_s", "step_s")}
        for line in read_metrics(folder / METRICS)
    ]


def read_journal(path: Path) -> dict[int, list[int]]:
    """Tiles by batch, in order; a batch that was made again counts once, and must have been the same."""
    read: dict[int, list[int]] = {}
    for line in path.read_text().splitlines():
        batch, ids = json.loads(line).values()
        assert read.setdefault(batch, ids) == ids
    return dict(sorted(read.items()))


def _meeting(setting: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
    """Rank 0 serves the store at which the ranks meet, as `stages.run` has it do."""
    asked = {name: setting[name] for name in ("devices", "strategy") if name in setting}
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **asked)
    return ranks.serve(trainer) if trainer.global_rank == 0 else contextlib.nullcontext()


def main(folder: Path, *, n_workers: int) -> None:
    """Train in a folder that holds `setting.pickle`; what was seen goes to `ids.jsonl`."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # as `stages.run` does
    setting = pickle.loads((folder / "setting.pickle").read_bytes())
    loading = Loading(n_workers=n_workers, start_method="fork", timeout_s=60 if n_workers else 0)
    callbacks = [*setting.pop("callbacks", []), Journal(folder / "ids.jsonl")]
    with answered_by(stop), _meeting(setting):
        try:
            method = run_training(folder, callbacks=callbacks, loading=loading, **setting)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            sys.exit(stopped.status)
    torch.save(method.state_dict(), folder / "weights.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Lightning's; standard error is compared with what we say
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), n_workers=int(sys.argv[2]))
