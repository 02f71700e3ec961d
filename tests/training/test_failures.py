"""Tiles that can't be read and steps that are not finite are borne, counted and bounded."""

import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from histo_ssl.data.base import TileSource
from histo_ssl.data.datamodule import ReplacedTiles
from histo_ssl.data.loading import Loading
from histo_ssl.methods.base import SSLMethod
from histo_ssl.training.checkpoints import LAST
from histo_ssl.training.failures import named_tiles
from histo_ssl.training.fit import Limits

Source = Callable[[int], TileSource]
Fit = Callable[..., SSLMethod]
Start = Callable[..., Any]
TWO_WORKERS = Loading(n_workers=2, start_method="fork", timeout_s=60)
PATIENT = Limits(max_failed_tiles=0.3, on_nonfinite="skip", max_nonfinite=3)


def _end() -> None:
    raise RuntimeError("stopped by the test")


def _assert_equal(a: SSLMethod, b: SSLMethod) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def _callbacks(folder: Path) -> dict[str, Any]:
    return dict(torch.load(folder / LAST, weights_only=True)["callbacks"])


def test_unreadable_tiles_are_replaced_counted_once_and_logged_once(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torn = tiny.Odd(image_source(16), {3: tiny.tear, 9: tiny.tear})
    others = [ReplacedTiles(torn, np.arange(16), 0).replacements(row)[0] for row in (3, 9)]
    assert not {3, 9} & set(others)
    diary = tiny.Diary()
    fit_tiny(tmp_path, source=torn, callbacks=[diary], limits=PATIENT, epochs=3)
    seen = [row for ids in diary.ids.values() for row in ids]
    expected = sorted([row for row in range(16) if row not in (3, 9)] * 3 + others * 3)
    assert sorted(seen) == expected
    assert _callbacks(tmp_path)["FailedTiles"]["reasons"] == dict.fromkeys([3, 9], "torn.svs: cannot be read")
    assert sum("replaced by another one: torn.svs" in message for message in caplog.messages) == 2


def test_more_unreadable_tiles_than_allowed_stop_with_the_slides_name(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path
) -> None:
    torn = tiny.Odd(image_source(16), {3: tiny.tear, 9: tiny.tear})
    sentence = r"2 of 16 training tiles can't be read, more than max_failed_tiles=0\.1 allows; .*: torn\.svs"
    with pytest.raises(ValueError, match=sentence):
        fit_tiny(
            tmp_path, source=torn, limits=Limits(max_failed_tiles=0.1, on_nonfinite="stop", max_nonfinite=1)
        )


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [2, 3, 6])
def test_a_resumed_training_counts_unreadable_tiles_as_the_unbroken_one(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path, stop_after: int
) -> None:
    torn = tiny.Odd(image_source(16), {3: tiny.tear, 9: tiny.tear})
    run = partial(fit_tiny, source=torn, limits=PATIENT)
    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run(tmp_path / "broken", callbacks=[tiny.At(stop_after, _end)], loading=TWO_WORKERS)
    _assert_equal(whole, run(tmp_path / "broken", loading=TWO_WORKERS))
    assert _callbacks(tmp_path / "broken") == _callbacks(tmp_path / "whole")


@pytest.mark.slow
def test_two_ranks_count_the_unreadable_tiles_of_both(
    image_source: Source, start: Start, tiny: ModuleType, tmp_path: Path
) -> None:
    torn = tiny.Odd(image_source(16), dict.fromkeys([1, 3, 5, 9], tiny.tear))
    for n_ranks, name in ((1, "one"), (2, "two")):
        ranks = start(tmp_path / name, n_ranks=n_ranks, source=torn, limits=PATIENT)
        for process in ranks if n_ranks > 1 else [ranks]:
            assert process.wait(timeout=120) == 0
    one, two = (_callbacks(tmp_path / name)["FailedTiles"]["reasons"] for name in ("one", "two"))
    assert one == two == dict.fromkeys([1, 3, 5, 9], "torn.svs: cannot be read")


@pytest.mark.slow
def test_a_killed_worker_ends_the_training_within_a_minute_and_it_goes_on(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path
) -> None:
    source = image_source(17)

    class KillWorker(tiny.At):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 5:
                multiprocessing.active_children()[0].kill()

    started = time.monotonic()
    with pytest.raises(
        ChildProcessError, match=r"a process that reads tiles was killed .*n_workers=1; the same"
    ):
        fit_tiny(
            tmp_path / "a", source=source, callbacks=[KillWorker(5, _end)], loading=TWO_WORKERS, epochs=9
        )
    assert time.monotonic() - started < 60
    resumed = fit_tiny(tmp_path / "a", source=source, loading=TWO_WORKERS, epochs=9)
    _assert_equal(resumed, fit_tiny(tmp_path / "b", source=source, epochs=9))


def test_a_step_that_is_not_finite_stops_with_its_tiles_and_the_checkpoint_to_go_on_from(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path
) -> None:
    source, diary = image_source(17), tiny.Diary()
    run = partial(fit_tiny, source=source)
    run(tmp_path / "whole", callbacks=[diary])
    with pytest.raises(FloatingPointError) as error:
        run(tmp_path / "sick", callbacks=[tiny.Poison(5)])
    sentence = str(error.value)
    assert sentence.startswith(f"the loss is nan at step 5; {named_tiles(source, diary.ids[5])}; ")
    slides = source.table()["slide"]
    assert all(f"tile {row} ({slides[row]})" in sentence for row in diary.ids[5])
    assert f"the last healthy checkpoint is {tmp_path / 'sick' / LAST} of step 4: go on from it" in sentence
    assert "\n" not in sentence
    assert torch.load(tmp_path / "sick" / LAST, weights_only=True)["global_step"] == 4


def test_a_sentence_names_some_tiles_and_counts_the_rest(image_source: Source) -> None:
    words = named_tiles(image_source(17), list(range(12)))
    assert words.startswith("tile 0 (A/000.png), tile 1 (A/002.png), ")
    assert words.endswith("tile 7 (A/014.png) and 4 more")


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_skipped_step_leaves_everything_as_it_was_and_resuming_counts_it(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path, accumulate: int
) -> None:
    kept: dict[int, Any] = {}

    class Keep(tiny.At):
        def on_train_batch_end(self, trainer: Any, module: SSLMethod, *args: Any) -> None:
            weights = {name: x.clone() for name, x in module.state_dict().items()}
            optimiser = {
                f"{i}.{name}": x.clone()
                for i, state in trainer.optimizers[0].state_dict()["state"].items()
                for name, x in state.items()
            }
            kept[trainer.global_step] = weights | optimiser

    bad = tiny.Poison(5 * accumulate, 6 * accumulate + accumulate - 1)  # the sixth and the seventh step
    run = partial(fit_tiny, source=image_source(17), limits=PATIENT, accumulate=accumulate)
    whole = run(tmp_path / "whole", callbacks=[bad, Keep(0, _end)])
    assert kept[5].keys() == kept[7].keys() == kept[8].keys()
    assert all(torch.equal(kept[5][name], kept[7][name]) for name in kept[5])
    assert not all(torch.equal(kept[7][name], kept[8][name]) for name in kept[5])
    assert all(x.isfinite().all() for x in whole.state_dict().values())
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run(tmp_path / "broken", callbacks=[bad, tiny.At(7, _end)], every=6)
    resumed = run(tmp_path / "broken", callbacks=[bad], every=6)
    _assert_equal(whole, resumed)
    assert whole.n_skipped == resumed.n_skipped == 2
    assert repr(tiny.timeless(tmp_path / "broken")) == repr(
        tiny.timeless(tmp_path / "whole")
    )  # NaN is not NaN


def test_skipped_steps_are_bounded_over_restarts(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path
) -> None:
    run = partial(fit_tiny, tmp_path, source=image_source(17), every=1)
    limits = Limits(max_failed_tiles=0.0, on_nonfinite="skip", max_nonfinite=2)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run(callbacks=[tiny.Poison(1, 3), tiny.At(5, _end)], limits=limits)
    with pytest.raises(
        FloatingPointError, match="the loss is nan at step 6, after 2 that were skipped; tile"
    ):
        run(callbacks=[tiny.Poison(6)], limits=limits)


@pytest.mark.slow
def test_a_bad_batch_on_one_of_two_ranks_skips_the_step_on_both(
    image_source: Source, start: Start, tiny: ModuleType, tmp_path: Path
) -> None:
    bad = [tiny.Poison(5, rank=1)]
    ranks = start(tmp_path, n_ranks=2, source=image_source(16), limits=PATIENT, callbacks=bad)
    said = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    assert _callbacks(tmp_path)["SkippedSteps"] == {"n_skipped": 1}
    assert all(x.isfinite().all() for x in torch.load(tmp_path / "weights.pt").values())
