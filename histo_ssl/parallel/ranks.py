"""The processes that train together: how they start, where they meet, what ends them when one is gone.

Rank 0 does every stage, the others join it in pretraining. They meet at a key-value store, torchrun's or one
that rank 0 serves from the start of its run; where all are on one machine, no other machine can reach it.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch.distributed as dist
from lightning import Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import ParallelStrategy
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from histo_ssl.parallel.watch import Watch

LOOPBACK = "127.0.0.1"
POLL_S = 0.5
MEET_S = {True: 60.0, False: 600.0}  # to wait for another process to start: on one machine, on several
LEAVE_S = 15.0  # to wait for another process to end
SILENCE = timedelta(minutes=10)  # NCCL's own; for a rank that hangs, one that has ended is noticed at once
CALL = "training begins"
GONE = "rank 0 has ended before pretraining; its last words say why"
NAMESPACE = Path("/proc/self/ns/pid")


def asked(trainer: Callable[..., Trainer]) -> Trainer:
    """A Trainer of which only its ranks are asked.

    Raises:
        ValueError: Lightning can't make one for this machine, as without the GPUs that were asked for.
    """
    try:
        return trainer(logger=False, enable_checkpointing=False)
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {str(error).splitlines()[0]}") from error


def check_launched(trainer: Trainer) -> None:
    """Stop where the launcher started another number of processes than the trainer is set up for.

    Raises:
        ValueError: names both; training would wait for processes that nobody starts.
    """
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        n_started = environment().world_size() if environment.detect() else trainer.world_size
        if n_started != trainer.world_size:
            raise ValueError(
                f"{n_started} processes were started, the trainer is set up for {trainer.world_size}; "
                f"give trainer=ddp trainer.devices=<processes per machine> trainer.num_nodes=<machines>"
            )


@contextlib.contextmanager
def serve(trainer: Trainer) -> Iterator[None]:
    """On rank 0: other ranks can meet this process as long as the block runs."""
    is_ours = _is_parallel(trainer) and not TorchElasticEnvironment.detect()
    _store = _served(trainer) if is_ours else None
    yield


def is_called(trainer: Trainer, name: str, *, is_done: Callable[[], bool]) -> bool:
    """Whether to train: waits, on ranks other than 0, until rank 0 begins to or has no need to.

    Args:
        trainer: says which rank of how many this is.
        name: of the training.
        is_done: says whether its result is there.

    Raises:
        ConnectionError: rank 0 has ended before either.
    """
    if is_done():
        return False
    store = _meet(trainer, name)
    while not is_done():
        try:
            if store.check([CALL]):
                return True
        except dist.DistNetworkError as error:
            if is_done():  # between two looks
                break
            raise ConnectionError(GONE) from error
        time.sleep(POLL_S)
    return False


@contextlib.contextmanager
def together(trainer: Trainer, name: str) -> Iterator[None]:
    """The process group of all ranks as long as the block runs; nothing where the strategy has none.

    Rank 0 starts the ranks that no launcher has started, and sees them end.

    Args:
        trainer: says which rank of how many this is; it trains inside of the block.
        name: of the training.

    Raises:
        ConnectionError: another rank has ended before the block did.
    """
    if not _is_parallel(trainer):
        yield
        return
    with _others(trainer) as started:
        store = _meet(trainer, name)
        if trainer.global_rank == 0:
            store.set(CALL, "")
        with Watch(_processes(store, trainer, started)) as watch:
            try:
                _join(store, trainer)
                yield
                watch.end()
                trainer.strategy.barrier()
            except RuntimeError as error:  # torch's word for a connection that was cut
                watch.explain(error)
                raise
            finally:
                if dist.is_initialized():
                    dist.destroy_process_group()


def _is_parallel(trainer: Trainer) -> bool:
    return isinstance(trainer.strategy, ParallelStrategy)  # also of one rank: Lightning gives it a group, too


def _environment(trainer: Trainer) -> ClusterEnvironment:
    environment = cast(ParallelStrategy, trainer.strategy).cluster_environment
    assert environment is not None
    return environment


def _served(trainer: Trainer) -> TCPStore:
    """The store of this process, at an address that the processes it starts inherit."""
    is_local = trainer.num_nodes == 1
    host, port = LOOPBACK if is_local else _environment(trainer).main_address, _environment(trainer).main_port
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
    if not is_local:
        return TCPStore(host, port, is_master=True, wait_for_workers=False)
    listening = socket.create_server((host, port)).detach()  # torch by itself would listen on all addresses
    return TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listening)


def _meet(trainer: Trainer, name: str) -> Store:
    """The store, once it can be reached; this process's number is in it."""
    is_local = trainer.num_nodes == 1
    host, port = _environment(trainer).main_address, _environment(trainer).main_port
    host = LOOPBACK if is_local and not TorchElasticEnvironment.detect() else host
    _knock(host, port, patience_s=MEET_S[is_local])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps its store
    try:
        # rank 0 answered a moment ago; torch by itself would call on it for 5 minutes, were it gone since
        address = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=LEAVE_S))
        store = PrefixStore(f"{name}/{attempt}", address)
        store.set(f"process of rank {trainer.global_rank}", json.dumps([*_machine(), os.getpid()]))
    except dist.DistError as error:
        raise ConnectionError(GONE) from error
    return store


def _knock(host: str, port: int, *, patience_s: float) -> None:
    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            return socket.create_connection((host, port), timeout=patience_s).close()
        except OSError as error:
            if time.monotonic() > give_up_at:
                raise ConnectionError(
                    f"rank 0 can't be reached at {host}:{port} for {patience_s:.0f} s; see what it said last"
                ) from error
            time.sleep(POLL_S)


@contextlib.contextmanager
def _others(trainer: Trainer) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """The ranks of this machine that this process starts, by their number; none where a launcher has."""
    environment = _environment(trainer)
    if environment.creates_processes_externally:
        yield {}
        return
    numbers = {"WORLD_SIZE": trainer.world_size, "NODE_RANK": environment.node_rank(), "LOCAL_RANK": 0}
    os.environ |= {name: str(number) for name, number in numbers.items()}  # Lightning starts none itself then
    command = [sys.executable, "-m", "histo_ssl", *sys.argv[1:]]
    started = {}
    try:
        for local in range(1, trainer.num_devices):
            settings = os.environ | {"LOCAL_RANK": str(local)}
            started[trainer.global_rank + local] = subprocess.Popen(command, env=settings)
        yield started
        for process in started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LEAVE_S)
    finally:
        for process in started.values():
            process.kill()
            process.wait()
        for name in numbers:
            os.environ.pop(name, None)


def _processes(store: Store, trainer: Trainer, started: dict[int, subprocess.Popen[bytes]]) -> dict[int, int]:
    """Process ids of the other ranks on this machine, by rank, once all ranks are there."""
    processes = {}
    give_up_at = time.monotonic() + MEET_S[trainer.num_nodes == 1]
    for rank in set(range(trainer.world_size)) - {trainer.global_rank}:
        key = f"process of rank {rank}"
        while not store.check([key]):
            has_ended = rank in started and started[rank].poll() is not None
            if has_ended or time.monotonic() > give_up_at:
                reason = "has ended before training" if has_ended else "did not start in time"
                raise ConnectionError(f"rank {rank} {reason}; its last words say why")
            time.sleep(POLL_S)
        *machine, process = json.loads(store.get(key))
        if machine == _machine():
            processes[rank] = process
    return processes


def _machine() -> list[str]:
    """What processes share that see each other by their ids."""
    return [socket.gethostname(), str(NAMESPACE.readlink()) if NAMESPACE.exists() else ""]


def _join(store: Store, trainer: Trainer) -> None:
    """Form the process group, before Lightning would: of this store, and on loopback where that is enough."""
    if trainer.num_nodes == 1:
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    on_gpu = trainer.strategy.root_device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=PrefixStore("group", store),
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        timeout=SILENCE,
    )
