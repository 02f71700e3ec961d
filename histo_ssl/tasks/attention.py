"""The task of attention: what the heads of an encoder attend to, drawn, and held against what tiles show.

Figures 3 and 4 of arXiv:2203.00585 show that heads learn distinct morphologies; here each gets a number, the
chosen head's on other patients than those it was chosen on, beside random weights and haematoxylin alone.

Letters: M tiles; H heads; L patches of a tile.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from histo_ssl.backbones.attention import check_heads
from histo_ssl.backbones.vit import patch_px
from histo_ssl.data.base import TileSource
from histo_ssl.data.image_list import images_below
from histo_ssl.data.slides import SlideTiles
from histo_ssl.data.synthetic import NUCLEI
from histo_ssl.data.truth import PixelTruth
from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.encode import Encoder
from histo_ssl.heads.attending import Attends, HaematoxylinAlone, Heads
from histo_ssl.heads.maps import divergence
from histo_ssl.heads.regions import Windows
from histo_ssl.tasks.base import (
    ENCODER,
    Figure,
    TaskResult,
    Workplace,
    check_sampling,
    counts_of,
    table_of,
    without_scores,
)
from histo_ssl.tasks.bootstrap import Asked, few_groups
from histo_ssl.tasks.finetune import tiles_of
from histo_ssl.tasks.floors import ColorStatistics
from histo_ssl.tasks.head_figures import charts, region_figures, tile_figures
from histo_ssl.tasks.head_looks import HAEMATOXYLIN, Least, Seen, extremes_in, looked_at, spread
from histo_ssl.tasks.head_scores import Named, score_of
from histo_ssl.tasks.head_slides import FOLDER, drawn_slides, narrowest, over_slide, slide_figure
from histo_ssl.tasks.head_tables import BEST, DIVERGENCE, MEAN, diversity, judge, primary_metric
from histo_ssl.tasks.scores import COVERAGE
from histo_ssl.tasks.splits import Split, split_tiles

log = logging.getLogger(__name__)

COLOUR = "colour"  # the floor that is haematoxylin here
HEADS = "heads"  # the protocol of what is about all of them together, and the table of each
CHOOSING, SCORING = 0, 1  # words in the seeds of draws


@dataclass(frozen=True, kw_only=True)
class AttentionTask:
    """Draws and scores heads (see `conf/task/protocol/attention.yaml` for what each value means)."""

    input: str | None
    nuclei: str | None
    tissues: str | None
    nuclear_share: float
    tissue_share: float
    max_tiles: int
    n_drawn: int
    n_maps: int
    n_narrowest: int
    region_px: int
    overlap: float
    top_mass: float
    test_share: float
    n_bootstrap: int
    seed: int

    labels_are_classes = True

    def __post_init__(self) -> None:
        check_sampling(test_share=self.test_share, n_bootstrap=self.n_bootstrap)
        shares = ("nuclear_share", "tissue_share", "top_mass", "overlap")
        wrong = [name for name in shares if not 0 < getattr(self, name) <= 1]
        least = {"max_tiles": 1, "n_drawn": 1, "region_px": 1, "n_narrowest": 1, "n_maps": 0}
        wrong += [name for name, value in least.items() if getattr(self, name) < value]
        if wrong:
            raise ValueError(
                f"task.protocol: {', '.join(wrong)}: shares above 0 and up to 1, and numbers of 1 or more "
                "(n_maps: 0), are expected"
            )

    def split(self, labelled: EmbeddingSet) -> Split:
        """On whom heads are chosen (train), and on whom they are scored; labels have no part in it."""
        alike = replace(labelled, label=np.full(len(labelled), "tile"))
        return split_tiles(alike, test_share=self.test_share, seed=self.seed)

    def check(self, tiles: EmbeddingSet) -> None:
        """Nothing: tiles that can't be split are drawn all the same."""

    def check_backbone(self, backbone: nn.Module) -> None:
        """Stop at a backbone that has no heads.

        Raises:
            ValueError: as `check_heads`.
        """
        check_heads(backbone)

    def tune(self, encoder: Encoder, source: TileSource, *, subject: str, place: Workplace) -> TaskResult:
        """Scores of heads, the best of them chosen on training patients, and figures of a few tiles.

        Raises:
            ValueError: the backbone has no heads, the split leaks, or too many tiles can't be read.
        """
        attends, tiles = _attends(encoder, place), tiles_of(source)
        truth = PixelTruth(source, nuclei=self.nuclei, tissues=self.tissues)
        try:
            split, reasons = self.split(tiles), []
        except ValueError as error:
            everyone = np.ones(len(tiles), dtype=bool)
            split = Split(train=~everyone, test=everyone, group=np.zeros(len(tiles), int), unit="", notes=[])
            reasons = [f"no head is chosen: {error}"]
        parts = [
            self._seen(attends, source, split, truth=truth, word=w, place=place) for w in (CHOOSING, SCORING)
        ]
        result = self._result(parts[CHOOSING], parts[SCORING], tiles, split, subject=subject)
        result.notes = [*reasons, *split.notes, *result.notes]
        if subject == ENCODER:
            result.figures = self._figures(attends, source, tiles, split, encoder=encoder)
            scored = parts[SCORING]
            assert scored is not None
            result.sheets = [narrowest(scored, source.table(), n=self.n_narrowest)]
            if isinstance(source, SlideTiles) and not self.input:
                self._look_over_slides(result, attends, source, split, place=place)
        return result

    def _look_over_slides(
        self, result: TaskResult, attends: Attends, source: SlideTiles, split: Split, *, place: Workplace
    ) -> None:
        """Add figures of whole slides under each head, and the numbers behind them."""
        names = drawn_slides(source, np.flatnonzero(split.test), n=self.n_maps, seed=self.seed)
        for name in names:
            seen = over_slide(source, name, attends, place=place)
            log.info("attention: %d tiles of slide %s for its map", len(seen.coords), name)
            result.figures.append(slide_figure(source, name, seen))
            result.arrays[f"{FOLDER}/{name}"] = seen.arrays()

    def draw(self, encoder: Encoder, *, place: Workplace) -> TaskResult:
        """Figures of an image, or of the images in a folder, of any sizes at the encoder's scale.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the backbone has no heads, or an image can't be read.
        """
        path = Path(str(self.input))
        paths = [path] if path.is_file() else images_below(path)
        attends = _attends(encoder, place)
        mpp = f"{encoder.card.mpp:g} um/px" if encoder.card.mpp else "the encoder's scale, which nobody knows"
        result = without_scores("images whose truth nobody knows", primary=(BEST, primary_metric(None)))
        result.notes.append(f"{len(paths)} {'images' if len(paths) > 1 else 'image'}, taken to be at {mpp}")
        windows = self._windows(encoder, side_px=encoder.card.tile_px)
        result.figures = [
            figure
            for number, one in enumerate(paths, start=1)
            for figure in region_figures(one, attends, windows, share=self.top_mass, number=number)
        ]
        return result

    def illustrate(self, results: Mapping[str, TaskResult]) -> list[Figure]:
        """Head by phenotype, of all subjects."""
        tables = {who: result.tables[HEADS] for who, result in results.items()}
        return charts({who: table for who, table in tables.items() if len(table)})

    def _seen(
        self,
        attends: Attends,
        source: TileSource,
        split: Split,
        *,
        truth: PixelTruth,
        word: int,
        place: Workplace,
    ) -> Seen | None:
        rows = np.flatnonzero(split.test if word == SCORING else split.train)
        if not len(rows):
            return None
        chosen = spread(rows, split.group[rows].astype(str), n=self.max_tiles, seed=self.seed)
        least, began = Least(nuclear=self.nuclear_share, tissue=self.tissue_share), time.monotonic()
        seen = looked_at(attends, source, chosen, truth=truth, least=least, place=place)
        took_ms = 1000 * (time.monotonic() - began) / len(chosen)
        log.info("attention: %d tiles, %.1f ms for each", len(chosen), took_ms)
        return seen

    def _result(
        self, choosing: Seen | None, scoring: Seen | None, tiles: EmbeddingSet, split: Split, *, subject: str
    ) -> TaskResult:
        assert scoring is not None
        rows, group_M = table_of(tiles.subset(np.isin(tiles.row, scoring.row_M))), split.group[scoring.row_M]
        asked = Asked(subject=subject, protocol=HEADS, n_bootstrap=self.n_bootstrap, seed=self.seed)
        named = Named(metric=DIVERGENCE, label="", chance=0.0)
        differ = score_of(divergence(scoring.maps_MHL), group_M, named, asked=asked)
        # haematoxylin would be held against itself
        traits = [t for t in scoring.traits if (subject, t.name) != (COLOUR, HAEMATOXYLIN)]
        judged = [judge(trait, choosing, scoring) for trait in traits]
        scores = [
            one for protocol in (BEST, MEAN) for j in judged for one in j.scores(protocol, group_M, asked)
        ]
        return TaskResult(
            scores=[score for score in (*scores, differ) if not np.isnan(score.value)],
            predictions=rows.assign(**{k: v for j in judged for k, v in j.columns().items()}),
            confusion={},
            classes=[],
            notes=[*self._told(scoring), *few_groups(len(np.unique(group_M)), coverage=COVERAGE)],
            counts=counts_of(split),
            primary=(BEST, primary_metric(scoring)),
            tables={
                HEADS: pd.DataFrame([row for j in judged for row in j.rows()]),
                "diversity": diversity(scoring),
            },
        )

    def _told(self, seen: Seen) -> list[str]:
        """How the numbers are to be read."""
        amounts = "AUC and correlation are means over tiles, of patches within one tile"
        if NUCLEI not in [trait.name for trait in seen.traits]:
            return [f"{amounts}; no nuclei are known, so that haematoxylin stands for them"]
        shares = f"{self.nuclear_share:.0%} or more nuclei, or {self.tissue_share:.0%} of a tissue"
        return [f"{amounts}; a patch counts as one of nuclei, or of a tissue, with {shares}"]

    def _figures(
        self, attends: Attends, source: TileSource, tiles: EmbeddingSet, split: Split, *, encoder: Encoder
    ) -> list[Figure]:
        rows = np.flatnonzero(split.test)
        drawn = (
            extremes_in(Path(self.input), source, n=self.n_drawn)
            if self.input
            else spread(rows, tiles.label[rows], n=self.n_drawn, seed=self.seed)
        )
        windows = self._windows(encoder, side_px=source.tile_px)
        return tile_figures(source, drawn, attends, windows, share=self.top_mass, region_px=self.region_px)

    def _windows(self, encoder: Encoder, *, side_px: int | None) -> Windows:
        patch = patch_px(encoder.backbone)
        embed: Any = encoder.backbone.patch_embed
        side = side_px or int(embed.img_size[0])
        return Windows.finer(side_px=side, patch_px=patch, overlap=self.overlap)


def _attends(encoder: Encoder, place: Workplace) -> Attends:
    """Heads, or haematoxylin in patches as large as those of the encoder whose floor it is."""
    if isinstance(encoder.backbone, ColorStatistics):
        assert place.trained is not None
        return HaematoxylinAlone(patch_px(place.trained.backbone))
    check_heads(encoder.backbone)
    is_on_gpu = place.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return Heads(encoder.on(torch.device("cuda" if is_on_gpu else "cpu")))
