"""The DINO of the YAML, on one rank and on two."""

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml
from hydra.utils import instantiate
from torch import Tensor

from histo_ssl.config.sizing import sized
from histo_ssl.methods.dino import DINO
from histo_ssl.parallel.distributed import all_reduce_mean

CONF = Path(__file__).resolve().parents[2] / "conf"


def configured_dino() -> DINO:
    """The DINO of the YAML around a ViT-Tiny without drop path."""
    torch.manual_seed(0)
    node, _ = sized(yaml.safe_load((CONF / "method" / "dino.yaml").read_text()), n_tiles=0)
    del node["defaults"]
    backbone = yaml.safe_load((CONF / "backbone" / "vit_t.yaml").read_text())
    return instantiate(node, backbone=instantiate(backbone, drop_path=0.0), _convert_="all")


def test_the_yaml_builds_a_dino_around_a_backbone() -> None:
    dino = configured_dino()
    assert dino.centre_K.shape == (512,)
    assert dino.max_entropy == pytest.approx(6.238, abs=1e-3)
    # 0.004 at the end of the warm-up of a tenth; decay on the way from 0.04 to 0.4
    assert dino.optim.lr(0.1, tiles_per_step=256) == pytest.approx(0.004)
    assert dino.optim.decay(0.5) == pytest.approx(0.22)
    assert isinstance(dino.configure_optimizers(), torch.optim.AdamW)


def configured_step(views: list[Tensor]) -> dict[str, Tensor]:
    """Loss, gradients and centre of one step of the configured DINO, means over ranks."""
    dino = configured_dino()
    dino.total_steps, dino.log_every = 10, 2
    loss = dino.step(views)["loss"]
    loss.backward()
    dino.after_step(0.0)
    grads = {name: p.grad for name, p in dino.student.named_parameters() if p.grad is not None}
    return {
        "centre": dino.centre_K,
        "loss": all_reduce_mean(loss),
        **{name: all_reduce_mean(grad) for name, grad in grads.items()},
    }


def two_tiles_of_four(views: list[Tensor], number: int) -> list[Tensor]:
    return [view.chunk(2)[number] for view in views]


def one_of_two_ranks(number: int, port: int, views: list[Tensor], path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
    out = configured_step(two_tiles_of_four(views, number))
    if number == 1:
        torch.save(out, path)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one_rank_with_both_batches(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(4, 3, side, side, generator=generator) for side in (32, 32, 16, 16)]
    whole = configured_step(views)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(one_of_two_ranks, args=(port, views, str(tmp_path / "out.pt")), nprocs=2)
    split = torch.load(tmp_path / "out.pt", weights_only=True)
    assert split.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-3, atol=1e-6, msg=name)
