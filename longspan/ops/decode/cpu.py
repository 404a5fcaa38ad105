"""`gather_decode` on a CPU: the chosen rows and the own ones are copied behind each other, then PyTorch's fused attention.

Dense decoding reads the whole store, so copying a tenth of it and reading that again stays far below; what is left to save
is calls. The copies of all heads are one call, which all threads share, into memory that is kept: mapping a megabyte anew
costs as much as filling it. The query heads of a kv head are the queries of one product.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

KEPT_BYTES = 2**26  # the most memory that a thread keeps for its next call


def cpu_gather_decode(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, index: Tensor, *, scale: float, page_tokens: int = 1
) -> tuple[Tensor, Tensor]:
    """See `gather_decode`, which checks the arguments; computes no gradients; float32 arithmetic whatever the dtype."""
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    places, hidden = _visit(index, page_tokens, S, T)
    keys, values = _gathered(k_BKSD, v_BKSD, places)
    bias = None
    if hidden is not None:
        # neither a bias of -inf nor a weight of 0 removes a NaN
        unseen = hidden.all(2)[..., None]
        keys, values = keys.masked_fill(unseen, 0.0), values.masked_fill(unseen, 0.0)
        bias = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        bias = bias.repeat(1, 1, H // K, 1).expand(-1, K, -1, -1)
    queries = q_BHTD.float().reshape(B, K, -1, D)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        queries, keys, values, attn_mask=bias, scale=scale
    )
    return out.reshape(B, H, T, D).to(q_BHTD.dtype), lse.reshape(B, H, T)


def _visit(index: Tensor, page_tokens: int, S: int, T: int) -> tuple[Tensor, Tensor | None]:
    """Places `[B, h, n]` of the chosen past, then the T own ones.

    Also, boolean `[B, h, T, n]`, which of these a query does not see; None when all see all.
    """
    past = S - T
    own = torch.arange(past, S, dtype=torch.int32)
    low, high = (int(end) for end in torch.aminmax(index)) if index.numel() else (0, -1)
    outside = low < 0 or (high + 1) * page_tokens > past
    places = index.long() if outside else index  # so that no product wraps around
    if page_tokens > 1:
        places = (places[..., None] * page_tokens + torch.arange(page_tokens, dtype=torch.int32)).flatten(2)
    unused = None
    if outside:
        inside = (places >= 0) & (places < past)
        most = int(inside.sum(-1).max())
        places = (
            places.where(inside, past).sort(dim=-1).values[..., :most]
        )  # unused slots at the end cost nothing
        unused = places == past
    if unused is None and T == 1:
        return torch.cat([places, own.expand(*places.shape[:2], 1)], dim=-1), None
    hidden = torch.zeros(*places.shape[:2], T, places.shape[2] + T, dtype=torch.bool)
    hidden[..., places.shape[2] :] = own > own[:, None]
    if unused is not None:
        hidden[..., : places.shape[2]] = unused[:, :, None]
    return torch.cat([places, own.expand(*places.shape[:2], T)], dim=-1), hidden


def _gathered(keys: Tensor, values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `[B, K, n, D]`, float32, of keys and values `[B, K, S, D]`; they may stand until this thread's next call only."""
    B, K, _, D = keys.shape
    shape = (B, K, places.shape[2], D)
    rows = layout = None
    found = []
    for i, store in enumerate((keys, values)):
        if store.stride() != layout:
            layout = store.stride()
            rows = None if any(step % D for step in layout[:3]) else _row_numbers(store, places)
        if rows is None:
            batch, head = torch.arange(B)[:, None, None], torch.arange(K)[:, None]
            found.append(store[batch, head, places.long()].float())
        else:
            size = 1 + sum((n - 1) * step for n, step in zip(store.shape, layout, strict=True)) // D
            room = _room(i, shape, store.dtype)
            torch.index_select(store.as_strided((size, D), (D, 1)), 0, rows, out=room.view(-1, D))
            found.append(room.float())
    return found[0], found[1]


def _row_numbers(store: Tensor, places: Tensor) -> Tensor:
    """Numbers of the rows of all heads in the store's memory, which is seen as rows of D."""
    B, K, S, D = store.shape
    per_batch, per_head, per_token = (step // D for step in store.stride()[:3])
    dtype = torch.int32 if B * per_batch + K * per_head + S * per_token < 2**31 else torch.int64
    starts = [[[b * per_batch + kv * per_head] for kv in range(K)] for b in range(B)]
    rows = places if per_token == 1 else places.to(dtype) * per_token
    return (rows + torch.tensor(starts, dtype=dtype)).view(-1)


class _Kept(threading.local):
    rooms: tuple[Tensor | None, Tensor | None] = (None, None)


_KEPT = _Kept()


def _room(i: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory of a shape for keys (0) or values (1), the same as before where that is large enough."""
    room, size = _KEPT.rooms[i], math.prod(shape)
    if room is None or room.dtype != dtype or len(room) < size:
        room = torch.empty(size, dtype=dtype)
        if room.nbytes <= KEPT_BYTES // 2:
            _KEPT.rooms = (room, _KEPT.rooms[1]) if i == 0 else (_KEPT.rooms[0], room)
    return room[:size].view(shape)
