"""The forward on Hopper GPUs: one warp copies, two groups of four warps compute (`gluon_kernel.py`, in Triton's Gluon)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from longspan.ops.backend import capability_of, missing_triton, num_processors
from longspan.ops.block_sparse.table import BlockTable

BLOCK_TOKENS = 128
HEAD_DIMS = (64, 128)
TRITON_VERSION = (3, 6)  # Gluon is experimental: names and meanings change between minor versions
SHARED_BYTES = 227 * 1024  # what a program may have on compute capability 9.0
OTHER_BYTES = 1024  # of it for barriers and what the compiler hands from warps to warps


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the kernel is launched.

    Args:
        slots: blocks of keys or values in flight, at least 4.
        ping_pong: the two groups issue their products in turns, so that one's softmax runs under the other's products.
        persistent: one program a multiprocessor, which goes through many rows; otherwise one program a row.
    """

    slots: int = 5
    ping_pong: bool = True
    persistent: bool = True


def gluon_reason(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, table: BlockTable) -> str | None:
    """Why this kernel cannot serve the call; None when it can."""
    if q_BHTD.dtype not in (torch.bfloat16, torch.float16):
        return f"{q_BHTD.dtype} is not one of bfloat16 and float16"
    if q_BHTD.shape[-1] not in HEAD_DIMS:
        return f"head_dim {q_BHTD.shape[-1]} is not one of 64 and 128"
    if table.block_tokens != BLOCK_TOKENS:
        return f"block_tokens is {table.block_tokens}, not {BLOCK_TOKENS}"
    if table.columns is not None:
        return "the table has columns"
    for name, x in {"q": q_BHTD, "k": k_BKSD, "v": v_BKSD}.items():
        if not _can_describe(x):
            return f"the start and strides of {name} are not multiples of 16 bytes, with the last dimension contiguous"
    if not q_BHTD.is_cuda:
        return f"the tensors are on {q_BHTD.device.type}, not on a CUDA device"
    return machine_reason(q_BHTD.device.index or 0)


def machine_reason(device_index: int) -> str | None:
    """Why no call can be served on a CUDA device; None when some can."""
    major, minor = capability_of(device_index)
    if (major, minor) != (9, 0):
        return f"compute capability is {major}.{minor}, not 9.0"
    return _missing_gluon()


def gluon_block_sparse_prefill(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    table: BlockTable,
    *,
    scale: float,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """See `block_sparse_prefill`; only where `gluon_reason` is None. `config` overrides the launch, for measurements."""
    config = config or Config()
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    most = (SHARED_BYTES - OTHER_BYTES) // (
        BLOCK_TOKENS * D * 2
    ) - 2  # the queries and the output are a block each
    if not 4 <= config.slots <= most:
        raise ValueError(f"got slots={config.slots}; allowed are 4 to {most} for head_dim {D}")
    from longspan.ops.block_sparse.gluon_kernel import PREFILL_REGISTERS, prefill_kernel
    from longspan.ops.block_sparse.triton_plan import plan_blocks

    plan = plan_blocks(table, num_queries=T, num_keys=S, diagonal=False)
    out = torch.empty(B, H, T, D, dtype=q_BHTD.dtype, device=q_BHTD.device)
    lse = torch.empty(B, H, T, dtype=torch.float32, device=q_BHTD.device)
    num_rows = plan.num_all.shape[2]
    num_tiles = B * H * num_rows
    programs = num_processors(q_BHTD.device) if config.persistent else num_tiles
    prefill_kernel[(min(programs, num_tiles),)](
        _describe(q_BHTD, BLOCK_TOKENS // 2),
        _describe(k_BKSD, BLOCK_TOKENS),
        _describe(v_BKSD, BLOCK_TOKENS),
        _describe(out, BLOCK_TOKENS // 2),
        lse,
        plan.blocks,
        plan.num_full,
        plan.num_all,
        table.first_place,
        scale * math.log2(math.e),
        num_tiles,
        num_rows,
        H,
        H // K,
        plan.num_all.shape[1],
        plan.blocks.shape[3],
        T,
        S,
        min(table.sink_tokens, S),
        min(table.window_tokens, S),
        BLOCK=BLOCK_TOKENS,
        D=D,
        SLOTS=config.slots,
        PING_PONG=config.ping_pong,
        EDGES=table.sink_tokens > 0 or table.window_tokens > 0,
        num_warps=4,
        maxnreg=PREFILL_REGISTERS,
    )
    return out, lse


def _can_describe(x: Tensor) -> bool:
    return (
        x.stride(-1) == 1
        and x.data_ptr() % 16 == 0
        and all(
            n == 1 or (s > 0 and s * x.element_size() % 16 == 0)
            for n, s in zip(x.shape, x.stride()[:3], strict=False)
        )
    )


def _describe(x: Tensor, rows: int) -> Any:
    """A descriptor for the copy engine, of tiles of `rows` tokens of one head."""
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    dtype = gl.bfloat16 if x.dtype == torch.bfloat16 else gl.float16
    tile = [1, 1, rows, x.shape[3]]
    # A dimension of one has any stride: the descriptor wants a multiple of 16 bytes.
    strides = [x.shape[3] if n == 1 else s for n, s in zip(x.shape[:3], x.stride()[:3], strict=True)]
    return TensorDescriptor(
        x, list(x.shape), [*strides, 1], tile, gl.NVMMASharedLayout.get_default_for(tile, dtype)
    )


@cache
def _missing_gluon() -> str | None:
    missing = missing_triton()
    if missing is not None:
        return missing
    import triton

    version = tuple(int(x) for x in triton.__version__.split(".")[:2])
    if version != TRITON_VERSION:
        return f"triton is {triton.__version__}, and the kernel is written for the Gluon of 3.6"
    return None
