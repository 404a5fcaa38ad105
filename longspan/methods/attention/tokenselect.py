"""Single tokens are chosen for each step by a vote of all heads, and every head visits the same ones.

Over the past keys outside the sink and the local window, with a softmax per head so that no head's scale decides,

    vote(k) = sum over heads and queries of softmax(q K^T / sqrt(D))[k]

and the `top_tokens` keys with most votes are visited, with the sink, the window and the step itself. A text is read in
steps of `block_tokens`, each represented by its mean query. While a token's query is like the one that made the last
selection (cosine above `reuse_similarity`), that selection serves again: the Selection Cache.

With `positions=compact` the visited keys stand close together, at positions 0, 1, 2, ..., followed by the step: no
position beyond the trained window ever occurs, and a model reads far more than its window at a cost per token that
attention does not let grow. Keys are scored as if all stood `window_tokens` back. `positions=stored` leaves every token
where it is and combines with methods that change positions.

Paper: TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic Token-Level KV Cache
Selection (2024).

Differs from the paper: the window is counted before the step and not with it; up to `vote_queries` queries vote each
for themselves, where the paper takes their mean; the Selection Cache serves single tokens behind the text (the means
of long steps are all alike); with keys that differ by head, as SnapKV leaves them, each kv head votes for itself.

Fails when: an answer needs more tokens at once than are chosen, or queries of one block need different ones. All keys
stay stored.

    model = longspan.load("reference", methods="tokenselect(top_tokens=2048)")
    model.read(text_of_64k_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from longspan.ops.estimate.select import top_k
from longspan.ops.rotary import angles, rotate
from longspan.ops.rotary_attention.naive import products
from longspan.roles import ModelInfo, Positions, Selection, Step
from longspan.visit import Dense, Gather

CARD = {
    "title": "TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic "
    "Token-Level KV Cache Selection",
    "year": 2024,
    "paper_id": 79,
    "family": "attention",
    "roles": ["Selection", "Positions"],
    "phase": "both",
    "training": "none",
    "exact": "while the text fits sink, window and top_tokens",
    "frees": "no",
    "needs": ["rotary positions, for positions=compact"],
    "claim": {
        "text": "a model with a window of 4K finds a needle in 16K tokens, where dense attention fails",
        "spec": "tokenselect()",
        "task": "niah_single_1",
        "length_tokens": 16384,
        "against": "dense",
        "margin": 0.5,
    },
    "tolerances": {
        "chunked_reading": "one selection serves a block: chunks of whole blocks read exactly alike, others cut the "
        "blocks elsewhere and change the logits of random weights by up to 0.2 (of 0.6)",
        "left_padding": "blocks are cut from the padded row: a row padded by other than whole blocks is cut "
        "elsewhere, which changes the logits of random weights by up to 0.8",
        "keys_before_rotation": "beside a method that maps positions, a block votes with the mean of its queries before "
        "rotation, else of rotated ones, which changes the logits of random weights by up to 0.11 (of 0.45)",
    },
    "example": "tokenselect(top_tokens=32, sink_tokens=4, window_tokens=16, block_tokens=64)",
    "identity": "tokenselect(positions=stored)",
}
LOGITS_AT_ONCE = 2**25  # 128 MiB of float32; voters are scored in slices of that size


@dataclass(frozen=True, kw_only=True)
class TokenSelect(Selection, Positions):
    """Settings of TokenSelect."""

    top_tokens: int = 2048  # tokens chosen by vote; the authors' settings for Llama-3 and Qwen2
    sink_tokens: int = 128  # first tokens, always visited; the authors' settings
    window_tokens: int = 512  # tokens right before the step, always visited; the authors' settings
    positions: Literal["compact", "stored"] = "compact"  # the authors' code renumbers what is visited
    reuse_similarity: float = 0.9  # cosine above which a selection serves again, 1 for never; their code
    block_tokens: int = 512  # tokens of a text that share a selection; the authors' prefill chunk
    vote_queries: int = 32  # a step of so many tokens or fewer votes with each; ours: a question is short

    def __post_init__(self) -> None:
        least = {"top_tokens": 1, "sink_tokens": 0, "window_tokens": 1, "block_tokens": 1, "vote_queries": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"got {name}={getattr(self, name)}; allowed is {low} or more")
        if self.positions not in ("compact", "stored"):
            raise ValueError(f"got positions={self.positions!r}; allowed are 'compact' and 'stored'")
        if not -1 <= self.reuse_similarity <= 1:
            raise ValueError(
                f"got reuse_similarity={self.reuse_similarity:g}; allowed is a cosine from -1 to 1, "
                "where 1 chooses anew for every token"
            )

    @property
    def budget_tokens(self) -> int:
        """Past tokens that a step visits."""
        return self.sink_tokens + self.top_tokens + self.window_tokens

    def claims(self) -> frozenset[str]:
        """Selection; Positions too when it renumbers."""
        return frozenset({"Selection", "Positions"} if self.positions == "compact" else {"Selection"})

    def needs_pre_rotary(self) -> bool:
        """True when it renumbers."""
        return self.positions == "compact"

    def max_step_tokens(self) -> int:
        """One selection for `block_tokens` at most."""
        return self.block_tokens

    def check(self, model: ModelInfo) -> None:
        """Refuse a budget that, with a block of new tokens, exceeds the trained window."""
        total = self.budget_tokens + self.block_tokens
        if self.positions == "compact" and total > model.window_tokens:
            raise ValueError(
                f"tokenselect puts {total} tokens side by side (sink_tokens + top_tokens + window_tokens + "
                f"block_tokens), but {model.name} was trained on {model.window_tokens}; lower top_tokens, or set "
                "positions=stored"
            )

    def visit(self, step: Step) -> Dense | Gather:
        """All of a past within the budget; else sink, votes and window."""
        if step.num_past <= self.budget_tokens:
            return Dense()
        stored = step.store.positions[..., : step.num_past]
        compact = self.positions == "compact"
        if compact and stored.shape[1] > 1:
            raise ValueError(
                "tokenselect(positions=compact) needs the same stored tokens for every head, but the storage method "
                "keeps different ones per head; set positions=stored"
            )
        index = self._of_filled(step, stored) if step.store.filled else self._of_padded(step, stored)
        return Gather(index=index[:, :, None], compact=compact)

    def _of_filled(self, step: Step, stored: Tensor) -> Tensor:
        """Index `[B, 1 or K, budget]` where the n-th token of every row stands at place n."""
        first, end = self.sink_tokens, step.num_past - self.window_tokens
        chosen = self._select(step, stored, first, end, None)
        sink = torch.arange(first, device=stored.device).expand(*stored.shape[:2], -1)
        window = torch.arange(end, step.num_past, device=stored.device).expand(*stored.shape[:2], -1)
        return torch.cat((sink, chosen, window), -1)

    def _of_padded(self, step: Step, stored: Tensor) -> Tensor:
        """Index `[B, 1 or K, budget]` where some places hold nothing."""
        order = (stored >= 0).cumsum(-1)  # the n-th token has order n; padding repeats the one before
        counts = order[..., -1:]
        far = (stored >= 0) & (order > self.sink_tokens) & (order <= counts - self.window_tokens)
        chosen = self._select(step, stored, 0, step.num_past, far)
        ranks = torch.arange(1, self.sink_tokens + 1, device=order.device)
        sink = _places(order, ranks.expand(*order.shape[:2], -1))
        ranks = counts - torch.arange(self.window_tokens, device=order.device)
        window = _places(order, torch.where(ranks > self.sink_tokens, ranks, 0))
        return torch.cat((sink, chosen, window), -1).sort(-1).values

    def _select(self, step: Step, stored: Tensor, first: int, end: int, far: Tensor | None) -> Tensor:
        """Places `[B, 1 or K, top_tokens]`, ascending, within `[first, end)` and where `far`, None for all of these: the
        cached ones of rows whose query is alike, else those with most votes."""
        remember = step.phase == "decode" and self.reuse_similarity < 1
        query = _mean(step, step.queries).flatten(1) if remember else None
        reuse = None if query is None else self._alike(step, stored, query)
        # a GPU always votes, and rows choose afterwards: to wait for the answer costs more than the vote
        if reuse is not None and not _waits(reuse) and bool(reuse.all()):
            cached: Tensor = step.state["chosen"]
            return cached
        votes = self._votes(step, first, end, far)
        if far is None:
            chosen = top_k(votes, self.top_tokens).long() + first
        else:
            most, places = votes.masked_fill(~far, -1.0).topk(self.top_tokens, dim=-1)
            chosen = places.masked_fill(most < 0, -1).sort(-1).values
        if query is not None:
            if reuse is not None:
                chosen = torch.where(reuse[:, None, None], step.state["chosen"], chosen)
                query = torch.where(reuse[:, None], step.state["query"], query)
            at = stored.gather(-1, chosen.clamp(min=0))
            step.state.update(chosen=chosen, chosen_positions=at, query=query)
        return chosen

    def _alike(self, step: Step, stored: Tensor, query: Tensor) -> Tensor | None:
        """Rows `[B]` whose cached selection serves again: the query is alike, and the same tokens still stand at the same
        places before the window, which moves back when guesses are taken back. None where nothing is cached."""
        cached = step.state.get("chosen")
        if cached is None or step.num_new > 1 or cached.shape[:2] != stored.shape[:2]:
            return None
        near = cached.clamp(0, step.num_past - self.window_tokens - 1)
        same = (near == cached) & (stored.gather(-1, near) == step.state["chosen_positions"])
        if not step.store.filled:
            same |= cached < 0
        similarity = functional.cosine_similarity(query, step.state["query"], dim=-1)
        return (similarity > self.reuse_similarity) & same.flatten(1).all(-1)

    def _votes(self, step: Step, first: int, end: int, far: Tensor | None) -> Tensor:
        """Votes `[B, 1 or K, end - first]` of a step for the past keys in `[first, end)` that are `far`, None for all of
        these; other entries mean nothing."""
        queries, at = self._voters(step)
        total: Tensor | None = None
        size = max(1, LOGITS_AT_ONCE // (queries.shape[0] * queries.shape[1] * (end - first)))
        for start in range(0, queries.shape[2], size):
            voters, places = queries[:, :, start : start + size], at[:, start : start + size]
            logits = self._logits(step, voters, places, first, end)
            logits = logits.unflatten(1, (step.store.positions.shape[1], -1))
            if far is None:
                weights = logits.softmax(-1)
            else:
                hidden = ~far[:, :, None, None]  # a finite fill, so that a row without far keys gives no NaN
                weights = logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(-1)
                weights = weights * (places >= 0)[:, None, None, :, None]
            votes = weights.sum(dim=(2, 3))
            total = votes if total is None else total + votes
        assert total is not None, "a step has tokens"
        return total

    def _voters(self, step: Step) -> tuple[Tensor, Tensor]:
        """Queries that vote `[B, h, t, D]` and their positions `[B, t]`."""
        queries, at = step.queries, step.query_positions
        if self.positions == "compact":
            rope = step.layer.rope
            assert rope is not None, "layers without rotary positions are refused earlier"
            back = torch.arange(self.window_tokens, self.window_tokens + step.num_new, device=at.device)
            queries = rotate(queries, *angles(back, rope.inv_freq, rope.scaling**2, queries.dtype))
        if step.num_new <= self.vote_queries:
            return queries, at
        return _mean(step, queries), at.amax(1, keepdim=True)

    def _logits(self, step: Step, queries: Tensor, at: Tensor, first: int, end: int) -> Tensor:
        """Logits `[B, h, t, end - first]` of voters; for compact positions with every key at 0, its rotation being none."""
        if self.positions == "stored":
            return step.logits(queries, at, first, end)
        return products(queries, step.store.keys[:, :, first:end]) * step.layer.scale


def _places(order: Tensor, ranks: Tensor) -> Tensor:
    """Place of the token of each rank, `[B, k, n]`; -1 where there is none."""
    found = torch.searchsorted(order, ranks.contiguous())
    return torch.where((ranks >= 1) & (ranks <= order[..., -1:]), found, -1)


def _waits(x: Tensor) -> bool:
    """Does a question about the values of x wait for a GPU?"""
    return x.device.type != "cpu"


def _mean(step: Step, queries: Tensor) -> Tensor:
    """Mean `[B, h, 1, D]` over the step's tokens."""
    if step.store.filled:
        return queries.sum(2, keepdim=True) / step.num_new
    real = (step.query_positions >= 0)[:, None, :, None]
    return (queries * real).sum(2, keepdim=True) / real.sum(2, keepdim=True).clamp(min=1)
