"""Who made a folder, with what, on what, and when."""

import functools
import hashlib
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from histo_ssl.folders.redaction import redacted

PACKAGES = ("torch", "torchvision", "lightning", "timm", "hydra-core", "tiffslide", "numpy", "scikit-learn")


def provenance(config: Any, *, started: float) -> dict[str, Any]:
    """Command, configuration, versions, commit, hardware and times; no environment variables, no secrets."""
    made_by: dict[str, Any] = redacted({"command": [Path(sys.argv[0]).name, *sys.argv[1:]], "config": config})
    return {
        **made_by,
        "versions": {"python": platform.python_version(), **_versions()},
        "git_commit": _git_commit(),
        "hardware": {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "seconds": round(time.time() - started, 1),
    }


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


@functools.cache
def code_digest() -> str:
    """Hash of this package's own Python files: 64 hexadecimal digits, the same in a checkout and a wheel."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
