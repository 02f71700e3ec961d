"""Sums and gathers, on one process and on two."""

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from histo_ssl.parallel.distributed import all_reduce_mean, all_reduce_sum, gather, rank, world_size


def test_one_process_is_rank_0_of_1_and_keeps_what_it_has() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert (rank(), world_size()) == (0, 1)
    assert all_reduce_sum(x).tolist() == [1.0, 2.0]
    assert all_reduce_mean(x).tolist() == [1.0, 2.0]
    assert gather(x) is x


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def two_ranks(number: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
    x = torch.tensor([[1.0 + number, 10.0]], requires_grad=True)
    kept = x.detach().clone()
    rows = gather(x)
    # each rank has a loss of its own over all rows: weight 1 on rank 0, 10 on rank 1, squared rows
    ((1.0 + 9.0 * number) * rows.square()).sum().backward()
    out = {
        "rank": (rank(), world_size()),
        "sum": all_reduce_sum(x),
        "mean": all_reduce_mean(x),
        "rows": rows.detach(),
        "grad": x.grad,
        "kept": torch.equal(x, kept),
    }
    torch.save(out, Path(folder) / f"{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_gather_in_order_and_sum_the_gradients_of_both_losses(tmp_path: Path) -> None:
    mp.spawn(two_ranks, args=(free_port(), str(tmp_path)), nprocs=2)
    for number in range(2):
        out = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert out["rank"] == (number, 2)
        assert out["sum"].tolist() == [[3.0, 20.0]]
        assert out["mean"].tolist() == [[1.5, 10.0]]
        assert out["rows"].tolist() == [[1.0, 10.0], [2.0, 10.0]]
        # d/dx of 1 x^2 + 10 x^2
        assert out["grad"].tolist() == [[22.0 * (1.0 + number), 220.0]]
        assert out["kept"]
