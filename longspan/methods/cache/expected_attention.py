"""Keys are kept for the attention that queries to come are expected to pay them, estimated from the text's own queries.

Before the rotary embedding the queries of a layer are taken to be Gaussian, with the mean mu and the covariance Sigma of
those of the text. Turned on to the next positions, as one mean rotation R of them,

    E exp(q.k / sqrt(D)) = exp( k.(R mu) / sqrt(D) + k.(R Sigma R')k / (2 D) )
    score(k) = ( mean over the group's query heads of that, divided by its sum over all keys, + epsilon ) * |v|

so no later query need be known, and reading costs one product of the queries with themselves.

Paper: Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution (2025).

Differs from the paper: mean and covariance are summed up over chunks of the queries themselves, rotation undone, and not
taken from hidden states and the query projection, so that models with normalised queries (Qwen3, Gemma3) are served too;
scores are compared as logarithms, where they do not vanish; where keys are held before rotation, they are scored under the
layer's own embedding and no map of positions.

Fails when: what will be asked looks unlike the text (its queries are not those of a question), or queries are far from
Gaussian: a key that only one rare query wants scores low; or epsilon is larger than what most keys are expected to get, one
part in as many as there are tokens: the norm of the value then decides, and with epsilon=0.01 (the authors' benchmark
runs) the reference model found none of 5 needles at 2K tokens with keep=0.5.

    model = longspan.load("reference", methods="expected_attention(keep=0.5)")
    context = model.read(text)
    context.kept_tokens  # half of context.num_tokens
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from longspan.eviction import LOGITS_AT_ONCE, Eviction
from longspan.methods.cache._rotary import cos_sin, rotated, unrotated
from longspan.ops.rotary import rotate
from longspan.roles import LayerInfo, ScoredKeyView, Step

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
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
        "text": "with half of the cache freed, by what the text alone tells, a needle is still found",
        "spec": "expected_attention(keep=0.5)",
        "task": "niah_single_1",
        "length_tokens": 2048,
        "against": "dense",
        "margin": -0.1,
    },
    "tolerances": {},
    "example": "expected_attention(keep=0.5)",
    "identity": "expected_attention(keep=1.0)",
}


@dataclass(frozen=True, kw_only=True)
class ExpectedAttention(Eviction):
    """Keeps what queries like the text's are expected to attend to; see the module.

    Args:
        future_tokens: positions behind the text over which the rotation is averaged.
        sink_tokens: first tokens, which always stay; their queries and keys are left out of what is measured.
        covariance: count the spread of the queries, not their mean alone.
        value_norm: weigh expected attention with the norm of the value that it would fetch.
        epsilon: added to expected attention before that, so that large values count where little attention goes.
    """

    future_tokens: int = 512  # the authors' code
    sink_tokens: int = 4  # the authors' code
    covariance: bool = True  # the authors' code
    value_norm: bool = True  # the authors' code
    epsilon: float = 0.0  # the authors' code; their benchmark runs have 0.01

    def __post_init__(self) -> None:
        if self.future_tokens < 1:
            raise ValueError(f"got future_tokens={self.future_tokens}; allowed is 1 or more, such as 512")
        if self.sink_tokens < 0:
            raise ValueError(f"got sink_tokens={self.sink_tokens}; allowed is 0 or more")
        if not 0 <= self.epsilon < math.inf:
            raise ValueError(f"got epsilon={self.epsilon:g}; allowed is 0 or more, such as 0.01")
        super().__post_init__()

    def always_kept(self) -> tuple[int, int]:
        return self.sink_tokens, 0

    def what_stays(self) -> str:
        return "at the start"

    def observe(self, step: Step) -> None:
        """Sum up queries before rotation, and their products, over chunks."""
        if step.phase != "prefill" and self.when != "always":
            return
        queries, positions = step.queries.detach().float(), step.query_positions
        if step.rotated:
            queries = unrotated(queries, positions[:, None], step.layer.rope)
        counted = positions >= self.sink_tokens
        queries = queries * counted[:, None, :, None]
        sums = {"count": counted.sum(dim=1).float(), "sum": queries.sum(dim=2)}
        if self.covariance:
            sums["products"] = queries.transpose(-1, -2) @ queries
        for name, value in sums.items():
            step.state[name] = step.state[name] + value if name in step.state else value
        step.state["rotated"] = step.rotated

    def score(self, layer: LayerInfo, store: ScoredKeyView, state: dict[str, Any]) -> Tensor:
        """Logarithm of expected attention times the norm of the value, `[B, k, S]`."""
        positions = store.positions
        mean, covariance = self._ahead(layer, state, positions.amax(dim=(1, 2)) + 1)
        rows, heads = len(positions), len(store.heads)
        mean = mean.view(rows, heads, -1, mean.shape[-1], 1)
        logits = mean.new_empty((rows, heads, mean.shape[2], store.num_tokens))
        step = max(1, LOGITS_AT_ONCE // max(1, mean.numel()))
        for start in range(0, store.num_tokens, step):
            cut = slice(start, start + step)
            keys = store.keys[:, :, cut].float()
            if not state["rotated"]:
                keys = rotated(keys, positions[:, :, cut], layer.rope)
            keys = keys[:, :, None]
            logits[..., cut] = (keys @ mean)[..., 0] * layer.scale
            if covariance is not None:
                spread = keys @ covariance.view(*mean.shape[:-1], mean.shape[-2])
                logits[..., cut] += (spread * keys).sum(dim=-1) * (layer.scale**2 / 2)
        counted = (positions >= self.sink_tokens)[:, :, None]
        share = logits.masked_fill(~counted, -torch.inf).log_softmax(dim=-1)
        expected = share.logsumexp(dim=2) - math.log(share.shape[2])
        if not self.value_norm:
            return expected
        if self.epsilon > 0:
            expected = torch.logaddexp(expected, expected.new_tensor(math.log(self.epsilon)))
        return expected + store.values.float().norm(dim=-1).clamp(min=1e-30).log()

    def _ahead(self, layer: LayerInfo, state: dict[str, Any], ends: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean `[B, h, D]` and covariance `[B, h, D, D]` of queries at the positions from `ends` `[B]` on."""
        count = state["count"].clamp(min=1)[:, None, None]
        mean, covariance = state["sum"] / count, None
        if self.covariance:
            covariance = state["products"] / count[..., None] - mean[..., None] * mean[..., None, :]
        if layer.rope is None:
            return mean, covariance
        positions = ends[:, None] + torch.arange(self.future_tokens, device=ends.device)
        cos, sin = (x.mean(dim=1)[:, None] for x in cos_sin(positions, layer.rope))
        if covariance is not None:
            for _ in range(2):
                covariance = rotate(covariance, cos[:, None], sin[:, None]).transpose(-1, -2)
        return rotate(mean, cos, sin), covariance
