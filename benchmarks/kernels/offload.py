"""Pages out of host memory by index, against one plain copy of as many bytes from pinned memory; and beside computation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels.harness import Case, relative_error
from longspan.ops.offload import HostPages
from longspan.ops.offload.naive import naive_fetch

HEADS, HEAD_DIM, PAGE_TOKENS = 8, 128, 64


def cases(quick: bool) -> Iterator[Case]:
    tokens = 32768 if quick else 262144
    held = HostPages(num_heads=HEADS, head_dim=HEAD_DIM, capacity_tokens=tokens, device="cuda")
    piece = torch.randn(1, HEADS, 8192, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    for _ in range(tokens // 8192):
        held.append(piece + torch.rand((), device="cuda"), piece)
    for pages in (32, 256):
        index = torch.stack([torch.randperm(tokens // PAGE_TOKENS)[:pages] for _ in range(HEADS)])
        index = index[None].cuda().int()
        num_bytes = HEADS * pages * PAGE_TOKENS * HEAD_DIM * 2 * 2
        source = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        target = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
        common = {
            "op": "host_fetch",
            "tokens": tokens,
            "density": pages * PAGE_TOKENS / tokens,
            "error": lambda index=index: _error(held, index),
            "tolerance": 0.0,
        }
        yield Case(
            case=f"{pages} pages a head",
            ours=[lambda index=index: held.fetch(index).wait()],
            baseline=[lambda source=source, target=target: target.copy_(source, non_blocking=True)],
            baseline_name="one copy of as many pinned bytes",
            facts={"megabytes": round(num_bytes / 1e6, 1)},
            **common,
        )
        a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        yield Case(
            case=f"{pages} pages a head, beside products",
            ours=[lambda index=index, a=a: _beside(held, index, a)],
            baseline=[lambda index=index, a=a: _after(held, index, a)],
            baseline_name="the same, one after the other",
            facts={"megabytes": round(num_bytes / 1e6, 1)},
            **common,
        )


def _error(held: HostPages, index: Tensor) -> float:
    got = held.fetch(index).wait()
    wanted = naive_fetch(held.pages, index, held.num_tokens // PAGE_TOKENS)
    return max(relative_error(a, b) for a, b in zip(got, wanted, strict=True))


def _beside(held: HostPages, index: Tensor, a: Tensor) -> None:
    fetched = held.fetch(index)
    for _ in range(2):
        a @ a
    fetched.wait()


def _after(held: HostPages, index: Tensor, a: Tensor) -> None:
    held.fetch(index).wait()
    for _ in range(2):
        a @ a
