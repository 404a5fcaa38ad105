"""The fast path: kernels where they serve the problem, else slices where the visit is a range and gathered rows where it is a
choice, partial results merged."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from longspan.ops.attend.gather import SMALLEST_BLOCK, attend_gather, attend_table, table_of_gather
from longspan.ops.attend.problem import Problem
from longspan.ops.attend.slices import attend_slices
from longspan.ops.backend import choose
from longspan.ops.block_sparse import block_sparse_prefill
from longspan.ops.decode import Ragged, gather_decode, ragged_decode
from longspan.ops.rotary_attention import rotary_attention, rotary_reason
from longspan.visit import BlockTable, Dense, Gather, PerHead, Ranges, Visit, visit_of_heads

# What the decode kernels serve in one tile. cuDNN makes a new plan for each length of the store: 4 ms of every call.
MOST_DECODE_QUERIES = 16


def attend(problem: Problem) -> Tensor:
    """Attention output `[B, H, T, D]`; the same function as `naive_attend`, faster."""
    p, visit = problem, problem.visit
    if p.quantised is not None:  # `quantised_past` has asked whether the kernel serves it
        from longspan.ops.quantised_decode.triton import triton_quantised_decode

        return triton_quantised_decode(p.queries, p.quantised, p.keys, p.values, scale=p.scale)[0]
    if isinstance(visit, PerHead):
        out = torch.empty_like(p.queries)
        for heads, part in (cut for whole in visit.parts for cut in _by_kv_head(*whole, p.num_groups)):
            out[:, list(heads)] = attend(p.for_heads(heads, part))
        return out
    if isinstance(visit, Ranges) and p.contiguous_from is not None:
        end = p.contiguous_from + p.num_tokens
        if end <= max(visit.window_tokens, visit.sink_tokens):
            visit = Dense()
    if isinstance(visit, BlockTable):
        return _attend_table(p, visit)
    if isinstance(visit, Gather):
        return _attend_gather(p, visit)
    ranges = visit if isinstance(visit, Ranges) else None
    off = (
        None
        if p.queries.is_cuda
        else f"the tensors are on {p.queries.device.type}, where slices serve as well"
    )
    window = None if ranges is None else "a window of keys is a slice"
    candidates = {
        "ragged_decode": off or window or _no_kernel(p) or _no_decode(p),
        "rotary_attention": off or window or _no_rotary(p),
        "slices": None,
    }
    chosen = choose("attend", candidates)
    if chosen == "slices":
        return attend_slices(p, ranges)[0]
    if chosen == "rotary_attention":
        assert p.rotary is not None and p.contiguous_from is not None
        return rotary_attention(
            p.queries, p.keys, p.values, rotary=p.rotary, first=p.contiguous_from, scale=p.scale
        )[0]
    lengths = _lengths(*p.keys.shape[:2], p.num_tokens, p.keys.device, _stream(p.keys))
    return ragged_decode(p.queries, Ragged(keys=p.keys, values=p.values, lengths=lengths), scale=p.scale)[0]


@lru_cache(maxsize=8)
def _lengths(rows: int, heads: int, tokens: int, device: torch.device, stream: int) -> Tensor:
    """int32 `[rows, heads]` of `tokens`: one launch for the layers of a step, which hold equally many."""
    with torch.inference_mode(False):
        return torch.full((rows, heads), tokens, dtype=torch.int32, device=device)


def _stream(x: Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0


def _attend_table(p: Problem, table: BlockTable) -> Tensor:
    reason = _no_kernel(p)
    if choose("attend", {"block_sparse_prefill": reason, "gathered rows": None}) == "gathered rows":
        return attend_table(p, table)
    return block_sparse_prefill(p.queries, p.keys, p.values, table, scale=p.scale)[0]


def _attend_gather(p: Problem, visit: Gather) -> Tensor:
    reason = _no_kernel(p)
    if visit.compact:
        reason = "the chosen keys are renumbered"
    elif visit.index.shape[2] != 1:
        reason = reason or "blocks of queries chose different keys"
    by_head = visit.index.shape[1] not in (1, p.keys.shape[1])
    candidates = {
        "gather_decode": reason
        or _no_decode(p)
        or ("query heads of one kv head chose different keys" if by_head else None),
        "block_sparse_prefill": reason or _no_table(p),
        "gathered rows": None,
    }
    chosen = choose("attend", candidates)
    if chosen == "gathered rows":
        return attend_gather(p, visit)
    if chosen == "block_sparse_prefill":
        return block_sparse_prefill(p.queries, p.keys, p.values, table_of_gather(p, visit), scale=p.scale)[0]
    return gather_decode(p.queries, p.keys, p.values, visit.index[:, :, 0].int(), scale=p.scale)[0]


def _no_kernel(p: Problem) -> str | None:
    """Why no kernel serves the problem, whatever its visit; None when one can."""
    if p.rotary is not None:
        return "keys are kept before rotation"
    if p.bias is not None:
        return "there is a bias on the logits"
    return None if p.all_real else "there is padding among the keys"


def _no_rotary(p: Problem) -> str | None:
    """Why the kernel that rotates at attention does not serve the problem; None when it does."""
    if p.rotary is None:
        return "keys are rotated already"
    if p.bias is not None:
        return "there is a bias on the logits"
    if p.contiguous_from is None:
        return "some keys before the last are not held"
    if p.num_new > MOST_DECODE_QUERIES and not p.rotary.bands:
        return "keys that all queries see alike are rotated once, for cuDNN"
    return rotary_reason(p.rotary, p.queries.shape[3])


def _no_decode(p: Problem) -> str | None:
    if p.num_new <= MOST_DECODE_QUERIES:
        return None
    return f"{p.num_new} queries are more than {MOST_DECODE_QUERIES}"


def _no_table(p: Problem) -> str | None:
    """Why chosen keys and the chunk's own are not a table for the kernel."""
    if not p.queries.is_cuda:
        return f"the tensors are on {p.queries.device.type}, where gathered rows serve as well"
    if (p.num_tokens - p.num_new) % SMALLEST_BLOCK:
        return f"the chunk does not begin at a multiple of {SMALLEST_BLOCK} tokens"
    return None


def _by_kv_head(heads: tuple[int, ...], visit: Visit, groups: int) -> list[tuple[tuple[int, ...], Visit]]:
    """Cut a part of a `PerHead` into pieces whose kv heads are slices of the store, so that none of it is copied."""
    kv_heads = [head // groups for head in heads]
    kv_range = range(kv_heads[0], kv_heads[-1] + 1)
    if list(heads) == [kv * groups + g for kv in kv_range for g in range(groups)]:
        return [(heads, visit)]
    pieces = []
    for kv in dict.fromkeys(kv_heads):
        places = [i for i, head in enumerate(heads) if head // groups == kv]
        pieces.append((tuple(heads[i] for i in places), visit_of_heads(visit, places, len(heads))))
    return pieces
