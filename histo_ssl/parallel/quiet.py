"""A Trainer for small trainings inside of a task: on one device, and without a word or a file."""

import logging
from collections.abc import Sequence

from lightning import Callback, Trainer

LOUD = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda")


def quiet_trainer(
    *,
    accelerator: str,
    precision: str,
    epochs: int,
    callbacks: Sequence[Callback] = (),
    validates: bool = False,
    reloads: bool = False,
) -> Trainer:
    """The Trainer.

    Args:
        accelerator: as Lightning's Trainer takes it, as is the next.
        precision: of the training.
        epochs: passes over the batches.
        callbacks: called along the way.
        validates: judge every epoch by the validation's batches.
        reloads: ask for the training's batches anew in every epoch.
    """
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)
    return Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=epochs,
        callbacks=list(callbacks),
        limit_val_batches=1.0 if validates else 0,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=int(reloads),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
