"""Estimates for prefill: 4 heads of a kv head, head_dim 128, bfloat16, blocks of 64 (vertical-slash) and 128."""

from __future__ import annotations

from longspan.ops.estimate.blocks_triton import _group_lse_kernel, _group_shares_kernel, antidiagonal_config
from longspan.ops.estimate.low_bit_triton import _scores_kernel, scores_config
from longspan.ops.estimate.vertical_slash_table_triton import _rows_kernel
from longspan.ops.estimate.vertical_slash_triton import _lse_kernel, _mass_kernel, slash_config
from tests.ops.compiling import CompileCase

INPUTS = {"q": "*bf16", "k": "*bf16", "lse": "*fp32", "first_place": "*i32", "scale_log2": "fp32"}
INPUTS |= {name: "i32" for name in ("sqb", "sqh", "sqt", "skb", "skh", "sks", "D")}
INPUTS |= {name: "i32!" for name in ("H", "T", "S")}
CHUNKS = {
    "K": "i32!",
    "num_chunks": "i32!",
    "chunk_tokens": "i32",
    "split_tokens": "i32",
    "last_queries": "i32",
}
SLASH = slash_config(4, 64, 128, 2)
TILE = {
    "G": 4,
    "ROWS": 64,
    "BLOCK_D": 128,
    "PRECISION": "tf32",
    "HEADS": SLASH["HEADS"],
    "BLOCK_N": SLASH["BLOCK_N"],
}
MASS = {"columns": "*fp32", "parts": "*fp32", "num_tiles": "i32!", "phase": "i32!"}
GROUPS = {"G": "i32!", "num_groups": "i32!"}
CONFIG = antidiagonal_config(16, 128, 128, 2)
SIDE = {name: CONFIG[name] for name in ("BLOCK_A", "BLOCK_C")}
SQUARE = {"STRIDE": 16, "BLOCK_D": 128, "HAS_FIRST": True, "PRECISION": "tf32", **SIDE}
LOW_BIT = scores_config()
ROW_INDEX = ("best", "index", "counts", "first_place")
ROW_SIZES = ("H", "P", "T", "S", "per_estimate", "NQ", "num_blocks", "num_best", "num_slashes", "width")
LAUNCH = {"num_warps": CONFIG["num_warps"], "num_stages": CONFIG["num_stages"]}

CASES = [
    CompileCase(
        name="lse of the last queries",
        kernel=_lse_kernel,
        arguments={**INPUTS, **CHUNKS, "num_splits": "i32!"},
        constants={**TILE, "HAS_FIRST": True},
        num_warps=SLASH["lse_warps"],
        num_stages=SLASH["num_stages"],
    ),
    CompileCase(
        name="columns and diagonals",
        kernel=_mass_kernel,
        arguments={**INPUTS, **CHUNKS, **MASS},
        constants={**TILE, "HAS_FIRST": True, "BLOCK": 64, "LAST": 2},
        num_warps=SLASH["mass_warps"],
        num_stages=SLASH["num_stages"],
    ),
    CompileCase(
        name="rows of a table",
        kernel=_rows_kernel,
        arguments={
            "offsets": "*fp32",
            **dict.fromkeys(ROW_INDEX, "*i32"),
            **dict.fromkeys(ROW_SIZES, "i32!"),
        },
        constants={
            **{"BLOCK": 64, "PER_PIECE": 32, "CANDIDATES": 64, "OTHERS": 16, "SLOTS": 128, "HAS_FIRST": True}
        },
        num_warps=2,
    ),
    CompileCase(
        name="lse of antidiagonals",
        kernel=_group_lse_kernel,
        arguments={**INPUTS, **GROUPS},
        constants=SQUARE,
        **LAUNCH,
    ),
    CompileCase(
        name="shares by antidiagonals",
        kernel=_group_shares_kernel,
        arguments={**INPUTS, **GROUPS, "out": "*fp32", "NQ": "i32!", "NK": "i32!"},
        constants={**SQUARE, "PER_BLOCK": 8},
        **LAUNCH,
    ),
    CompileCase(
        name="4-bit scores",
        kernel=_scores_kernel,
        arguments={
            **{"q": "*i8", "k": "*i8", "q_steps": "*fp32", "k_steps": "*fp32", "out": "*fp32"},
            **{"first_place": "*i32", "scale_log2": "fp32", "D": "i32"},
            **dict.fromkeys(("H", "G", "T", "S", "NQ", "NK"), "i32!"),
        },
        constants={
            **{"BLOCK": 128, "PER_QUERY": False, "LOGSUMEXP": False, "HAS_FIRST": True},
            **{"BLOCK_D": 128, "BLOCK_T": LOW_BIT["BLOCK_T"], "BLOCK_S": LOW_BIT["BLOCK_S"]},
        },
        num_warps=LOW_BIT["num_warps"],
        num_stages=LOW_BIT["num_stages"],
    ),
]
