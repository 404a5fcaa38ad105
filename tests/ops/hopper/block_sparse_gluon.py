"""The Gluon forward of block_sparse_prefill as launched: both head dims, with and without edges, and four slots."""

from __future__ import annotations

from typing import Any

from triton.experimental.gluon import language as gl

from longspan.ops.block_sparse.gluon_kernel import prefill_kernel
from tests.ops.compiling import CompileCase


def prefill_case(
    name: str, *, D: int = 128, dtype: str = "bf16", edges: bool = True, first: bool = True, slots: int = 5,
    ping_pong: bool = True,
) -> CompileCase:  # fmt: skip
    arguments = {x: "i32!" for x in prefill_kernel.arg_names if x == x.lower()}
    arguments |= {x: "*i32" for x in arguments if x.endswith("_ptr")}
    arguments |= {"lse_ptr": "*fp32", "scale": "fp32"}
    for described, rows in (("q_desc", 64), ("k_desc", 128), ("v_desc", 128), ("out_desc", 64)):
        tile = [1, 1, rows, D]
        layout = gl.NVMMASharedLayout.get_default_for(tile, gl.bfloat16)
        arguments[described] = f"tensordesc<{dtype}{tile},{layout!r}>"
    constants: dict[str, Any] = {"BLOCK": 128, "D": D, "SLOTS": slots, "PING_PONG": ping_pong, "EDGES": edges}
    if not first:
        del arguments["first_ptr"]
        constants["first_ptr"] = None
    return CompileCase(
        name=name, kernel=prefill_kernel, arguments=arguments, constants=constants, num_warps=4
    )


CASES = [
    prefill_case("head_dim 128"),
    prefill_case("head_dim 128, no edges, no padding", edges=False, first=False),
    prefill_case("head_dim 128, float16, 4 slots, no turns", dtype="fp16", slots=4, ping_pong=False),
    prefill_case("head_dim 64, 8 slots", D=64, slots=8),
]
