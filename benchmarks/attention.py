"""Ways to attend on a CPU: torch's fused kernel, and products with a softmax between them.

    OMP_NUM_THREADS=2 python benchmarks/attention.py

Prints ms of processor time, forwards alone and forwards with backwards, for six heads of width 64 as in
ViT-S/16: 16 views of 224 px (197 tokens), 64 of 96 px (37) and 16 tiles of 256 px (257). All ways in turn,
medians of nine rounds. `float32 softmax` is what autocast makes of timm's own attention.
"""

import statistics
import time
from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES, N_HEADS, WIDTH = [(16, 197), (64, 37), (16, 257)], 6, 64
N_ROUNDS = 9


def main() -> None:
    """Print the table."""
    rows = [
        {"views x tokens": f"{n_views} x {n_tokens}", "of": str(dtype).removeprefix("torch."), **times}
        for dtype in (torch.bfloat16, torch.float32)
        for n_views, n_tokens in SHAPES
        for times in [medians(n_views, n_tokens, dtype)]
    ]
    print(pd.DataFrame(rows).to_string(index=False))


def medians(n_views: int, n_tokens: int, dtype: torch.dtype) -> dict[str, str]:
    """Name of a way -> ms forwards / ms forwards and backwards."""
    shape = n_views, n_tokens, 3, N_HEADS, WIDTH
    qkv = torch.randn(shape, dtype=dtype, requires_grad=True)
    ways = {"fused": fused, "softmax": same_softmax}
    if dtype != torch.float32:
        ways["float32 softmax"] = float32_softmax
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for i in range(N_ROUNDS + 1):
        for name, way in ways.items():
            with torch.no_grad():
                forwards = taken_ms(lambda way=way: way(qkv))  # type: ignore[misc]
            both = taken_ms(lambda way=way: way(qkv).sum().backward())  # type: ignore[misc]
            if i:
                found[name].append((forwards, both))
    middle = {name: map(statistics.median, zip(*times, strict=True)) for name, times in found.items()}
    return {name: " / ".join(f"{ms:.1f}" for ms in times) for name, times in middle.items()}


def taken_ms(work: Callable[[], object]) -> float:
    """Processor time of all threads."""
    started = time.process_time()
    work()
    return 1e3 * (time.process_time() - started)


def parts(qkv: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values, (B, H, T, E) each."""
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def fused(qkv: Tensor) -> Tensor:
    """By torch's kernel."""
    return F.scaled_dot_product_attention(*parts(qkv)).transpose(1, 2).flatten(2)


def same_softmax(qkv: Tensor) -> Tensor:
    """By products, with a softmax in their own type."""
    q, k, v = parts(qkv)
    return ((q * WIDTH**-0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def float32_softmax(qkv: Tensor) -> Tensor:
    """By products, with a softmax in float32."""
    q, k, v = parts(qkv)
    weights = (q * WIDTH**-0.5 @ k.transpose(-2, -1)).float().softmax(dim=-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).flatten(2)


if __name__ == "__main__":
    main()
