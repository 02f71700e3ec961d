"""What is on the disk is sound, or is known not to be."""

import logging
import os
import pickle
import random
import resource
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from histo_ssl.data.base import TileSource
from histo_ssl.folders.artifacts import TEMPORARY
from histo_ssl.methods.base import SSLMethod
from histo_ssl.training.checkpoints import LAST, PREVIOUS, Checkpoints, KeepCheckpoints, damage

Source = Callable[[int], TileSource]
Fit = Callable[..., SSLMethod]


def _content(step: int = 7) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    weights = {f"w{i}": torch.randn(50 + i, 3, generator=generator) for i in range(5)}
    return {"global_step": step, "state_dict": weights, "callbacks": {"a": {"reasons": {3: "torn"}}}}


def _saved(folder: Path, *steps: int) -> Checkpoints:
    files = Checkpoints(folder)
    for step in steps:
        files.save_checkpoint(_content(step), folder / LAST)
    assert files.failure is None
    return files


def _is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_is_equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def _records(path: Path) -> list[tuple[int, int]]:
    """First byte and end of the data of every record."""
    content, bounds = path.read_bytes(), []
    for info in zipfile.ZipFile(path).infolist():
        name_and_extra = content[info.header_offset + 26 : info.header_offset + 30]
        start = info.header_offset + 30 + sum(name_and_extra[i] + 256 * name_and_extra[i + 1] for i in (0, 2))
        bounds.append((start, start + info.file_size))
    return bounds


def _flip(path: Path, whole: bytes, place: int, bit: int) -> None:
    torn = bytearray(whole)
    torn[place] ^= 1 << bit
    path.write_bytes(torn)


def test_what_is_written_is_sound_and_comes_back(tmp_path: Path) -> None:
    files = _saved(tmp_path, 7)
    assert damage(tmp_path / LAST) is None
    assert files.find() == tmp_path / LAST
    assert _is_equal(files.load_checkpoint(tmp_path / LAST), _content(7))
    assert files.healthy_step == 7


def test_a_flipped_bit_in_any_record_is_found(tmp_path: Path) -> None:
    path = _saved(tmp_path, 7).last
    whole, rng = path.read_bytes(), random.Random(0)
    records = _records(path)
    assert len(records) > 6  # the pickle, five tensors, and what torch adds
    places = {place for start, stop in records for place in (start, stop - 1, rng.randrange(start, stop))}
    places |= {rng.randrange(*rng.choice(records)) for _ in range(300)}
    for place in sorted(places):
        _flip(path, whole, place, rng.randrange(8))
        assert damage(path) is not None, place


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = _saved(tmp_path, 7).last
    whole, records = path.read_bytes(), _records(path)
    between = [i for i in range(len(whole)) if not any(start <= i < stop for start, stop in records)]
    found = Counter()
    for place in between:
        for bit in (0, 4, 7):
            _flip(path, whole, place, bit)
            try:
                is_found = damage(path) is not None
            except ValueError:  # refused
                is_found = True
            found[is_found] += 1
            assert is_found or _is_equal(torch.load(path, weights_only=True), _content(7)), (place, bit)
    assert min(found.values()) > 500  # dates and padding change nothing


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "half"], ids=["empty", "text", "half"])
def test_what_is_no_whole_checkpoint_is_told(tmp_path: Path, content: bytes | str) -> None:
    path = _saved(tmp_path, 7).last
    whole = path.read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    assert str(damage(path)).startswith("not a whole checkpoint")


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_strangers_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    payload = _Payload(tmp_path / "was_here")
    torch.save({"global_step": 1, "x": payload}, tmp_path / LAST)
    with pytest.raises(ValueError, match=r"last\.ckpt: refused, since it asks to run posix\.system") as error:
        Checkpoints(tmp_path).find()
    assert "\n" not in str(error.value)
    (tmp_path / LAST).write_bytes(pickle.dumps(payload))  # as torch 1.5 wrote them
    with pytest.raises(ValueError, match="no checkpoint can be read"):
        Checkpoints(tmp_path).find()
    assert not (tmp_path / "was_here").exists()
    pickle.loads(pickle.dumps(payload))  # the payload does work
    assert (tmp_path / "was_here").exists()


def test_a_torn_checkpoint_costs_one_warning_that_names_both(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _saved(tmp_path, 7, 8)
    (tmp_path / LAST).write_bytes(b"torn")
    files = Checkpoints(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert files.find() == tmp_path / PREVIOUS
    assert len(caplog.messages) == 1
    assert f"{tmp_path / LAST}: " in caplog.messages[0]
    assert str(tmp_path / PREVIOUS) in caplog.messages[0]
    assert _is_equal(files.load_checkpoint(tmp_path / PREVIOUS), _content(7))


def test_a_torn_checkpoint_never_takes_the_place_of_the_sound_one_before_it(tmp_path: Path) -> None:
    _saved(tmp_path, 7, 8)
    (tmp_path / LAST).write_bytes(b"torn")
    files = Checkpoints(tmp_path)
    files.find()
    files.save_checkpoint(_content(9), tmp_path / LAST)
    steps = [torch.load(tmp_path / name, weights_only=True)["global_step"] for name in (PREVIOUS, LAST)]
    assert steps == [7, 9]
    files.save_checkpoint(_content(10), tmp_path / LAST)
    steps = [torch.load(tmp_path / name, weights_only=True)["global_step"] for name in (PREVIOUS, LAST)]
    assert steps == [9, 10]


def test_a_kill_between_the_two_renames_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: Path) -> None:
        raise Killed

    files = _saved(tmp_path, 7)
    monkeypatch.setattr("histo_ssl.training.checkpoints.publish", kill)
    with pytest.raises(Killed):
        files.save_checkpoint(_content(8), tmp_path / LAST)
    assert not (tmp_path / LAST).exists()
    found = Checkpoints(tmp_path)
    assert found.find() == tmp_path / PREVIOUS
    assert _is_equal(found.load_checkpoint(tmp_path / PREVIOUS), _content(7))


def test_where_both_are_torn_one_sentence_says_so(tmp_path: Path) -> None:
    _saved(tmp_path, 7, 8)
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"no checkpoint can be read .*last.*previous.*delete them") as error:
        Checkpoints(tmp_path).find()
    assert "\n" not in str(error.value)


@pytest.fixture
def full_disk() -> Any:
    """A function that lets files grow to so many bytes and no further; None lifts the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(n_bytes: int | None) -> None:
        soft = before[0] if n_bytes is None else n_bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, before[1]))

    yield limit
    limit(None)


@pytest.mark.parametrize("n_bytes", [0, 1000, 4000])
def test_a_full_disk_leaves_the_last_checkpoint_and_no_temporary_file(
    tmp_path: Path, full_disk: Any, n_bytes: int
) -> None:
    files = _saved(tmp_path, 7)
    before = (tmp_path / LAST).read_bytes()
    full_disk(n_bytes)
    files.save_checkpoint(_content(8), tmp_path / LAST)
    full_disk(None)
    assert isinstance(files.failure, OSError)
    sentence = str(files.failure)
    assert "the checkpoint of step 8 can't be written (File too large)" in sentence
    assert f"the last healthy checkpoint is {tmp_path / LAST} of step 7" in sentence
    assert "\n" not in sentence
    assert [path.name for path in tmp_path.iterdir()] == [LAST]
    assert (tmp_path / LAST).read_bytes() == before


def test_a_training_on_a_full_disk_stops_with_a_sentence_and_goes_on_when_there_is_room(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path, full_disk: Any
) -> None:
    source = image_source(17)
    with pytest.raises(OSError, match=r"the checkpoint of step 4 can't be written .* of step 3: make room"):
        fit_tiny(tmp_path / "a", source=source, callbacks=[tiny.At(4, lambda: full_disk(10_000))])
    full_disk(None)
    assert not list((tmp_path / "a").glob(f"{TEMPORARY}*"))
    resumed = fit_tiny(tmp_path / "a", source=source)
    whole = fit_tiny(tmp_path / "b", source=source)
    assert _is_equal(dict(resumed.state_dict()), dict(whole.state_dict()))


def test_a_training_goes_on_from_the_checkpoint_before_a_torn_one(
    image_source: Source, fit_tiny: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = image_source(17)
    whole = fit_tiny(tmp_path, source=source)
    torn = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(torn[: len(torn) // 2])
    resumed = fit_tiny(tmp_path, source=source)
    assert sum("going on from the one before it" in message for message in caplog.messages) == 1
    assert _is_equal(dict(resumed.state_dict()), dict(whole.state_dict()))
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 8


def test_weights_that_are_not_finite_are_never_written(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path
) -> None:
    class Spoil(tiny.At):
        def on_train_batch_end(self, trainer: Any, pl_module: SSLMethod, *args: Any) -> None:
            if trainer.global_step == 6:
                next(pl_module.parameters()).data[0] = torch.inf

    with pytest.raises(
        FloatingPointError, match=r"a weight is not finite after step 6; the last healthy .* 4:"
    ):
        fit_tiny(tmp_path, source=image_source(17), callbacks=[Spoil(6, lambda: None)])
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 4


@pytest.mark.slow
def test_a_training_killed_at_random_moments_ends_as_one_that_never_was(
    image_source: Source, tiny: ModuleType, tmp_path: Path, start: Callable[..., Any]
) -> None:
    setting = {"source": image_source(17), "epochs": 8, "every": 1, "n_workers": 2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, **setting).wait() == 0
    rng, n_killed, journal = random.Random(0), 0, killed / "ids.jsonl"
    while True:
        process, n_before = start(killed, **setting), _size(journal)
        while process.poll() is None and (n_killed == 4 or _size(journal) == n_before):
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.3))  # 1 to 10 steps, of which each writes a checkpoint
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        n_killed += 1
    assert process.returncode == 0
    assert n_killed >= 3
    assert _is_equal(*(torch.load(folder / "weights.pt") for folder in (whole, killed)))
    assert tiny.timeless(killed) == tiny.timeless(whole)
    seen = [tiny.read_journal(folder / "ids.jsonl") for folder in (whole, killed)]
    assert seen[0] == seen[1]
    assert list(seen[1]) == list(range(32))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_a_step_is_written_once(tmp_path: Path) -> None:
    class Trainer:
        global_step = 6

        def save_checkpoint(self, path: Path) -> None:
            written.append(path)

        class strategy:
            reduce_boolean_decision = staticmethod(lambda decision, **_: decision)

        lightning_module = torch.nn.Linear(1, 1)

    written: list[Path] = []
    keep = KeepCheckpoints(Checkpoints(tmp_path), every_n_steps=3, steps_per_epoch=6)
    for _ in range(2):
        keep.on_train_batch_end(Trainer(), None, None, None, 0)  # type: ignore[arg-type]
    assert written == [tmp_path / LAST]
