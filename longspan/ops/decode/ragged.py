"""Stores in which every kv head of every row holds its own number of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_QUERIES = 16


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Keys and values in one of three forms, and how many tokens each head holds.

    The last T tokens of a head are the own ones of the T queries that come with it. On a CUDA device values of `lengths`
    and `starts` are not checked: tokens past the end of the store are cut off. Tokens whose page number is outside
    `[0, num_pages)` visit nothing.

    Args:
        keys, values: one shape and dtype, last dimension contiguous, in one of these forms:

            - contiguous `[B, K, S, D]`: head (b, k) holds the first `lengths[b, k]` of its S rows,
            - pool `[R, D]`: head (b, k) holds the rows from `starts[b, k]` on,
            - paged `[num_pages, page_tokens, D]`: token i of head (b, k) is row `i % page_tokens` of the page
              `page_table[b, k or 0, i // page_tokens]`.
        lengths: int32 `[B, K]`, tokens held, own tokens included; 0 for an empty head.
        starts: int64 `[B, K]`, pool form only.
        page_table: int32 `[B, h, P]`, h in {1 (all heads share), K}, paged form only.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    starts: Tensor | None = None
    page_table: Tensor | None = None

    @property
    def form(self) -> str:
        """ "contiguous", "pool" or "paged"."""
        return {4: "contiguous", 2: "pool", 3: "paged"}[self.keys.dim()]

    @property
    def capacity_tokens(self) -> int:
        """The most tokens that one head can hold."""
        if self.page_table is not None:
            return self.page_table.shape[2] * self.keys.shape[1]
        return self.keys.shape[-2]


def check_ragged(q_BHTD: Tensor, store: Ragged, tree_mask: Tensor | None = None) -> None:
    """Raise ValueError, in one sentence, when shapes, types, devices or (on the CPU) values do not fit."""
    shapes = f"q {list(q_BHTD.shape)}, keys {list(store.keys.shape)}, values {list(store.values.shape)}"
    if q_BHTD.dim() != 4 or store.keys.dim() not in (2, 3, 4) or store.keys.shape != store.values.shape:
        raise ValueError(
            f"got {shapes}; allowed are q [B, H, T, D] with keys and values of one shape: [B, K, S, D], [R, D] or "
            "[num_pages, page_tokens, D]"
        )
    B, H, T, D = q_BHTD.shape
    if store.lengths.dim() != 2 or store.lengths.shape[0] != B or store.keys.shape[-1] != D:
        raise ValueError(
            f"got {shapes}, lengths {list(store.lengths.shape)}; allowed are lengths [B, K] and one B and D"
        )
    K = store.lengths.shape[1]
    if not K or H % K or (store.form == "contiguous" and store.keys.shape[:2] != (B, K)):
        raise ValueError(f"got {shapes}, lengths [{B}, {K}]; allowed is one K in all, and H a multiple of it")
    check_queries(T)
    for name, x, form in (("starts", store.starts, "pool"), ("page_table", store.page_table, "paged")):
        if (x is not None) != (store.form == form):
            raise ValueError(
                f"got keys of {store.keys.dim()} dimensions {'without' if x is None else 'with'} {name}; "
                f"allowed is {name} with the {form} form, and only there"
            )
    if store.starts is not None and store.starts.shape != (B, K):
        raise ValueError(f"got starts {list(store.starts.shape)}; allowed is [B, K], here [{B}, {K}]")
    if store.page_table is not None:
        check_per_head("page_table", store.page_table, B, K)
    if tree_mask is not None and (
        tree_mask.dim() != 3 or tree_mask.shape[0] not in (1, B) or tree_mask.shape[1:] != (T, T)
    ):
        raise ValueError(
            f"got tree_mask {list(tree_mask.shape)}; allowed is [1 or B, T, T], here [1 or {B}, {T}, {T}]"
        )
    check_types(
        q_BHTD,
        keys=(store.keys, q_BHTD.dtype),
        values=(store.values, q_BHTD.dtype),
        lengths=(store.lengths, torch.int32),
        starts=(store.starts, torch.int64),
        page_table=(store.page_table, torch.int32),
        tree_mask=(tree_mask, torch.bool),
    )
    if q_BHTD.device.type == "cpu":
        _check_values(store)


def check_gather(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, index: Tensor, page_tokens: int) -> None:
    """Raise ValueError, in one sentence, when shapes, types or devices do not fit; values are not looked at."""
    shapes = f"q {list(q_BHTD.shape)}, k {list(k_BKSD.shape)}, v {list(v_BKSD.shape)}"
    if {q_BHTD.dim(), k_BKSD.dim(), v_BKSD.dim()} != {4} or k_BKSD.shape != v_BKSD.shape:
        raise ValueError(f"got {shapes}; allowed are q [B, H, T, D] with k and v of one shape [B, K, S, D]")
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    check_queries(T)
    if k_BKSD.shape[0] != B or k_BKSD.shape[3] != D or not K or H % K or T > S:
        raise ValueError(
            f"got {shapes}; B and D must be equal, H a multiple of K, and S at least T (the queries are the last T keys)"
        )
    check_per_head("index", index, B, K)
    if page_tokens < 1:
        raise ValueError(f"got page_tokens={page_tokens}; allowed is 1 or more")
    check_types(q_BHTD, k=(k_BKSD, q_BHTD.dtype), v=(v_BKSD, q_BHTD.dtype), index=(index, torch.int32))


def check_queries(num_queries: int) -> None:
    """Raise ValueError unless there are 1 to 16."""
    if not 1 <= num_queries <= MOST_QUERIES:
        raise ValueError(
            f"got {num_queries} queries; allowed is 1 to {MOST_QUERIES} (the prefill ops serve longer chunks)"
        )


def check_per_head(name: str, x: Tensor, B: int, K: int) -> None:
    """Raise ValueError unless x is `[B, 1 or K, any]`."""
    if x.dim() != 3 or x.shape[0] != B or x.shape[1] not in (1, K):
        raise ValueError(f"got {name} {list(x.shape)}; allowed is [{B}, 1 or {K} (kv heads), any]")


def check_types(q_BHTD: Tensor, **wanted: tuple[Tensor | None, torch.dtype]) -> None:
    """Raise ValueError unless every tensor is on the device of q and has its dtype, and q, keys and values have dense rows."""
    floating = {"q": q_BHTD}
    for name, (x, dtype) in wanted.items():
        if x is None:
            continue
        if x.device != q_BHTD.device:
            raise ValueError(f"got {name} on {x.device} and q on {q_BHTD.device}; all must be on one device")
        if x.dtype != dtype:
            raise ValueError(f"got {name} of {x.dtype}; allowed is {dtype}")
        if dtype == q_BHTD.dtype:
            floating[name] = x
    for name, x in floating.items():
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            raise ValueError(
                f"got {name} with strides {x.stride()}; allowed is a last dimension without gaps"
            )


def _check_values(store: Ragged) -> None:
    capacity = store.capacity_tokens
    last = store.lengths if store.starts is None else store.starts + store.lengths
    if bool((store.lengths < 0).any()) or bool((last > capacity).any()):
        raise ValueError(
            f"got lengths from {int(store.lengths.min())} that end at {int(last.max())}; allowed are lengths of 0 or more "
            f"that end within the {capacity} tokens of the store"
        )
    if store.starts is not None and bool((store.starts < 0).any()):
        raise ValueError(f"got starts from {int(store.starts.min())}; allowed is 0 or more")
