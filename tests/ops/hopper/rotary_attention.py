"""Keys that attention rotates, as launched for bfloat16 and two bands: copies, reading, decoding."""

from __future__ import annotations

from typing import Any

from longspan.ops.rotary_attention.triton_decode import STAGES, decode_kernel
from longspan.ops.rotary_attention.triton_decode import config_for as decode_config
from longspan.ops.rotary_attention.triton_read import TURN_TOKENS, config_for, read_kernel, turn_kernel
from tests.ops.compiling import CompileCase

_TABLES = {
    **dict.fromkeys(("cos", "sin"), "*bf16"),
    **dict.fromkeys(("rows", "key_rows", "query_rows", "low", "high"), "*i32"),
}
_STRIDES = "x_b x_h x_s q_b q_h k_b k_h k_s v_b v_h v_s".split()


def _arguments(kernel: Any, **types: str) -> dict[str, str]:
    """Types of a kernel's arguments: those given, tables, aligned strides, and integers of any value."""
    known = {**_TABLES, **dict.fromkeys(_STRIDES, "i32"), "lse": "*fp32", "scale": "fp32", **types}
    constants = {kernel.arg_names[p.num] for p in kernel.params if p.is_constexpr}
    return {name: known.get(name, "i32!") for name in kernel.arg_names if name not in constants}


def turn_case(name: str, *, keys: bool) -> CompileCase:
    arguments = _arguments(turn_kernel, x="*bf16", out="*bf16")
    constants: dict[str, Any] = {"HALF": 64, "HALF_BLOCK": 64, "NUM_BANDS": 2, "BLOCK": TURN_TOKENS}
    if not keys:
        constants |= {"low": None, "high": None}
    return CompileCase(
        name=name,
        kernel=turn_kernel,
        arguments={x: kind for x, kind in arguments.items() if x not in constants},
        constants=constants,
    )


def read_case(name: str, *, head_dim: int, split: bool = False) -> CompileCase:
    config = config_for(head_dim, 2)
    tiles = f"tensordesc<bf16[1, 1, {config.tile_keys}, {head_dim}]>"
    arguments = _arguments(
        read_kernel,
        queries="*bf16",
        keys="*bf16",
        values="*bf16",
        key_tiles=tiles,
        value_tiles=tiles,
        out="*fp32" if split else "*bf16",
    )
    return CompileCase(
        name=name,
        kernel=read_kernel,
        arguments=arguments,
        constants={
            "D": head_dim,
            "PADDED": head_dim,
            "NUM_BANDS": 2,
            "ROWS": config.rows,
            "TILE": config.tile_keys,
            "EDGE": config.edge_keys,
            "COPY_ENGINE": True,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def decode_case(num_queries: int, *, head_dim: int) -> CompileCase:
    config = decode_config(num_queries, 4, head_dim, 2)
    return CompileCase(
        name=f"few queries ({num_queries}), head_dim {head_dim}",
        kernel=decode_kernel,
        arguments=_arguments(decode_kernel, queries="*bf16", keys="*bf16", values="*bf16", out="*fp32"),
        constants={
            "HALF": head_dim // 2,
            "HALF_BLOCK": head_dim // 2,
            "D_BLOCK": head_dim,
            "NUM_BANDS": 2,
            "ROWS": config.rows,
            "TILE_QUERIES": config.tile_queries,
            "BLOCK": config.tile_keys,
            "OVERLAP": True,
        },
        num_warps=config.num_warps,
        num_stages=STAGES,
    )


CASES = [
    turn_case("copy of keys", keys=True),
    turn_case("copy of queries", keys=False),
    read_case("reading, head_dim 128", head_dim=128),
    read_case("reading, head_dim 128, keys split", head_dim=128, split=True),
    read_case("reading, head_dim 256", head_dim=256),
    *(decode_case(n, head_dim=128) for n in (1, 8, 16, 63)),
    *(decode_case(n, head_dim=256) for n in (1, 8, 63)),
]
