"""What surviving costs a training: `python benchmarks/safety.py [n_rounds]`, tables on standard output.

One training of DINO on ViT-T takes its steps in turn without the checks, with them, and with what skipping
needs, so that whatever else the machine does hits all three alike. Each round of three gives a ratio, of
processor time, which a busy machine blurs less than time on the wall. Eight tiles to a step: what the checks
cost does not grow with the batch, so larger ones pay less. Where the difference of two steps drowns in their
noise, the last row tells: the time inside of the checks themselves, taken in place.

The checks: losses and gradients looked at, flags in the reduction, signals, counts of failed tiles and of
skipped steps, tiles replaced. Then the state is written in turn by Lightning and by us, and ours is checked.
"""

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO
from omegaconf import OmegaConf
from PIL import Image

from histo_ssl.config.choices import conf_dir
from histo_ssl.config.sizing import sized
from histo_ssl.data.base import TileSource
from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.data.loading import Loading
from histo_ssl.data.sources import open_source
from histo_ssl.folders.artifacts import publish
from histo_ssl.methods.base import SSLMethod
from histo_ssl.methods.dino import DINO
from histo_ssl.optim.clipping import clip_each
from histo_ssl.parallel.distributed import world_size
from histo_ssl.slides.grid import Tiling
from histo_ssl.training.checkpoints import Checkpoints, KeepCheckpoints
from histo_ssl.training.failures import FailedTiles, SkippedSteps
from histo_ssl.training.interruption import Interruption

VARIANTS = ("without", "with", "with skipping")
N_TILES, SIDE_PX, BATCH, N_WARM_UP = 512, 64, 8, 3


class InTurn(DINO):
    """DINO whose steps are made without our checks, with them, and so that they could be taken back."""

    variant = 0

    def training_step(self, batch: Any) -> Any:
        """One of the three."""
        self.max_skipped = 10 if self.variant == 2 else 0
        if self.variant:
            return super().training_step(batch)
        n_tiles = len(batch["ids"])
        self.tiles_per_step = n_tiles * world_size()
        out = self.step(batch["views"])
        self.log_dict(
            {name: x.detach() for name, x in out.items()}, on_step=True, on_epoch=False, batch_size=n_tiles
        )
        return out["loss"]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """One of the three."""
        if self.variant:
            super().on_before_optimizer_step(optimizer)
            return
        self.optim.schedule(optimizer, progress=self.progress, tiles_per_step=self.tiles_per_step)
        clip_each(self.parameters(), max_norm=self.optim.clip_norm)


class Turns(Callback):
    """Takes the time of every step and makes the next one another variant."""

    def __init__(self) -> None:
        self.seconds: list[tuple[int, float]] = []
        self.alone: list[tuple[int, float]] = []  # of them inside of the checks
        self.began = self.inside = 0.0

    def timed(self, check: Callable[..., Any]) -> Callable[..., Any]:
        """The check, whose time is taken."""

        def take(*args: Any) -> Any:
            began = time.process_time()
            answer = check(*args)
            self.inside += time.process_time() - began
            return answer

        return take

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:  # noqa: ARG002 (hooks)
        """Start the clock."""
        self.began = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:  # noqa: ARG002
        """Take the time."""
        now = time.process_time()
        self.seconds.append((pl_module.variant, now - self.began))
        self.alone.append((pl_module.variant, self.inside))
        self.inside = 0.0
        pl_module.variant = (pl_module.variant + 1) % len(VARIANTS)
        self.began = time.process_time()


def plainly(source: TileSource, wanted: list[tuple[int, int]]) -> dict[str, Any]:
    """A batch of tiles, read as if nothing could go wrong."""
    tiles = np.stack([source.read(row) for row, _ in wanted])
    ids, epochs = torch.tensor(wanted).unbind(dim=1)
    return {"tiles": torch.from_numpy(tiles), "ids": ids, "epoch": epochs, "failed": {}}


class Read:
    """Reads as the step under way is made, plainly or so that tiles could be replaced."""

    def __init__(self, data: TileDataModule, method: InTurn) -> None:
        self.source, self.checked, self.method = data.source, data.tiles, method

    def __getitems__(self, wanted: list[tuple[int, int]]) -> Any:
        """A batch of tiles."""
        if self.method.variant:
            return self.checked.__getitems__(wanted)
        return plainly(self.source, wanted)


def in_turn(callback: Callback, turns: Turns) -> Callback:
    """The callback, with hooks that are timed, and do nothing in steps without checks."""
    for name in ("on_train_batch_start", "on_train_batch_end"):
        hook = turns.timed(getattr(callback, name))

        def unless_bare(trainer: Any, method: Any, *args: Any, hook: Any = hook) -> None:
            if method.variant:
                hook(trainer, method, *args)

        setattr(callback, name, unless_bare)
    return callback


def training(folder: Path, *, n_rounds: int) -> tuple[Trainer, SSLMethod, Turns]:
    """The training, done."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("config", overrides=["method=dino", "backbone=vit_t"])
    n_steps = len(VARIANTS) * (N_WARM_UP + n_rounds)
    source = tiles(folder)
    data = TileDataModule(
        source=source,
        rows=np.arange(len(source)),
        views=instantiate(cfg.views),
        batch_size=BATCH,
        epochs=-(-n_steps // (N_TILES // BATCH)),
        accumulate=1,
        seed=0,
        loading=Loading(n_workers=0, start_method="fork", timeout_s=0),
    )
    method = InTurn(**parts(cfg))
    turns = Turns()
    method._begin = turns.timed(method._begin)  # type: ignore[method-assign]
    method._over_ranks = turns.timed(method._over_ranks)  # type: ignore[method-assign]
    data.tiles = Read(data, method)  # type: ignore[assignment]
    keeping = KeepCheckpoints(Checkpoints(folder), every_n_steps=10**9, steps_per_epoch=10**9)
    checks = [FailedTiles(n_tiles=N_TILES, max_failed_tiles=0.01), SkippedSteps(0), Interruption(keeping)]
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=n_steps,
        max_epochs=-1,
        logger=False,
        callbacks=[*(in_turn(check, turns) for check in checks), turns],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    trainer.fit(method, data)
    return trainer, method, turns


def parts(cfg: Any) -> dict[str, Any]:
    """Arguments of DINO, made by the configuration."""
    config, _ = sized(OmegaConf.to_container(cfg.method, resolve=True), n_tiles=N_TILES)
    made = instantiate(config, _partial_=True, _convert_="all")
    return {**made.keywords, "backbone": instantiate(cfg.backbone)}


def tiles(folder: Path) -> Any:
    """A source of random tiles in files."""
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (N_TILES, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    for i, tile in enumerate(pixels):
        Image.fromarray(tile).save(folder / "images" / f"{i:04}.png")
    values = OmegaConf.load(conf_dir() / "data" / "kind" / "images.yaml")
    data = instantiate(values, root=str(folder / "images"), max_failed=0.0)
    tiling = Tiling(size_px=None, mpp=1.0, stride_px=None, min_tissue=0.0, tissue=None)
    data.tile(tiling, folder=folder, home=folder, n_processes=1, slide_timeout_s=60)
    return open_source(folder)


def steps_table(turns: Turns) -> str:
    """Median processor time per step of each variant, and the median of the rounds' ratios."""
    seconds = np.array([s for _, s in turns.seconds[len(VARIANTS) * N_WARM_UP :]])
    rounds = seconds[: len(seconds) // len(VARIANTS) * len(VARIANTS)].reshape(-1, len(VARIANTS))
    lines = [
        "| step | ms, median | ratio to without, median | 95 % interval of that median |",
        "|---|---|---|---|",
    ]
    rng = np.random.default_rng(0)
    for i, name in enumerate(VARIANTS):
        ratios = rounds[:, i] / rounds[:, 0]
        medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
        low, high = np.quantile(medians, [0.025, 0.975])
        ms = 1000 * np.median(rounds[:, i])
        lines.append(f"| {name} | {ms:.1f} | {np.median(ratios):.4f} | {low:.4f} to {high:.4f} |")
    for i, name in list(enumerate(VARIANTS))[1:]:
        inside = 1000 * np.median([s for variant, s in turns.alone if variant == i])
        share = inside / (1000 * np.median(rounds[:, 0]))
        lines.append(f"| inside of the checks, {name} | {inside:.3f} | {share:.4f} of a step | |")
    return "\n".join(lines)


def checkpoints_table(trainer: Trainer, folder: Path, *, n_times: int = 7) -> str:
    """Median seconds of writing, with fsync and rename, and of checking one checkpoint."""
    state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    ours, theirs = Checkpoints(folder), TorchCheckpointIO()
    seconds: dict[str, list[float]] = {"Lightning's write": [], "ours": [], "our check of one": []}
    for _ in range(n_times):
        began = time.perf_counter()
        theirs.save_checkpoint(state, folder / ".tmp-theirs")
        publish(folder / ".tmp-theirs", folder / "theirs.ckpt")
        seconds["Lightning's write"].append(time.perf_counter() - began)
        began = time.perf_counter()
        ours.save_checkpoint(state, ours.last)
        seconds["ours"].append(time.perf_counter() - began)
        began = time.perf_counter()
        assert ours.find() == ours.last
        seconds["our check of one"].append(time.perf_counter() - began)
    size = ours.last.stat().st_size / 1e6
    lines = [f"| checkpoint of {size:.0f} MB | s, median |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {np.median(each):.3f} |" for name, each in seconds.items()])


def main() -> None:
    """Print both tables."""
    n_rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        trainer, _, turns = training(Path(name), n_rounds=n_rounds)
        print(steps_table(turns))
        print()
        print(checkpoints_table(trainer, Path(name)))


if __name__ == "__main__":
    main()
