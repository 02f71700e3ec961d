"""Every stage, killed at each thing that it does to the disk, ends at the next start with the same bytes."""

import errno
import hashlib
import os
import re
import resource
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from omegaconf import open_dict
from PIL import Image

from histo_ssl import stages
from histo_ssl.config.choices import conf_dir
from histo_ssl.config.mistakes import explain
from histo_ssl.config.plan import Plan
from histo_ssl.config.preflight import prepared
from histo_ssl.data.synthetic import SyntheticSlides
from histo_ssl.embeddings import write_embeddings
from histo_ssl.folders import artifacts, provenance
from histo_ssl.folders.disk import NotWrittenError

KILLED = 137
SMALL = [
    *("method=dino", "backbone=timm", "backbone.name=test_vit", "method.head.n_outputs=32"),
    *("method.head.n_hidden=32", "method.head.n_bottleneck=16", "views.kinds.local.count=2"),
    *("training.epochs=1", "training.batch_size=8", "loader.n_workers=0", "n_processes=1", "trainer=cpu"),
    *("logger=none", "task.protocol.n_bootstrap=20", "data=images", "embedding.batch_size=8"),
]
# Times, versions and who was here first; everything else must be the same bytes.
VOLATILE = {"provenance.json", "done.json", "metrics.jsonl", "last.ckpt", "index.html", "report.md"}
HOW_MADE = re.compile(  # in a page: its digest of what it was made of, and the lines of provenance
    rb'<meta name="made-of" content="\w+">'
    rb"|<dt>(command|started|seconds|git commit|hardware|versions)</dt>\s*<dd>.*?</dd>",
    re.DOTALL,
)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking git what is checked out takes longer than all the rest, hundreds of times."""
    monkeypatch.setattr(provenance, "_git_commit", str)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise, bright and dark, 12 tiles of 32 px each."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, low in (("bright", 128), ("dark", 0)):
        (root / name).mkdir()
        for i in range(12):
            pixels = rng.integers(low, low + 128, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    return root


def _plan(images: Path, runs_dir: Path, *overrides: str) -> Plan:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = [*SMALL, f"data.root={images}", f"runs_dir={runs_dir}", *overrides]
        cfg = hydra.compose("config", overrides=words, return_hydra_config=True)
    choices = dict(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg.hydra
    return Plan(cfg=cfg, choices=choices)


@pytest.fixture(scope="module")
def states(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of `runs_dir` as each stage found it, and as the last one left it ("end")."""
    folder = tmp_path_factory.mktemp("states")
    runs, kept = folder / "runs", {}
    runs.mkdir()
    for name in stages.STAGES:
        kept[name] = folder / f"before-{name}"
        shutil.copytree(runs, kept[name])
        stages.run(_plan(images, runs, f"stages=[{name}]"))
    return {**kept, "end": runs}


def _content(runs: Path) -> dict[str, str]:
    """Digests of all files by name: where they differ, a test names the files, not megabytes of them."""
    files = (path for path in runs.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(runs)): _digest(path) for path in files if path.name not in VOLATILE}


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".html":
        content = HOW_MADE.sub(b"", content)
    return hashlib.sha256(content).hexdigest()[:16]


def _expected(states: dict[str, Path], stage: str) -> dict[str, str]:
    names = [*stages.STAGES, "end"]
    return _content(states[names[names.index(stage) + 1]])


def _die_at(call: int) -> None:
    """Let this process end, as by SIGKILL, at the n-th thing that it does to the disk.

    A flush that is not reached leaves its file torn in the middle; a rename or removal is not made.
    """
    calls = iter(range(10**6))

    def deadly(do: Callable[..., Any], *, tears: bool = False) -> Callable[..., Any]:
        def made(*arguments: Any, **words: Any) -> Any:
            if next(calls) == call:
                path = Path(f"/proc/self/fd/{arguments[0]}")
                if tears and path.is_file():
                    os.truncate(path.readlink(), path.stat().st_size // 2)
                os._exit(KILLED)
            return do(*arguments, **words)

        return made

    for name in ("rename", "replace", "unlink", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))
    os.fsync = deadly(os.fsync, tears=True)


def _killed_at(call: int, work: Callable[[], object]) -> bool:
    """Whether `work`, in a process of its own that dies at its n-th call, died; False: it came to its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, which the child never uses
        child = os.fork()
    if child == 0:
        try:
            _die_at(call)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED)
    return status == KILLED


def _kills(work: Callable[[], object], between: Callable[[], None]) -> int:
    """Kill `work` at its first call, then at its second ... until it survives; how often it was killed."""
    n = 0
    while _killed_at(n, work):
        between()
        n += 1
    return n


@pytest.mark.parametrize("stage", ["tile", "embed", "evaluate", "report"])
def test_a_stage_killed_at_any_write_is_finished_by_the_next_start_with_the_same_bytes(
    images: Path, states: dict[str, Path], tmp_path: Path, stage: str
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(states[stage], runs)
    plan = prepared(_plan(images, runs, f"stages=[{stage}]"), known=stages.STAGES)

    def start_again() -> None:
        stages.STAGES[stage](plan)
        assert _content(runs) == _expected(states, stage)
        assert [path for path in runs.rglob(f"{artifacts.TEMPORARY}*") if path.is_file()] == []
        shutil.rmtree(runs)
        shutil.copytree(states[stage], runs)

    n_kills = _kills(lambda: stages.STAGES[stage](plan), start_again)
    assert n_kills >= {"tile": 18, "embed": 36, "evaluate": 15, "report": 9}[stage]  # 3 per file, at least


def test_a_stage_killed_again_and_again_comes_to_its_end(
    images: Path, states: dict[str, Path], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(states["embed"], runs)
    plan = prepared(_plan(images, runs, "stages=[embed]"), known=stages.STAGES)
    n_kills = _kills(lambda: stages.embed(plan), lambda: None)  # what one start leaves, the next one takes up
    assert n_kills > 5
    assert _content(runs) == _expected(states, "embed")


def test_drawing_slides_killed_at_any_write_gives_the_same_slides(tmp_path: Path) -> None:
    values = {"n_slides": 2, "n_patients": 2, "n_sites": 1, "test_share": 0.5, "size_px": 160, "mpp": 0.5}
    looks = {"region_um": 60.0, "stain_shift": 1.0, "pen_share": 0.5, "fold_share": 0.5, "jpeg_quality": 85}
    data = SyntheticSlides(**values, **looks, seed=1, min_label_share=0.5)  # type: ignore[arg-type]

    def draw() -> None:
        folder = tmp_path / "runs" / "work"
        artifacts.complete(folder, build=lambda f: data.write(f, n_processes=1), label="draw", config={})

    draw()
    expected = _content(tmp_path / "runs")

    def start_again() -> None:
        draw()
        assert _content(tmp_path / "runs") == expected
        shutil.rmtree(tmp_path / "runs")

    shutil.rmtree(tmp_path / "runs")
    assert _kills(draw, start_again) >= 30


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ESTALE])
@pytest.mark.parametrize("stage", ["tile", "embed", "evaluate", "report"])
def test_a_disk_that_fails_at_any_write_is_a_sentence_and_the_next_start_goes_on(
    images: Path, states: dict[str, Path], tmp_path: Path, stage: str, number: int
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(states[stage], runs)
    plan = prepared(_plan(images, runs, f"stages=[{stage}]"), known=stages.STAGES)
    said = []
    for place in range(0, 60, 7):  # every kind of call is among them
        with pytest.MonkeyPatch.context() as patch:
            _fail(patch, at=place, number=number)
            said += _sentence_of(lambda: stages.STAGES[stage](plan))
    assert said
    for text in said:
        assert text.startswith(f"{runs}/")
        assert text.endswith("the same command goes on from here")
    assert _content(runs) == _expected(states, stage)


def _sentence_of(work: Callable[[], object]) -> list[str]:
    """What a person reads if the disk stops the work; nothing if it doesn't."""
    try:
        work()
    except NotWrittenError as error:
        return [explain(error)]
    return []


def _fail(patch: pytest.MonkeyPatch, *, at: int, number: int) -> None:
    calls = iter(range(10**6))

    def failing(do: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **words: Any) -> Any:
            if next(calls) >= at:  # and goes on failing, as disks do
                raise OSError(number, os.strerror(number))
            return do(*arguments, **words)

        return made

    for name in ("fsync", "rename", "replace"):
        patch.setattr(os, name, failing(getattr(os, name)))


def test_a_file_beyond_the_limit_of_the_process_is_a_sentence(tmp_path: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    features, coords = np.ones((4096, 64), np.float32), np.zeros((4096, 2), np.int64)
    write_embeddings(tmp_path / "S1.h5", features=features[:1], coords=coords[:1], attributes={})
    before = (tmp_path / "S1.h5").read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
        with pytest.raises(
            NotWrittenError, match=r"S1\.h5: not written, the file is larger than this process"
        ):
            write_embeddings(tmp_path / "S1.h5", features=features, coords=coords, attributes={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (tmp_path / "S1.h5").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["S1.h5"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a disk with the given options, or changes them."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        remount = "remount," if os.path.ismount(disk) else ""
        command = ["mount", "-t", "tmpfs", "-o", remount + options, "tmpfs", str(disk)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"no small disk can be mounted here: {made.stderr.strip()}")
        return disk

    yield mount
    if os.path.ismount(disk):
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def run(warm: Any, images: Path) -> Callable[..., Any]:
    """The program, run on the images."""

    def ran(runs: Path, *more: str) -> Any:
        arguments = [*SMALL, f"data.root={images}", f"runs_dir={runs}", *more]
        return warm.run("-m", "histo_ssl", *arguments, cwd=runs.parent)

    return ran


WITHOUT_TRAINING = "stages=[tile,embed,evaluate,report]"


def test_on_a_full_disk_the_run_stops_with_a_sentence_and_goes_on_when_there_is_room(
    run: Callable[..., Any], states: dict[str, Path], small_disk: Callable[[str], Path]
) -> None:
    """From an encoder on, at four sizes of the disk; training has its own test."""
    needed = sum(path.stat().st_size for path in states["embed"].rglob("*"))
    stopped_at = []
    for size_kb in (needed // 1024 + room for room in (60, 90, 130, 180)):
        disk = small_disk(f"size={size_kb}k")
        if not (disk / "runs").exists():
            shutil.copytree(states["embed"], disk / "runs")
        failed = run(disk / "runs", WITHOUT_TRAINING)
        if failed.returncode == 0:
            break
        assert failed.returncode == 1
        (line,) = failed.stderr.strip().splitlines()
        assert line.startswith(f"error: {disk}/runs/")
        assert "the disk is full; make room: the same command goes on from here" in line
        stopped_at.append(line)
    small_disk("size=20m")
    done = run(disk / "runs", WITHOUT_TRAINING)
    assert done.returncode == 0, done.stderr
    assert _content(disk / "runs") == _content(states["end"])
    assert len(set(stopped_at)) >= 2


def test_a_read_only_disk_is_a_sentence_and_nothing_is_lost(
    run: Callable[..., Any], states: dict[str, Path], small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("size=20m")
    shutil.copytree(states["embed"], disk / "runs")
    small_disk("ro")
    failed = run(disk / "runs", WITHOUT_TRAINING)
    assert failed.returncode == 1
    assert "the disk is read-only; mount it for writing or choose another runs_dir" in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    small_disk("rw")
    assert run(disk / "runs", WITHOUT_TRAINING).returncode == 0
    assert _content(disk / "runs") == _content(states["end"])


def test_new_or_replaced_images_and_slides_are_other_work(images: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(images, root)
    before = prepared(_plan(root, tmp_path / "runs"), known=stages.STAGES)
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))  # a restaged copy
    assert prepared(_plan(root, tmp_path / "runs"), known=stages.STAGES) == before
    shutil.copy(root / "dark" / "00.png", root / "dark" / "99.png")
    after = prepared(_plan(root, tmp_path / "runs"), known=stages.STAGES)
    folders = ("tile_folder", "pretrain_folder", "result_folder", "task_tile_folder")
    assert all(getattr(after, name) != getattr(before, name) for name in folders)
    assert replace(after, listing=before.listing, task_listing=before.task_listing) == before


def test_a_report_alone_needs_no_data(tmp_path: Path) -> None:
    plan = _plan(tmp_path / "gone", tmp_path / "runs", "stages=[report]")
    stages.run(plan)
    assert (tmp_path / "runs" / "report" / "index.html").exists()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        stages.run(_plan(tmp_path / "gone", tmp_path / "runs", "stages=[evaluate]"))
