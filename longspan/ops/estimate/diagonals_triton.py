# mypy: disable-error-code="no-untyped-def"
"""What block offsets get of diagonals: per tile of keys in the pass that has the probabilities, then summed over tiles."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _floor_div(x, d):
    return (x + 64 * d) // d - 64  # x is above -64 d here; division truncates


@triton.jit
def diagonal_shares(
    p3,
    mass,
    base,
    to,
    valid,
    BLOCK: tl.constexpr,
    LAST: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """What block offsets get of a tile p3 [keys, heads, queries] with sums `mass` over queries; row 0 and key 0 of it are
    `base` tokens apart, not counting the phase."""
    # The pairs lie between the offsets low and low + LAST + 1, `across - y` tokens from offset low. With F(j) = sum of
    # p * max(0, across - y - j b), the share of offset low + j is F(j - 1) - 2 F(j) + F(j + 1), over b.
    low = _floor_div(base - (BLOCK_N - 1), BLOCK)
    across = (base - low * BLOCK + tl.arange(0, ROWS)).to(tl.float32)
    y = tl.arange(0, BLOCK_N).to(tl.float32)
    after = tl.sum(tl.sum(p3 * across[None, None, :], axis=2) - y[:, None] * mass, axis=0)
    before = after + BLOCK * tl.sum(mass, axis=0)
    for j in tl.static_range(LAST + 2):
        here = after
        if j < LAST:
            beyond = tl.maximum(across[None, None, :] - (y + (j + 1) * BLOCK)[:, None, None], 0.0)
            after = tl.sum(tl.sum(p3 * beyond, axis=2), axis=0)
        else:
            after = tl.zeros([HEADS], tl.float32)
        share = tl.maximum(before - 2 * here + after, 0.0) / BLOCK  # rounding may leave less than 0
        tl.store(to + j, share, mask=valid)
        before = here


@triton.jit
def offsets_kernel(
    parts,
    offsets,
    T,
    S,
    num_chunks,
    num_tiles,
    num_blocks,
    chunk_tokens,
    phase,
    BLOCK: tl.constexpr,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunk = (row % num_chunks).to(tl.int32)
    E = S - T + tl.minimum((chunk + 1) * chunk_tokens, T)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros([BLOCK_M], tl.float32)
    # tile i starts at offset low(i), and low(i) is m - LAST - 1 .. m for a few i in a row
    most = E - ROWS - phase - (BLOCK_N - 1) - m * BLOCK + (LAST + 1) * BLOCK
    newest = tl.where(most >= 0, most // BLOCK_N, -1)
    for step in tl.static_range(((LAST + 2) * BLOCK + BLOCK_N - 1) // BLOCK_N):
        i = newest - step
        j = m - _floor_div(E - ROWS - i * BLOCK_N - phase - (BLOCK_N - 1), BLOCK)
        held = (i >= 0) & (i * BLOCK_N < E) & (j >= 0) & (j <= LAST + 1) & (m < num_blocks)
        total += tl.load(parts + (row * num_tiles + i) * (LAST + 2) + j, mask=held, other=0.0)
    tl.store(offsets + row * num_blocks + m, total, mask=m < num_blocks)
