"""The backward of block-sparse attention as launched for bfloat16, head_dim 128, 32 heads on 8 kv heads, blocks of 128."""

from __future__ import annotations

from typing import Any

from longspan.ops.block_sparse.backward import _dq_kernel, backward_tiles
from longspan.ops.block_sparse.backward_keys import _single_kernel, dkv_kernel
from tests.ops.compiling import CompileCase

TILES = backward_tiles(128, 2, 128)
POINTERS = {
    **{name: "*bf16" for name in ("Q", "K", "V", "DO", "DQ", "DK", "DV")},
    **{name: "*fp32" for name in ("Shift", "Delta", "SumK", "SumV")},
    **{name: "*i32" for name in ("Bits", "List", "Counts", "First", "Columns")},
    "Starts": "*i64",
    "scale": "fp32",
}
SHARED: dict[str, Any] = {"D": 128, "PAD": 128, "BT": 128, "PRECISION": "tf32", "First": None}


def case(
    name: str, kernel: Any, constants: dict[str, Any], num_warps: int, num_stages: int, spill_bytes: int = 0
) -> CompileCase:
    fixed = {**SHARED, **constants}
    fixed = {key: value for key, value in fixed.items() if key in kernel.arg_names}
    arguments = {key: POINTERS.get(key, "i32") for key in kernel.arg_names if key not in fixed}
    for key in (
        "num_kv",
        "num_table_heads",
        "num_rows",
        "num_blocks",
        "num_lines",
        "num_column_heads",
        "num_split",
    ):
        if key in arguments:
            arguments[key] = "i32!"
    return CompileCase(
        name=name, kernel=kernel, arguments=arguments, constants=fixed,
        num_warps=num_warps, num_stages=num_stages, spill_bytes=spill_bytes,
    )  # fmt: skip


# What is spilled lies outside the loops over queries: in the machine code those neither read nor write local memory.
DQ = {"SPAN_ROWS": 8, "BM": TILES.dq_queries, "BN": TILES.dq_keys}
DKV = {"GROUP": 4, "PARTS": 8, "BM": TILES.dkv_queries, "BN": TILES.dkv_keys}
CASES = [
    case("dq", _dq_kernel, {**DQ, "Columns": None}, TILES.dq_warps, TILES.dq_stages),
    case("dq, columns", _dq_kernel, DQ, TILES.dq_warps, TILES.dq_stages),
    case("dkv", dkv_kernel, DKV, TILES.dkv_warps, TILES.dkv_stages, spill_bytes=112),
    case("columns", _single_kernel, {"GROUP": 4, "SPAN_ROWS": 8, "BM": 32, "BN": 128}, 8, 2, spill_bytes=104),
    case("sink", _single_kernel, {"GROUP": 4, "SPAN_ROWS": 8, "BM": 32, "BN": 16, "Columns": None}, 4, 2),
]
