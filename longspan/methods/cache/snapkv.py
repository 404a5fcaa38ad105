"""The last tokens of a text vote, once, for the keys that each head keeps; the rest is freed.

Queries of the observation window (the last `window_tokens` tokens) attend to the whole text; per kv head

    vote(k) = mean over the group's query heads of pool_k( sum over window queries of softmax(q K^T / sqrt(D))[k] )

and the `keep - window_tokens` keys with most votes stay, together with the window itself. Pooling over neighbours keeps
whole phrases instead of single tokens. Later tokens are all kept.

Paper: SnapKV: LLM Knows What You are Looking for Before Generation (2024).

Differs from the paper: votes are averaged within a group of query heads, so that a grouped-query cache stays grouped
(the authors repeat keys and values for every query head first); `keep` may also be a share of the text; of keys with
equal votes the earlier one stays, so that the choice does not hang on batch or chunk size.

Fails when: the window does not know what will be asked. `Context.ask` puts its question behind the compacted text, so a
fact that nothing at the text's end points to may be gone; end the text with the question (or generate under
`longspan.applied`, where the prompt holds it) when there is one.

    model = longspan.load("reference", methods="snapkv(keep=0.25)")
    context = model.read(text)
    context.kept_tokens  # a quarter of context.num_tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from longspan.budget import check_keep, resolve_keep
from longspan.roles import LayerInfo, ScoredKeyView, Step, Storage

CARD = {
    "title": "SnapKV: LLM Knows What You are Looking for Before Generation",
    "year": 2024,
    "paper_id": None,
    "family": "cache",
    "roles": ["Storage"],
    "phase": "read",
    "training": "none",
    "exact": "when keep covers the text",
    "frees": "frees",
    "needs": ["the question at the end of the text, for answers about details"],
    "claim": {
        "text": "with half of the cache freed a needle is still found, even by a question that comes after",
        "spec": "snapkv(keep=0.5)",
        "task": "niah_single_1",
        "length_tokens": 4096,
        "against": "dense",
        "margin": -0.1,
    },
    "tolerances": {},
    "example": "snapkv(keep=0.5, window_tokens=16)",
    "identity": "snapkv(keep=1.0)",
}
LOGITS_AT_ONCE = 2**25  # 128 MiB of float32; the window is scored in slices of that size


@dataclass(frozen=True, kw_only=True)
class SnapKV(Storage):
    """Keeps what the end of a text attends to; see the module."""

    keep: float | int = 1024  # tokens per kv head, or a share of the text; the paper's Table 1
    window_tokens: int = 32  # last tokens, which vote and stay; the authors' LongBench runs
    pool_tokens: int = 7  # neighbours that share a vote, odd, 1 for none; the authors' LongBench runs
    pooling: Literal["max", "mean"] = "max"  # the authors' LongBench runs

    def __post_init__(self) -> None:
        check_keep(self.keep)
        if self.window_tokens < 1:
            raise ValueError(
                f"got window_tokens={self.window_tokens}; allowed is 1 or more, such as window_tokens=32"
            )
        if self.pool_tokens < 1 or self.pool_tokens % 2 == 0:
            raise ValueError(
                f"got pool_tokens={self.pool_tokens}; allowed is an odd number, 1 for no pooling"
            )
        if self.pooling not in ("max", "mean"):
            raise ValueError(f"got pooling={self.pooling!r}; allowed are 'max' and 'mean'")
        if 1 < self.keep < self.window_tokens:
            raise ValueError(
                f"got keep={self.keep:g}, less than the {self.window_tokens} tokens of the window, which always "
                f"stay; set keep to {self.window_tokens} or more, or lower window_tokens"
            )

    def observe(self, step: Step) -> None:
        """Remember the queries of the last `window_tokens` tokens, over chunks."""
        if step.phase != "prefill":
            return
        state = step.state
        for name, new, dim in (("queries", step.queries, 2), ("positions", step.query_positions, 1)):
            last = _tail(new, self.window_tokens, dim)
            if name in state and last.shape[dim] < self.window_tokens:
                last = _tail(torch.cat((state[name], last), dim), self.window_tokens, dim)
            state[name] = last.detach().clone()  # not a view, which would keep the whole chunk alive

    def compact(
        self,
        layer: LayerInfo,
        store: ScoredKeyView,
        state: dict[str, Any],
        *,
        event: Literal["chunk", "read", "token"],
    ) -> Tensor | None:
        """After reading: places `[B, K, n]` of the window and of the keys with most votes."""
        if event != "read":
            return None
        queries, query_positions = state.pop("queries"), state.pop("positions")
        positions = store.positions[:, 0]
        valid = positions >= 0
        counts = valid.sum(-1)
        budgets = torch.tensor([self._budget(int(count)) for count in counts], device=positions.device)
        if bool((budgets == counts).all()):
            return None
        window = valid & (counts[:, None] - valid.cumsum(-1) < self.window_tokens)
        votes = self._votes(layer, store, queries, query_positions, valid)
        votes = self._pool(votes.masked_fill(~(valid & ~window)[:, None], 0.0))
        shared = votes.view(len(positions), len(store.heads), -1, store.num_tokens).mean(2)
        shared = shared.masked_fill(window[:, None], torch.inf).masked_fill(~valid[:, None], -1.0)
        ranked = shared.sort(dim=-1, descending=True, stable=True).indices[..., : int(budgets.max())]
        spent = torch.arange(ranked.shape[-1], device=ranked.device) >= budgets[:, None]
        return ranked.masked_fill(spent[:, None], -1).sort(dim=-1).values

    def _budget(self, num_tokens: int) -> int:
        """Tokens to keep of a row of `num_tokens`."""
        budget = min(resolve_keep(self.keep, num_tokens), num_tokens)
        if budget < min(self.window_tokens, num_tokens):
            raise ValueError(
                f"snapkv: keep={self.keep:g} of {num_tokens} tokens is {budget}, less than the {self.window_tokens} "
                "tokens of the window, which always stay; raise keep, or lower window_tokens"
            )
        return budget

    def _votes(
        self, layer: LayerInfo, store: ScoredKeyView, queries: Tensor, query_positions: Tensor, valid: Tensor
    ) -> Tensor:
        """Attention `[B, H, S]` that every key gets from the window's queries `[B, H, W, D]`, summed over them."""
        positions, num_tokens = store.positions[:, 0], store.num_tokens
        votes = queries.new_zeros((*queries.shape[:2], num_tokens), dtype=torch.float32)
        step = max(1, LOGITS_AT_ONCE // (votes.numel() or 1))
        for start in range(0, queries.shape[2], step):
            at = query_positions[:, start : start + step]
            logits = store.logits(queries[:, :, start : start + step], at, 0, num_tokens)
            seen = valid[:, None] & (positions[:, None] <= at[..., None])
            votes += logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1).nan_to_num(0.0).sum(2)
        return votes

    def _pool(self, votes: Tensor) -> Tensor:
        pool = functional.max_pool1d if self.pooling == "max" else functional.avg_pool1d
        return pool(votes, self.pool_tokens, stride=1, padding=self.pool_tokens // 2)


def _tail(x: Tensor, length: int, dim: int) -> Tensor:
    start = max(0, x.shape[dim] - length)
    return x.narrow(dim, start, x.shape[dim] - start)
