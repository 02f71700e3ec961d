"""The task of attention on planted heads: who is chosen, on whom, and what is told of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from torch import Tensor

from histo_ssl.backbones.timm import timm_backbone
from histo_ssl.data.loading import Loading
from histo_ssl.heads.attending import Attention, HaematoxylinAlone, Heads
from histo_ssl.tasks import attention
from histo_ssl.tasks.attention import AttentionTask
from histo_ssl.tasks.base import HeadTask, TaskResult, TunedTask, Workplace
from histo_ssl.tasks.floors import ColorStatistics
from histo_ssl.tasks.head_looks import extremes_in, spread

from .conftest import DrawnTiles, Small, encoder_of

N_PATCHES, PATCH_PX = 4, 4  # of tiles of 16 px
TEST = 250  # blue of tiles of the test


class Planted(DrawnTiles):
    """Tiles that tell their own truth: red is the share of nuclei in each patch, blue whether to test."""

    def read(self, i: int) -> NDArray[np.uint8]:
        """A tile."""
        if i in self.broken:
            raise ValueError(f"tile {i} is broken")
        tile = np.zeros((16, 16, 3), np.uint8)
        share = np.random.default_rng(i).integers(0, 200, (N_PATCHES, N_PATCHES))
        tile[..., 0] = share.repeat(PATCH_PX, axis=0).repeat(PATCH_PX, axis=1)
        tile[..., 2] = TEST if i >= 2 * self.n // 3 else 0
        return tile


class Known:
    """The truth of such tiles."""

    names = ("nuclei",)

    def __init__(self, source: Planted, *, nuclei: str | None, tissues: str | None) -> None:
        self.source = source

    def shares(self, row: int, *, n_patches: int) -> NDArray[np.float64]:
        """Of the patches."""
        return self.source.read(row)[None, ::PATCH_PX, ::PATCH_PX, 0] / 200


def _heads(tiles: Tensor) -> Attention:
    """Chance; a good head; one that is perfect, but on the test alone."""
    red = tiles[:, 0, ::PATCH_PX, ::PATCH_PX].double().numpy() + 1
    noise = np.stack([np.random.default_rng(int(1000 * t.sum())).random((4, 4, 2)) for t in red])
    is_test = (tiles[:, 2, 0, 0] == TEST).numpy()[:, None, None]
    maps = np.stack([noise[..., 0], red + 30 * noise[..., 1], np.where(is_test, red, noise[..., 0])], axis=1)
    return Attention(
        maps_BHhw=0.9 * maps / maps.sum(axis=(2, 3), keepdims=True), prefix_BH=np.full((len(red), 3), 0.1)
    )


@pytest.fixture
def configured(compose: Any) -> Callable[..., AttentionTask]:
    """The task as configured."""

    def task(*overrides: str) -> AttentionTask:
        values = ("task.protocol.n_bootstrap=100", "task.protocol.n_drawn=2", *overrides)
        plan = compose("method=dino", "backbone=vit_t", "task=attention", *values)
        made: AttentionTask = instantiate(plan.group("task.protocol"))
        return made

    return task


@pytest.fixture
def vit() -> Any:
    """An encoder of 4 px patches."""
    torch.manual_seed(0)
    import timm

    backbone: Any = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=0, dynamic_img_size=True
    )
    return encoder_of(backbone)


def _place(folder: Path, **changes: Any) -> Workplace:
    loading = Loading(n_workers=0, start_method="fork", timeout_s=60)
    values: dict[str, Any] = {"accelerator": "cpu", "precision": "32-true", "max_failed": 0.05}
    return Workplace(folder=folder, loading=loading, **{**values, **changes})


@pytest.fixture
def planted(
    monkeypatch: pytest.MonkeyPatch, configured: Callable[..., AttentionTask], vit: Any, tmp_path: Path
) -> Callable[..., TaskResult]:
    """A function that looks at planted tiles with planted heads."""
    monkeypatch.setattr(attention, "_attends", lambda encoder, place: _heads)
    monkeypatch.setattr(attention, "PixelTruth", Known)

    def tuned(*overrides: str, subject: str = "encoder", **source: Any) -> TaskResult:
        tiles = Planted(told=True, **{"n": 96, **source})
        return configured(*overrides).tune(vit, tiles, subject=subject, place=_place(tmp_path))

    return tuned


def _value(result: TaskResult, protocol: str, metric: str, label: str = "") -> Any:
    return next(s for s in result.scores if (s.protocol, s.metric, s.label) == (protocol, metric, label))


def test_a_head_is_chosen_on_other_patients_than_it_is_scored_on(planted: Callable[..., TaskResult]) -> None:
    result = planted()
    heads = result.tables["heads"].query("phenotype == 'nuclei'").set_index("head")
    assert heads.loc["3", "auc"] == 1.0  # on the test alone, which is not looked at to choose
    assert heads.loc["3", "auc_choosing"] == pytest.approx(0.5, abs=0.1)
    assert heads.query("is_best").index.tolist() == ["2"]
    best = _value(result, "best_head", "nuclei_auc")
    assert best.value == heads.loc["2", "auc"] < 1.0
    assert best.value > 0.9
    assert _value(result, "best_head", "auc", "nuclei").value == best.value
    assert result.primary == ("best_head", "nuclei_auc")
    assert best.low <= best.value <= best.high
    assert best.chance == 0.5


def test_planted_attention_scores_one_and_random_attention_half(planted: Callable[..., TaskResult]) -> None:
    heads = planted(n=300).tables["heads"].query("phenotype == 'nuclei'").set_index("head")
    assert heads.loc["3", "auc"] == 1.0
    assert heads.loc["1", "auc"] == pytest.approx(0.5, abs=0.05)  # SD .15 of a tile, of 100 tiles .015
    assert heads.loc["1", "correlation"] == pytest.approx(0.0, abs=0.08)
    assert heads.loc["3", "correlation"] == pytest.approx(1.0)


def test_the_mean_of_heads_and_how_they_differ_are_told(planted: Callable[..., TaskResult]) -> None:
    result = planted()
    assert 0.5 < _value(result, "mean_of_heads", "nuclei_auc").value < 1
    assert 0 < _value(result, "heads", "divergence_in_bits").value < 1
    (row,) = result.tables["diversity"].to_dict("records")
    assert (row["n_heads"], row["prefix_share"]) == (3, pytest.approx(0.1))
    assert result.counts == {"n_train": 64, "n_test": 32, "n_train_groups": 16, "n_test_groups": 8}
    assert len(result.predictions) == 32
    assert result.predictions["nuclei_auc"].mean() == pytest.approx(
        _value(result, "best_head", "nuclei_auc").value
    )


def test_the_tiles_that_a_head_narrows_down_on_are_shown_by_how_much(
    planted: Callable[..., TaskResult],
) -> None:
    result = planted("task.protocol.n_narrowest=5", slide={i: f"s{i // 8}" for i in range(96)})
    (sheet,) = result.sheets
    assert [title.partition(":")[0] for title, _, _ in sheet.rows] == ["head 1", "head 2", "head 3"]
    scored = result.predictions["tile"].to_numpy()
    source = Planted(told=True, n=96)
    tiles = np.stack([source.read(int(tile)) for tile in scored])
    maps = _heads(torch.tensor(tiles).permute(0, 3, 1, 2)).maps_BHhw.reshape(len(tiles), 3, -1)
    share = maps / maps.sum(axis=-1, keepdims=True)
    bits = 4 + (share * np.log2(np.where(share > 0, share, 1))).sum(axis=-1)
    for head, (title, rows, captions) in enumerate(sheet.rows):
        assert f"{bits[:, head].mean():.2f} bits on average" in title
        place = {int(tile): i for i, tile in enumerate(scored)}
        shown = [float(bits[place[int(tile)], head]) for tile in rows]
        assert len(rows) == 5
        assert shown == sorted(shown, reverse=True)
        assert shown[0] == pytest.approx(bits[:, head].max())
        assert pd.Series([name for name, _ in captions]).value_counts().max() <= 2  # of one slide
        assert all(
            text.endswith(f"{value:.2f} bits") for (_, text), value in zip(captions, shown, strict=True)
        )


def test_what_can_not_be_read_is_left_out(planted: Callable[..., TaskResult]) -> None:
    assert 95 not in set(planted(broken=(95,)).predictions["tile"])
    with pytest.raises(ValueError, match=r"4 of 32 tiles can't be read, more than max_failed_tiles=0\.05"):
        planted(broken=(92, 93, 94, 95))


def test_with_one_patient_no_head_is_chosen(planted: Callable[..., TaskResult]) -> None:
    columns = {name: dict.fromkeys(range(24), value) for name, value in (("patient", "p"), ("split", ""))}
    result = planted(n=24, **columns)
    assert {score.protocol for score in result.scores} == {"mean_of_heads", "heads"}
    assert any(note.startswith("no head is chosen: no test can be drawn from 1") for note in result.notes)


def test_figures_are_of_the_encoder_and_charts_of_all(
    planted: Callable[..., TaskResult], configured: Callable[..., AttentionTask]
) -> None:
    results = {subject: planted(subject=subject) for subject in ("encoder", "random")}
    colour = results["random"].tables["heads"].query("head in ['1', 'mean']")
    results["colour"] = replace(results["random"], tables={"heads": colour}, figures=[])
    assert [figure.name for figure in results["encoder"].figures] == ["tiles"]
    assert results["random"].figures == []
    charts = configured().illustrate(results)
    assert [figure.name for figure in charts] == ["heads-auc", "heads-correlation"]
    assert "nuclei: head 3 1.00" in charts[0].alt


def test_the_colour_floor_is_haematoxylin_in_the_encoders_patches(
    configured: Callable[..., AttentionTask], vit: Any, tmp_path: Path
) -> None:
    place = _place(tmp_path, trained=vit)
    colour = encoder_of(ColorStatistics())
    attends = attention._attends(colour, place)
    assert attends == HaematoxylinAlone(4)
    result = configured().tune(colour, DrawnTiles(told=True), subject="colour", place=place)
    assert [score for score in result.scores if "haematoxylin" in (score.metric, score.label)] == []
    assert result.primary == ("best_head", "haematoxylin_correlation")


def test_real_heads_are_looked_at_without_a_truth(
    configured: Callable[..., AttentionTask], vit: Any, tmp_path: Path
) -> None:
    assert isinstance(attention._attends(vit, _place(tmp_path)), Heads)
    result = configured().tune(vit, DrawnTiles(told=True), subject="encoder", place=_place(tmp_path))
    assert np.isfinite(_value(result, "best_head", "haematoxylin_correlation").value)
    assert any("haematoxylin stands for them" in note for note in result.notes)
    colour = configured().tune(
        encoder_of(ColorStatistics()),
        DrawnTiles(told=True),
        subject="colour",
        place=_place(tmp_path, trained=vit),
    )
    charts = configured().illustrate({"encoder": result, "colour": colour})
    assert [chart.name for chart in charts] == ["heads-correlation"]


def test_backbones_without_heads_are_refused(
    configured: Callable[..., AttentionTask], tmp_path: Path
) -> None:
    task = configured()
    with pytest.raises(ValueError, match="which has no heads"):
        task.check_backbone(timm_backbone(name="resnet18", drop_path=0.0))
    with pytest.raises(ValueError, match="the backbone is a Small, which has no heads"):
        task.tune(encoder_of(Small()), DrawnTiles(told=True), subject="encoder", place=_place(tmp_path))


def test_it_is_a_task_that_takes_tiles(configured: Callable[..., AttentionTask]) -> None:
    assert isinstance(configured(), HeadTask)
    assert isinstance(configured(), TunedTask)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("task.protocol.top_mass=0", "task.protocol: top_mass: shares above 0"),
        ("task.protocol.nuclear_share=1.5", "task.protocol: nuclear_share: shares above 0"),
        ("task.protocol.n_drawn=0", "task.protocol: n_drawn: shares above 0"),
        ("task.protocol.n_maps=-1", "task.protocol: n_maps: shares above 0"),
    ],
)
def test_values_without_a_meaning_are_refused(
    configured: Callable[..., AttentionTask], override: str, sentence: str
) -> None:
    with pytest.raises(Exception, match=sentence):
        configured(override)


def test_tiles_are_spread_over_keys_by_the_seed() -> None:
    rows = np.arange(100, 200)
    keys = np.array(["a"] * 90 + ["b"] * 8 + ["c"] * 2)
    chosen = spread(rows, keys, n=12, seed=0)
    counts = pd.Series(keys[chosen - 100]).value_counts().to_dict()
    assert counts == {"a": 5, "b": 5, "c": 2}
    assert (
        chosen.tolist()
        == spread(rows, keys, n=12, seed=0).tolist()
        != spread(rows, keys, n=12, seed=1).tolist()
    )
    assert spread(rows, keys, n=1000, seed=0).tolist() == rows.tolist()


def test_the_most_and_least_attended_tiles_of_a_slide_are_found(tmp_path: Path) -> None:
    source = DrawnTiles(told=True, n=12, slide=dict.fromkeys(range(4, 12), "s"))
    table = pd.DataFrame({"x": range(4, 12), "y": 0, "attention": [5, 1, 8, 2, 7, 3, 6, 4]})
    table.to_csv(tmp_path / "s.csv", index=False)
    assert extremes_in(tmp_path / "s.csv", source, n=2).tolist() == [6, 8, 7, 5]
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        extremes_in(tmp_path / "none.csv", source, n=2)
    table.to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(ValueError, match="no tile is of a slide other"):
        extremes_in(tmp_path / "other.csv", source, n=2)
    table.assign(x=table["x"] + 1).to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(ValueError, match="of its tiles are none of this run's"):
        extremes_in(tmp_path / "s.csv", source, n=8)


def test_an_image_is_drawn_in_windows_of_the_encoders_tiles(
    configured: Callable[..., AttentionTask], vit: Any, tmp_path: Path
) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (35, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "below").mkdir()
    Image.fromarray(noise[:8, :8]).save(tmp_path / "below" / "a.png")
    task = replace(configured(), input=str(tmp_path))
    result = task.draw(vit, place=_place(tmp_path))
    names = [figure.name for figure in result.figures]
    assert names[:6] == [f"001-a{name}" for name in ("", "-head1", "-head2", "-head3", "-mean", "-top-mass")]
    assert len(set(names)) == 12
    sizes = [figure.image().size for figure in result.figures[1:6] if callable(figure.image)]
    assert sizes == [(50, 34)] * 5  # whole cells of 2 px
    assert [figure.is_listed for figure in result.figures[:6]] == [True, *[False] * 5]
    assert "2 images, taken to be at the encoder's scale, which nobody knows" in result.notes
    assert result.scores == []
