"""`block_sparse_prefill` by FlexAttention: the table becomes a BlockMask, torch compiles the kernel.

Only compiled FlexAttention skips blocks; the eager one looks at `mask_mod` alone, so a compile that fails is an error here
and never falls back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from longspan.ops.backend import triton_reason
from longspan.ops.block_sparse.table import BlockTable

BLOCK_TOKENS = 128  # the kernels' own tiles divide it; smaller blocks would need other tiles for each size


def flex_reason(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, table: BlockTable) -> str | None:
    """Why FlexAttention cannot serve the call, None when it can."""
    if not q_BHTD.is_cuda:
        return "FlexAttention gives no log-sum-exp outside CUDA"
    if table.columns is not None:
        return "FlexAttention visits blocks, and the table has columns"
    if table.block_tokens != BLOCK_TOKENS:
        return f"FlexAttention is compiled for block_tokens={BLOCK_TOKENS}, and the table has {table.block_tokens}"
    if q_BHTD.shape[2] < BLOCK_TOKENS:
        return f"FlexAttention takes another kernel below {BLOCK_TOKENS} queries, and there are {q_BHTD.shape[2]}"
    if q_BHTD.shape[3] < 16:
        return f"FlexAttention needs a head_dim of 16 or more, and it is {q_BHTD.shape[3]}"
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        return "there is no C compiler, which torch.compile needs"
    return triton_reason(q_BHTD, k_BKSD, v_BKSD)


def flex_block_sparse_prefill(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, table: BlockTable, *, scale: float
) -> tuple[Tensor, Tensor]:
    """See `block_sparse_prefill`; trainable. Call it where `flex_reason` gives None.

    The first call of a kind of table (with sink or window, with first_place, neither) compiles, which takes seconds.
    """
    tensors = (q_BHTD, k_BKSD, v_BKSD)
    trainable = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    mask = flex_block_mask(
        table, num_heads=q_BHTD.shape[1], T=q_BHTD.shape[2], S=k_BKSD.shape[2], trainable=trainable
    )
    return flex_attend(*tensors, mask, scale=scale)


def flex_attend(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: BlockMask, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Compiled FlexAttention over a mask of `flex_block_mask`, CUDA only: out in q's dtype and lse float32."""
    grouped = q_BHTD.shape[1] != k_BKSD.shape[1]
    out, aux = compiled_flex()(
        q_BHTD,
        k_BKSD,
        v_BKSD,
        block_mask=mask,
        scale=scale,
        enable_gqa=grouped,
        return_aux=AuxRequest(lse=True),
    )
    return out, aux.lse


@cache
def compiled_flex() -> Callable[..., Any]:
    """`flex_attention` compiled; `fullgraph` makes a failed or too frequent compile raise."""
    return torch.compile(flex_attention, fullgraph=True)


def flex_block_mask(table: BlockTable, *, num_heads: int, T: int, S: int, trainable: bool) -> BlockMask:
    """The table as a BlockMask, built on its device from the table's own entries, without a synchronisation.

    Args:
        table: without columns.
        num_heads: H.
        T, S: query tokens and stored tokens.
        trainable: also lists the rows of each key block, which the backward pass needs.
    """
    assert table.columns is None
    block, device = table.block_tokens, table.index.device
    B, h, NQ = table.index.shape[:3]
    num_blocks = -(-S // block)
    key_block, member = _entries(table, T, S)
    low = key_block * block
    row_low = (S - T + torch.arange(NQ, device=device) * block)[:, None]
    row_high = (row_low + block).clamp(max=S) - 1
    covered = member | (low + block <= table.sink_tokens) | (row_high - low < table.window_tokens)
    full = (key_block < num_blocks) & covered & (low + block - 1 <= row_low)
    some = (key_block < num_blocks) & (low <= row_high)
    first = table.first_place
    if first is not None:
        full = full & (low >= first[:, None, None, None])
        some = some & (low + block > first[:, None, None, None])
    lists: list[Tensor] = []
    for chosen in (some & ~full, full):
        indices = torch.where(chosen, key_block, num_blocks).sort(dim=-1).values[..., :num_blocks]
        if trainable:  # the other side is found from as many columns as there are key blocks
            indices = functional.pad(indices, (0, num_blocks - indices.shape[3]), value=num_blocks)
        lists += [chosen.sum(-1, dtype=torch.int32), indices.clamp(max=num_blocks - 1).int().contiguous()]
    if h != 1:  # FlexAttention repeats the heads of a mask, where a table shares each among neighbours
        lists = [x.repeat_interleave(num_heads // h, dim=1) for x in lists]
    num_some, where_some, num_full, where_full = lists
    return BlockMask.from_kv_blocks(
        num_some,
        where_some,
        num_full,
        where_full,
        BLOCK_SIZE=block,
        mask_mod=_mask_mod(table, T, S, num_heads),
        seq_lengths=(T, S),
        compute_q_blocks=trainable,
    )


def _entries(table: BlockTable, T: int, S: int) -> tuple[Tensor, Tensor]:
    """Key blocks of each row, each once and ceil(S / block) for none, and which of them the table names: `[B, h, NQ, N']`.

    Blocks that the sink or the window touch are there too.
    """
    block, device = table.block_tokens, table.index.device
    B, h, NQ, N = table.index.shape
    num_blocks = -(-S // block)
    used = torch.arange(N, device=device) < table.counts[..., None]
    used = used & (table.index >= 0) & (table.index < num_blocks)
    # Sorting 2 * block + (0 when the table names it) puts equal blocks side by side, the named one first.
    codes = [torch.where(used, 2 * table.index, 2 * num_blocks)]
    if table.sink_tokens:
        touched = torch.arange(-(-min(table.sink_tokens, S) // block), device=device)
        codes.append((2 * touched + 1).expand(B, h, NQ, -1))
    if table.window_tokens:
        window = min(table.window_tokens, S)
        row_low = S - T + torch.arange(NQ, device=device) * block
        nearest = ((row_low + block).clamp(max=S) - 1) // block
        touched = nearest[:, None] - torch.arange(window // block + 3, device=device)
        inside = (touched >= 0) & ((touched + 1) * block > row_low[:, None] - window + 1)
        codes.append(torch.where(inside, 2 * touched + 1, 2 * num_blocks).expand(B, h, NQ, -1))
    code = torch.cat(codes, dim=-1).sort(dim=-1).values
    key_block = code // 2
    repeated = functional.pad(key_block[..., 1:] == key_block[..., :-1], (1, 0))
    return torch.where(repeated, num_blocks, key_block), code % 2 == 0


def _mask_mod(
    table: BlockTable, T: int, S: int, num_heads: int
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask inside partly visited blocks. Numbers are tensors, so that another offset or window compiles nothing anew."""
    B, device = table.index.shape[0], table.index.device

    def number(value: int) -> Tensor:
        return torch.full((B,), value, dtype=torch.int32, device=device)

    offset = number(S - T)
    first = number(0) if table.first_place is None else table.first_place

    def causal(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (kv_idx <= q_idx + offset[b]) & (kv_idx >= first[b])

    if not (table.sink_tokens or table.window_tokens):
        return causal
    block, repeats = table.block_tokens, num_heads // table.index.shape[1]
    num_blocks = -(-S // block)
    used = torch.arange(table.index.shape[3], device=device) < table.counts[..., None]
    chosen = torch.where(
        used & (table.index >= 0) & (table.index < num_blocks), table.index, num_blocks
    ).long()
    named = torch.zeros(*table.index.shape[:3], num_blocks + 1, dtype=torch.bool, device=device)
    named.scatter_(-1, chosen, True)
    sink, window = number(min(table.sink_tokens, S)), number(min(table.window_tokens, S))

    def near(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        in_table = named[b, h // repeats, q_idx // block, kv_idx // block]
        in_range = (kv_idx < sink[b]) | (q_idx + offset[b] - kv_idx < window[b])
        return causal(b, h, q_idx, kv_idx) & (in_table | in_range)

    return near
