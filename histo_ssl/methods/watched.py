"""What methods without a teacher's distributions share: two views of a tile, a watch on their features.

N: rows; D: features of the backbone; C: outputs of the projector.
"""

from typing import Any

from torch import Tensor

from histo_ssl.methods.base import SSLMethod
from histo_ssl.methods.monitors import EmbeddingWindow, FailureWatch, WatchSpec, rankme, spread
from histo_ssl.optim.spec import OptimSpec
from histo_ssl.parallel.distributed import rank


class WatchedMethod(SSLMethod):
    """A method that logs how spread its features are, and names a failure that they or its loss show."""

    carried: tuple[str, ...] = ("embeddings",)

    def __init__(self, *, optim: OptimSpec, watch: WatchSpec) -> None:
        super().__init__(optim=optim)
        self.watch = watch
        self.embeddings = EmbeddingWindow(watch.rankme_rows)
        self.failures = FailureWatch(patience=watch.patience)

    def look(
        self, z_ND: Tensor, p_NC: Tensor, *, loss: Tensor | None = None, chance: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Take note of a batch's features.

        Args:
            z_ND: features of the backbone.
            p_NC: projections of them, before they are normalised.
            loss: of the batch, on the scale of `chance`.
            chance: the loss of a network that tells no tile from another; None where that says nothing.

        Returns:
            Scalars to log; none but every `log_every` steps.
        """
        self.embeddings.push(z_ND)
        if not self.is_log_step:
            return {}
        spreads = {"feature_spread": spread(z_ND), "projection_spread": spread(p_NC)}
        least = min(value.item() for value in spreads.values())
        self.name_if(
            "feature collapse", is_there=least < self.watch.min_spread, evidence=f"spread {least:.3f} of 1"
        )
        if loss is not None and chance is not None:
            is_near = loss.item() > (1.0 - self.watch.margin) * chance.item()
            self.name_if("loss at chance", is_there=is_near, evidence=f"loss {loss:.3f}, chance {chance:.3f}")
            spreads["chance"] = chance
        return {**spreads, "rankme": rankme(self.embeddings.rows())}

    def name_if(self, failure: str, *, is_there: bool, evidence: str) -> None:
        """Tell the watch of a sign of failure; rank 0 speaks for all."""
        if rank() == 0:
            self.failures.look(failure, is_there=is_there, evidence=evidence, progress=self.progress)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what RankMe looks at, so that a resumed run logs what an unbroken one would have."""
        checkpoint["newest_embeddings"] = self.embeddings.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        self.embeddings.restore(checkpoint["newest_embeddings"])


def pair_of(views: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The two views of every tile.

    Raises:
        ValueError: there are more or fewer, or their sizes differ.
    """
    shapes = [tuple(view.shape) for view in views]
    if len(views) != 2 or shapes[0] != shapes[1]:
        sides = ", ".join(str(shape[-1]) for shape in shapes)
        raise ValueError(
            f"two views of one size are compared, got {len(views)} of {sides} px: use views=pair or byol"
        )
    return views[0], views[1]
