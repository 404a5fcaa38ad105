"""Keys are kept that stand out from the rest, or that their neighbourhood attends to, whatever will be asked.

A key stands out by its statistical leverage in the matrix K of all keys before rotation (centred), found in a Gaussian
sketch X = K Phi of `sketch_dims` columns; its neighbourhood are the blocks of `block_tokens`, within which every query sees
every key, earlier or later:

    leverage(j) = x_j (X'X)^-1 x_j'          attention(j) = pool_3( sum over the block's queries of softmax(q K'_block)[j] * |v_j| )
    score = blending * z(leverage) + z(attention)          z: mean 0, deviation 1 over the tokens of a kv head

The more is dropped, the more leverage counts: `blending` is the share that is dropped, unless said.

Paper: Compactor: Calibrated Query-Agnostic KV Cache Compression with Approximate Leverage Scores (2025).

Differs from the paper: scores are normalised for each kv head and not over all of a layer, so that heads stored apart score
as those stored together; the latest tokens attend too; leverage comes of a Cholesky factor with a ridge, as in the authors'
later code; one fixed sketch serves all heads of a model, none where it would be no smaller than a head. The budget is given,
not calibrated. Where keys are held before rotation they are scored under the layer's own embedding and no map of positions.

Fails when: what will be asked is neither rare nor looked at nearby: a plain sentence in a plain text. Blocks weigh all
queries alike, so a question at the text's end counts no more than any other sentence.

    model = longspan.load("reference", methods="compactor(keep=0.5)")
    context = model.read(text)
    context.kept_tokens  # half of context.num_tokens
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from longspan.eviction import Eviction
from longspan.methods.cache._rotary import rotated, unrotated
from longspan.roles import Event, Held, KeyView, LayerInfo, ScoredKeyView, Step

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "Compactor: Calibrated Query-Agnostic KV Cache Compression with Approximate Leverage Scores",
    "year": 2025,
    "paper_id": None,
    "family": "cache",
    "roles": ["Storage"],
    "phase": "read",
    "training": "none",
    "exact": "when keep covers the text",
    "frees": "frees",
    "needs": [],
    "claim": {
        "text": "with three quarters of the cache freed, by what the text alone tells, a needle is still found",
        "spec": "compactor(keep=0.25)",
        "task": "niah_single_1",
        "length_tokens": 2048,
        "against": "dense",
        "margin": -0.1,
    },
    "tolerances": {},
    "example": "compactor(keep=0.5, block_tokens=48)",
    "identity": "compactor(keep=1.0)",
}
RIDGE = 1e-2  # the authors' code; keeps a sketch of few or equal keys solvable


@dataclass(frozen=True, kw_only=True)
class Compactor(Eviction):
    """Keeps outlying keys and those that their block attends to; see the module.

    Args:
        sink_tokens: first tokens, which always stay and take no part in the scores.
        recent_tokens: latest tokens, which always stay.
        block_tokens: tokens that attend to each other.
        sketch_dims: columns of the sketch.
        blending: weight of leverage against attention; 0 for attention alone. None: 1 - keep, or 0.35 where keep is no share.
        seed: of the sketch.
    """

    sink_tokens: int = 8  # the authors' code
    recent_tokens: int = 4  # the authors' code
    block_tokens: int = 256  # the authors' code
    sketch_dims: int = 48  # the authors' code
    blending: float | None = None  # the authors' code: the share that is dropped, 0.35 without one
    seed: int = 0  # any will do

    def __post_init__(self) -> None:
        for name, least in (
            ("sink_tokens", 0),
            ("recent_tokens", 0),
            ("block_tokens", 1),
            ("sketch_dims", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"got {name}={getattr(self, name)}; allowed is {least} or more")
        if self.blending is not None and not 0 <= self.blending < math.inf:
            raise ValueError(f"got blending={self.blending:g}; allowed is 0 or more, such as 0.35")
        super().__post_init__()

    def always_kept(self) -> tuple[int, int]:
        return self.sink_tokens, self.recent_tokens

    def by_token(self) -> tuple[str, ...]:
        return ("attention",)

    def observe(self, step: Step) -> None:
        """Let blocks that are complete attend; the queries of the last one wait for the rest of it."""
        if step.phase != "prefill" and self.when != "always":
            return
        state = step.state
        counted = (step.query_positions >= self.sink_tokens).sum(dim=1)
        queries = step.queries.detach()
        if "queries" in state:
            queries, counted = torch.cat((state["queries"], queries), dim=2), state["waiting"] + counted
        state["queries"], state["waiting"], state["rotated"] = queries, counted, step.rotated
        self._attend(step.layer, step.store, state, least=self.block_tokens)

    def compact_together(self, held: Sequence[Held], *, event: Event) -> list[Tensor | None]:
        if event == "read":
            for h in held:
                self._attend(h.layer, h.store, h.state, least=1)
        return super().compact_together(held, event=event)

    def score(self, layer: LayerInfo, store: ScoredKeyView, state: dict[str, Any]) -> Tensor:
        self._attend(layer, store, state, least=1)
        counted = store.positions >= self.sink_tokens
        keys = store.keys.float()
        if state["rotated"]:
            keys = unrotated(keys, store.positions, layer.rope)
        attention = state["attention"] * store.values.float().norm(dim=-1)
        attention = functional.avg_pool1d(attention.masked_fill(~counted, 0.0), 3, stride=1, padding=1)
        weight = self.leverage_weight()
        return weight * _normal(self.leverage(keys, counted), counted) + _normal(attention, counted)

    def leverage_weight(self) -> float:
        """`blending`, or what it is where nothing is said."""
        if self.blending is not None:
            return self.blending
        return 0.35 if isinstance(self.keep, str) or self.keep > 1 else 1 - self.keep

    def leverage(self, keys: Tensor, counted: Tensor) -> Tensor:
        """Leverage `[B, k, S]` of those of the keys `[B, k, S, D]`, before rotation, that count, `[B, 1 or k, S]`."""
        weights = counted[..., None].float()
        num_tokens = weights.sum(dim=2, keepdim=True).clamp(min=1)
        x = (keys - (keys * weights).sum(dim=2, keepdim=True) / num_tokens) * weights
        if self.sketch_dims < keys.shape[-1]:
            make = torch.Generator().manual_seed(self.seed)
            sketch = torch.randn(keys.shape[-1], self.sketch_dims, generator=make) / self.sketch_dims**0.5
            x = x @ sketch.to(x.device)
        gram = x.transpose(-1, -2).double() @ x.double()
        ridge = RIDGE * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        factor = torch.linalg.cholesky(gram + ridge)
        whitened = torch.linalg.solve_triangular(factor, x.transpose(-1, -2).double(), upper=False)
        return whitened.square().sum(dim=2).float()

    def _attend(self, layer: LayerInfo, store: KeyView, state: dict[str, Any], *, least: int) -> None:
        """Add up in `attention` `[B, k, S]` what each key of a block of `least` tokens or more gets from its block. `waiting`
        counts, for each row, the latest tokens that have not attended yet; `queries` ends with theirs."""
        num_tokens, waiting, queries = store.num_tokens, state["waiting"], state["queries"]
        done = state.get("attention")
        attention = queries.new_zeros((len(queries), len(store.heads), num_tokens), dtype=torch.float32)
        if done is not None:
            done = done[..., :num_tokens]  # of guesses that were taken back nothing is stored any more
            attention[..., : done.shape[-1]] = done
        for count in sorted({int(n) for n in waiting}):
            rows, left = waiting == count, count
            while left >= least:
                size = min(left, self.block_tokens)
                block = slice(num_tokens - left, num_tokens - left + size)
                first = queries.shape[2] - left
                at, asked, keys = (
                    store.positions[:, :1, block],
                    queries[:, :, first : first + size].float(),
                    store.keys[:, :, block].float(),
                )
                if not state["rotated"]:
                    asked, keys = rotated(asked, at, layer.rope), rotated(keys, at, layer.rope)
                asked = asked.view(len(asked), len(store.heads), -1, *asked.shape[2:])
                there = (at >= 0)[:, :, None]
                seen = (asked @ keys[:, :, None].transpose(-1, -2)).masked_fill(
                    ~there[..., None, :], -torch.inf
                )
                received = (seen.softmax(dim=-1) * there[..., None]).nan_to_num(0.0).sum(dim=-2).mean(dim=2)
                attention[rows, :, block] += received[rows]
                left -= size
            waiting = torch.where(rows, left, waiting)
        longest = int(waiting.max())
        state["attention"], state["waiting"] = attention, waiting
        state["queries"] = queries[:, :, queries.shape[2] - longest :].clone()


def _normal(scores: Tensor, counted: Tensor) -> Tensor:
    """Scores `[B, k, S]` with mean 0 and deviation 1 over the tokens that count, `[B, 1 or k, S]`."""
    num_tokens = counted.sum(dim=-1, keepdim=True).clamp(min=2)
    mean = scores.masked_fill(~counted, 0.0).sum(dim=-1, keepdim=True) / num_tokens
    apart = (scores - mean).masked_fill(~counted, 0.0)
    deviation = (apart.square().sum(dim=-1, keepdim=True) / (num_tokens - 1)).sqrt()
    return apart / deviation.clamp(min=1e-6)
