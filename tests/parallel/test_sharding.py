"""Weights shared out over two processes on the CPU: every method trains as it does under data parallelism."""

import contextlib
import importlib.util
import os
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra.utils import instantiate
from torch import Tensor
from torch.distributed import TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from histo_ssl.data.base import TileSource
from histo_ssl.encode import load_encoder
from histo_ssl.methods.base import SSLMethod
from histo_ssl.optim.clipping import clip_each
from histo_ssl.parallel.distributed import all_reduce_mean, all_reduce_sum
from histo_ssl.parallel.sharding import FullySharded, local, norms, shard

pytestmark = pytest.mark.slow
Config = dict[str, Any]


def two_rank_tests() -> ModuleType:
    """The module of the tests of methods on two ranks."""
    path = Path(__file__).parents[1] / "methods" / "test_ranks.py"
    spec = importlib.util.spec_from_file_location("test_ranks_of_methods", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


M = two_rank_tests()
OPTIMISERS = ["lars", "adamw"]  # with states, and norms of their own
CASES = M.THROUGH_LIGHTNING


@pytest.fixture(scope="module")
def configs(tiny_method: Callable[..., Config]) -> dict[str, Config]:
    return {
        case: M.gentle({"name": name, **tiny_method(name, *overrides, backbone=backbone)})
        for case, (name, backbone, overrides) in M.CASES.items()
        if case in CASES
    } | {
        case: {"name": "byol", **tiny_method("byol", f"method/optim={case}", backbone="test_resnet")}
        for case in OPTIMISERS
    }


@pytest.fixture(scope="module")
def source(image_source: Callable[[int], TileSource]) -> TileSource:
    return image_source(17)


@pytest.fixture(scope="module")
def trained(configs: dict[str, Config], source: TileSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two processes have trained each method with shared weights, and stopped once."""
    folder = tmp_path_factory.mktemp("sharded")
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
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**place, **elastic}.items()})
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    torch.save(
        {case: first_gradients(c, rank=number, mesh=mesh) for case, c in configs.items()},
        folder / f"{number}.pt",
    )
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(port_of_store)
    _store = TCPStore("127.0.0.1", port_of_store, is_master=number == 0, wait_for_workers=False)
    for n, (case, config) in enumerate(configs.items()):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(2 * n)
        with contextlib.suppress(M.StoppedError):
            M.fitted(config, source, folder / case, n_ranks=2, strategy=FullySharded(), stop_after=3)
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(2 * n + 1)
        method = M.fitted(config, source, folder / case, n_ranks=2, strategy=FullySharded())
        torch.save(method.encoder().state_dict(), folder / case / f"encoder{number}.pt")


def first_gradients(config: Config, *, rank: int, mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """Loss and whole gradients of a step on this rank's half of the tiles; on all of them without a mesh."""
    torch.manual_seed(0)
    method: SSLMethod = instantiate(config["method"], _convert_="all")
    method.configure_model()
    if mesh is not None:
        n_whole = sum(p.numel() for p in method.parameters())
        shard(method, mesh)
        n_here = torch.tensor([sum(local(p).numel() for p in method.parameters())])
        assert all_reduce_sum(n_here).item() == n_whole
        assert n_here.item() < 0.55 * n_whole  # rank 0 has the larger halves
    method.total_steps, method.steps_per_epoch, method.log_every = 10, 5, 100
    generator = torch.Generator().manual_seed(0)
    n_ranks = 1 if mesh is None else 2
    sides = M.SIDES.get(config["name"], (64, 64))
    views = [torch.randn(8, 3, s, s, generator=generator).chunk(n_ranks)[rank] for s in sides]
    loss = method.step(views)["loss"]
    loss.backward()
    found = {"loss": all_reduce_mean(loss)}
    for name, p in method.named_parameters():
        if p.grad is not None:
            found[f"gradient of {name}"] = (
                p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad.clone()
            )
    grads = [p.grad for p in method.parameters() if p.grad is not None]
    found["norms"] = norms(grads)
    found["largest"] = clip_each(method.parameters(), max_norm=0.01)
    found["clipped"] = norms(grads)
    return found


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_their_norms_are_those_of_whole_weights(
    configs: dict[str, Config], trained: Path, case: str
) -> None:
    both = [torch.load(trained / f"{rank}.pt", weights_only=True)[case] for rank in range(2)]
    assert all(torch.equal(x, both[1][name]) for name, x in both[0].items())
    M.check_near(both[0], first_gradients(configs[case], rank=0, mesh=None), share=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_shared_weights_train_as_whole_ones_through_a_stop(
    configs: dict[str, Config], source: TileSource, trained: Path, tmp_path: Path, case: str
) -> None:
    one = M.fitted(configs[case], source, tmp_path, n_ranks=1)
    (ours, our_losses), (theirs, losses) = M.trained(trained / case), M.trained(tmp_path)
    assert our_losses == pytest.approx(losses, rel=1e-3)
    M.check_near(ours, theirs, share=1e-3)
    encoders = [torch.load(trained / case / f"encoder{rank}.pt", weights_only=True) for rank in range(2)]
    assert encoders[0].keys() == one.encoder().state_dict().keys()
    for name, x in encoders[0].items():
        assert type(x) is torch.Tensor
        assert torch.equal(x, encoders[1][name])
    M.check_near(encoders[0], one.encoder().state_dict(), share=1e-3)


@pytest.mark.parametrize("case", OPTIMISERS)
def test_optimisers_with_states_go_on_with_them_after_a_stop(
    configs: dict[str, Config], source: TileSource, trained: Path, tmp_path: Path, case: str
) -> None:
    M.fitted(configs[case], source, tmp_path, n_ranks=1)
    shared, whole = (torch.load(path / M.LAST, weights_only=True) for path in (trained / case, tmp_path))
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (shared, whole)]
    assert states[0].keys() == states[1].keys()
    for name in states[0][0].keys() - {"step"}:
        ours, theirs = ([state[name] for state in of.values()] for of in states)
        largest = max(map(M.rms, theirs))
        for x, y in zip(ours, theirs, strict=True):
            assert x.shape == y.shape
            # a bias before a BatchNorm has a gradient of nothing but rounding
            assert M.rms(x - y) < 1e-3 * (M.rms(y) + 1e-2 * largest), name
    (_, our_losses), (_, losses) = M.trained(trained / case), M.trained(tmp_path)
    assert our_losses == pytest.approx(losses, rel=1e-3)


JOB = [
    *("-m", "histo_ssl", "method=dino", "backbone=timm", "backbone.name=test_vit"),
    "method.head={n_outputs: 32, n_hidden: 32, n_bottleneck: 16}",
    *("views.kinds.local.count=2", "training={epochs: 2, batch_size: 8}", "loader.n_workers=0"),
    *("n_processes=1", "logger=none", "log_every=1", "checkpoint_every=3"),
    *("data.n_slides=4", "data.n_patients=4", "data.size_px=800", "data.region_um=100"),
    *("tiling.stride_px=32", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"),
]


def test_the_command_line_trains_exports_and_scores_an_encoder_of_shared_weights(
    warm: Any, tmp_path: Path
) -> None:
    ended = warm.run(*JOB, "online=none", "grad_checkpointing=true", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    (path,) = tmp_path.glob("runs/pretrain/*/encoder.safetensors")
    encoder = load_encoder(path)
    assert encoder(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, encoder.card.dim)
    assert list(tmp_path.glob("runs/results/*/done.json"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "error: trainer=fsdp: scores while training goes on need the whole encoder on each rank; say "),
        (["online=none", "compile=true"], "error: trainer=fsdp: compile=true was never tried with shared "),
    ],
)
def test_what_goes_wrong_with_shared_weights_is_refused(
    warm: Any, tmp_path: Path, words: list[str], sentence: str
) -> None:
    ended = warm.run(*JOB, *words, cwd=tmp_path)
    assert (ended.returncode, ended.stderr[: len(sentence)]) == (1, sentence)
