"""What the stages `embed` and `evaluate` do: who is scored, and on which tiles."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray

from histo_ssl.config.plan import Plan
from histo_ssl.data.base import HELD_OUT, TileSource
from histo_ssl.data.loading import Loading
from histo_ssl.data.sources import open_source
from histo_ssl.embed import known_of, load_embeddings
from histo_ssl.embeddings import UNREADABLE
from histo_ssl.encode import Card, Encoder, check_scale, load_encoder
from histo_ssl.export import ENCODER
from histo_ssl.folders import artifacts
from histo_ssl.folders.artifacts import Counts, fingerprint, finished
from histo_ssl.scorebook import write_results
from histo_ssl.stain.base import NOT_RESTAINED, note
from histo_ssl.tasks.base import ENCODER as ENCODER_SUBJECT
from histo_ssl.tasks.base import BagTask, HeadTask, Task, TaskResult, TunedTask, Workplace
from histo_ssl.tasks.chosen import flattery
from histo_ssl.tasks.floors import colour_floor
from histo_ssl.training.fit import precision_for

TCGA = re.compile(r"TCGA-\w\w-\w{4}")  # how a barcode begins; its patient is the first 12 letters
PATIENT_LETTERS = 12


def check_task(plan: Plan) -> None:
    """Stop before a training whose encoder could not be scored, if it is to be scored.

    Raises:
        ValueError: says what is wrong with the task's labels, splits, or the scale or size of its tiles.
    """
    if "evaluate" not in plan.cfg.stages:
        return
    task = instantiate(plan.group("task.protocol"))
    if isinstance(task, HeadTask):
        task.check_backbone(instantiate(plan.group("backbone"))())
    if plan.has_images or not artifacts.is_done(plan.task_tile_folder):
        return
    source = open_source(plan.task_tile_folder)
    if isinstance(task, BagTask):
        task.check_slides(_slides(source))
    else:
        task.check(known_of(source.table(), features=np.zeros((len(source), 0), np.float32)))
    if not plan.is_frozen:
        trained_mpp = open_source(finished(plan.tile_folder, stage="tile")).mpp
        any_mpp = plan.cfg.embedding.any_mpp
        check_scale(source.mpp, trained_mpp=trained_mpp, who="an encoder of this run", any_mpp=any_mpp)
    _check_side(plan, source.tile_px)


@torch.inference_mode()
def _check_side(plan: Plan, side_px: int) -> None:
    """Show the backbone a tile of the task's size, some of which can't be cut into the patches of a ViT."""
    backbone = instantiate(plan.group("backbone"))().eval()
    try:
        backbone(torch.zeros(1, 3, side_px, side_px))
    except ValueError as error:
        raise ValueError(f"task.tiling.size_px={side_px}: {error}") from error


def needs_embeddings(plan: Plan) -> bool:
    """Whether the task scores embeddings, rather than training encoders on."""
    return not isinstance(instantiate(plan.group("task.protocol")), TunedTask)


def subjects_of(plan: Plan, source: TileSource) -> dict[str, Encoder]:
    """Who is scored: the encoder, and its floors, colour alone and the same backbone with random weights."""
    trained = load_encoder(finished(plan.pretrain_folder, stage="pretrain") / ENCODER)
    colour = colour_floor(source, stain=trained.card.stain)
    return {"encoder": trained, "colour": colour, "random": _random(plan, trained.card)}


def _random(plan: Plan, card: Card) -> Encoder:
    """The encoder's own architecture and inputs, with weights that have learnt nothing."""
    values = {**asdict(card), "method": "random", "chosen_on": ()}
    made_of = {
        "floor": "random",
        "seed": plan.cfg.seed,
        # a card without a normalisation is as it was before there was any
        **{k: v for k, v in values.items() if k != "fingerprint" and (k != "stain" or v)},
    }
    torch.manual_seed(plan.cfg.seed)
    backbone = instantiate(plan.group("backbone"))()
    return Encoder(backbone, Card(**{**values, "fingerprint": fingerprint(made_of)}))


def score(plan: Plan, folder: Path) -> Counts:
    """Write the scores of the encoder and its floors, all on the same tiles, into `folder`."""
    if plan.is_given:
        return _score_given(plan, folder)
    if plan.has_images:
        return _draw(plan, folder)
    source = open_source(finished(plan.task_tile_folder, stage="tile"))
    subjects = subjects_of(plan, source)
    folders = _embedded(plan, subjects, source)
    results = _results(plan, subjects, folders, source=source, folder=folder)
    return write_results(plan, results, folder, source=source)


def _embedded(plan: Plan, subjects: Mapping[str, Encoder], source: TileSource) -> dict[str, Path]:
    """Folders of the embeddings that are scored; none where a task sees the tiles, of a scale that fits."""
    if needs_embeddings(plan):
        wanted = {subject: encoder.card.fingerprint for subject, encoder in subjects.items()}
        return {who: finished(plan.embedding_folder(mark), stage="embed") for who, mark in wanted.items()}
    for encoder in subjects.values():
        encoder.check_scale(source.mpp, any_mpp=plan.cfg.embedding.any_mpp)
    return {}


def _results(
    plan: Plan,
    subjects: Mapping[str, Encoder],
    folders: Mapping[str, Path],
    *,
    source: TileSource,
    folder: Path,
) -> dict[str, TaskResult]:
    task = instantiate(plan.group("task.protocol"))
    shared = _shared_rows(folders.values(), source)
    place = _workplace(plan, folder, trained=subjects[ENCODER_SUBJECT])
    results: dict[str, TaskResult] = {}
    for subject, encoder in subjects.items():
        features = folders.get(subject)
        result = _result(
            task, encoder, source, features=features, shared=shared, subject=subject, place=place
        )
        result.notes += flattery(encoder.card.chosen_on, result.predictions)
        if isinstance(task, BagTask) and subject == ENCODER_SUBJECT:
            result.notes += _seen(plan, result)
        result.notes += _lost(len(source) - len(shared), len(source))
        if subject in folders:
            n_left = artifacts.counts(folders[subject]).get(NOT_RESTAINED, 0)
            result.notes += note(n_left, len(source))
        results[subject] = result
    if isinstance(task, HeadTask):
        results[ENCODER_SUBJECT].figures[:0] = task.illustrate(results)
    return results


def _result(
    task: Task | BagTask | TunedTask,
    encoder: Encoder,
    source: TileSource,
    *,
    features: Path | None,
    shared: NDArray[np.int64],
    subject: str,
    place: Workplace,
) -> TaskResult:
    """What a task of any kind finds out about a subject: by its encoder, or by its folder of embeddings."""
    if isinstance(task, TunedTask):
        return task.tune(encoder, source, subject=subject, place=place)
    assert features is not None
    if isinstance(task, BagTask):
        return task.evaluate_bags(features, _slides(source), subject=subject, place=place)
    embeddings = load_embeddings(features, source)
    seen_by_all = embeddings.subset(np.isin(embeddings.row, shared))
    return task.evaluate(seen_by_all, subject=subject, accelerator=place.accelerator)


def _draw(plan: Plan, folder: Path) -> Counts:
    """What an encoder makes of images of the user's own, which nobody has labelled."""
    task = instantiate(plan.group("task.protocol"))
    encoder = load_encoder(finished(plan.pretrain_folder, stage="pretrain") / ENCODER)
    result = task.draw(encoder, place=_workplace(plan, folder, trained=encoder))
    return write_results(plan, {ENCODER_SUBJECT: result}, folder, source=None)


def _score_given(plan: Plan, folder: Path) -> Counts:
    """The same of features that another program made: without floors, which would need tiles."""
    task = instantiate(plan.group("task.protocol"))
    if not isinstance(task, BagTask):
        raise ValueError("method=features has no encoder, so that it is for task=slides and its like alone")
    names = list(instantiate(plan.group("method")).files())
    unknown = dict.fromkeys(("site", "split", "label"), "")
    patients = [name[:PATIENT_LETTERS] if TCGA.match(name) else "" for name in names]
    slides = pd.DataFrame({"slide": names, "patient": patients, **unknown, "n_tiles": 1})
    result = task.evaluate_bags(
        Path(plan.cfg.method.path), slides, subject="encoder", place=_workplace(plan, folder, trained=None)
    )
    result.notes.append("features from elsewhere: there are no floors to compare with")
    return write_results(plan, {"encoder": result}, folder, source=None)


def _workplace(plan: Plan, folder: Path, *, trained: Encoder | None) -> Workplace:
    accelerator = plan.cfg.trainer.accelerator
    return Workplace(
        folder=folder,
        accelerator=accelerator,
        precision=precision_for(plan.cfg.trainer.precision, accelerator),
        loading=Loading(**plan.group("loader")),
        max_failed=plan.cfg.max_failed_tiles,
        trained=trained,
    )


def _seen(plan: Plan, result: TaskResult) -> list[str]:
    """Whether tested slides were among those that the encoder was pretrained on, without their labels."""
    if plan.is_frozen:
        return []
    slides = open_source(plan.tile_folder).slides()
    learned = set(slides["slide"][~slides["split"].isin(HELD_OUT)])
    tested = set(result.predictions["slide"])
    if not learned & tested:
        return []
    return [
        f"the encoder was pretrained, without labels, on {len(learned & tested)} of the {len(tested)} tested "
        "slides: on slides of others it may do worse"
    ]


def _slides(source: TileSource) -> pd.DataFrame:
    """The slide list, for a task on slides.

    Raises:
        ValueError: the tiles are images.
    """
    slides = source.slides()
    if not len(slides):
        raise ValueError(
            "a task on slides needs tiles that were cut from slides, and these are images: take data=slides"
        )
    return slides


def _shared_rows(folders: Iterable[Path], source: TileSource) -> NDArray[np.int64]:
    """Tiles that all have embedded, so that all are scored on the same."""
    rows = np.arange(len(source))
    for folder in folders:
        if artifacts.counts(folder).get(UNREADABLE):
            rows = np.intersect1d(rows, load_embeddings(folder, source).row)
    return rows


def _lost(n_lost: int, n_tiles: int) -> list[str]:
    return [f"{n_lost} of {n_tiles} tiles could not be read and have no part in the scores"] if n_lost else []
