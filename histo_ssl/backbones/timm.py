"""Any architecture of timm (https://github.com/huggingface/pytorch-image-models) as a backbone."""

import difflib
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import timm
from timm.layers.helpers import to_2tuple
from torch import Tensor, nn

from histo_ssl.backbones.class_token import shorten_last_block
from histo_ssl.backbones.quick_attention import attend_quickly

# arguments of timm.create_model that fetch or open files; a stranger's card may ask for them
LOADING = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


def timm_backbone(*, name: str, drop_path: float) -> nn.Module:
    """A timm architecture with random weights that ends in its pooled features: (B, 3, s, s) to (B, D).

    ViTs give the class token where they have one, and take views of any size: timm resamples their
    position embeddings to the view's grid by size, bicubic, in float32. Unlike DINO's code it also
    smooths them on the way down (`antialias`).

    Args:
        name: as in `timm.list_models()`, such as vit_small_patch16_224.
        drop_path: probability that the last residual branch is left out in training, 0-1; the earlier
            branches' probabilities rise to it in a line from 0.

    Returns:
        A module whose `num_features` is D: 384 for vit_small_patch16_224. Its parameter names are timm's.

    Raises:
        ValueError: timm has no such architecture, or the architecture has no drop path.
    """
    return timm_variant(name=name, drop_path=drop_path, options={})


def timm_variant(*, name: str, drop_path: float, options: Mapping[str, Any]) -> nn.Module:
    """The same with some of the architecture's own arguments changed, such as `{"num_heads": 12}`.

    Args:
        name: as in `timm.list_models()`.
        drop_path: as for `timm_backbone`.
        options: arguments of timm's architecture and their values.

    Returns:
        A module whose `num_features` is D. Its parameter names are timm's.

    Raises:
        ValueError: timm has no such architecture, or it doesn't take these arguments.
    """
    check_name(name)
    loading = sorted(LOADING & options.keys())
    if loading:
        raise ValueError(f"backbone.options: {', '.join(loading)} would load weights; use method=checkpoint")
    model = _create(name, drop_path=drop_path, options=options)
    # some classifiers widen the pooled features after `num_features` has been set
    model.num_features = getattr(model, "head_hidden_size", None) or model.num_features
    model.register_forward_pre_hook(partial(check_side, name=name))
    attend_quickly(model)
    shorten_last_block(model)
    return cast(nn.Module, model)


def check_name(name: str) -> None:
    """Stop at a name that timm does not know, with the nearest that it does.

    Raises:
        ValueError: there is no such architecture.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3) or timm.list_models("vit_*")[:3]
        raise ValueError(
            f"backbone.name: timm {timm.__version__} has no architecture {name!r}; "
            f"the nearest are {', '.join(near)}"
        )


def check_side(model: Any, inputs: tuple[Tensor], *, name: str) -> None:
    """Stop at views that cannot be cut into the patches of a ViT; other architectures pass.

    Args:
        model: a timm model.
        inputs: the views alone, (B, 3, height, width).
        name: what timm calls the model.

    Raises:
        ValueError: a side is no multiple of the patch, or the architecture takes one size only.
    """
    embed: Any = getattr(model, "patch_embed", None)
    if not hasattr(embed, "patch_size"):
        return
    sides, patches = tuple(inputs[0].shape[-2:]), to_2tuple(embed.patch_size)
    got = f"got views of {sides[0]} x {sides[1]} px"
    if getattr(embed, "strict_img_size", False) and sides != tuple(embed.img_size):
        raise ValueError(
            f"{name} takes {embed.img_size[0]} px only, {got}: use such views or a backbone that takes any "
            f"size, such as backbone=vit_s"
        )
    if any(side % patch for side, patch in zip(sides, patches, strict=True)):
        nearest = max(1, round(sides[0] / patches[0])) * patches[0]
        raise ValueError(
            f"{name} cuts views into patches of {patches[0]} px, {got}: use a multiple of it, such as "
            f"{nearest}, or a backbone with another patch"
        )


def _create(name: str, *, drop_path: float, options: Mapping[str, Any]) -> Any:
    # None leaves an option out, so that architectures without drop path can be built with 0
    given = {**options, "num_classes": 0, "drop_path_rate": drop_path or None}
    try:
        return timm.create_model(name, **{**given, "dynamic_img_size": True})
    except TypeError:  # only ViTs know that option
        pass
    try:
        return timm.create_model(name, **given)
    except TypeError as error:
        if options:
            raise ValueError(
                f"backbone.options={dict(options)}: {name} does not take them all ({error}); use "
                f"arguments of timm's architecture"
            ) from error
        raise ValueError(
            f"backbone.drop_path: {name} cannot drop paths, got {drop_path}: use 0 ({error})"
        ) from error
