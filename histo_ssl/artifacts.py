"""Folders that are either finished or known not to be: fingerprints, atomic writes, locks, done marks.

A stage writes one folder. Its name ends in a fingerprint of everything it depends on; a lock lets one
process write it; each file appears whole or not at all; `done.json` comes last and lists what must be there.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

DONE = "done.json"
PROVENANCE = "provenance.json"
FINGERPRINT_DIGITS = 10  # 40 bits: one clash expected among a million folders
TEMPORARY = ".tmp-"  # prefix of names that a killed process may leave behind
PACKAGES = ("torch", "torchvision", "lightning", "timm", "hydra-core", "tiffslide", "numpy", "scikit-learn")

Counts = Mapping[str, int]


def fingerprint(config: Any, *inputs: str) -> str:
    """Hash of a plain configuration and of the fingerprints it builds on: 10 hexadecimal digits.

    Args:
        config: nested mappings, lists, strings, numbers, booleans and None; the order of keys has no meaning.
        inputs: fingerprints of the folders that the work reads.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
    True
    """
    text = json.dumps([config, list(inputs)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends, and vanishes if it raises.

    The bytes are on the disk (fsync) before the rename, so a reader sees the old file or the whole new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name, once its bytes are on the disk."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """`data` as the file `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """`text` as the UTF-8 file `path`, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """`content` as an indented JSON file, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Content of a JSON file that `write_json` wrote."""
    return json.loads(path.read_text())


def complete(folder: Path, *, build: Callable[[Path], Counts], label: str, config: Any) -> Path:
    """`folder`, finished: taken as it is when its done mark holds, else built under a lock.

    Args:
        folder: where the work is written; what an interrupted `build` left there is kept for the next.
        build: writes into the folder; returns counts of what it made.
        label: name of the work in messages, such as "tile".
        config: the configuration that the fingerprint was made of; kept in the provenance.
    """
    if is_done(folder):
        log.info("%s: done before, taken from %s", label, folder)
        return folder
    with exclusive(folder, label=label):
        if is_done(folder):
            log.info("%s: done by another process meanwhile, taken from %s", label, folder)
            return folder
        _build(folder, build=build, label=label, config=config)
    return folder


def is_done(folder: Path) -> bool:
    """Whether the folder is finished: its mark exists, and every file it lists is there in its full size."""
    try:
        files: dict[str, int] = read_json(folder / DONE)["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, KeyError):
        return False


def counts(folder: Path) -> dict[str, int]:
    """What the work in a finished folder counted, such as `{"slides": 12, "tiles": 2710}`."""
    return dict(read_json(folder / DONE)["counts"])


def wait_until_done(folder: Path, *, poll_s: float = 0.5) -> Path:
    """`folder`, once another process (rank 0, usually) has finished it."""
    while not is_done(folder):
        time.sleep(poll_s)
    return folder


@contextlib.contextmanager
def exclusive(folder: Path, *, label: str) -> Iterator[None]:
    """Only one process at a time is in this block for a given folder; the lock dies with its process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process is making %s; waiting for it", label, folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def provenance(config: Any, *, started: float) -> dict[str, Any]:
    """Who made a folder, with what, on what, and when; no environment variables, no secrets."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "config": config,
        "versions": {"python": platform.python_version(), **_versions()},
        "git_commit": _git_commit(),
        "hardware": {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "seconds": round(time.time() - started, 1),
    }


def _build(folder: Path, *, build: Callable[[Path], Counts], label: str, config: Any) -> None:
    started = time.time()
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    counted = dict(build(folder))
    write_json(folder / PROVENANCE, provenance(config, started=started))
    write_json(folder / DONE, {"counts": counted, "files": _sizes(folder)})
    text = ", ".join(f"{n:,} {name}" for name, n in counted.items())
    log.info("%s: %s in %.1f s, written to %s", label, text or "done", time.time() - started, folder)


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files if path.name != DONE}


def _sweep(folder: Path) -> None:
    """Remove the temporary files of a process that was killed; ours is the only one that holds the lock."""
    for path in folder.rglob(f"{TEMPORARY}*"):
        path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _versions() -> dict[str, str]:
    found = {name: _version(name) for name in ("histo-ssl", *PACKAGES)}
    return {name: version for name, version in found.items() if version}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _git_commit() -> str:
    """Commit of the checkout that runs, with "+" if files were changed since; empty from a wheel."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return ""
    git = ["git", "-C", str(checkout)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if changes.stdout else "")
