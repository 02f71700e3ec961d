"""The task of finetuning: encoders by what becomes of them when they go on learning (`tasks/tuning.py`)."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from histo_ssl.data.base import TileSource
from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.encode import Encoder
from histo_ssl.stain.base import note
from histo_ssl.tasks.base import (
    METRICS,
    TaskResult,
    Workplace,
    check_primary,
    check_sampling,
    counts_of,
    table_of,
    without_scores,
)
from histo_ssl.tasks.bootstrap import Asked
from histo_ssl.tasks.school import Answers, School
from histo_ssl.tasks.scores import Predictions, cautions, scores_of
from histo_ssl.tasks.splits import Split, split_tiles
from histo_ssl.tasks.tiles import classes_of, columns_of, confusion_of, why_nothing
from histo_ssl.tasks.tuning import Tuning

NAME = "finetune"


def tiles_of(source: TileSource) -> EmbeddingSet:
    """What is known of a source's tiles, without features."""
    table = source.table()
    texts = {name: table[name].to_numpy(dtype=str) for name in ("slide", "patient", "site", "split", "label")}
    return EmbeddingSet(
        features=np.zeros((len(table), 0), np.float32),
        coords=table[["x", "y"]].to_numpy(dtype=np.int64),
        row=table.index.to_numpy(dtype=np.int64),
        **texts,
    )


@dataclass(frozen=True, kw_only=True)
class FineTuneTask:
    """Scores encoders by what becomes of them when they go on learning from labelled tiles."""

    tuning: Tuning
    primary: tuple[str, str] | None
    test_share: float
    n_bootstrap: int
    seed: int

    labels_are_classes = True

    def __post_init__(self) -> None:
        check_sampling(test_share=self.test_share, n_bootstrap=self.n_bootstrap)
        check_primary(self.judged_by, protocols=[NAME], metrics=METRICS)

    @property
    def judged_by(self) -> tuple[str, str]:
        """The only protocol, and the metric that stands for the task."""
        return (self.primary[0], self.primary[1]) if self.primary else (NAME, "auc")

    def split(self, labelled: EmbeddingSet) -> Split:
        """Who learns and who is tested, of tiles that all have a label."""
        return split_tiles(labelled, test_share=self.test_share, seed=self.seed)

    def check(self, tiles: EmbeddingSet) -> None:
        """Stop at labels and splits that `tune` would refuse.

        Raises:
            ValueError: as there.
        """
        labelled = tiles.labelled()
        if not why_nothing(labelled):
            classes_of(labelled.label, self.split(labelled))

    def tune(self, encoder: Encoder, source: TileSource, *, subject: str, place: Workplace) -> TaskResult:
        """Scores with intervals and predictions of a copy of the encoder, tuned on the training tiles.

        Raises:
            ValueError: the test has a class that train lacks, the split leaks, every rate diverges, or more
                tiles can't be read than `place` allows.
        """
        labelled = tiles_of(source).labelled()
        reason = why_nothing(labelled)
        if not reason and not any(True for _ in encoder.backbone.parameters()):
            reason = f"{subject} has no weights that could be tuned"
        if reason:
            return without_scores(reason, primary=self.judged_by)
        split = self.split(labelled)
        classes = classes_of(labelled.label, split)
        class_N = np.searchsorted(classes, labelled.label).astype(np.int64)
        school = School(
            encoder=encoder,
            subject=subject,
            source=source,
            tiles=labelled,
            class_N=class_N,
            group_N=split.group,
            n_classes=len(classes),
            tuning=self.tuning,
            seed=self.seed,
            place=place,
        )
        test = np.flatnonzero(split.test)
        answers, notes = school.taught(np.flatnonzero(split.train), test)
        if not answers.is_read_M.any():
            return without_scores("no test tile can be read", primary=self.judged_by)
        read = test[answers.is_read_M]
        found = Predictions(
            score_MC=torch.from_numpy(answers.logits_MC[answers.is_read_M]).double().softmax(dim=1).numpy(),
            truth_M=class_N[read],
            group_M=np.unique(split.group[read], return_inverse=True)[1].astype(np.int64),
            classes=classes,
        )
        scored = replace(split, test=np.isin(np.arange(len(labelled)), read))
        return self._result(found, labelled, scored, notes=[*notes, *_told(answers)], subject=subject)

    def _result(
        self, found: Predictions, tiles: EmbeddingSet, split: Split, *, notes: list[str], subject: str
    ) -> TaskResult:
        asked = Asked(subject=subject, protocol=NAME, n_bootstrap=self.n_bootstrap, seed=self.seed)
        tested = table_of(tiles.subset(split.test))
        return TaskResult(
            scores=scores_of(found, asked),
            predictions=tested.assign(subject=subject, protocol=NAME, **columns_of(found)),
            confusion={NAME: confusion_of(found)},
            classes=found.classes,
            notes=[*split.notes, *(f"{NAME} {note}" for note in notes), *cautions(found)],
            counts=counts_of(split),
            primary=self.judged_by,
        )


def _told(answers: Answers) -> list[str]:
    """What a reader must know of the tiles that an encoder was taught by and asked."""
    n_asked, n_lost = len(answers.is_read_M), int((~answers.is_read_M).sum())
    lost = f"left out {n_lost} of {n_asked} test tiles that could not be read"
    replaced = f"put others in the places of {answers.n_replaced} training tiles that could not be read"
    left = note(int((answers.is_left_M & answers.is_read_M).sum()), n_asked - n_lost)
    return [
        *([lost] if n_lost else []),
        *([replaced] if answers.n_replaced else []),
        *(f"was asked about test tiles, of which {sentence}" for sentence in left),
    ]
