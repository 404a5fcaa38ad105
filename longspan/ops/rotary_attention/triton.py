"""Choice of the kernel: few queries turn the keys in registers, many share a rotated copy of them."""

from __future__ import annotations

from torch import Tensor

from longspan.ops.rotary import Rotary
from longspan.ops.rotary_attention.tables import Tables, kept_tables
from longspan.ops.rotary_attention.triton_decode import triton_decode
from longspan.ops.rotary_attention.triton_read import triton_read

# From so many queries on, keys are copied. On an H200 reading a key and writing and reading two turned ones takes as long
# as the products of 64 queries and four heads with it; fewer queries turn each key in registers, for all of them at once.
COPY_QUERIES = 64


def triton_rotary_attention(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    *,
    rotary: Rotary,
    first: int,
    scale: float,
    tables: Tables | None = None,
) -> tuple[Tensor, Tensor]:
    """See `rotary_attention`; `tables` of the same rotary replace those that are kept, for measurements."""
    T, S = q_BHTD.shape[2], k_BKSD.shape[2]
    if tables is None:
        tables = kept_tables(
            rotary, begin=first + S - T, stop=first + S, dtype=q_BHTD.dtype, device=q_BHTD.device
        )
    q_BHTD, k_BKSD, v_BKSD = (x if x.stride(3) == 1 else x.contiguous() for x in (q_BHTD, k_BKSD, v_BKSD))
    if T < COPY_QUERIES:
        return triton_decode(q_BHTD, k_BKSD, v_BKSD, tables, first=first, scale=scale)
    return triton_read(q_BHTD, k_BKSD, v_BKSD, tables, first=first, scale=scale)
