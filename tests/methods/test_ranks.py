"""Every method: two ranks of four tiles are one rank of eight, in loss, gradients and buffers."""

import contextlib
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra.utils import instantiate
from lightning import Callback, Trainer, seed_everything
from torch import Tensor
from torch.distributed import TCPStore

from histo_ssl.data.base import TileSource
from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.data.loading import Loading
from histo_ssl.methods.base import SSLMethod
from histo_ssl.parallel.distributed import all_reduce_mean
from histo_ssl.training.checkpoints import LAST
from histo_ssl.training.fit import METRICS, Limits, Recording, train
from histo_ssl.training.recording import read_metrics

CASES = {
    "dino": ("dino", "test_vit", ["views.kinds.local.count=2"]),
    "dino-centre": ("dino", "test_resnet", ["method.teacher.n_sinkhorn=0"]),
    "simclr": ("simclr", "test_vit", []),
    "simclr-resnet": ("simclr", "test_resnet", []),
    "simclr-timm-act": ("simclr", "test_efficientnet", []),
    "moco-shuffled": ("moco", "test_resnet", []),
    "moco-synchronised": ("moco", "test_resnet", ["method.norm_tiles=null"]),
    "mocov3": ("mocov3", "test_vit", []),
    "mocov3-resnet": ("mocov3", "test_resnet", []),
    "byol": ("byol", "test_resnet", []),
    "mae": ("mae", "test_vit", []),
}
SIDES = {"dino": (64, 64, 32, 32), "mae": (64,)}
THROUGH_LIGHTNING = ["dino", "simclr-resnet", "moco-shuffled", "mocov3", "byol", "mae"]  # each method once
Config = dict[str, Any]
N_TILES, N_STEPS = 8, 3

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def configs(tiny_method: Callable[..., Config]) -> dict[str, Config]:
    return {
        case: {"name": name, **tiny_method(name, *overrides, backbone=backbone)}
        for case, (name, backbone, overrides) in CASES.items()
    }


@pytest.fixture(scope="module")
def source(image_source: Callable[[int], TileSource]) -> TileSource:
    return image_source(17)  # two steps to the epoch


@pytest.fixture(scope="module")
def two_ranks(
    configs: dict[str, Config], source: TileSource, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder in which two processes have trained by hand and through Lightning; most of it is importing."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s, socket.socket() as t:
        s.bind(("127.0.0.1", 0))
        t.bind(("127.0.0.1", 0))
        ports = s.getsockname()[1], t.getsockname()[1]
    mp.spawn(one_of_two, args=(ports, configs, source, folder), nprocs=2)
    return folder


def one_of_two(
    number: int, ports: tuple[int, int], configs: dict[str, Config], source: TileSource, folder: Path
) -> None:
    port, port_of_store = ports
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}  # as torchrun
    os.environ.update({name: str(value) for name, value in {**place, **elastic}.items()})
    dist.init_process_group("gloo")
    out = {case: stepped(config, rank=number, n_ranks=2) for case, config in configs.items()}
    torch.save(out, folder / f"{number}.pt")
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(port_of_store)
    _store = TCPStore("127.0.0.1", port_of_store, is_master=number == 0, wait_for_workers=False)
    for n, case in enumerate(THROUGH_LIGHTNING):
        config = gentle(configs[case])
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(2 * n)
        with contextlib.suppress(StoppedError):
            fitted(config, source, folder / case, n_ranks=2, stop_after=3)
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(2 * n + 1)
        fitted(config, source, folder / case, n_ranks=2)


# by hand: gradients are seen, and averaged over ranks as data parallelism does


def stepped(config: Config, *, rank: int, n_ranks: int) -> dict[str, Tensor]:
    """Losses, the first step's gradients and the whole state after some steps of SGD on one rank's tiles."""
    torch.manual_seed(0)
    method: SSLMethod = instantiate(config["method"], _convert_="all")
    method.configure_model()
    method.total_steps, method.steps_per_epoch, method.log_every = 10, 5, 100
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=1e-4)
    out: dict[str, Tensor] = {}
    for n in range(N_STEPS):
        generator = torch.Generator().manual_seed(n)
        sides = SIDES.get(config["name"], (64, 64))
        views = [torch.randn(N_TILES, 3, s, s, generator=generator).chunk(n_ranks)[rank] for s in sides]
        loss = method.step(views)["loss"]
        optimizer.zero_grad()
        loss.backward()
        for name, p in method.named_parameters():
            if p.grad is not None:
                p.grad = all_reduce_mean(p.grad)
                out.setdefault(f"gradient of {name}", p.grad.clone())
        optimizer.step()
        method.after_step(n / 10)
        out[f"loss {n}"] = all_reduce_mean(loss)
    return {**out, **{f"final {name}": x.clone() for name, x in method.state_dict().items()}}


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def check_near(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], *, share: float, floor: float = 1e-2
) -> None:
    """Every tensor's distance, relative to its own size plus a floor, is below a share.

    The floor is for what is zero but for rounding, such as the gradient of a bias before a BatchNorm.
    """
    assert ours.keys() == theirs.keys()
    sizes = {name: rms(x) for name, x in theirs.items() if name.startswith("gradient")}
    for name, x in theirs.items():
        least = 1e-2 * max(sizes.values()) if name in sizes else floor
        distance = rms(ours[name].double() - x.double()) / (rms(x) + least)
        assert distance < share, f"{name}: {distance:.1e}"


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_step_as_one(configs: dict[str, Config], two_ranks: Path, case: str) -> None:
    ranks = [torch.load(two_ranks / f"{number}.pt", weights_only=True)[case] for number in range(2)]
    assert all(torch.equal(x, ranks[1][name]) for name, x in ranks[0].items())
    # seen: 1e-5; without a gather's gradient, or with a rank's own statistics, over 1e-1
    check_near(ranks[1], stepped(configs[case], rank=0, n_ranks=1), share=1e-4)


# through Lightning, stopped in the middle and resumed


class StoppedError(Exception):
    pass


class StopAfter(Callback):
    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.n_steps:
            raise StoppedError


def fitted(
    config: Config,
    source: TileSource,
    folder: Path,
    *,
    n_ranks: int,
    strategy: Any = "ddp",
    stop_after: int = 0,
) -> SSLMethod:
    folder.mkdir(exist_ok=True, parents=True)
    seed_everything(0, verbose=False)
    data = TileDataModule(
        source=source,
        rows=np.arange(len(source)),
        views=instantiate(config["views"]),
        batch_size=N_TILES,
        epochs=3,
        accumulate=1,
        seed=0,
        loading=Loading(n_workers=0, start_method="fork", timeout_s=0),
    )
    method: SSLMethod = instantiate(config["method"], _convert_="all")

    def trainer(callbacks: list[Callback], **settings: Any) -> Trainer:
        stop = [StopAfter(stop_after)] if stop_after else []
        ranks = {"devices": n_ranks, "strategy": strategy if n_ranks > 1 else "auto"}
        return Trainer(
            accelerator="cpu", callbacks=callbacks + stop, default_root_dir=str(folder), **ranks, **settings
        )

    recording = Recording(checkpoint_every=2, log_every=1)
    limits = Limits(max_failed_tiles=0.0, on_nonfinite="stop", max_nonfinite=1)
    train(
        method,
        data,
        folder=folder,
        trainer=trainer,
        logger=None,
        online=None,
        recording=recording,
        limits=limits,
    )
    return method


def gentle(config: Config) -> Config:
    """With SGD and a low rate: Adam would blow up gradients that are zero but for rounding."""
    sgd = {"_target_": "torch.optim.SGD", "_partial_": True}
    optim = {**config["method"]["optim"], "optimizer": sgd, "lr_per_256": 0.01}
    return {**config, "method": {**config["method"], "optim": optim}}


def trained(folder: Path) -> tuple[dict[str, Tensor], list[float]]:
    checkpoint = torch.load(folder / LAST, weights_only=True)
    return checkpoint["state_dict"], [line["loss"] for line in read_metrics(folder / METRICS)]


@pytest.mark.parametrize("case", THROUGH_LIGHTNING)
def test_two_ranks_of_lightning_that_stopped_and_went_on_train_as_one(
    configs: dict[str, Config], source: TileSource, two_ranks: Path, tmp_path: Path, case: str
) -> None:
    fitted(gentle(configs[case]), source, tmp_path, n_ranks=1)
    (two, two_losses), (one, one_losses) = trained(two_ranks / case), trained(tmp_path)
    assert len(one_losses) == 6
    assert two_losses == pytest.approx(one_losses, rel=1e-3)
    check_near(two, one, share=1e-3)
