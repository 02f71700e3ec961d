"""Scores while training goes on: the right numbers, at the right steps, without a trace in the training."""

import json
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer, seed_everything
from numpy.typing import NDArray
from torch import Tensor, nn

from histo_ssl.data.base import TileSource
from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.data.loading import Loading
from histo_ssl.methods.base import SSLMethod
from histo_ssl.stain.base import restained
from histo_ssl.tasks.chosen import ChosenTiles, DrawSpec
from histo_ssl.tasks.cloud import feature_sd, uniformity
from histo_ssl.tasks.knn import Knn
from histo_ssl.tasks.online import OnlineScores, OnlineSpec, Surroundings, evaluating, is_due
from histo_ssl.training.fit import METRICS, Limits, Recording, train
from histo_ssl.training.recording import read_metrics
from histo_ssl.views.compose import Views

N_TILES, N_ASKED, N_STEPS = 17, 6, 8
MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.3, 0.2)
KNN = Knn(k=3, metric="cosine", weighting="softmax", temperature=0.07, chunk_rows=4)
DRAW = DrawSpec(n_known=100, n_asked=100, asked_share=0.3, seed=0)
LOADING = Loading(n_workers=0, start_method="fork", timeout_s=0)
SPEC = OnlineSpec(draw=DRAW, n_pairs=4, times=4, budget=1.0, batch_size=5, protocol=KNN)


def chosen() -> ChosenTiles:
    row = np.random.default_rng(0).permutation(N_TILES)
    return ChosenTiles(row=row, class_of=row % 2, group=row, n_asked=N_ASKED, n_classes=2, names=[])


def scores(
    source: TileSource, folder: Path, *, views: Any = None, keep: Any = None, tiles: ChosenTiles | None = None
) -> OnlineScores:
    def write(encoder: nn.Module, line: dict[str, float]) -> None:
        torch.save(encoder.state_dict(), folder / "best.pt")
        with (folder / "kept.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    around = Surroundings(
        source=source,
        loading=LOADING,
        mean=MEAN,
        std=STD,
        restained=partial(restained, None),
        views=views,
        measures={"uniformity": uniformity, "feature_sd": feature_sd},
        metrics=folder / METRICS,
        best=folder / "best.pt",
        keep=keep or write,
    )
    return OnlineScores(SPEC, tiles or chosen(), around, times=SPEC.times)


class StopAfter(Callback):
    """Ends the training the hard way after so many steps."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.n_steps:
            raise RuntimeError("stopped by the test")


@pytest.fixture
def run(
    image_source: Callable[[int], TileSource], views: Views, tiny_dino: dict[str, Any]
) -> Callable[..., SSLMethod]:
    """Trains a tiny DINO in a folder, with or without scores."""
    source = image_source(N_TILES)

    def trained(folder: Path, *, is_scored: bool, stop_after: int = 0) -> SSLMethod:
        folder.mkdir(exist_ok=True)
        seed_everything(0, verbose=False)
        data = TileDataModule(
            source=source,
            rows=np.arange(N_TILES),
            views=views,
            batch_size=4,
            epochs=2,
            accumulate=1,
            seed=0,
            loading=LOADING,
        )
        module: SSLMethod = instantiate(tiny_dino, _convert_="all")
        make_views = lambda tiles, ids: views(tiles, ids=ids, epoch=0, seed=0)  # noqa: E731
        online = scores(source, folder, views=make_views) if is_scored else None
        stops = [StopAfter(stop_after)] if stop_after else []

        def trainer(**settings: Any) -> Trainer:
            settings["callbacks"] = settings["callbacks"] + stops
            return Trainer(accelerator="cpu", devices=1, default_root_dir=str(folder), **settings)

        recording = Recording(checkpoint_every=3, log_every=1)
        limits = Limits(max_failed_tiles=0.0, on_nonfinite="stop", max_nonfinite=1)
        train(
            module,
            data,
            folder=folder,
            trainer=trainer,
            logger=None,
            online=online,
            recording=recording,
            limits=limits,
        )
        return module

    return trained


def lines(folder: Path, *, is_online: bool) -> list[dict[str, float]]:
    """Lines of the metrics, without what a clock says: those of the scores, or those of the training."""
    clock = ("data_s", "step_s", "online_s")
    found = [line for line in read_metrics(folder / METRICS) if ("online_s" in line) == is_online]
    return [{name: value for name, value in line.items() if name not in clock} for line in found]


@pytest.mark.slow
def test_the_losses_and_weights_are_to_the_last_digit_those_of_a_training_without_scores(
    run: Callable[..., SSLMethod], tmp_path: Path
) -> None:
    with_scores = run(tmp_path / "with", is_scored=True)
    without = run(tmp_path / "without", is_scored=False)
    assert lines(tmp_path / "with", is_online=False) == lines(tmp_path / "without", is_online=False)
    assert [line["step"] for line in lines(tmp_path / "with", is_online=True)] == [2, 4, 6, 8]
    for (name, a), b in zip(with_scores.state_dict().items(), without.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [4, 5])
def test_a_resumed_training_has_the_same_scores_and_keeps_the_same_best(
    run: Callable[..., SSLMethod], tmp_path: Path, stop_after: int
) -> None:
    run(tmp_path / "whole", is_scored=True)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run(tmp_path / "broken", is_scored=True, stop_after=stop_after)
    run(tmp_path / "broken", is_scored=True)
    assert lines(tmp_path / "broken", is_online=True) == lines(tmp_path / "whole", is_online=True)
    best = [torch.load(tmp_path / name / "best.pt", weights_only=True) for name in ("broken", "whole")]
    assert [name for name in best[0] if not torch.equal(best[0][name], best[1][name])] == []


@pytest.mark.slow
def test_the_scores_are_those_of_the_exported_encoder_on_clean_tiles(
    run: Callable[..., SSLMethod], image_source: Callable[[int], TileSource], tmp_path: Path
) -> None:
    encoder = run(tmp_path, is_scored=True).encoder().eval()
    tiles, source = chosen(), image_source(N_TILES)
    pixels = torch.from_numpy(np.stack([source.read(int(row)) for row in tiles.row])).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        z_ND = nn.functional.normalize(encoder((pixels / 255 - mean) / std).double(), dim=1)
    asked, known = z_ND[:N_ASKED], z_ND[N_ASKED:]
    n_right = 0
    for i in range(N_ASKED):
        near = (known @ asked[i]).topk(3)
        weight = (near.values / 0.07).exp()
        is_one = torch.from_numpy(tiles.class_of[N_ASKED:])[near.indices] == 1
        n_right += int((weight[is_one].sum() > weight[~is_one].sum()) == (tiles.class_of[i] == 1))
    last = lines(tmp_path, is_online=True)[-1]
    assert last["step"] == N_STEPS
    assert last["online_knn_accuracy"] == pytest.approx(n_right / N_ASKED)
    distance = torch.pdist(asked).square()
    assert last["online_uniformity"] == pytest.approx(distance.mul(-2).exp().mean().log().item(), abs=1e-5)
    assert 0 < last["online_alignment"] < 4


class Mean(nn.Module):
    """The mean of each channel and row, behind a BatchNorm that would move in training."""

    def __init__(self, quality: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(quality))
        self.norm = nn.BatchNorm1d(96)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.norm(x.mean(3).flatten(1))


def test_only_a_better_encoder_is_kept_and_a_resumed_run_remembers_the_score(
    image_source: Callable[[int], TileSource], tmp_path: Path
) -> None:
    kept: list[float] = []
    online = scores(image_source(N_TILES), tmp_path, keep=lambda _, line: kept.append(line["online_knn_auc"]))
    for value in (0.6, 0.5, 0.6, 0.7):
        online._write(_AtStep(), Mean(), {"online_knn_auc": value})
    assert kept == [0.6, 0.7]
    (tmp_path / "best.pt").write_bytes(b"")
    resumed = scores(image_source(N_TILES), tmp_path)
    resumed.load_state_dict(online.state_dict())
    assert resumed.best_auc == 0.7
    (tmp_path / "best.pt").unlink()
    resumed.load_state_dict(online.state_dict())
    assert resumed.best_auc == -1.0


class _AtStep:
    global_step = 1
    loggers: tuple[()] = ()


def test_every_part_has_its_own_mode_again_and_batchnorm_has_not_moved() -> None:
    model = nn.Sequential(Mean(), nn.Dropout(), nn.Linear(96, 2))
    model[1].eval()
    before = [part.training for part in model.modules()]
    with evaluating(model):
        assert not any(part.training for part in model.modules())
        assert not model(torch.randn(3, 3, 32, 8)).requires_grad
    assert [part.training for part in model.modules()] == before
    assert model[0].norm.num_batches_tracked == 0


def test_scores_come_evenly_and_at_the_last_step_and_within_the_budget() -> None:
    for total, times in ((7, 3), (10, 10), (3, 20), (1000, 7)):
        due = [step for step in range(total + 1) if is_due(step, total=total, times=times)]
        assert due[-1] == total
        assert len(due) == min(total, times)
        assert max(np.diff([0, *due])) - min(np.diff([0, *due])) <= 1
    spec = partial(OnlineSpec, draw=DRAW, n_pairs=1, batch_size=1, protocol=KNN)
    assert spec(times=20, budget=0.05).n_times(n_trained=60_000, n_embedded=1500) == 2
    assert spec(times=20, budget=0.05).n_times(n_trained=205_574_200, n_embedded=1756) == 20
    assert spec(times=20, budget=0.05).n_times(n_trained=100, n_embedded=1500) == 1


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def one_of_ranks(
    number: int, n_ranks: int, port: int, folder: str, source: Any, tiles: ChosenTiles | None = None
) -> None:
    """Scores of an untrained encoder, as one of several ranks finds them."""
    torch.set_num_threads(1)
    if n_ranks > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=number, world_size=n_ranks)
    torch.manual_seed(0)
    views = lambda tiles, ids: [tiles / 255, (tiles / 255).flip(2)]  # noqa: E731
    online = scores(source, Path(folder), views=views, tiles=tiles)
    encoder = Mean()
    online.on_train_start(None, LightningModule())  # type: ignore[arg-type]
    with evaluating(encoder):
        found = online._scores(encoder, device=torch.device("cpu"))
    torch.save(found, Path(folder) / f"{n_ranks}-{number}.pt")
    if n_ranks > 1:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_find_what_one_finds_though_17_tiles_cannot_be_shared_equally(
    image_source: Callable[[int], TileSource], tmp_path: Path
) -> None:
    source = image_source(N_TILES)
    one_of_ranks(0, 1, 0, str(tmp_path), source)
    mp.spawn(one_of_ranks, args=(2, free_port(), str(tmp_path), source), nprocs=2)
    whole, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert second == {}
    names = ("knn_auc", "knn_accuracy", "uniformity", "feature_sd", "alignment")
    assert set(whole) == {f"online_{name}" for name in names}
    assert first == pytest.approx(whole, abs=1e-7)


def torn(source: TileSource, tiles: ChosenTiles, places: list[int]) -> NDArray[np.bool_]:
    """Cut the files of some chosen tiles short; which of them are whole."""
    for row in tiles.row[places]:
        path = Path(source.images["path"][row])
        path.write_bytes(path.read_bytes()[:100])
    is_whole = np.ones(len(tiles), dtype=bool)
    is_whole[places] = False
    return is_whole


@pytest.mark.slow
@pytest.mark.parametrize("n_ranks", [1, 2])
def test_tiles_that_cannot_be_read_are_left_out_on_all_ranks(
    image_source: Callable[[int], TileSource], tmp_path: Path, n_ranks: int
) -> None:
    source, tiles = image_source(N_TILES), chosen()
    (tmp_path / "whole").mkdir()
    places = [1, N_ASKED + 2, N_TILES - 1]  # asked and paired; known; the one that the last rank repeats
    without = tiles.subset(~np.isin(np.arange(N_TILES), places))
    # three of the four pairs are whole: the fourth asked tile would take the place of the second
    one_of_ranks(0, 1, 0, str(tmp_path / "whole"), source, without)
    torn(source, tiles, places)
    if n_ranks == 1:
        one_of_ranks(0, 1, 0, str(tmp_path), source)
    else:
        mp.spawn(one_of_ranks, args=(2, free_port(), str(tmp_path), source), nprocs=2)
    found, expected = torch.load(tmp_path / f"{n_ranks}-0.pt"), torch.load(tmp_path / "whole" / "1-0.pt")
    assert found.pop("online_alignment") != pytest.approx(expected.pop("online_alignment"), abs=1e-7)
    assert found == pytest.approx(expected, abs=1e-6)


def test_where_too_few_tiles_can_be_read_the_training_goes_on_without_scores(
    image_source: Callable[[int], TileSource], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, tiles = image_source(N_TILES), chosen()
    is_whole = torn(source, tiles, np.flatnonzero(tiles.class_of[:N_ASKED] == 0).tolist())
    online = scores(source, tmp_path)
    online.on_train_start(None, LightningModule())  # type: ignore[arg-type]
    n_torn = int((~is_whole).sum())
    assert online.times == 0
    assert f"{n_torn} of {N_TILES} tiles can't be read, too many to score this training" in caplog.text
    assert is_due(N_STEPS, total=N_STEPS, times=0) is False


def test_an_encoder_that_diverged_ends_the_training_in_a_sentence(
    image_source: Callable[[int], TileSource], tmp_path: Path
) -> None:
    online = scores(image_source(N_TILES), tmp_path)
    online.on_train_start(None, LightningModule())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="17 of 17 embeddings are not finite"):
        online._scores(Mean(quality=float("nan")).eval(), device=torch.device("cpu"))
