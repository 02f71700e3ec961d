"""Dropout that does not take longer than the layers between which it stands.

On a CPU torch draws Bernoulli numbers one after another, 10 ns each, which takes longer than all products of
matrices in bfloat16. Here a byte decides on each unit, drawn from a fast generator that torch's own seeds.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_LEVELS = 256  # of a byte


class Dropout(nn.Module):
    """Zeroes units in training and scales the others, so that the expectation stays; overwrites its input.

    What is dropped is a function of the state of torch's generator of the tensor's device. On a CPU the share
    is rounded to a 256th, which 1/4 and 1/2 are.
    """

    def __init__(self, share: float) -> None:
        """Refuse what is no share.

        Args:
            share: of units to zero, 0 to less than 1.

        Raises:
            ValueError: it is not.
        """
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"dropout={share}: a share from 0 to less than 1 is expected")
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """The same tensor, or in evaluation what it was given."""
        if not self.training or self.share == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.share, inplace=True)
        return x.mul_(_scales(x, n_kept=max(1, round((1 - self.share) * N_LEVELS))))

    def extra_repr(self) -> str:
        """The share."""
        return f"share={self.share}"


def _scales(x: Tensor, *, n_kept: int) -> Tensor:
    """Of the shape of x: 0 where a random byte is n_kept or more, else what makes up for that."""
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.Generator(np.random.SFC64(seed)).integers(
        0, 2**64, size=-(-x.numel() // 8), dtype=np.uint64
    )
    bytes_of_x = torch.from_numpy(words.view(np.uint8)[: x.numel()]).view(x.shape)
    return bytes_of_x.to(x.dtype).lt_(n_kept).mul_(N_LEVELS / n_kept)
