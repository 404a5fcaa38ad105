# mypy: disable-error-code="no-untyped-def"
"""Triton kernel: one program per row of queries and head (several heads where they share a table and rows are short).

The plan (`triton_plan.py`) splits a row's blocks into those that need no mask, which the first loop visits with nothing
but loads, two products and the softmax (`triton_steps.py`), and the few at edges, which the second loop masks. The third
gathers single keys. Long rows start first; heads that share keys stand side by side, so that they meet in the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longspan.ops.block_sparse.table import BlockTable
from longspan.ops.block_sparse.triton_plan import plan_blocks
from longspan.ops.block_sparse.triton_steps import full_blocks, masked_step


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the kernel is launched.

    Args:
        tile_keys: keys a tile of the first loop.
        edge_keys: keys a tile of the masked loops; divides tile_keys.
        num_warps, num_stages: num_stages tiles of keys and of values are in shared memory at a time.
        copy_engine: keys and values are read by the tensor copy engine (TMA), where strides and block size allow it.
    """

    tile_keys: int
    edge_keys: int
    num_warps: int
    num_stages: int
    copy_engine: bool


def triton_block_sparse_prefill(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    table: BlockTable,
    *,
    scale: float,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """See `block_sparse_prefill`; `config` overrides the launch, for measurements."""
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    block, columns, groups = table.block_tokens, table.columns, H // K
    for name, x in (("q", q_BHTD), ("k", k_BKSD), ("v", v_BKSD)):
        if x.stride(-1) != 1:
            raise ValueError(
                f"got {name} with strides {x.stride()}; the last must be 1: call {name}.contiguous()"
            )
    heads_per_index = H // table.index.shape[1]
    heads_per_column = H if columns is None else H // columns.shape[1]
    shared = min(heads_per_index, heads_per_column) >= groups
    pack = min(triton.next_power_of_2(groups), 128 // block) if shared else 1
    packs = -(-groups // pack)
    config = config or _config(D, q_BHTD.element_size(), pack * block, block)
    copy_engine = config.copy_engine and config.tile_keys <= block and _can_describe(k_BKSD, v_BKSD)
    # The last diagonal block may reach past the keys: the copy engine reads zeros there, pointers would read anything.
    diagonal = config.tile_keys <= block and (S - T) % block == 0 and (copy_engine or S % block == 0)
    first_place = None if table.first_place is None else table.first_place.contiguous()
    plan = plan_blocks(table, num_queries=T, num_keys=S, diagonal=diagonal)
    num_rows, width = plan.blocks.shape[2:]
    padded = max(16, triton.next_power_of_2(D))
    keys, values = k_BKSD, v_BKSD
    if copy_engine:
        keys, values = (_describe(x, [1, 1, config.tile_keys, padded]) for x in (k_BKSD, v_BKSD))
    out = torch.empty(B, H, T, D, dtype=q_BHTD.dtype, device=q_BHTD.device)
    lse = torch.empty(B, H, T, dtype=torch.float32, device=q_BHTD.device)
    _prefill_kernel[(num_rows * packs * K * B,)](
        q_BHTD, k_BKSD, v_BKSD, keys, values, out, lse,
        plan.blocks, plan.num_full, plan.num_all, plan.bits, columns, first_place,
        *q_BHTD.stride()[:3], *k_BKSD.stride()[:3], *v_BKSD.stride()[:3],
        *((0, 0, 0, 0) if columns is None else columns.stride()),
        0 if columns is None else columns.shape[3], table.column_query_tokens or block,
        T, S, K, groups, packs, heads_per_index, heads_per_column,
        num_rows, width, plan.bits.shape[3], min(table.sink_tokens, S), min(table.window_tokens, S),
        scale * math.log2(math.e),
        D=D, PADDED=padded, BLOCK=block, PACK=pack, WINDOW=table.window_tokens > 0, DIAGONAL=diagonal,
        TILE=config.tile_keys, EDGE=config.edge_keys, COPY_ENGINE=copy_engine,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out, lse


def _config(head_dim: int, element_bytes: int, rows: int, block: int) -> Config:
    """For `rows` query rows a program. No tile is wider than a block of 64 or 128, so that the copy engine can read it."""
    if element_bytes == 4:
        return Config(tile_keys=16, edge_keys=16, num_warps=8, num_stages=1, copy_engine=False)
    described = block >= 64
    wide = head_dim > 128
    return Config(
        tile_keys=128 if block == 128 and not wide else 64,
        edge_keys=16 if wide else 64,
        num_warps=8 if rows > 64 else 4,
        num_stages=2 if wide and described else 3,  # gathered blocks: their numbers are read a stage earlier
        copy_engine=described,
    )


def _can_describe(*tensors: Tensor) -> bool:
    return all(
        x.data_ptr() % 16 == 0
        and all(
            n == 1 or (s > 0 and s * x.element_size() % 16 == 0)
            for n, s in zip(x.shape, x.stride()[:3], strict=False)
        )
        for x in tensors
    )


def _describe(x: Tensor, tile: list[int]) -> Any:
    # A dimension of one has any stride: the descriptor wants a multiple of 16 bytes.
    strides = [16 if n == 1 else s for n, s in zip(x.shape, x.stride()[:3], strict=False)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], tile)


# Left as they are: a compilation for every length that 16 divides, or not, would stop a run for seconds.
@triton.jit(
    do_not_specialize=(
        "stride_cb stride_ch stride_cq stride_cn num_columns column_queries num_queries num_keys num_kv_heads groups packs "
        "heads_per_index heads_per_column num_rows width words sink window"
    ).split()
)
def _prefill_kernel(
    q_ptr, k_ptr, v_ptr, keys, values, out_ptr, lse_ptr,
    blocks_ptr, num_full_ptr, num_all_ptr, bits_ptr, columns_ptr, first_ptr,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_cb, stride_ch, stride_cq, stride_cn, num_columns, column_queries,
    num_queries, num_keys, num_kv_heads, groups, packs, heads_per_index, heads_per_column,
    num_rows, width, words, sink, window, scale,
    D: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, PACK: tl.constexpr, WINDOW: tl.constexpr,
    DIAGONAL: tl.constexpr, TILE: tl.constexpr, EDGE: tl.constexpr, COPY_ENGINE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    row = num_rows - 1 - (pid // packs) % num_rows
    kv_head = (pid // (packs * num_rows)) % num_kv_heads
    batch = pid // (packs * num_rows * num_kv_heads)
    in_group = (pid % packs) * PACK
    head = kv_head * groups + in_group
    num_heads = num_kv_heads * groups

    m = tl.arange(0, PACK * BLOCK)
    query = row * BLOCK + m % BLOCK
    place = num_keys - num_queries + query
    valid = (query < num_queries) & (in_group + m // BLOCK < groups)
    d = tl.arange(0, PADDED)
    q_ptr += batch.to(tl.int64) * stride_qb + head.to(tl.int64) * stride_qh
    q_offset = (m // BLOCK).to(tl.int64) * stride_qh + query.to(tl.int64) * stride_qt
    q = tl.load(q_ptr + q_offset[:, None] + d[None, :], mask=valid[:, None] & (d[None, :] < D), other=0.0)

    k_ptr += batch.to(tl.int64) * stride_kb + kv_head.to(tl.int64) * stride_kh
    v_ptr += batch.to(tl.int64) * stride_vb + kv_head.to(tl.int64) * stride_vh
    at = (batch * (num_heads // heads_per_index) + head // heads_per_index).to(tl.int64) * num_rows + row
    blocks_ptr += at * width
    full_tiles = tl.load(num_full_ptr + at) * BLOCK // TILE
    first = 0
    if first_ptr is not None:
        first = tl.load(first_ptr + batch)

    low = num_keys - num_queries + row * BLOCK
    acc, top, total = full_blocks(
        q, k_ptr, v_ptr, keys, values, batch, kv_head, blocks_ptr, full_tiles, low, stride_ks, stride_vs, scale,
        D, PADDED, BLOCK, PACK, DIAGONAL, TILE, COPY_ENGINE,
    )  # fmt: skip
    # All of a row's blocks that the first loop left, masked, in their order.
    num_all = tl.load(num_all_ptr + at)
    high = tl.minimum(low + BLOCK, num_keys) - 1
    for i in tl.range(full_tiles * (TILE // EDGE), tl.cdiv(num_all * BLOCK, EDGE), num_stages=1):
        n = i * EDGE + tl.arange(0, EDGE)
        entry = tl.load(blocks_ptr + n // BLOCK, mask=n // BLOCK < num_all, other=0)
        s = tl.where(entry < 0, -1 - entry, entry) * BLOCK + n % BLOCK
        always = (entry >= 0) | (s < sink)
        live = (n // BLOCK < num_all) & (s >= first) & (s <= high) & (always | (WINDOW & (s + window > low)))
        # Key s is visited from place s on and, if only the window reaches it, before place s + window.
        mask = place[:, None] >= tl.where(live, s, 0x7FFFFFFF)[None, :]
        if WINDOW:
            mask = mask & (place[:, None] < tl.where(always, 0x7FFFFFFF, s + window)[None, :])
        acc, top, total = masked_step(
            q, k_ptr, v_ptr, s, live, mask, acc, top, total, scale, stride_ks, stride_vs, D, PADDED
        )
    if columns_ptr is not None:
        columns_ptr += batch.to(tl.int64) * stride_cb + (head // heads_per_column).to(tl.int64) * stride_ch
        columns_ptr += (row * BLOCK // column_queries).to(tl.int64) * stride_cq
        bits_ptr += at * words
        for i in tl.range(0, tl.cdiv(num_columns, EDGE), num_stages=3):
            n = i * EDGE + tl.arange(0, EDGE)
            s = tl.load(columns_ptr + n * stride_cn, mask=n < num_columns, other=-1)
            live = (s >= first) & (s >= sink) & (s + window <= high)
            word = tl.load(bits_ptr + s // BLOCK // 32, mask=live, other=0)
            live = live & (((word >> (s // BLOCK % 32)) & 1) == 0)
            mask = place[:, None] >= tl.where(live, s + window, 0x7FFFFFFF)[None, :]
            acc, top, total = masked_step(
                q, k_ptr, v_ptr, s, live, mask, acc, top, total, scale, stride_ks, stride_vs, D, PADDED
            )

    rows = (batch * num_heads + head + m // BLOCK).to(tl.int64) * num_queries + query
    empty = total == 0
    out = (acc / tl.where(empty, 1.0, total)[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows[:, None] * D + d[None, :], out, mask=valid[:, None] & (d[None, :] < D))
    log_sum = tl.where(empty, -float("inf"), top + tl.log2(tl.where(empty, 1.0, total)))
    tl.store(lse_ptr + rows, log_sum * 0.6931471805599453, mask=valid)
