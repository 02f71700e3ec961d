"""Work that is spread over the workers of a Dask scheduler, which someone has started somewhere.

Dask says who does what, and gives the items of a lost worker to another. Each worker does them in a program
beside it (`child.py`), with the same limits as on one machine: a bad slide is told of in the same words.
"""

import contextlib
import functools
import hashlib
import importlib.util
import logging
import math
import pickle
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any, ClassVar

from histo_ssl.executors.base import Ended, Item, Processes, Result
from histo_ssl.executors.child import Children, Work
from histo_ssl.folders.artifacts import TEMPORARY, sweep
from histo_ssl.folders.provenance import code_digest

log = logging.getLogger(__name__)

CONNECT_S = 10.0  # for the scheduler's answer
LOOK_S = 5.0  # between two looks at how many workers there are
INSTALL = "pip install 'histo-ssl[dask]'"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What workers must know of the work."""

    path: Path  # of the pickled work, in the folder that it writes into
    digest: str  # of that file
    processes: Processes
    code: str  # digest of the package that the work is of


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The workers of a Dask scheduler (see `conf/executor/dask.yaml` for what each value means)."""

    address: str | None
    retries: int
    wait_s: float
    embed_timeout_s: float
    is_here: ClassVar = False

    def __post_init__(self) -> None:
        if importlib.util.find_spec("distributed") is None:
            raise ValueError(f"executor=dask needs Dask's library: {INSTALL}, here and where the workers run")
        if not self.address:
            raise ValueError(
                "executor.address is missing: say where Dask's scheduler listens, such as "
                "executor.address=tcp://host:8786 (docs/scaling.md), or take executor=processes"
            )

    def each(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        processes: Processes,
        *,
        folder: Path,
    ) -> Iterator[tuple[int, Result | Ended[Item]]]:
        """The results of all items with their places, as they come.

        Raises:
            ValueError: the scheduler does not answer or goes away, for `wait_s` there is no worker, or a
                worker has another version of this package or does not see `folder`.
        """
        if not items:
            return
        with self._client() as client, _laid_down(work, folder.resolve()) as (path, digest):
            order = Order(path=path, digest=digest, processes=processes, code=code_digest())
            yield from self._results(client, order, items)

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        from distributed import Client  # noqa: PLC0415 (an extra that not all have)
        from distributed.comm import get_address_host_port  # noqa: PLC0415

        try:
            get_address_host_port(self.address, strict=False)  # a client that can't read it ends 20 s later
            client = Client(self.address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"executor.address={self.address}: no Dask scheduler answers there ({reason}); start one "
                "(docs/scaling.md), or take executor=processes"
            ) from error
        try:
            yield client
        finally:
            client.close()

    def _results(
        self, client: Any, order: Order, items: Sequence[Item]
    ) -> Iterator[tuple[int, Result | Ended[Item]]]:
        done: Queue[Any] = Queue()
        waiting: dict[str, tuple[int, int, Any]] = {}  # key -> place, retries left, future

        def begin(places: Sequence[int], retries: int) -> None:
            keys = [f"{order.path.name}-{place}-{retries}" for place in places]
            wanted = [items[place] for place in places]
            futures = client.map(_on_worker, wanted, order=order, key=keys, pure=False)
            waiting.update(zip(keys, zip(places, [retries] * len(keys), futures, strict=True), strict=True))
            for future in futures:
                future.add_done_callback(done.put)

        begin(range(len(items)), self.retries)
        for future in self._finished(client, done, waiting):
            place, retries, _ = waiting.pop(future.key)
            result = self._result(future, items[place])
            if isinstance(result, Ended) and retries:
                log.info("executor: %s; tried again", result.reason)
                begin([place], retries - 1)
            else:
                yield place, result

    def _finished(self, client: Any, done: "Queue[Any]", waiting: dict[str, Any]) -> Iterator[Any]:
        """Futures as they end, while any is waited for; the cluster is looked after meanwhile."""
        n_before, looked, seen = -1, -math.inf, time.monotonic()
        while waiting:
            if time.monotonic() - looked > LOOK_S:
                n_workers, looked = self._n_workers(client), time.monotonic()
                if n_workers != n_before:
                    log.info("executor: %s has %d workers", self.address, n_workers)
                seen, n_before = looked if n_workers else seen, n_workers
                if looked - seen > self.wait_s:
                    raise ValueError(
                        f"executor.address={self.address}: no worker for executor.wait_s={self.wait_s:g} s; "
                        "start some (docs/scaling.md) and give the same command again, it goes on from here"
                    )
            with contextlib.suppress(Empty):
                yield done.get(timeout=LOOK_S)

    def _n_workers(self, client: Any) -> int:
        try:
            return len(client.nthreads())
        except OSError as error:
            raise ValueError(self._gone()) from error

    def _result(self, future: Any, item: Item) -> Any:
        """What came of an item; errors of the work itself are raised as they are."""
        from distributed import KilledWorker  # noqa: PLC0415
        from distributed.client import FutureCancelledError  # noqa: PLC0415

        try:
            return future.result()
        except KilledWorker as error:
            return Ended(
                item, f"{error.allowed_failures + 1} workers of the cluster ended while they were at it"
            )
        except FutureCancelledError as error:
            raise ValueError(self._gone()) from error
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"executor.address={self.address}: a worker can't begin ({error}): it needs the version of "
                f"histo-ssl that is installed here; {INSTALL} there, too"
            ) from error

    def _gone(self) -> str:
        return (
            f"executor.address={self.address}: Dask's scheduler went away; start it and its workers again "
            "and give the same command, it goes on from here"
        )


@contextlib.contextmanager
def _laid_down(work: Callable[..., Any], folder: Path) -> Iterator[tuple[Path, str]]:
    """A file with the pickled work, where only who sees the folder finds it, and its digest.

    An encoder weighs too much for every message; given to Dask it would be lost with workers that hold it.
    """
    pickled = pickle.dumps(work)
    path = folder / f"{TEMPORARY}{secrets.token_hex(8)}-work"
    path.write_bytes(pickled)
    try:
        yield path, hashlib.sha256(pickled).hexdigest()
    finally:
        sweep(folder)  # with what a lost worker was writing


_children = Children()  # of this worker process


def _on_worker(item: Any, *, order: Order) -> Any:
    """An item's result, on a worker."""
    from distributed import get_worker  # noqa: PLC0415

    worker = get_worker()
    key = worker.get_current_task()

    def is_wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state != "cancelled"

    work = _checked_work(order, address=worker.address)
    with _children.one(memory_gb=order.processes.memory_gb) as child:
        return child.done(work, item, order.processes, is_wanted=is_wanted)


@functools.lru_cache(maxsize=1)
def _checked_work(order: Order, *, address: str) -> Work:
    """The work, if this worker has the code for it and it is the one that was asked for."""
    if order.code != code_digest():
        raise ValueError(
            f"the worker {address} has another version of histo-ssl than the process that asks it: install "
            "the same on both sides, and start the workers again"
        )
    if not order.path.is_file():
        raise ValueError(
            f"the worker {address} does not see {order.path.parent}: runs_dir has to lie on a disk that all "
            "workers see under the same name"
        )
    pickled = order.path.read_bytes()
    if hashlib.sha256(pickled).hexdigest() != order.digest:
        raise ValueError(f"{order.path}: not what was written there; see who else writes into runs_dir")
    return Work(name=order.path.name, pickled=pickled)
