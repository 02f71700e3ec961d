"""Starts Python programs in forks of a process that has imported the heavy libraries, which takes 7 s.

`python warm.py` serves: a request is a line of JSON on standard input; what becomes of it is said on
standard output.
"""

import atexit
import json
import os
import runpy
import select
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

HEAVY = (
    "torch",
    "torchvision",
    "torchmetrics",
    "timm",
    "scipy.stats",
    "sklearn.neighbors",
    "pandas",
    "wandb",
)
LOOK_S = 0.02


def main() -> None:
    """Serve until standard input is closed."""
    for name in HEAVY:
        __import__(name)
    _tell("ready")
    rest = b""
    while True:
        while (ended := _ended()) is not None:
            _tell("ended", *ended)
        if not select.select([0], [], [], LOOK_S)[0]:
            continue
        read = os.read(0, 1 << 16)
        if not read:
            return
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            _tell("started", _fork(json.loads(line)))


def _tell(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def _ended() -> tuple[int, int] | None:
    """Process id and exit status of a fork that has ended, as `subprocess` gives it."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


def _fork(asked: dict[str, Any]) -> int:
    """Process id of a fork that becomes the program; it leads a session of its own."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    streams = [os.open(os.devnull, os.O_RDONLY)]
    streams += [os.open(asked[name], os.O_CREAT | os.O_WRONLY | os.O_APPEND) for name in ("stdout", "stderr")]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    _forget_the_rank()
    status = _status_of(asked["arguments"])
    threading._shutdown()  # waits for threads, as the end of a program does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # an interpreter with so many modules takes 2 s to take itself apart


def _forget_the_rank() -> None:
    """Lightning looks the rank up as it is imported: let it look again."""
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    rank_zero_only.rank = _get_rank() or 0


def _status_of(arguments: list[str]) -> int:
    """Exit status of what `python *arguments` would run, run here."""
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    is_module = arguments[0] == "-m"
    sys.argv = arguments[is_module:]
    try:
        if is_module:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(arguments[0]).parent))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return ended.code or 0
    except BaseException:  # noqa: BLE001 (it is the end of a program)
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
