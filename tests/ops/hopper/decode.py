"""`decode` as it is launched for 32 query heads, 8 kv heads and a head dimension of 128 in bfloat16."""

from __future__ import annotations

from longspan.ops.decode.kernel import decode_kernel
from longspan.ops.decode.tile import CONTIGUOUS, GATHER, PAGED
from longspan.ops.decode.triton import config_for
from longspan.ops.merge_states.triton import _many_parts_kernel
from tests.ops.compiling import CompileCase

NUM_SMS = 132
INTEGERS = ("num_heads kv_heads num_queries capacity num_entries limit num_programs "
            "q_0 q_1 q_2 k_0 k_1 k_2 v_0 v_1 v_2 table_0 table_1 tree_0").split()  # fmt: skip
CHANGING = (
    "capacity",
    "num_entries",
    "limit",
    "num_programs",
    "num_heads",
    "kv_heads",
    "num_queries",
    "table_0",
    "table_1",
)


def case(
    name: str,
    form: int,
    *,
    num_queries: int = 1,
    groups: int = 4,
    page_tokens: int = 1,
    head_dim: int = 128,
    tree: bool = False,
    dtype: str = "bf16",
) -> CompileCase:
    """The launch of `num_queries` queries over a store of one form."""
    paged = form in (PAGED.value, GATHER.value)
    itemsize = 4 if dtype == "fp32" else 2
    config = config_for(groups * num_queries, head_dim, itemsize, page_tokens if paged else None)
    width = 1 << (head_dim - 1).bit_length()
    tma = config.tma and (form == CONTIGUOUS.value or page_tokens % config.block_tokens == 0)
    box = f"tensordesc<{dtype}[1, 1, {config.block_tokens}, {width}]>"
    pointers = {
        "q": dtype,
        "k": dtype,
        "v": dtype,
        "part_out": "fp32",
        "part_lse": "fp32",
        "first": "i32",
        "count": "i32",
    }
    constants = {
        "G": groups,
        "D": head_dim,
        "D_POW2": width,
        "ROWS": config.rows,
        "ROW_TILES": -(-groups * num_queries // config.rows),
        "HEADS": 8,
        "BLOCK": config.block_tokens,
        "STAGES": config.num_stages,
        "FORM": form,
        "PAGE": page_tokens,
        "TMA": tma,
        "TREE": tree,
        "ALIKE": True,
        "WAVE": NUM_SMS * config.programs_per_sm,
        "LEAST_TILES": config.least_tiles,
        "OVERLAP": True,
    }
    optional = {
        "lengths": "*i32" if form != GATHER.value else None,
        "starts": None,
        "table": "*i32" if paged else None,
        "tree": "*u8" if tree else None,
        "k_tma": box if tma else None,
        "v_tma": box if tma else None,
    }
    arguments = {n: f"*{t}" for n, t in pointers.items()} | {"scale_log2": "fp32"}
    arguments |= {n: "i32!" if n in CHANGING else "i32" for n in INTEGERS}
    arguments |= {n: t for n, t in optional.items() if t is not None}
    return CompileCase(
        name=name,
        kernel=decode_kernel,
        arguments=arguments,
        constants=constants | {n: None for n, t in optional.items() if t is None},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


MERGE = CompileCase(
    name="merge of ranges",
    kernel=_many_parts_kernel,
    arguments={
        "part_out": "*fp32",
        "part_lse": "*fp32",
        "first": "*i32",
        "count": "*i32",
        "out": "*bf16",
        "lse": "*fp32",
    }
    | dict.fromkeys(("num_parts", "rows_in_part", "D"), "i32!"),
    constants={"RANGES": True, "PARTS": 64, "COLUMNS": 32, "OVERLAP": True},
)
CASES = [
    case("contiguous, 1 query", CONTIGUOUS.value),
    case("contiguous, 16 queries with a tree", CONTIGUOUS.value, num_queries=16, tree=True),
    case("contiguous, 16 queries, 8 heads a group", CONTIGUOUS.value, num_queries=16, groups=8),
    case("paged by 16, 1 query", PAGED.value, page_tokens=16),
    case("gathered tokens, 1 query", GATHER.value),
    MERGE,
]
