"""Attention over keys that are kept before rotation, rotated inside the kernel by a map of positions.

Self-extend, dual chunk, ReRoPE and capped distances give a (query, key) pair other positions than those in the text; a
`Band` says which, for one range of keys per query (`longspan.visit`). Few queries turn the keys in registers; for many the
keys are copied, rotated for each band, at most 2 GiB at a time. The maps are kept as tables between calls.
"""

from __future__ import annotations

from torch import Tensor

from longspan.ops.backend import choose, triton_reason
from longspan.ops.rotary import Rotary
from longspan.ops.rotary_attention.naive import naive_rotary_attention

__all__ = ["naive_rotary_attention", "rotary_attention", "rotary_reason"]


def rotary_attention(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    *,
    rotary: Rotary,
    first: int,
    scale: float,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of the last T of S tokens under position maps.

    Args:
        q_BHTD, k_BKSD, v_BKSD: queries and keys before rotation; the last dimension contiguous, H a multiple of K.
        rotary: frequencies and bands; no bands for the tokens' own positions. A band's `key` map must not exceed the key's
            own position. The values of `inv_freq` stay as they are, and equal maps stay equal: tables are kept of them.
        first: position of the first stored key; key i stands at `first + i`, the queries are the last T.
        scale: factor on the logits, above 0.
        backend: "triton" or "naive"; None for the first that can.

    Returns:
        Output `[B, H, T, D]` and log-sum-exp `[B, H, T]` (natural, float32).

    Raises:
        ValueError: shapes or scale do not fit, or the named backend cannot run.
    """
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    if (
        k_BKSD.shape != v_BKSD.shape
        or (k_BKSD.shape[0], k_BKSD.shape[3]) != (B, D)
        or H % K
        or not 1 <= T <= S
    ):
        raise ValueError(
            f"got q {list(q_BHTD.shape)}, k {list(k_BKSD.shape)}, v {list(v_BKSD.shape)}; allowed are q [B, H, T, D] and k, v "
            "[B, K, S, D] with H a multiple of K and T from 1 to S"
        )
    if not scale > 0:
        raise ValueError(f"got scale={scale}; allowed is a number above 0, such as head_dim**-0.5")
    reason = triton_reason(q_BHTD, k_BKSD, v_BKSD, forced=backend == "triton") or rotary_reason(rotary, D)
    if choose("rotary_attention", {"triton": reason, "naive": None}, backend) == "naive":
        return naive_rotary_attention(q_BHTD, k_BKSD, v_BKSD, rotary=rotary, first=first, scale=scale)
    from longspan.ops.rotary_attention.triton import triton_rotary_attention

    return triton_rotary_attention(q_BHTD, k_BKSD, v_BKSD, rotary=rotary, first=first, scale=scale)


def rotary_reason(rotary: Rotary, head_dim: int) -> str | None:
    """Why the kernel cannot rotate so; None when it can."""
    dims = 2 * rotary.inv_freq.shape[-1]
    if dims != head_dim:
        return f"{dims} of {head_dim} dims are rotated, the kernel rotates all"
    return None
