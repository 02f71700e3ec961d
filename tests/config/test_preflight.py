"""What a run lists before its first stage, and from whom it takes a listing."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from histo_ssl.config.plan import Plan
from histo_ssl.config.preflight import HANDED, prepared


@pytest.fixture
def plan(compose: Callable[..., Plan], tmp_path: Path) -> Plan:
    """Of a run on two images."""
    for i in range(2):
        path = tmp_path / "images" / "AB"[i] / "tile.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(path)
    return compose("method=dino", "backbone=vit_t", "data=images", f"data.root={tmp_path}/images")


@pytest.mark.parametrize(
    ("giver", "rank", "is_taken"),
    [
        pytest.param(os.getppid(), 1, True, id="by the rank 0 that started it"),
        pytest.param(os.getppid(), 0, False, id="by a run inside of which another run begins"),
        pytest.param(1, 1, False, id="by a run further up, under a launcher that started both ranks"),
    ],
)
def test_only_a_rank_takes_a_listing_and_only_from_the_process_that_started_it(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, giver: int, rank: int, is_taken: bool
) -> None:
    monkeypatch.delenv(HANDED, raising=False)
    own = prepared(plan, known=plan.cfg.stages).listing.fingerprint
    monkeypatch.setenv(HANDED, json.dumps([giver, "first", "second"]))
    monkeypatch.setattr(rank_zero_only, "rank", rank, raising=False)
    found = prepared(plan, known=plan.cfg.stages)
    expected = ("first", "second") if is_taken else (own, own)
    assert (found.listing.fingerprint, found.task_listing.fingerprint) == expected
