"""Page summaries, page scores and selections as launched for 32 query heads, 8 kv heads and head_dim 128."""

from __future__ import annotations

from longspan.ops.estimate.pages_triton import _page_scores_kernel, _pages_kernel
from longspan.ops.estimate.radix_triton import _histogram_kernel, _write_kernel
from longspan.ops.estimate.select_triton import _keep_mass_kernel, _select_kernel
from tests.ops.compiling import CompileCase

_STRIDES = {f"stride_{x}{axis}": "i32" for x in "fs" for axis in ("b", "h", "p")}
_PAGES = {
    "keys": "*bf16",
    "first": "*bf16",
    "second": "*bf16",
    **{f"stride_k{axis}": "i32" for axis in "bhs"},
    **_STRIDES,
    **dict.fromkeys(("num_heads", "num_tokens", "num_pages", "start_page", "page_tokens", "head_dim"), "i32"),
}
_SCORES = {
    "q": "*bf16",
    "first": "*bf16",
    "second": "*bf16",
    "out": "*fp32",
    **{f"stride_q{axis}": "i32" for axis in "bht"},
    **_STRIDES,
    "num_kv_heads": "i32!",
    "num_pages": "i32!",
    "head_dim": "i32",
    "scale": "fp32",
}
_ROW = {
    "scores": "*fp32",
    "lengths": "*i32",
    "index": "*i32",
    "stride_b": "i32",
    "stride_h": "i32",
    **dict.fromkeys(("num_rows_each", "num_entries", "num_candidates", "k", "first", "last"), "i32!"),
}


def _arguments(kernel: object, known: dict[str, str]) -> dict[str, str]:
    names = kernel.arg_names  # type: ignore[attr-defined]
    return {name: kind for name, kind in known.items() if name in names}


CASES = [
    CompileCase(
        name="minmax pages of 64 tokens, bfloat16, head_dim 128",
        kernel=_pages_kernel,
        arguments=_PAGES,
        constants={"MINMAX": True, "BLOCK_P": 2, "BLOCK_T": 64, "BLOCK_D": 128},
    ),
    CompileCase(
        name="scores of minmax pages, one query, 4 heads a kv head, bfloat16, head_dim 128",
        kernel=_page_scores_kernel,
        arguments=_SCORES,
        constants={
            "lengths": None,
            "num_queries": 1,
            "GROUP": 4,
            "ROWS": 16,
            "BLOCK_T": 1,
            "BLOCK_P": 64,
            "BLOCK_D": 128,
            "MINMAX": True,
            "SUM": False,
            "PER_HEAD": False,
            "HAS_LENGTHS": False,
            "PRECISION": "tf32",
            "OVERLAP": True,
        },
    ),
    CompileCase(
        name="top k of 16,384 scores",
        kernel=_select_kernel,
        arguments=_arguments(_select_kernel, _ROW),
        constants={
            "candidates": None,
            "BLOCK": 16384,
            "FROM_CANDIDATES": False,
            "HAS_LENGTHS": True,
            "OVERLAP": True,
        },
        num_warps=32,
    ),
    CompileCase(
        name="top p of 2,048 of the best",
        kernel=_keep_mass_kernel,
        arguments=_arguments(_keep_mass_kernel, _ROW | {"best": "*i32", "counts": "*i32", "p": "fp32"}),
        constants={"BLOCK": 2048, "CHUNK": 8192, "SOFTMAX": True, "HAS_LENGTHS": True},
        num_warps=8,
    ),
    CompileCase(
        name="last histogram of a long row",
        kernel=_histogram_kernel,
        arguments=_arguments(_histogram_kernel, _ROW | {"counts": "*i32"}),
        constants={"PASS": 3, "BLOCK": 8192, "HAS_LENGTHS": True},
        num_warps=16,
    ),
    CompileCase(
        name="places of a long row",
        kernel=_write_kernel,
        arguments=_arguments(_write_kernel, _ROW | {"counts": "*i32", "sums": "*i32"}),
        constants={"BLOCK": 8192, "NUM_CHUNKS": 128, "HAS_LENGTHS": True},
        num_warps=16,
    ),
]
