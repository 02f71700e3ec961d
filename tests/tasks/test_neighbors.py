"""The vote of the neighbours equals scikit-learn's, and a plain loop over the formula."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from histo_ssl.tasks import neighbors
from histo_ssl.tasks.neighbors import KnnProtocol, knn_scores

TEMPERATURE = 0.07
COSINE = {"metric": "cosine", "weighting": "softmax", "temperature": TEMPERATURE}
EUCLIDEAN = {"metric": "euclidean", "weighting": "uniform", "temperature": None}


def _random(n: int, *, D: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def _labels(n: int, *, C: int = 3) -> Tensor:
    return torch.cat(
        [torch.arange(C), torch.randint(C, (n - C,), generator=torch.Generator().manual_seed(1))]
    )


def _softmax_of_similarity(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp((1 - distance) / TEMPERATURE)


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("n_train", [23, 300])
@pytest.mark.parametrize("chunk_rows", [1, 7, 40, 1000])
def test_votes_equal_scikit_learns_at_every_chunk_size(k: int, n_train: int, chunk_rows: int) -> None:
    train, labels, test = _random(n_train), _labels(n_train), _random(40, seed=2)
    for setting, weights in ((COSINE, _softmax_of_similarity), (EUCLIDEAN, "uniform")):
        reference = KNeighborsClassifier(k, metric=setting["metric"], weights=weights, algorithm="brute")
        expected = reference.fit(train.double(), labels).predict_proba(test.double())
        protocol = KnnProtocol(k=k, **setting)
        found = knn_scores(train, labels, test, n_classes=3, protocol=protocol, chunk_rows=chunk_rows)
        np.testing.assert_allclose(found, expected, atol=2e-6)  # float32 distances / T


def test_weighted_votes_equal_a_loop_over_the_formula() -> None:
    train, labels, test = _random(9), _labels(9), _random(4, seed=2)
    protocol = KnnProtocol(k=4, **COSINE)
    found = knn_scores(train, labels, test, n_classes=3, protocol=protocol, chunk_rows=3)
    for row, x in zip(found, test, strict=True):
        s = [float(x @ t / (x.norm() * t.norm())) for t in train]
        nearest = sorted(range(9), key=lambda i: -s[i])[:4]
        votes = [sum(math.exp(s[i] / TEMPERATURE) for i in nearest if labels[i] == c) for c in range(3)]
        assert row.tolist() == pytest.approx([vote / sum(votes) for vote in votes], abs=1e-5)


@pytest.mark.parametrize("setting", [COSINE, EUCLIDEAN])
def test_all_training_tiles_vote_when_k_is_larger_than_their_number(setting: dict) -> None:
    train, labels, test = _random(7), _labels(7), _random(3, seed=2)
    many, all_ = (
        knn_scores(train, labels, test, n_classes=3, protocol=KnnProtocol(k=k, **setting), chunk_rows=2)
        for k in (99, 7)
    )
    assert torch.equal(many, all_)
    if setting is EUCLIDEAN:
        assert many[0].tolist() == pytest.approx((torch.bincount(labels) / 7).tolist())


@pytest.mark.parametrize("offset", [1e3, 1e4])
def test_distances_survive_an_offset_ten_thousand_times_their_size(offset: float) -> None:
    # Multiples of 1/256 stay exact in float32 at these offsets, so the true distances don't change at all.
    train, test = ((_random(n, seed=n) * 256).round() / 256 for n in (200, 50))
    labels, protocol = _labels(200), KnnProtocol(k=5, **EUCLIDEAN)
    found = knn_scores(train + offset, labels, test + offset, n_classes=3, protocol=protocol, chunk_rows=16)
    reference = KNeighborsClassifier(5, algorithm="kd_tree").fit(train.double(), labels)  # by differences
    np.testing.assert_allclose(found, reference.predict_proba(test.double()), atol=1e-15)


@pytest.mark.parametrize("setting", [COSINE, EUCLIDEAN])
@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_of_equally_distant_tiles_the_earlier_vote(setting: dict, chunk_rows: int) -> None:
    tile = _random(1, D=384, seed=5)
    train = torch.cat([_random(3, D=384), tile.repeat(50, 1)])  # rows 3 to 52 are the same tile
    labels = torch.tensor([2, 2, 2] + [0] * 4 + [1] * 46)
    test = torch.cat([tile, tile + 0.1 * _random(9, D=384, seed=6)])
    protocol = KnnProtocol(k=5, **setting)
    found = knn_scores(train, labels, test, n_classes=3, protocol=protocol, chunk_rows=chunk_rows)
    # Rows 3, 4, 5, 6 (class 0) and 7 (class 1) of the fifty.
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.2, 0.0]]).double().expand(10, 3))


def test_an_embedding_of_zeros_has_no_direction_and_no_effect_on_others() -> None:
    train, labels = torch.cat([_random(5), torch.zeros(1, 6)]), torch.tensor([0, 1, 0, 1, 0, 2])
    test = torch.cat([_random(2, seed=2), torch.zeros(1, 6)])
    found = knn_scores(train, labels, test, n_classes=3, protocol=KnnProtocol(k=6, **COSINE), chunk_rows=2)
    assert found[2].tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6])  # all similarities are 0
    without = knn_scores(
        train[:5], labels[:5], test, n_classes=3, protocol=KnnProtocol(k=5, **COSINE), chunk_rows=2
    )
    assert (found[:2, 0] / found[:2, 1]).tolist() == pytest.approx((without[:2, 0] / without[:2, 1]).tolist())


@pytest.mark.parametrize("setting", [COSINE, EUCLIDEAN])
@pytest.mark.parametrize("case", ["sorted", "crowded", "outlier", "huge", "tiny", "few"])
def test_what_is_left_out_by_estimates_is_never_a_neighbour(
    setting: dict, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "BLOCK_COLUMNS", 32)
    train, test, k = _random(700, D=16).double(), _random(30, D=16, seed=2).double(), 7
    if case == "sorted":  # by distance from one tile, so that blocks are nothing like each other
        train = train[(train - test[0]).norm(dim=1).argsort()]
    elif case == "crowded":  # float32 can't part them, float64 can
        train = train[:1] + 1e-4 * train
        test = train[:1] + 1e-4 * test
    elif case == "outlier":
        train[5] *= 1e12
    elif case == "huge":
        train, test = train * 1e25, test * 1e25  # whose squares float32 has no room for
    elif case == "tiny":
        train, test = train * 1e-10, test * 1e-10
    else:
        k = 650
    labels = torch.arange(700)  # each tile votes for itself
    protocol = KnnProtocol(k=k, **{**setting, "weighting": "uniform", "temperature": None})
    votes = knn_scores(train, labels, test, n_classes=700, protocol=protocol, chunk_rows=11)
    if setting is COSINE:
        far = 1 - F.normalize(test, dim=1) @ F.normalize(train, dim=1).T
    else:
        far = (test[:, None] - train[None]).square().sum(dim=2)
    expected = far.argsort(dim=1)[:, :k].sort(dim=1).values
    found = [row.nonzero().flatten().tolist() for row in votes]
    wrong = [i for i in range(30) if found[i] != expected[i].tolist()]
    gap = (far.sort(dim=1).values[:, k] - far.sort(dim=1).values[:, k - 1]) / far.max(dim=1).values
    # of what float32 can't tell apart the earlier one counts
    assert [i for i in wrong if gap[i] > 1e-6] == []
    assert len(wrong) <= (30 if case in ("crowded", "outlier") else 0)


@pytest.mark.parametrize("setting", [COSINE, EUCLIDEAN])
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_of_fewer_digits_leave_out_no_neighbour(setting: dict, precision: str) -> None:
    train, labels, test = _random(400, D=24), _labels(400), _random(60, D=24, seed=2)
    protocol = KnnProtocol(k=5, **setting)
    expected = knn_scores(train, labels, test, n_classes=3, protocol=protocol, chunk_rows=16)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)  # bfloat16 and TF32, where the device has them
    try:
        found = knn_scores(train, labels, test, n_classes=3, protocol=protocol, chunk_rows=16)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("setting", [COSINE, EUCLIDEAN])
def test_among_tiles_that_are_all_alike_the_earliest_vote_without_comparing_pair_by_pair(
    setting: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_pairs: list[int] = []
    far = neighbors._far
    monkeypatch.setattr(neighbors, "_far", lambda a, b, metric: n_pairs.append(len(a)) or far(a, b, metric))
    collapsed = _random(1, D=64).expand(5000, 64)
    train = torch.cat([_random(8, D=64, seed=3), collapsed])
    test = torch.cat([collapsed[:20], 5 * _random(20, D=64, seed=4)])
    index = neighbors.nearest_tiles(train, test, k=4, metric=setting["metric"], chunk_rows=16)
    assert index[:20].tolist() == [[8, 9, 10, 11]] * 20
    assert sum(n_pairs) < 40 * 1000  # of 200,000
    train, test = train.double(), test.double()
    if setting is COSINE:
        expected = 1 - F.normalize(test, dim=1) @ F.normalize(train, dim=1).T
    else:
        expected = (test[:, None] - train[None]).square().sum(dim=2)
    assert index[20:].tolist() == expected[20:].float().sort(dim=1, stable=True).indices[:, :4].tolist()


def test_a_class_that_no_training_tile_has_gets_no_vote() -> None:
    train, test = _random(20), _random(6, seed=2)
    labels = torch.tensor([0, 3] * 10)
    found = knn_scores(train, labels, test, n_classes=5, protocol=KnnProtocol(k=4, **EUCLIDEAN), chunk_rows=4)
    reference = KNeighborsClassifier(4, algorithm="brute").fit(train.double(), labels)
    np.testing.assert_allclose(found[:, [0, 3]], reference.predict_proba(test.double()))
    assert found[:, [1, 2, 4]].abs().sum() == 0


def test_no_test_tiles_give_no_rows() -> None:
    protocol = KnnProtocol(k=5, **EUCLIDEAN)
    found = knn_scores(
        _random(9), _labels(9), torch.zeros(0, 6), n_classes=3, protocol=protocol, chunk_rows=4
    )
    assert found.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k": 0}, "k=0 neighbours can't vote"),
        ({"metric": "manhattan"}, "metric='manhattan' is none of cosine, euclidean"),
        ({"weighting": "rank"}, "weighting='rank' is none of softmax, uniform"),
        ({"temperature": None}, "needs a temperature > 0, got None"),
        ({"temperature": -1.0}, "needs a temperature > 0, got -1.0"),
    ],
)
def test_a_protocol_without_meaning_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        KnnProtocol(**{"k": 20, **COSINE, **change})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("setting", [COSINE, EUCLIDEAN])
def test_a_gpu_finds_the_same_votes(setting: dict) -> None:
    train, labels, test, protocol = (
        _random(300),
        _labels(300),
        _random(40, seed=2),
        KnnProtocol(k=5, **setting),
    )
    cpu, gpu = (
        knn_scores(
            train.to(device),
            labels.to(device),
            test.to(device),
            n_classes=3,
            protocol=protocol,
            chunk_rows=16,
        ).cpu()
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(gpu, cpu, atol=2e-6, rtol=0)
