"""Launch of the decode kernel: sizes from what the host knows, then the merge of the pieces."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from longspan.ops.backend import num_processors
from longspan.ops.decode.kernel import LOG2E, decode_kernel
from longspan.ops.decode.ragged import Ragged
from longspan.ops.decode.tile import CONTIGUOUS, GATHER, PAGED, POOL
from longspan.ops.merge_states.triton import triton_merge_ranges
from longspan.ops.overlap import overlap


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the kernel is cut.

    Args:
        block_tokens: keys of a tile.
        rows: query rows (heads of a group times queries) of a tile.
        num_warps, num_stages: of a program; stages are tiles in flight.
        programs_per_sm: programs that run at once.
        most_waves, least_tiles: up to so many rounds of programs, while each program keeps so many tiles.
        tma: load runs of rows with the tensor memory accelerator where the form allows it.
    """

    block_tokens: int
    rows: int
    num_warps: int
    num_stages: int
    programs_per_sm: int
    most_waves: int = 2
    least_tiles: int = 64
    tma: bool = False


@cache
def config_for(num_rows: int, head_dim: int, itemsize: int, page_tokens: int | None = None) -> Config:
    """The configuration for `num_rows` query rows of a kv head; `page_tokens` where rows are looked up in a table."""
    width = triton.next_power_of_2(head_dim)
    block = min(128, max(16, 2**14 // (width * itemsize)))
    most_rows = max(16, min(128, 2**14 // width) if itemsize == 2 else min(64, 2**12 // width))
    rows = max(16, min(triton.next_power_of_2(num_rows), most_rows))
    large = rows * width >= 2**14
    # at most 168 registers a thread, so that three programs fit
    small = itemsize == 2 and rows == 16 and width <= 128
    # tiles of 32 KiB, three in flight for each of two or three programs a multiprocessor; one where q is large
    stages = 3
    if page_tokens is not None and page_tokens % block:
        block = max(16, block // 2)
        # rows by a vector of table entries: these loads take every second stage, as far as registers allow
        stages = 5 if page_tokens % block == 0 or rows * width > 2**12 else 7
    return Config(
        block_tokens=block,
        rows=rows,
        num_warps=8 if large else 4,
        num_stages=stages,
        programs_per_sm=1 if large else 3 if page_tokens is None and small else 2,
        tma=itemsize == 2,  # its float32 tiles spill registers
    )


def triton_ragged_decode(
    q_BHTD: Tensor,
    store: Ragged,
    *,
    scale: float,
    tree_mask: Tensor | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """See `ragged_decode`; without `config`, `config_for` chooses."""
    K = store.lengths.shape[1]
    capacity = store.capacity_tokens
    form = {"contiguous": CONTIGUOUS, "pool": POOL, "paged": PAGED}[store.form]
    keys, values = (x if x.dim() == 4 else x[(None,) * (4 - x.dim())] for x in (store.keys, store.values))
    most_tokens = capacity if store.form == "pool" else capacity * store.lengths.numel()
    return _launch(
        q_BHTD,
        keys,
        values,
        scale=scale,
        config=config,
        kv_heads=K,
        form=form.value,
        page_tokens=store.keys.shape[1] if store.form == "paged" else 1,
        lengths=store.lengths.contiguous(),
        starts=None if store.starts is None else store.starts.contiguous(),
        table=store.page_table,
        tree=tree_mask,
        capacity=capacity,
        limit=keys.shape[1],
        most_tokens=most_tokens,
    )


def triton_gather_decode(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    index: Tensor,
    *,
    scale: float,
    page_tokens: int = 1,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """See `gather_decode`; without `config`, `config_for` chooses."""
    B, K, S = k_BKSD.shape[:3]
    T = q_BHTD.shape[2]
    capacity = index.shape[2] * page_tokens + T
    return _launch(
        q_BHTD,
        k_BKSD,
        v_BKSD,
        scale=scale,
        config=config,
        kv_heads=K,
        form=GATHER.value,
        page_tokens=page_tokens,
        lengths=None,
        starts=None,
        table=index,
        tree=None,
        capacity=capacity,
        limit=S - T,
        most_tokens=capacity * B * K,
    )


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    config: Config | None,
    kv_heads: int,
    form: int,
    page_tokens: int,
    lengths: Tensor | None,
    starts: Tensor | None,
    table: Tensor | None,
    tree: Tensor | None,
    capacity: int,
    limit: int,
    most_tokens: int,
) -> tuple[Tensor, Tensor]:
    B, H, T, D = q.shape
    num_heads, G = B * kv_heads, H // kv_heads
    config = config or config_for(G * T, D, q.element_size(), None if table is None else page_tokens)
    block = config.block_tokens
    wave = config.programs_per_sm * num_processors(q.device)
    most_tiles = most_tokens // block + num_heads
    waves = min(config.most_waves, max(1, most_tiles // (wave * config.least_tiles)))
    programs = max(min(waves * wave, most_tiles), num_heads)
    # float32 scratch for the pieces: their rows, their log-sum-exps, and which pieces belong to which head
    part_out = q.new_empty(programs, G * T, D, dtype=torch.float32)
    part_lse = q.new_empty(programs, G * T, dtype=torch.float32)
    first, count = q.new_empty(2, num_heads, dtype=torch.int32)
    out = q.new_empty(B, H, T, D)
    lse = q.new_empty(B, H, T, dtype=torch.float32)
    if table is not None and table.stride(2) != 1:
        table = table.contiguous()
    run = form in (CONTIGUOUS.value, POOL.value) or page_tokens % block == 0
    tma = config.tma and run and _fits_tma(k) and _fits_tma(v)
    box = [1, 1, block, triton.next_power_of_2(D)]
    row_tiles = triton.cdiv(G * T, config.rows)
    decode_kernel[(programs * row_tiles,)](
        q,
        k,
        v,
        _descriptor(k, box) if tma else None,
        _descriptor(v, box) if tma else None,
        lengths,
        starts,
        table,
        None if tree is None else tree.contiguous().view(torch.uint8),
        part_out,
        part_lse,
        first,
        count,
        num_heads,
        kv_heads,
        T,
        capacity,
        0 if table is None else table.shape[2],
        limit,
        programs,
        scale * LOG2E.value,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        0 if table is None else table.stride(0),
        0 if table is None or table.shape[1] == 1 else table.stride(1),
        0 if tree is None or tree.shape[0] == 1 else T * T,
        G=G,
        D=D,
        D_POW2=box[3],
        ROWS=config.rows,
        ROW_TILES=row_tiles,
        HEADS=triton.next_power_of_2(num_heads),
        BLOCK=block,
        STAGES=config.num_stages,
        FORM=form,
        PAGE=page_tokens,
        TMA=tma,
        TREE=tree is not None,
        ALIKE=k.stride() == v.stride(),
        WAVE=wave,
        LEAST_TILES=config.least_tiles,
        # pages looked up in a table were up to 18% slower when the next call waits beside them
        **(overlap(q) if form != PAGED.value else {"OVERLAP": False}),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    triton_merge_ranges(part_out, part_lse, first, count, out, lse)
    return out, lse


def _descriptor(x: Tensor, box: list[int]) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), list(x.stride()), box)


def _fits_tma(x: Tensor) -> bool:
    strides = [n * x.element_size() for n in x.stride()[:-1]]
    return x.data_ptr() % 16 == 0 and all(n % 16 == 0 and n > 0 for n in strides)
