"""k nearest neighbours at the size of CRC-100K, in turn with scikit-learn's brute force, in one process.

    python benchmarks/neighbors.py

100,000 training and 7,180 test embeddings of width 384, 9 classes. Prints the seconds of each round, the
median of the paired ratios, how much memory ours takes beyond the inputs, and how far the votes differ.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from histo_ssl.tasks.neighbors import KnnProtocol, knn_scores

N_CLASSES, CHUNK_ROWS = 9, 512  # the second as in conf/task/protocols/knn.yaml
TEMPERATURE = 0.07
SETTINGS = {
    "cosine, softmax, k 20": KnnProtocol(k=20, metric="cosine", weighting="softmax", temperature=TEMPERATURE),
    "Euclidean, uniform, k 5": KnnProtocol(k=5, metric="euclidean", weighting="uniform", temperature=None),
}


def main() -> None:
    """Print a line per setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-train", type=int, default=100_000)
    parser.add_argument("--n-test", type=int, default=7_180)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    train, test = (
        rng.normal(size=(n, asked.width)).astype(np.float32) for n in (asked.n_train, asked.n_test)
    )
    labels = rng.integers(N_CLASSES, size=asked.n_train)
    print(f"{torch.get_num_threads()} threads; {asked.n_train:,} x {asked.n_test:,} x {asked.width}")
    for name, protocol in SETTINGS.items():
        before = peak_gib()
        ours_s, votes = timed(lambda p=protocol: ours(train, labels, test, p))
        taken = peak_gib() - before  # before scikit-learn's share
        theirs_s, expected = timed(lambda p=protocol: theirs(train, labels, test, p))
        seconds = [(ours_s, theirs_s)]
        for _ in range(asked.rounds - 1):
            seconds.append(
                (
                    timed(lambda p=protocol: ours(train, labels, test, p))[0],
                    timed(lambda p=protocol: theirs(train, labels, test, p))[0],
                )
            )
        ratio = statistics.median(a / b for a, b in seconds)
        rounds = ", ".join(f"{a:.1f}/{b:.1f}" for a, b in seconds)
        print(
            f"{name}: ours/scikit-learn {rounds} s, ratio {ratio:.2f}, {taken:.2f} GiB beyond the inputs, "
            f"votes differ by {np.abs(votes - expected).max():.1g} at most"
        )


def ours(
    train: NDArray[np.float32], labels: NDArray[np.int64], test: NDArray[np.float32], protocol: KnnProtocol
) -> NDArray[np.float64]:
    """Votes (M, C)."""
    tensors = (torch.from_numpy(array) for array in (train, labels, test))
    return knn_scores(*tensors, n_classes=N_CLASSES, protocol=protocol, chunk_rows=CHUNK_ROWS).numpy()


def theirs(
    train: NDArray[np.float32], labels: NDArray[np.int64], test: NDArray[np.float32], protocol: KnnProtocol
) -> NDArray[np.float64]:
    """The same by scikit-learn."""
    weights = "uniform" if protocol.weighting == "uniform" else softmax_of_similarity
    model = KNeighborsClassifier(protocol.k, metric=protocol.metric, weights=weights, algorithm="brute")
    return model.fit(train, labels).predict_proba(test)


def softmax_of_similarity(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """DINO's weights of the neighbours."""
    return np.exp((1 - distance) / TEMPERATURE)


def timed(work: Callable[[], NDArray[np.float64]]) -> tuple[float, NDArray[np.float64]]:
    """Seconds and result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def peak_gib() -> float:
    """The most memory that this process has held so far."""
    scale = 1024 if sys.platform == "linux" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30


if __name__ == "__main__":
    main()
