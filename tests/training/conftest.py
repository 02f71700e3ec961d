"""The tiny training, and the source and settings that it takes."""

import importlib.util
import pickle
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from histo_ssl.methods.base import SSLMethod
from histo_ssl.views.compose import Views

PROGRAM = Path(__file__).with_name("tiny.py")

Start = Callable[..., Any]


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module `tiny.py`."""
    spec = importlib.util.spec_from_file_location("tiny", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny"] = module  # callbacks are pickled by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def start(warm: Any, tiny: ModuleType, views: Views, tiny_dino: dict[str, Any]) -> Iterator[Start]:
    """Starts the tiny training as a program in a folder, in a process group of its own."""
    started: list[Any] = []

    def run(folder: Path, *, n_workers: int = 0, n_ranks: int = 1, **setting: Any) -> Any:
        folder.mkdir(exist_ok=True)
        setting = {"views": views, "method": tiny_dino, **setting}
        if n_ranks > 1:
            setting |= {"devices": n_ranks, "strategy": "ddp"}
        (folder / "setting.pickle").write_bytes(pickle.dumps(setting))
        port = _free_port()
        for rank in range(n_ranks):
            where = {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "NODE_RANK": "0",
                "LOCAL_RANK": str(rank),
            }
            ranks = where | {"WORLD_SIZE": str(n_ranks)} if n_ranks > 1 else {}
            started.append(warm.start(PROGRAM, folder, n_workers, cwd=folder, **ranks))
        return started[-1] if n_ranks == 1 else started[-n_ranks:]

    yield run
    for process in started:
        process.kill()


def _free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture
def fit_tiny(tiny: ModuleType, views: Views, tiny_dino: dict[str, Any]) -> Callable[..., SSLMethod]:
    """Trains a tiny DINO in a folder."""
    return partial(tiny.run_training, views=views, method=tiny_dino)
