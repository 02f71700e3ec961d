"""A long list of tiles costs a process that reads them nothing that grows with it."""

import pickle
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.data.loading import Loading
from histo_ssl.data.slides import SlideTiles
from histo_ssl.data.sources import open_source
from histo_ssl.folders.artifacts import write_json
from histo_ssl.slides.index import INDEX, write_index
from histo_ssl.slides.reader import Slide

MB = 2**20
N_TILES = 6_600_000  # 79 MB of the list; two thirds to train on, more than N_SHUFFLED_WHOLE


@pytest.fixture
def source(write_slide: Callable[..., str], tmp_path: Path) -> SlideTiles:
    """6.6 million tiles of three slides, the last of them of the test split."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    path = write_slide([pixels], mpp=0.5)
    stamp = Slide(path).stamp
    facts = {"path": path, "patient_id": "", "site": "", "label": "", "mpp": 0.5, "n_levels": 1}
    facts |= {"width_px": 256, "height_px": 256, "n_bytes": stamp.n_bytes, "modified_ns": stamp.modified_ns}
    facts |= {"digest": stamp.digest, "tissue_mm2": 0.0, "seconds": 0.0, "reason": "", "n_unwritten": 0}
    n_each = N_TILES // 3
    status = pd.DataFrame(
        {"slide_id": list("abc"), "split": ["", "train", "test"], "n_tiles": n_each} | facts
    )
    xy = np.random.default_rng(1).integers(0, 192, (n_each, 2)).astype(np.int32)
    write_index(tmp_path, status=status, xy_level0=[xy, xy, xy])
    facts = {"kind": "slides", "tile_px": 64, "mpp": 0.5, "stride_px": 64, "classes": []}
    write_json(tmp_path / "source.json", facts)
    opened = open_source(tmp_path)
    assert isinstance(opened, SlideTiles)
    return opened


def test_what_a_worker_gets_and_allocates_does_not_grow_with_the_list(source: SlideTiles) -> None:
    tracemalloc.start()
    try:
        data = TileDataModule(
            source=source,
            rows=source.training_rows(),
            views=None,
            batch_size=32,
            epochs=2,
            accumulate=1,
            seed=0,
            loading=Loading(n_workers=0, start_method="fork", timeout_s=0),
        )
        steps = list(zip(range(20), data.sampler(first_step=0, rank=0, n_ranks=1), strict=False))
        sent = pickle.dumps(data.tiles)  # to a worker that is not forked
        received = pickle.loads(sent)
        batches = [received.__getitems__(wanted) for _, wanted in steps]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(sent) < 2000
    n_batch_bytes = sum(batch["tiles"].nbytes for batch in batches)
    assert peak - n_batch_bytes < 4 * MB  # a list of the rows alone has 35
    assert all(not batch["failed"] for batch in batches)
    rows = np.concatenate([batch["ids"].numpy() for batch in batches])
    assert len(set(rows.tolist())) == 640
    assert rows.max() < 4_400_000  # none of the test split
    assert (rows < 2_200_000).mean() == pytest.approx(0.5, abs=0.1)  # SD 0.02
    i = int(rows[7])
    np.testing.assert_array_equal(batches[0]["tiles"][7].numpy(), source.read(i))


def test_tiles_drawn_at_random_leave_the_list_out_of_the_process(source: SlideTiles) -> None:
    worker = pickle.loads(pickle.dumps(source))
    draws = np.random.default_rng(0).integers(N_TILES, size=2000)
    tiles = [worker.index.tile(int(i)) for i in draws]
    assert _resident(worker.index.folder / INDEX) < 1 * MB
    assert tiles == [tuple(source.index.tiles[i].tolist()) for i in draws]
    assert _resident(worker.index.folder / INDEX) > 20 * MB  # what a look through the mapping would cost
    for outside in (-1, N_TILES):
        with pytest.raises(IndexError, match=f"tile {outside} of {N_TILES}"):
            worker.index.tile(outside)


def _resident(path: Path) -> int:
    """Bytes of a file that are mapped into this process and present."""
    maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    return sum(
        int(re.search(r"^Rss: *(\d+) kB", one, re.MULTILINE)[1]) * 1024 for one in maps if str(path) in one
    )
