"""`quantised_decode` as it is launched for 8 kv heads in bfloat16, groups of 128 tokens."""

from __future__ import annotations

import triton.language as tl

from longspan.ops.quantised_decode.store import word_shape
from longspan.ops.quantised_decode.triton import quantised_kernel
from tests.ops.compiling import CompileCase

GROUP = 128
POINTERS = {
    "q": "*bf16",
    "key_codes": "*i32",
    "key_scales": "*i32",
    "value_codes": "*i32",
    "value_scales": "*i32",
    "recent_keys": "*bf16",
    "recent_values": "*bf16",
    "out": "*fp32",
    "lse": "*fp32",
}
STRIDES = ("q_stride_b q_stride_h q_stride_t kc_stride_b kc_stride_k ks_stride_b ks_stride_k vc_stride_b vc_stride_k "
           "vs_stride_b vs_stride_k rk_stride_b rk_stride_k rk_stride_w rv_stride_b rv_stride_k rv_stride_w").split()  # fmt: skip
COUNTS = ("K", "G", "T", "W", "num_groups", "row_blocks")


def case(key_bits: int, value_bits: int, rows: int, spill_bytes: int = 0, head_dim: int = 128) -> CompileCase:
    """The launch of 8 or 16 rows (queries times heads of a kv head) a program."""
    (key_tokens, key_channels), (value_tokens, value_channels) = (
        word_shape(bits, head_dim) for bits in (key_bits, value_bits)
    )
    return CompileCase(
        name=f"keys in {key_bits} bits, values in {value_bits}, {rows} rows, head_dim {head_dim}",
        kernel=quantised_kernel,
        arguments=POINTERS
        | dict.fromkeys(STRIDES, "i32")
        | dict.fromkeys(COUNTS, "i32!")
        | {"scale": "fp32"},
        constants={
            "lengths": None,
            "D": head_dim,
            "GROUP": GROUP,
            "KEY_BITS": key_bits,
            "VALUE_BITS": value_bits,
            "KEY_CHANNELS": key_channels,
            "VALUE_CHANNELS": value_channels,
            "UNIT": min(
                64 if rows == 8 and max(key_bits, value_bits) < 8 else 32,
                GROUP // max(2, key_tokens, value_tokens),
            ),
            "ROWS": rows,
            "HAS_LENGTHS": False,
            "ASM": True,
            "DTYPE": tl.float16,
            "OVERLAP": True,
        },
        num_warps=1,
        num_stages=2,
        spill_bytes=spill_bytes,
    )


# What is spilled there stays outside the loop, but for one load of some 3000 instructions a group with 16 rows.
CASES = [
    case(4, 4, 8),
    case(8, 8, 8),
    case(4, 2, 8),
    case(2, 2, 8),
    case(2, 2, 8, head_dim=64),
    case(4, 4, 16, spill_bytes=48),
]
