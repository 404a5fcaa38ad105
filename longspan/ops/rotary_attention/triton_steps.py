# mypy: disable-error-code="no-untyped-def"
"""What the kernels share: rotation, the running softmax, and how many slices the keys are cut into."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.ops.backend import num_processors

LOG2_E = 1.4426950408889634


@triton.jit
def turn(x_first, x_second, cos, sin, angle, real, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr):
    """Two halves of rows, turned by the angles in rows `angle` of the table; computed in float32, rounded once."""
    half = tl.arange(0, HALF_BLOCK)
    places = angle.to(tl.int64)[:, None] * HALF + half[None]
    mask = real[:, None] & (half < HALF)[None]
    c = tl.load(cos + places, mask=mask, other=0.0).to(tl.float32)
    n = tl.load(sin + places, mask=mask, other=0.0).to(tl.float32)
    kind: tl.constexpr = x_first.dtype
    return (x_first * c - x_second * n).to(kind), (x_second * c + x_first * n).to(kind)


@triton.jit
def soften(logits, seen, top, total, scale):
    """Softmax step: weights, what earlier sums shrink by, new maximum (base 2), new sum. `seen` None: every logit counts."""
    if seen is not None:
        logits = tl.where(seen, logits, -float("inf"))
    new_top = tl.maximum(top, tl.max(logits, 1) * scale)
    shift = new_top
    if seen is not None:
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)
    weights = tl.exp2(logits * scale - shift[:, None])
    fade = tl.exp2(top - shift)
    return weights, fade, new_top, total * fade + tl.sum(weights, 1)


@triton.jit
def store_result(out, lse, row, real, acc, top, total, D: tl.constexpr, PADDED: tl.constexpr):
    """Output and log-sum-exp at rows `row`; 0 and -inf where nothing was seen."""
    d = tl.arange(0, PADDED)[None]
    safe = tl.where(total == 0.0, 1.0, total)
    result = (acc / safe[:, None]).to(out.dtype.element_ty)
    tl.store(out + row[:, None] * D + d, result, mask=real[:, None] & (d < D))
    log_sum = tl.where(total == 0.0, -float("inf"), top + tl.log2(safe))
    tl.store(lse + row, log_sum * 0.6931471805599453, mask=real)


def split_keys(
    S: int, block: int, *, programs: int, per_multiprocessor: int, device: torch.device
) -> tuple[int, int]:
    """Slices of the keys and tokens of each, so that so many programs run on every multiprocessor."""
    count = 132 if device.type != "cuda" else num_processors(device)
    splits = max(1, min(-(-S // (4 * block)), count * per_multiprocessor // programs))
    tokens = -(-S // (splits * block)) * block
    return -(-S // tokens), tokens
