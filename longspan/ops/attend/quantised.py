"""When a step of decoding reads a past in 8, 4 or 2 bits as it is held, without keys and values being made of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from longspan.ops.backend import choose
from longspan.ops.quantised_decode import QuantisedKV, kernel_reason
from longspan.ops.quantised_decode.store import WORD_BITS
from longspan.ops.rotary import Rotary
from longspan.visit import Dense, Visit

PARTS = ("key_codes", "key_scales", "value_codes", "value_scales")
MOST_QUERIES = 16


def quantised_past(
    parts: Mapping[str, Tensor],
    queries: Tensor,
    recent: tuple[Tensor, Tensor],
    *,
    visit: Visit,
    rotary: Rotary | None,
    bias: Tensor | None,
    filled: bool,
    looked_at: bool = False,
) -> QuantisedKV | None:
    """The past for `Problem.quantised`, or None where keys and values must be made of it; the choice is recorded.

    Args:
        parts: what is held, by name; the four tensors of a `QuantisedKV`, or something else, which only its codec can read.
        queries: `[B, H, T, D]`.
        recent: keys and values `[B, K, W, D]` behind the past, the queries' own included.
        visit, rotary, bias, filled: as in `Problem`.
        looked_at: somebody wants to see keys and values.
    """
    store = store_of(parts, queries.dtype)
    reason = None
    if store is None:
        reason = "its codec has a form of its own"
    elif not isinstance(visit, Dense):
        reason = "some keys are not visited"
    elif rotary is not None:
        reason = "keys are kept before rotation"
    elif bias is not None:
        reason = "there is a bias on the logits"
    elif not filled:
        reason = "there is padding among the keys"
    elif looked_at:
        reason = "the attention of the step is traced"
    elif queries.shape[2] > MOST_QUERIES:
        reason = f"{queries.shape[2]} queries are more than {MOST_QUERIES}"
    else:
        reason = kernel_reason(queries, store, *recent)
    chosen = choose("coded past", {"quantised_decode": reason, "decoded": None})
    return store if chosen == "quantised_decode" else None


def store_of(parts: Mapping[str, Tensor], dtype: torch.dtype) -> QuantisedKV | None:
    """The store whose tensors `parts` are; their shapes say with how many bits. None where they are something else."""
    if set(parts) != set(PARTS):
        return None
    channels = parts["key_scales"].shape[3] * 2 * parts["value_scales"].shape[3]  # of all tokens of a group
    key_bits, value_bits = (
        WORD_BITS * parts[name].shape[3] * parts[name].shape[4] // channels for name in PARTS[::2]
    )
    return QuantisedKV(
        key_codes=parts["key_codes"],
        key_scales=parts["key_scales"],
        value_codes=parts["value_codes"],
        value_scales=parts["value_scales"],
        key_bits=key_bits,
        value_bits=value_bits,
        dtype=dtype,
    )
