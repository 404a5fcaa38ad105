"""What a `BlockTable` must look like for the kernels; the table itself is a `Visit`, see `longspan.visit`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from longspan.visit import BlockTable

__all__ = ["BlockTable", "check_table", "table_row"]


def table_row(table: BlockTable, row: int) -> BlockTable:
    """The table of one row of queries, which are then the last tokens of the keys up to them."""
    columns, span = table.columns, table.column_query_tokens
    if columns is not None:
        assert span is not None
        at = row * table.block_tokens // span
        columns, span = columns[:, :, at : at + 1], table.block_tokens
    return replace(
        table,
        index=table.index[:, :, row : row + 1],
        counts=table.counts[:, :, row : row + 1],
        columns=columns,
        column_query_tokens=span,
    )


def check_table(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, table: BlockTable) -> None:
    """Raise ValueError, in one sentence, when shapes, types or devices do not fit; values of tensors are not looked at."""
    shapes = f"q {list(q_BHTD.shape)}, k {list(k_BKSD.shape)}, v {list(v_BKSD.shape)}"
    if {q_BHTD.dim(), k_BKSD.dim(), v_BKSD.dim()} != {4} or k_BKSD.shape != v_BKSD.shape:
        raise ValueError(f"got {shapes}; allowed are q [B, H, T, D] with k and v of one shape [B, K, S, D]")
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    if k_BKSD.shape[0] != B or k_BKSD.shape[3] != D or K == 0 or H % K or not 1 <= T <= S:
        raise ValueError(
            f"got {shapes}; B and D must be equal, H a multiple of K, and T from 1 to S (the queries are the last T keys)"
        )
    tensors = {"q": q_BHTD, "k": k_BKSD, "v": v_BKSD, "index": table.index, "counts": table.counts}
    if table.columns is not None:
        tensors["columns"] = table.columns
    if table.first_place is not None:
        tensors["first_place"] = table.first_place
    for name, x in tensors.items():
        if x.device != q_BHTD.device:
            raise ValueError(f"got {name} on {x.device} and q on {q_BHTD.device}; all must be on one device")
        wanted = q_BHTD.dtype if name in "qkv" else torch.int32
        if x.dtype != wanted:
            raise ValueError(f"got {name} of {x.dtype}; allowed is {wanted}")
    block = table.block_tokens
    if block not in (16, 32, 64, 128):
        raise ValueError(f"got block_tokens={block}; allowed are 16, 32, 64 and 128")
    if table.sink_tokens < 0 or table.window_tokens < 0:
        raise ValueError(
            f"got sink_tokens={table.sink_tokens}, window_tokens={table.window_tokens}; allowed is 0 or more"
        )
    rows = -(-T // block)
    _check_rows("index", table.index, (B, H, K), rows)
    if table.counts.shape != table.index.shape[:3]:
        raise ValueError(
            f"got counts {list(table.counts.shape)}; allowed is the shape of index without its last dimension, "
            f"{list(table.index.shape[:3])}"
        )
    if table.columns is not None:
        span = table.column_query_tokens
        if span is None or span < block or span % block:
            raise ValueError(f"got column_query_tokens={span}; allowed is a multiple of block_tokens={block}")
        _check_rows("columns", table.columns, (B, H, K), -(-T // span))
    if table.first_place is not None and table.first_place.shape != (B,):
        raise ValueError(f"got first_place {list(table.first_place.shape)}; allowed is [B], here [{B}]")


def _check_rows(name: str, x: Tensor, heads: tuple[int, int, int], rows: int) -> None:
    B, H, K = heads
    if x.dim() != 4 or x.shape[0] != B or x.shape[1] not in (1, K, H) or x.shape[2] != rows:
        raise ValueError(
            f"got {name} {list(x.shape)}; allowed is [{B}, h, {rows}, any] with h one of 1, {K} (kv heads) and {H} (heads)"
        )
