"""block_sparse_prefill as launched for bfloat16: the fast path, a packed row of short blocks, and the plan."""

from __future__ import annotations

from typing import Any

from longspan.ops.block_sparse.triton import Config, _config, _prefill_kernel
from longspan.ops.block_sparse.triton_plan import _plan_kernel
from tests.ops.compiling import CompileCase


def prefill_case(
    name: str, *, D: int, block: int, pack: int = 1, columns: bool = False, config: Config | None = None
) -> CompileCase:
    """`columns` also turns the window on."""
    config = config or _config(D, 2, pack * block, block)
    padded = 1 << (D - 1).bit_length()
    pointers = "q_ptr k_ptr v_ptr out_ptr".split()
    kernel = _prefill_kernel.arg_names
    arguments: dict[str, str] = {x: "i32" for x in kernel if x == x.lower()}
    arguments |= {
        x: "i32!" for x in "stride_cb stride_ch stride_cq stride_cn num_columns column_queries".split()
    }
    arguments |= {x: "i32!" for x in "packs groups heads_per_index heads_per_column num_kv_heads".split()}
    arguments |= {x: "i32!" for x in "num_rows width words sink window num_queries num_keys".split()}
    arguments |= {x: "*bf16" for x in pointers} | {"lse_ptr": "*fp32", "scale": "fp32"}
    arguments |= {x: "*i32" for x in "blocks_ptr num_full_ptr num_all_ptr bits_ptr columns_ptr".split()}
    described = f"tensordesc<bf16[1, 1, {config.tile_keys}, {padded}]>"
    arguments |= {x: described if config.copy_engine else "*bf16" for x in ("keys", "values")}
    constants: dict[str, Any] = {"D": D, "PADDED": padded, "BLOCK": block, "PACK": pack, "WINDOW": columns}
    constants |= {"DIAGONAL": config.tile_keys <= block}
    constants |= {"TILE": config.tile_keys, "EDGE": config.edge_keys}
    constants |= {"COPY_ENGINE": config.copy_engine}
    constants |= {"first_ptr": None}
    if not columns:
        constants["columns_ptr"] = None
    for fixed in constants:
        arguments.pop(fixed, None)
    return CompileCase(
        name=name,
        kernel=_prefill_kernel,
        arguments=arguments,
        constants=constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def plan_case() -> CompileCase:
    arguments = {x: "i32!" for x in _plan_kernel.arg_names if x == x.lower()}
    arguments |= {x: "*i32" for x in arguments if x.endswith("_ptr")}
    return CompileCase(
        name="plan",
        kernel=_plan_kernel,
        arguments=arguments,
        constants={"BLOCK": 128, "CHUNK": 1024, "DIAGONAL": True},
    )


CASES = [
    prefill_case("blocks of 128", D=128, block=128),
    prefill_case("blocks of 128, columns", D=128, block=128, columns=True),
    prefill_case("blocks of 16, 4 heads packed", D=128, block=16, pack=4),
    prefill_case("head_dim 256", D=256, block=64, pack=2, columns=True),
    plan_case(),
]
