"""In which order a training draws its tiles, without a list of them all: there may be 100 million.

Letters: B places asked for at a time.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histo_ssl.data.rows import InRuns, RowList
from histo_ssl.views.draws import output, wrapped

# Twice what pseudorandom round functions need (Luby and Rackoff, SIAM J. Comput. 17(2), 1988).
N_ROUNDS = 8
# Places of a list, 32 MB of them: up to there the order is numpy's, as for trainings that began before.
N_SHUFFLED_WHOLE = 2**22


def shuffled_rows(rows: RowList, places: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The rows at some places of an epoch's shuffle, (B,): a pure function of (seed, epoch, place)."""
    key = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
    found: NDArray[np.int64] = rows[permuted(torch.from_numpy(places), n=len(rows), key=key).numpy()]
    return found


def rows_in_runs(rows: InRuns, places: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The same of a shuffle that keeps neighbours together, so that they are read at less cost.

    A run is `run_length` places of the list in a row: tiles beside each other on one slide, but for those at
    a slide's end. Where the first run begins is drawn anew for each epoch, so runs are other ones, too; what
    is left over comes at the epoch's end. Runs are shuffled, and in a batch of B tiles there are B /
    `run_length` of them.
    """
    key, first = np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint64)
    n_runs = len(rows) // rows.run_length
    runs, within = np.divmod(places, rows.run_length)
    is_whole = runs < n_runs
    runs[is_whole] = permuted(torch.from_numpy(runs[is_whole]), n=n_runs, key=int(key)).numpy()
    first_place = int(first) % len(rows)
    return rows[(first_place + runs * rows.run_length + within) % len(rows)]


def permuted(places_B: Tensor, *, n: int, key: int) -> Tensor:
    """What stands at some places of a permutation of 0 to n - 1, without the rest of it.

    A Feistel network over halves of b bits is a permutation of 0 to 4^b - 1, whatever its round function;
    here it is SplitMix64. Where it leaves the range it is applied again until it comes back (Black and
    Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002: cycle walking). 4^b < 4 n, so that it takes
    four times at most, on average.

    Args:
        places_B: int64, 0 to n - 1.
        n: of the permutation.
        key: any integer; says which permutation.

    Returns:
        (B,) int64; at all n places together stand all n numbers.
    """
    half = ((n - 1).bit_length() + 1) // 2
    keys = output(wrapped(key), torch.arange(N_ROUNDS))
    found = _permuted_once(places_B, keys, half=half)
    while (is_outside := found >= n).any():
        found[is_outside] = _permuted_once(found[is_outside], keys, half=half)
    return found


def _permuted_once(x: Tensor, keys: Tensor, *, half: int) -> Tensor:
    mask = (1 << half) - 1
    left, right = x >> half, x & mask
    for key in keys:
        left, right = right, left ^ (output(key, right) & mask)
    return (left << half) | right
