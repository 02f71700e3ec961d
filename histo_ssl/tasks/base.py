"""What a task is: it takes embeddings of labelled tiles and returns scores that say how sure they are."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from histo_ssl.data.base import TileSource
from histo_ssl.data.loading import Loading
from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.encode import Encoder
from histo_ssl.tasks.splits import Split

ENCODER = "encoder"  # the subject that is no floor
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auc")  # of classes
NUMBER_METRICS = (  # of labels that are numbers
    *("prediction_probability", "kendall_tau_b", "spearman", "icc_2_1", "icc_3_1"),
    *("mse", "mae"),
)


AS_PUBLISHED = "concordance_as_published"  # of numbers, where a task asks for it


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number about one set of embeddings, with what it takes to judge it."""

    subject: str  # whose embeddings: "encoder", or a floor: "colour", "random"
    protocol: str  # how they were scored, such as "weighted_k20"
    metric: str  # one of METRICS or NUMBER_METRICS, or of a protocol's own
    label: str  # the class it is about; "" for all classes together, and where labels are numbers
    value: float  # 0-1 of classes; NaN where the test set doesn't define it
    low: float  # 95 % interval, NaN where there is none
    high: float
    chance: float  # what the best guess reaches that never looks at the tile


@dataclass(frozen=True, kw_only=True)
class Look:
    """The attention that a slide's tiles drew from the model of the fold that tested it."""

    slide: str
    model: str
    fold: str
    title: str  # what the model said, and whether it was right
    coords: NDArray[np.int64]  # (N, 2) level-0 px
    attention: NDArray[np.float64]  # (N,) before the soft-max; to be compared within the slide alone


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """A picture that a result is shown by."""

    name: str  # of its file, without ending
    title: str
    alt: str  # what there is to be seen, for those who can't see it
    group: str  # heading of figures that belong together
    image: Image.Image | Callable[[], Image.Image]  # or what makes it, where many are large
    is_listed: bool = True  # in figures.json; false for those that are too large for a page


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Tiles to be shown in rows; a task on embeddings knows their numbers alone."""

    name: str  # as of a Figure, as are the next three
    title: str
    alt: str
    group: str
    rows: list[
        tuple[str, NDArray[np.int64], list[tuple[str, str]]]
    ]  # heading, numbers of tiles, two lines each


@dataclass(kw_only=True)
class TaskResult:
    """What a task found out about one set of embeddings."""

    scores: list[Score]
    predictions: pd.DataFrame  # one row per protocol and test tile
    confusion: dict[str, list[list[int]]]  # by protocol: row = true class, column = predicted class
    classes: list[str]  # order of the rows and columns of `confusion`
    notes: list[str]  # sentences that a reader of the scores must know
    counts: dict[str, int]  # n_train, n_test (tiles), n_train_groups, n_test_groups
    primary: tuple[str, str]  # protocol and metric that stand for the task
    thumbnail_px: int = 0  # side of the pictures that the tiles of `predictions` are to be shown by; 0: none
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)  # more to keep, by the name of its file
    arrays: dict[str, Mapping[str, NDArray[np.generic]]] = field(
        default_factory=dict
    )  # the same of numbers, by the path of its file in the result's folder, without ending
    folds: dict[str, dict[str, float]] = field(default_factory=dict)  # by protocol and fold: its AUC
    label_fraction: float = 1.0  # share of the training labels that was learned from
    looks: list[Look] = field(
        default_factory=list
    )  # where a model looked, of the slides that are to be shown
    figures: list[Figure] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)  # become figures, where there are tiles to read


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What a task that trains has beside its data."""

    folder: Path  # where it may keep what an interrupted run shall not do again
    accelerator: str  # as Lightning's Trainer takes it, as is the next
    precision: str
    loading: Loading  # how tiles are read
    max_failed: float  # share of the tiles that may turn out unreadable, 0-1
    trained: Encoder | None = None  # the encoder that is scored, beside whose scores floors stand


def check_finite(features_ND: NDArray[np.floating]) -> None:
    """Stop at embeddings of an encoder that has diverged, before a protocol makes something of them.

    Raises:
        ValueError: says how many are not finite.
    """
    n_bad = int((~np.isfinite(features_ND)).any(axis=1).sum())
    if n_bad:
        raise ValueError(
            f"{n_bad} of {len(features_ND)} embeddings are not finite: the encoder has diverged; look at its "
            "loss and train it again"
        )


@runtime_checkable
class TunedTask(Protocol):
    """Labelled tiles x a training of the encoder itself."""

    @property
    def labels_are_classes(self) -> bool:
        """Whether labels name classes, as `Task` has it."""

    def split(self, labelled: EmbeddingSet) -> Split:
        """Who learns and who is tested, of tiles that all have a label."""

    def check(self, tiles: EmbeddingSet) -> None:
        """Stop at tiles that `tune` would refuse: before a long training.

        Raises:
            ValueError: says why they can't be scored.
        """

    def tune(self, encoder: Encoder, source: TileSource, *, subject: str, place: Workplace) -> TaskResult:
        """Scores of a copy of an encoder that goes on learning from the tiles of a source."""


@runtime_checkable
class HeadTask(TunedTask, Protocol):
    """Tiles x what the heads of an encoder attend to; `tune` looks, and changes nothing."""

    def check_backbone(self, backbone: nn.Module) -> None:
        """Stop at a backbone that has no heads, before a long training.

        Raises:
            ValueError: says what is expected.
        """

    def draw(self, encoder: Encoder, *, place: Workplace) -> TaskResult:
        """Figures of images of the user's own, without scores."""

    def illustrate(self, results: Mapping[str, TaskResult]) -> list[Figure]:
        """Figures of all subjects together."""


@runtime_checkable
class BagTask(Protocol):
    """Labelled slides x folds x models of bags."""

    def check_slides(self, slides: pd.DataFrame) -> None:
        """Stop at slides that `evaluate_bags` would refuse, whatever their features: before a long training.

        Args:
            slides: slide, patient, site, label and the slide list's other columns (text), n_tiles.

        Raises:
            ValueError: says why they can't be scored.
        """

    def evaluate_bags(
        self, features: Path, slides: pd.DataFrame, *, subject: str, place: Workplace
    ) -> TaskResult:
        """Scores of the embeddings in a folder of a file per slide, which belong to `subject`."""


class Task(Protocol):
    """Labelled data x protocol."""

    @property
    def labels_are_classes(self) -> bool:
        """Whether labels name classes, so that nearest neighbours may vote on them while training goes on."""

    def split(self, labelled: EmbeddingSet) -> Split:
        """Who learns and who is tested, of tiles that all have a label."""

    def check(self, tiles: EmbeddingSet) -> None:
        """Stop at tiles that `evaluate` would refuse, whatever their features: before hours of training.

        Raises:
            ValueError: says why they can't be scored.
        """

    def evaluate(self, embeddings: EmbeddingSet, *, subject: str, accelerator: str = "auto") -> TaskResult:
        """Scores of `embeddings`, which belong to `subject` ("encoder", "colour" or "random").

        Args:
            embeddings: of the task's tiles.
            subject: whose they are.
            accelerator: what may be computed on, as Lightning's Trainer takes it.
        """


def table_of(tiles: EmbeddingSet) -> pd.DataFrame:
    """What is known of each tile, as the first columns of a table of predictions."""
    x, y = tiles.coords.T
    return pd.DataFrame(
        {
            "slide": tiles.slide,
            "x": x,
            "y": y,
            "patient": tiles.patient,
            "label": tiles.label,
            "tile": tiles.row,
        }
    )


def counts_of(split: Split) -> dict[str, int]:
    """Tiles and groups of train and test."""
    parts = {"train": split.train, "test": split.test}
    tiles = {f"n_{name}": int(part.sum()) for name, part in parts.items()}
    return tiles | {f"n_{name}_groups": split.n_groups(part) for name, part in parts.items()}


def without_scores(reason: str, *, primary: tuple[str, str]) -> TaskResult:
    """What a task returns of data that have nothing to score, with the reason in its notes."""
    counts = dict.fromkeys(("n_train", "n_test", "n_train_groups", "n_test_groups"), 0)
    return TaskResult(
        scores=[],
        predictions=pd.DataFrame(),
        confusion={},
        classes=[],
        counts=counts,
        primary=primary,
        notes=[f"{reason}: nothing to score"],
    )


def check_sampling(*, test_share: float, n_bootstrap: int) -> None:
    """Stop at a share or a number of resamples that have no meaning.

    Raises:
        ValueError: says which are right.
    """
    if not 0 < test_share < 1 or n_bootstrap < 1:
        raise ValueError(
            f"task.protocol.test_share={test_share}, n_bootstrap={n_bootstrap}: a share between 0 and 1, "
            "and 1 resample or more, are expected"
        )


def check_primary(primary: tuple[str, str], *, protocols: Collection[str], metrics: Collection[str]) -> None:
    """Stop at a primary score that is never computed.

    Raises:
        ValueError: says which there are.
    """
    if primary[0] not in protocols or primary[1] not in metrics:
        raise ValueError(
            f"task.protocol.primary={list(primary)}: expected a protocol ({', '.join(protocols)}) and "
            f"a metric ({', '.join(metrics)})"
        )
