"""The kernel that rotates at attention, as launched for reading and for decoding."""

from longspan.ops.rotary_attention.triton import _rotary_kernel
from tests.ops.compiling import CompileCase

_POINTERS = {
    **dict.fromkeys(("queries", "keys", "values", "out", "cos", "sin"), "*bf16"),
    **dict.fromkeys(("key_map", "low", "high"), "*i32"),
    "lse": "*fp32",
}
_SIZES = dict.fromkeys(
    ("k_stride_b", "k_stride_h", "k_stride_s", "v_stride_b", "v_stride_h", "v_stride_s"), "i32"
)
_COUNTS = {**dict.fromkeys(("B", "H", "G", "T", "S", "split_tokens"), "i32!"), "scale": "fp32"}


def _case(
    name: str,
    *,
    rows: int,
    tile: int,
    packed: bool,
    warps: int,
    head_dim: int = 128,
    block: int = 64,
    spill: int = 0,
) -> CompileCase:
    return CompileCase(
        name=name,
        kernel=_rotary_kernel,
        arguments={**_POINTERS, **_SIZES, **_COUNTS, "out": "*fp32" if packed else "*bf16"},
        constants={
            "HALF": head_dim // 2,
            "HALF_BLOCK": head_dim // 2,
            "D_BLOCK": head_dim,
            "NUM_BANDS": 2,
            "ROWS": rows,
            "TILE_QUERIES": tile,
            "PACKED": packed,
            "BLOCK": block,
            "PRECISION": "tf32",
        },
        num_warps=warps,
        spill_bytes=spill,
    )


CASES = [
    _case("prefill, head_dim 128", rows=128, tile=128, packed=False, warps=8),
    _case("decode, head_dim 128", rows=16, tile=4, packed=True, warps=4),
    _case("prefill, head_dim 256", rows=64, tile=64, packed=False, warps=8, head_dim=256, block=32, spill=8),
]
