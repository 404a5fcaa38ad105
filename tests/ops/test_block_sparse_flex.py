"""FlexAttention over a BlockTable: its mask pair by pair, and on a GPU the results and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longspan.ops.block_sparse.flex import (
    compiled_flex,
    flex_block_mask,
    flex_block_sparse_prefill,
    flex_reason,
)
from longspan.ops.block_sparse.naive import block_table_mask, naive_block_sparse_prefill
from longspan.ops.block_sparse.table import BlockTable


def random_table(
    T: int, S: int, h: int, *, B: int = 1, block: int = 16, N: int = 3, device: str = "cpu", **facts: object
) -> BlockTable:
    rng = torch.Generator().manual_seed(0)
    NQ, NB = -(-T // block), -(-S // block)
    index = torch.rand(B, h, NQ, NB + 2, generator=rng).argsort(-1)[..., :N] - 1
    counts = torch.randint(0, index.shape[3] + 1, (B, h, NQ), generator=rng)
    first = facts.pop("first_place", None)
    return BlockTable(
        index=index.int().to(device),
        counts=counts.int().to(device),
        block_tokens=block,
        first_place=None if first is None else torch.tensor(first, dtype=torch.int32, device=device),
        **facts,  # type: ignore[arg-type]
    )


def tensors(
    T: int,
    S: int,
    *,
    B: int = 1,
    H: int = 4,
    K: int = 2,
    D: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(B, n, t, D, generator=rng).to(device, dtype) for n, t in ((H, T), (K, S), (K, S))]


def unfold(lists: tuple[Tensor | None, Tensor | None], num_blocks: int) -> Tensor:
    """How often each block is listed, `[B, H, rows, num_blocks]`."""
    counts, indices = lists
    assert counts is not None and indices is not None
    used = torch.arange(indices.shape[-1]) < counts[..., None]
    return torch.zeros(*counts.shape, num_blocks, dtype=torch.long).scatter_add_(
        -1, indices.long(), used.long()
    )


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("h", [1, 2, 4])
@pytest.mark.parametrize("T, S", [(64, 64), (45, 101), (16, 170)])
@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"N": 99},
        {"sink_tokens": 5},
        {"sink_tokens": 37, "window_tokens": 20},
        {"window_tokens": 1},
        {"window_tokens": 10**6},
        {"window_tokens": 40, "first_place": [30, 0]},
        {"first_place": [500, 17]},
    ],
)
def test_mask_is_the_table(T: int, S: int, h: int, trainable: bool, facts: dict[str, object]) -> None:
    B, H, block = 2, 4, 16
    q, k, _ = tensors(T, S, B=B)
    table = random_table(T, S, h, B=B, **facts)  # type: ignore[arg-type]
    mask = flex_block_mask(table, num_heads=H, T=T, S=S, trainable=trainable)
    rows, blocks = -(-T // block), -(-S // block)
    partial = unfold((mask.kv_num_blocks, mask.kv_indices), blocks)
    full = unfold((mask.full_kv_num_blocks, mask.full_kv_indices), blocks)
    assert int((partial + full).max()) <= 1

    def every_pair(x: Tensor) -> Tensor:
        return x.bool().repeat_interleave(block, 2).repeat_interleave(block, 3)[:, :, :T, :S]

    at = torch.meshgrid(*(torch.arange(n) for n in (B, H, T, S)), indexing="ij")
    found = every_pair(full) | (every_pair(partial) & mask.mask_mod(*at))
    wanted = block_table_mask(q, k, table)
    assert torch.equal(found.expand_as(wanted), wanted)
    if trainable:
        back = unfold((mask.q_num_blocks, mask.q_indices), rows)
        assert torch.equal(back[:, :, :blocks], partial.transpose(2, 3))
        back = unfold((mask.full_q_num_blocks, mask.full_q_indices), rows)
        assert torch.equal(back[:, :, :blocks], full.transpose(2, 3))


def test_reasons() -> None:
    q, k, v = tensors(256, 256)
    reason = flex_reason(q, k, v, random_table(256, 256, 1, block=128))
    assert reason == "FlexAttention gives no log-sum-exp outside CUDA"


@pytest.mark.slow
def test_compiled_on_the_cpu_skips_blocks() -> None:
    """Without log-sum-exp, which the CPU does not give: the listed blocks and no others are visited."""
    q, k, v = tensors(300, 400, D=64)
    table = random_table(300, 400, 1, block=128, N=2, window_tokens=9)
    mask = flex_block_mask(table, num_heads=4, T=300, S=400, trainable=False)
    out = compiled_flex()(q, k, v, block_mask=mask, scale=0.2, enable_gqa=True)
    torch.testing.assert_close(
        out, naive_block_sparse_prefill(q, k, v, table, scale=0.2)[0], atol=1e-4, rtol=1e-4
    )


@pytest.mark.gpu
@pytest.mark.parametrize("h", [1, 2, 4])
@pytest.mark.parametrize("facts", [{}, {"sink_tokens": 5, "window_tokens": 200}, {"first_place": [150, 0]}])
def test_on_a_gpu(h: int, facts: dict[str, object]) -> None:
    torch.compiler.reset()  # every case is compiled anew, and a process may do that 8 times
    T, S = 500, 777
    leaves = [x.requires_grad_() for x in tensors(T, S, B=2, D=64, dtype=torch.bfloat16, device="cuda")]
    table = random_table(T, S, h, B=2, block=128, device="cuda", **facts)  # type: ignore[arg-type]
    assert flex_reason(*leaves, table) is None
    with torch.no_grad():
        inference = flex_block_sparse_prefill(*leaves, table, scale=0.1)
    out, lse = flex_block_sparse_prefill(*leaves, table, scale=0.1)
    exact = [x.detach().float().requires_grad_() for x in leaves]
    wanted = naive_block_sparse_prefill(*exact, table, scale=0.1)
    for one in (inference, (out, lse)):
        torch.testing.assert_close(one[0].float(), wanted[0], atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(one[1], wanted[1], atol=1e-2, rtol=1e-2)
    dout = torch.randn_like(out)
    found = torch.autograd.grad((out * dout).sum(), leaves)
    for x, reference in zip(found, torch.autograd.grad((wanted[0] * dout).sum(), exact), strict=True):
        assert (x.float() - reference).norm() < 2e-2 * reference.norm()
