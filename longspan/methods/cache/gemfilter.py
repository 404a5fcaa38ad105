"""The first layers of a model find what a question needs; only those tokens are then read by the whole model.

A text passes through layers 0..r only. A question follows it there, and its last query q at layer r scores every token
of the text; the k best, in their order, are read again by all layers, from position 0, and the question after them:

    score(j) = avgpool_5( sum over heads h of  q_h . k_{h,j} )        J = top-k of the text's tokens

Layers above r never see the long text: no keys of theirs are held, and reading costs r + 1 of L layers. Each question
costs a pass of its own through those layers and one reading of k tokens.

Paper: Discovering the Gems in Early Layers: Accelerating Long-Context LLMs with 1000x Input Token Reduction (2024).

Differs from the paper: the question's tokens are not in the ranking and always kept, so that many questions share one
pass over the text; `score=softmax` sums attention weights over heads instead of the raw products of the authors' code.

Fails when: layer r is too early to look for the answer (a model of few layers finds late: the reference model at layer
6 of 8, and with softmax scores, not at 13/32 of its depth); the answer needs tokens that the question's last token does
not look for (several hops, counting, summaries); k or the pooling is so small that a needle is cut to pieces.

    far = "lm_infinite(evict=false, window_tokens=1024) + gemfilter(keep=512, layer=6, pool_tokens=15, score=softmax)"
    context = longspan.load("reference", methods=far).read(text)  # 64K tokens; the model itself knows 4K
    context.ask("What is the number of the lantern?")
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from longspan.budget import check_keep, resolve_keep
from longspan.roles import ModelInfo, Reader, Reading

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "Discovering the Gems in Early Layers: Accelerating Long-Context LLMs with 1000x Input Token Reduction",
    "year": 2024,
    "paper_id": 76,
    "family": "cache",
    "roles": ["Reading"],
    "phase": "read",
    "training": "none",
    "exact": False,
    "frees": "frees",
    "needs": [],
    "claim": {
        "text": "512 tokens that a layer's attention chooses from twice the trained window answer about a needle, "
        "where the pass that chose them visits a window only",
        "spec": "lm_infinite(evict=false, window_tokens=1024) + "
        "gemfilter(keep=512, layer=6, pool_tokens=15, score=softmax)",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "against": "lm_infinite(evict=false, window_tokens=1024)",
        "margin": 0.5,
    },
    "shares": {
        0.75: "gemfilter(keep=0.75, layer=6, pool_tokens=15, score=softmax)",
        0.5: "gemfilter(keep=0.5, layer=6, pool_tokens=15, score=softmax)",
        0.25: "gemfilter(keep=0.25, layer=6, pool_tokens=15, score=softmax)",
        0.125: "gemfilter(keep=0.125, layer=6, pool_tokens=15, score=softmax)",
        0.06: "gemfilter(keep=0.06, layer=6, pool_tokens=15, score=softmax)",
    },
    "tolerances": {},
    "example": "gemfilter(keep=64)",
    "identity": "gemfilter(keep=1024)",
}


@dataclass(frozen=True, kw_only=True)
class GemFilter(Reading):
    """Read through the first layers, then read again only what a question needs.

    Args:
        keep: tokens of the text that all layers read for a question: a number of tokens or a fraction of the text.
        layer: r, counted from 0, the layer whose attention chooses; none for 13/32 of the model's layers.
        pool_tokens: odd width of the average over neighbouring scores, so that what stands around a needle stays.
        score: sum over heads of `logits` (raw products) or of `softmax` (attention weights).
    """

    keep: float | int = 1024  # the paper's smallest budget (1024, 2048, 4096)
    layer: int | None = None  # the paper's layer 13 of 32 for Llama 3.1 8B, scaled to the model's depth
    pool_tokens: int = 5  # the authors' code
    score: Literal["logits", "softmax"] = "logits"  # the authors' code

    def __post_init__(self) -> None:
        check_keep(self.keep)
        if self.pool_tokens < 1 or self.pool_tokens % 2 == 0:
            raise ValueError(
                f"got pool_tokens={self.pool_tokens}; allowed is an odd number such as 1 (no pooling), 5 or 7"
            )
        if self.score not in ("logits", "softmax"):
            raise ValueError(f"got score={self.score!r}; allowed is logits or softmax")
        if self.layer is not None and self.layer < 0:
            raise ValueError(f"got layer={self.layer}; allowed is 0 or more, counted from the first layer")

    def check(self, model: ModelInfo) -> None:
        if self.layer is not None and self.layer >= model.num_layers:
            raise ValueError(
                f"gemfilter: got layer={self.layer}; {model.name} has layers 0 to {model.num_layers - 1}, and fewer are faster"
            )
        open_layers = [layer.index for layer in model.open_layers]
        if not open_layers:
            raise ValueError(
                f"every layer of {model.name} has a sliding window of its own, so none sees the whole text; "
                "use a model with full-attention layers"
            )
        if self.layer is not None and self.layer not in open_layers:
            nearest = min(open_layers, key=lambda index: abs(index - self.layer))  # type: ignore[operator]
            raise ValueError(
                f"gemfilter: got layer={self.layer}, which has a sliding window of its own in {model.name} and does not "
                f"see the whole text; write layer={nearest}"
            )

    def filter_layer(self, model: ModelInfo) -> int:
        """r for a model: `layer`, or the full-attention layer nearest to 13/32 of its depth."""
        if self.layer is not None:
            return self.layer
        wanted = round(model.num_layers * 13 / 32)
        return min(
            (layer.index for layer in model.open_layers), key=lambda index: (abs(index - wanted), index)
        )

    def read(self, reader: Reader, ids: Iterable[Tensor], num_tokens: int | None) -> Any:
        run = reader.new_run(num_tokens=num_tokens)
        return reader.prefill(run, ids, stop_after_layer=self.filter_layer(reader.info))

    def extend(self, reader: Reader, run: Any, ids: Iterable[Tensor]) -> Any:
        branch = reader.fork(run)
        for chunk in ids:
            reader.advance(branch, chunk, stop_after_layer=self.filter_layer(reader.info))
        return branch

    def ask(self, reader: Reader, run: Any, question_ids: Tensor) -> Any:
        ids = run.ids
        layer = self.filter_layer(reader.info)
        branch = reader.fork(run)
        reader.advance(branch, question_ids, stop_after_layer=layer)
        logits = reader.layer_logits(branch, layer)
        reader.give_back(branch, run)
        places = self.choose(logits, len(ids)).cpu()
        gems = reader.new_run(num_tokens=len(places))
        reader.prefill(gems, [ids[places]])
        gems.origin = places
        gems.peak_bytes += run.kv_bytes  # the text's first layers stay held beside it
        return gems

    def choose(self, logits: Tensor, num_tokens: int) -> Tensor:
        """Places of the tokens to read again, int64 `[k]`, ascending.

        Args:
            logits: of the question's last query, `[H, S]`, -inf where a head holds nothing.
            num_tokens: tokens of the text, the first of the S; the question's are not chosen.
        """
        held = logits.isfinite().any(dim=0)
        scores = (
            torch.softmax(logits, dim=-1)
            if self.score == "softmax"
            else logits.masked_fill(~logits.isfinite(), 0.0)
        )
        total = scores.sum(dim=0)
        pooled = torch.nn.functional.avg_pool1d(
            total[None], self.pool_tokens, stride=1, padding=self.pool_tokens // 2, count_include_pad=True
        )[0]
        pooled = pooled.masked_fill(~held, -torch.inf)[:num_tokens]
        count = min(resolve_keep(self.keep, num_tokens), int(held[:num_tokens].sum()))
        return pooled.topk(count).indices.sort().values
