"""Part `knn`: 20 nearest neighbours, 100,000 x 7,180 x 384, against scikit-learn's brute force.

The works of `neighbors.py`, which also tells how much memory ours takes.
"""

import numpy as np
from contests import CannotRunError, Contest, Ratio, compete
from neighbors import N_CLASSES, SETTINGS, ours, theirs

N_TRAIN, N_TEST, WIDTH, N_ROUNDS = 100_000, 7_180, 384, 3
CASE = "cosine, softmax, k 20"
MOST_APART = 1e-4  # between two votes


def measure(device: str) -> list[Ratio]:
    """One ratio."""
    if device != "cpu":
        raise CannotRunError("scikit-learn runs on the CPU; `make bench` measures that")
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (N_TRAIN, N_TEST))
    labels, protocol = rng.integers(N_CLASSES, size=N_TRAIN), SETTINGS[CASE]
    apart = np.abs(
        ours(train, labels, test[:64], protocol) - theirs(train, labels, test[:64], protocol)
    ).max()
    if apart > MOST_APART:
        raise AssertionError(f"votes of scikit-learn and ours differ by {apart:.1g}")
    contest = Contest(
        part="knn",
        case=f"{N_TRAIN:,} x {N_TEST:,} x {WIDTH}, {CASE}",
        n_items=1,
        item="search",
        ours=lambda i: ours(train, labels, test, protocol),  # noqa: ARG005
        peers={"scikit-learn": lambda i: theirs(train, labels, test, protocol)},  # noqa: ARG005
        targets={"scikit-learn": 1.5},
        n_rounds=N_ROUNDS,
    )
    return compete(contest)
