"""A run's configuration as people filter and group runs by it: a few flat words, and all of it under one."""

from typing import Any

from histo_ssl.config.plan import Plan

CHOICES = ("method", "backbone", "task", "data", "tiling", "views", "stain", "trainer")
VALUES = {  # name that it is filtered by -> where it stands
    **{"mpp": "tiling.mpp", "tile_px": "tiling.size_px", "seed": "seed"},
    **{"epochs": "training.epochs", "batch_size": "training.batch_size"},
    **{"lr_per_256": "method.optim.lr_per_256", "precision": "trainer.precision"},
}


def filters(plan: Plan) -> dict[str, Any]:
    """Choices by their groups' names, the values that differ most often, and `config`: everything.

    Returns:
        Such as {"method": "dino", "mpp": 0.5, ..., "config": {"seed": 0, ...}}; None for what a run has not.
    """
    chosen = {group: plan.choices.get(group) for group in CHOICES}
    values = {name: plan.group(path) for name, path in VALUES.items()}
    return {**chosen, **values, "config": {str(key): plan.group(str(key)) for key in plan.cfg}}
