"""Keys of a fixed context are clustered once it is read, and a query visits the clusters whose centroids it attends to.

The keys of every kv head are clustered by direction (K-means on normalised keys), and a cluster stands for its N_i keys
by their mean C_i. For the queries of a step, each key of cluster i would get about

    S_i = mean over queries, and heads of a kv head, of exp(q C_i / sqrt(D)) / sum_j N_j exp(q C_j / sqrt(D))

of the attention. Keys of clusters with S_i above a threshold are attended to exactly, together with the last
`observation_tokens` of the text and all that follows it. The threshold serves all heads and layers: it is what the share
`visit_share` of their keys exceeds for the queries of these last tokens, so heads that look around visit more than heads
that do not. `choose=best` instead lets each kv head visit its best clusters, up to the same share of its keys.

With `coarse_share` centroids are clustered in turn, and queries compare with those first, by the same S_i and a
threshold of its own, which `coarse_visit_share` of the keys exceed; only what lies behind it is compared further.

Clusters and threshold are made when a text ends and belong to the context: they are saved with it, forks share them, and
opening it clusters nothing. Text that is read behind it is clustered anew together with what was there.

Paper: Squeezed Attention: Accelerating Long Context Length LLM Inference (2024).

Differs from the paper: query heads that share a kv head choose together, by the mean of S_i; no head visits more than
`most_share` of the keys in a step, best clusters first; K-means stops after a few iterations; the threshold of the fine
level is measured behind the coarse one, so that `visit_share` holds with two levels too. As in the authors' code rotated
keys are clustered (beside a method that keeps keys before rotation, those are, and compared so), and the coarse level
masks centroids and does not skip them, so it saves no comparisons here.

Fails when: an answer needs tokens that single queries hardly look at, or the text is so short that the last tokens are
most of it. All keys stay stored, and a text is read with full attention.

    model = longspan.load("reference", methods="squeezed(visit_share=0.1)")
    model.read(text).save("book.span")
    longspan.open_context("book.span", model).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from longspan.eviction import remember_last
from longspan.ops.estimate import centroids
from longspan.ops.estimate.centroids import Centroids, centroid_scores, tokens_of
from longspan.roles import Event, Held, Phase, Selection, Step, Storage, Together
from longspan.visit import Dense, Gather

CARD = {
    "title": "Squeezed Attention: Accelerating Long Context Length LLM Inference",
    "year": 2024,
    "paper_id": 154,
    "family": "attention",
    "roles": ["Selection", "Storage"],
    "phase": "decode",
    "training": "none",
    "exact": "while the text fits observation_tokens",
    "frees": "no",
    "needs": [],
    "claim": {
        "text": "visiting about 11% of a text's keys, a question finds needles as with all of them",
        "spec": "squeezed",
        "task": "niah_multikey_1",
        "length_tokens": 4096,
        "against": "dense",
        "margin": -0.05,
    },
    "tolerances": {
        "keys_before_rotation": "beside a method that maps positions, keys and queries are compared before rotation, and so "
        "are other clusters visited, which changes the logits of random weights by up to 0.26 (of 0.55)",
        "devices": "a device draws the first centroids with its own generator: logits of random weights differ by 0.14",
    },
    "example": "squeezed(cluster_share=0.1, visit_share=0.1, observation_tokens=16)",
    "identity": "squeezed(visit_share=1.0)",
}
SCORES_AT_ONCE = 2**25  # 128 MiB of float32; the queries of a step are compared in slices of that size
INDEX = (
    "means",
    "order",
    "starts",
    "coarse_means",
    "coarse_of",
    "threshold",
    "coarse_threshold",
    "clustered",
)


@dataclass(frozen=True, kw_only=True)
class SqueezedAttention(Selection, Storage):
    """Settings of Squeezed Attention."""

    phases: ClassVar[frozenset[Phase]] = frozenset({"decode"})
    cluster_share: float = 0.05  # clusters, as a share of the keys; the authors' scripts
    visit_share: float = 0.1  # share of the keys above the threshold; the authors' scripts (percentile 0.9)
    choose: Literal["threshold", "best"] = "threshold"  # one threshold for all heads; the paper's
    most_share: float | None = None  # most that a head visits, None for 4 * visit_share; ours: bounds a step
    observation_tokens: int = 100  # last tokens: set the threshold, always visited; the authors' scripts
    coarse_share: float | None = None  # coarse clusters, share of the keys; None: one level, their scripts
    coarse_visit_share: float | None = None  # share that passes them, None for 0.3; their code's default
    iterations: int = 8  # of K-means, where theirs stops at 300 at most; ours: a text is clustered sooner

    def __post_init__(self) -> None:
        for name in ("cluster_share", "visit_share", "most_share", "coarse_share", "coarse_visit_share"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"got {name}={value:g}; allowed is a share above 0, up to 1, such as 0.1")
        for name in ("observation_tokens", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name}={getattr(self, name)}; allowed is 1 or more, such as 100 or 8")
        if self.choose not in ("threshold", "best"):
            raise ValueError(f"got choose={self.choose!r}; allowed are 'threshold' and 'best'")
        if self.most_share is not None and self.choose == "best":
            raise ValueError(
                f"got most_share={self.most_share:g} with choose=best, where each head visits visit_share; leave most_share out, "
                "or set choose=threshold"
            )
        if self.most_share is not None and self.most_share < self.visit_share:
            raise ValueError(
                f"got most_share={self.most_share:g}; allowed is visit_share={self.visit_share:g} to 1, since heads visit that much "
                "on average"
            )
        if self.coarse_share is not None and self.coarse_share >= self.cluster_share:
            raise ValueError(
                f"got coarse_share={self.coarse_share:g}; allowed is less than cluster_share={self.cluster_share:g}, such as "
                f"{self.cluster_share / 5:g}"
            )
        if self.coarse_visit_share is not None and self.coarse_share is None:
            raise ValueError(
                f"got coarse_visit_share={self.coarse_visit_share:g} without coarse clusters; set coarse_share too, such as "
                f"{self.cluster_share / 5:g}, or leave it out"
            )

    def together(self) -> Together:
        """One threshold for all layers; best clusters are each head's own."""
        return "model" if self.choose == "threshold" else "slab"

    def observe(self, step: Step) -> None:
        """Remember the queries of the text's last tokens."""
        if step.phase == "prefill" and self.choose == "threshold":
            remember_last(step, self.observation_tokens)

    def compact_together(self, held: Sequence[Held], *, event: Event) -> list[Tensor | None]:
        """Cluster a text when it ends; everything stays."""
        if event == "read":
            clustered = [h for h in held if self._cluster(h)]
            if clustered and self.choose == "threshold":
                self._set_thresholds(clustered)
            for h in held:
                h.state.pop("queries", None)
                h.state.pop("positions", None)
        return [None] * len(held)

    def visit(self, step: Step) -> Dense | Gather:
        """Keys of important clusters, the text's last tokens, and all that followed."""
        if "clustered" not in step.state:
            return Dense()
        known, past = step.state["clustered"], step.num_past
        real = None if step.store.filled else step.query_positions >= 0
        found = self._found(step.queries, real, step.state, step.layer.scale)
        late = torch.arange(known, past, device=found.device).expand(*found.shape[:2], -1)
        if not step.store.filled:
            late = late.where(step.store.positions[..., known:past] >= 0, -1)
        index = torch.cat((found, late), -1)
        index = index.where(index >= 0, past).sort(-1).values
        return Gather(index=index.where(index < past, -1)[:, :, None])

    @property
    def _most(self) -> float:
        if self.choose == "best":
            return self.visit_share
        return min(1.0, 4 * self.visit_share) if self.most_share is None else self.most_share

    @property
    def _coarse_visit(self) -> float:
        return 0.3 if self.coarse_visit_share is None else self.coarse_visit_share

    def _cluster(self, held: Held) -> bool:
        """Put the clusters of a slab's keys into its state; False when there are too few keys."""
        for name in INDEX:
            held.state.pop(name, None)
        known = held.store.num_tokens - self.observation_tokens
        if known < 1:
            return False
        keys, positions = held.store.keys[:, :, :known], held.store.positions[:, 0, :known]
        rows = []
        for row in range(len(keys)):  # one by one, so that a row of a batch is clustered as if it were alone
            places = None if held.store.filled else (positions[row] >= 0).nonzero()[:, 0]
            rows.append(self._row(keys[row] if places is None else keys[row][:, places], places))
        held.state.update(
            {name: _stacked([row[name] for row in rows], name == "starts") for name in rows[0]},
            clustered=known,
        )
        return True

    def _row(self, keys_KnD: Tensor, places: Tensor | None) -> dict[str, Tensor]:
        """Clusters of one row's keys, which stand at these places of the store; None for 0, 1, 2, ..."""
        num_keys = keys_KnD.shape[1]
        made = self._made(keys_KnD, self.cluster_share, num_keys)
        order = made["order"] if places is None else places.int()[made["order"].long()]
        row = {"means": made["means"], "order": order, "starts": made["starts"]}
        if self.coarse_share is not None:
            coarse = self._made(made["means"], self.coarse_share, num_keys)
            # the cluster of each slot, back in the order of what was clustered
            of = torch.empty_like(coarse["of"]).scatter_(-1, coarse["order"].long(), coarse["of"])
            row |= {"coarse_means": coarse["means"], "coarse_of": of.int()}
        return row

    def _made(self, keys_KnD: Tensor, share: float, num_keys: int) -> dict[str, Tensor]:
        """`share * num_keys` clusters by direction: means of the keys as they are, `order` and `starts` of `Centroids`, and the
        cluster `of` each place in the order."""
        K, n, D = keys_KnD.shape
        if n == 0:
            empty = keys_KnD.new_zeros(K, 0, dtype=torch.int64)
            means, starts = keys_KnD.new_zeros(K, 1, D), empty.new_zeros(K, 2, dtype=torch.int32)
            return {"means": means, "order": empty.int(), "starts": starts, "of": empty}
        keys = keys_KnD.float()
        count = min(n, max(1, int(share * num_keys)))
        found = centroids.k_means(functional.normalize(keys, dim=-1)[None], count, iterations=self.iterations)
        order, starts = found.order_BKS[0], found.starts_BKC[0]
        slots = torch.arange(n, device=keys.device, dtype=torch.int32).expand(K, -1).contiguous()
        of = torch.searchsorted(starts[:, 1:].contiguous(), slots, right=True)
        ordered = keys.gather(1, order.long()[..., None].expand(-1, -1, D))
        sums = keys.new_zeros(K, count, D).scatter_add_(1, of[..., None].expand(-1, -1, D), ordered)
        means = sums / starts.diff(dim=-1).clamp(min=1)[..., None]
        return {"means": means.to(keys_KnD.dtype), "order": order, "starts": starts, "of": of}

    def _set_thresholds(self, held: Sequence[Held]) -> None:
        """The weights that a share of all keys exceeds, for the last queries of the text; the coarse ones first."""
        asked = [(h.state["queries"], h.state["positions"] >= 0, h.state, h.layer.scale) for h in held]
        if self.coarse_share is not None:
            threshold = _exceeded_by([_coarse_weights(*one) for one in asked], self._coarse_visit)
            for h in held:
                h.state["coarse_threshold"] = threshold
        weights = [self._fine_weights(*one)[0] for one in asked]
        sizes = [_sizes(h.state) for h in held]
        threshold = _exceeded_by(list(zip(weights, sizes, strict=True)), self.visit_share)
        for h in held:
            h.state["threshold"] = threshold

    def _fine_weights(
        self, queries: Tensor, real: Tensor | None, state: dict[str, Any], scale: float
    ) -> tuple[Tensor, Tensor]:
        """Weights and sizes of clusters, both 0 where the coarse level does not look."""
        sizes = _sizes(state)
        if self.coarse_share is not None:
            coarse = _coarse_weights(queries, real, state, scale)
            passed = self._passed(*coarse, state.get("coarse_threshold"))
            sizes = sizes * passed.gather(-1, state["coarse_of"].long())
        return _weights(queries, real, state["means"], sizes, scale), sizes

    def _found(self, queries: Tensor, real: Tensor | None, state: dict[str, Any], scale: float) -> Tensor:
        """Places of the keys of important clusters, int64 `[B, K, n]`, -1 behind the last."""
        weights, sizes = self._fine_weights(queries, real, state, scale)
        ranked = weights.sort(dim=-1, descending=True, stable=True)
        wanted = sizes.gather(-1, ranked.indices) > 0
        if "threshold" in state:
            wanted &= ranked.values > state["threshold"][:, None, None]
        chosen = ranked.indices.where(wanted, -1).int()
        found = tokens_of(_centroids(state), chosen, max(1, int(self._most * state["clustered"]))).long()
        if real is not None:  # a padded row has fewer keys, so less to visit
            budget = (self._most * _sizes(state).sum(-1, keepdim=True).double()).long().clamp(min=1)
            found = found.where(torch.arange(found.shape[-1], device=found.device) < budget, -1)
        return found

    def _passed(self, weights: Tensor, sizes: Tensor, threshold: Tensor | None) -> Tensor:
        """Coarse clusters `[B, K, C]` that are looked into."""
        if threshold is not None:
            return weights > threshold[:, None, None]
        ranked = weights.sort(dim=-1, descending=True, stable=True)
        held = sizes.gather(-1, ranked.indices)
        before = (
            held.cumsum(-1) - held
        )  # keys of the better ones: a cluster is looked into while they are too few
        inside = before < self._coarse_visit * sizes.sum(-1, keepdim=True)
        return torch.zeros_like(inside).scatter(-1, ranked.indices, inside)


def _centroids(state: dict[str, Any]) -> Centroids:
    return Centroids(means_BKCD=state["means"], order_BKS=state["order"], starts_BKC=state["starts"])


def _sizes(state: dict[str, Any]) -> Tensor:
    """Keys of each cluster, int64 `[B, K, C]`."""
    starts: Tensor = state["starts"]
    return starts.long().diff(dim=-1)


def _coarse_weights(
    queries: Tensor, real: Tensor | None, state: dict[str, Any], scale: float
) -> tuple[Tensor, Tensor]:
    """Weights and sizes of coarse clusters."""
    sizes = _sizes(state)
    empty = sizes.new_zeros(state["coarse_means"].shape[:3])
    sizes = empty.scatter_add(-1, state["coarse_of"].long(), sizes)
    return _weights(queries, real, state["coarse_means"], sizes, scale), sizes


def _weights(queries: Tensor, real: Tensor | None, means: Tensor, sizes: Tensor, scale: float) -> Tensor:
    """S_i of the module for the queries `[B, H, T, D]` that are `real` `[B, T]` (None: all): float32 `[B, K, C]`."""
    B, H, T, _ = queries.shape
    K, C = means.shape[1:3]
    made = Centroids(means_BKCD=means, order_BKS=sizes, starts_BKC=sizes)  # only its means are read
    counts = sizes.float()[:, :, None]
    total = queries.new_zeros(B, K, C, dtype=torch.float32)
    size = max(1, SCORES_AT_ONCE // (B * H * C))
    for start in range(0, T, size):
        part = queries[:, :, start : start + size].unflatten(1, (K, H // K)).flatten(2, 3)
        # each query as a head of its own, since scores are reduced over the queries of a head
        scores = centroid_scores(part.flatten(1, 2)[:, :, None], made, scale=scale, per_head=True)
        weights = (scores.unflatten(1, (K, -1)) + counts.log()).softmax(-1) / counts.clamp(min=1)
        if real is not None:  # nan where a row has no keys
            kept = real[:, start : start + size].repeat(1, H // K)[:, None, :, None]
            weights = weights.nan_to_num(0.0) * kept
        total += weights.sum(2)
    num_queries = T if real is None else real.sum(-1).clamp(min=1)[:, None, None]
    return total / (num_queries * (H // K))


def _exceeded_by(parts: Sequence[tuple[Tensor, Tensor]], share: float) -> Tensor:
    """The least weight `[B]` such that clusters above it hold at most `share` of the keys of all parts; -1 for all."""
    weights = torch.cat([w.flatten(1) for w, _ in parts], 1)
    ranked = weights.sort(dim=-1, descending=True, stable=True)
    held = torch.cat([s.flatten(1) for _, s in parts], 1).gather(1, ranked.indices).cumsum(1)
    over = held > share * held[:, -1:].double()
    first = over.int().argmax(1, keepdim=True)
    return ranked.values.gather(1, first)[:, 0].where(over.any(1), -1.0)


def _stacked(rows: Sequence[Tensor], repeat_last: bool) -> Tensor:
    """Rows `[K, n, ...]` of different n as one tensor, filled up with 0, or with their last entry."""
    longest = max(row.shape[1] for row in rows)
    padded = []
    for row in rows:
        missing = (row.shape[0], longest - row.shape[1], *row.shape[2:])
        padded.append(
            torch.cat((row, row[:, -1:].expand(missing) if repeat_last else row.new_zeros(missing)), 1)
        )
    return torch.stack(padded)
