"""Encoders leave pretraining by this door: weights and card as one file, the card once more for people."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from torch import nn

from histo_ssl.backbones.hub import self_contained
from histo_ssl.config.plan import Plan
from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.encode import Card, Encoder, save_encoder
from histo_ssl.folders.artifacts import Counts, write_json
from histo_ssl.methods.frozen import Feeding, FrozenMethod
from histo_ssl.stain.base import facts_of, from_facts

ENCODER = "encoder.safetensors"
CARD = "card.json"


def freeze(plan: Plan, folder: Path) -> Counts:
    """Export the encoder of a method that trains nothing."""
    method: FrozenMethod = instantiate(plan.group("method"), backbone=instantiate(plan.group("backbone")))
    method.check()
    asked = facts_of(instantiate(plan.group("stain")) or None)
    feeding = replace(method.feeding, stain=asked or method.feeding.stain)
    from_facts(feeding.stain)  # which may come from somebody's file
    export(method.encoder(), _card(plan, method.encoder(), feeding), folder)
    return {"steps": 0}


def export(backbone: nn.Module, card: Card, folder: Path) -> None:
    """Write the encoder and its card into `folder`."""
    save_encoder(folder / ENCODER, Encoder(backbone, card))
    write_json(folder / CARD, asdict(card))


def card_of_trained(plan: Plan, backbone: nn.Module, data: TileDataModule) -> Card:
    """The card of the encoder that a plan trains on these data."""
    views, source = data.views, data.source
    feeding = Feeding(
        mean=views.mean,
        std=views.std,
        tile_px=source.tile_px,
        mpp=source.mpp,
        stain=facts_of(views.stain),
    )
    return _card(plan, backbone, feeding)


def _card(plan: Plan, backbone: nn.Module, feeding: Feeding) -> Card:
    return Card(
        architecture=self_contained(_architecture(plan)),
        dim=cast(int, backbone.num_features),
        **vars(feeding),
        method=plan.choices["method"],
        fingerprint=plan.encoder_fingerprint,
    )


def _architecture(plan: Plan) -> Mapping[str, Any]:
    machinery = ("_partial_", "_convert_")
    return {key: value for key, value in plan.group("backbone").items() if key not in machinery}
