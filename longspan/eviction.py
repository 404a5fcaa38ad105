"""Eviction by score: what every storage method shares that ranks keys and keeps the best.

A method says how keys score (`Eviction.score`), and often no more. Budgets, how they are spread over heads and layers, what always
stays, when to evict and how to break ties are decided here, once:

    keep       a share of the tokens seen, a number of tokens a kv head, or bytes of the whole cache
    spread     uniform: each kv head keeps as many; heads: the kv heads of a layer share their budget and the best keys of all of
               them stay (Ada-KV); all: the kv heads of all layers do
    when       read: once, after a text; chunk: also after each chunk of it, so that reading needs no more memory than the budget;
               always: also while an answer is generated

Heads that keep different numbers are stored apart, so what is evicted is freed, and never masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from longspan.budget import bytes_of, check_keep, resolve_keep
from longspan.roles import Event, Held, LayerInfo, ScoredKeyView, Step, Storage, Together

__all__ = ["Eviction", "WindowVotes", "attention_received", "places_of", "remember_last"]

SLACK_TOKENS = (
    64  # beyond the budget while generating, so that evictions are rare and guesses can be taken back
)
LOGITS_AT_ONCE = 2**25  # 128 MiB of float32; a window is scored in slices of that size


@dataclass(frozen=True, kw_only=True)
class Eviction(Storage):
    """Keeps the keys that score highest; see the module. A method defines `score`, and may change defaults."""

    keep: float | int | str = 0.25  # share of the tokens, tokens a kv head, or bytes such as 64MB
    spread: Literal["uniform", "heads", "all"] = "uniform"  # who shares a budget
    when: Literal["read", "chunk", "always"] = "read"  # always: also while generating
    floor: float = 0.2  # share of an even budget that each head keeps; Ada-KV's safeguard

    def __post_init__(self) -> None:
        check_keep(self.keep, in_bytes=True)
        for name, value, allowed in (
            ("spread", self.spread, ("uniform", "heads", "all")),
            ("when", self.when, ("read", "chunk", "always")),
        ):
            if value not in allowed:
                raise ValueError(f"got {name}={value!r}; allowed are {', '.join(allowed)}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"got floor={self.floor:g}; allowed is 0 to 1, a share of an even budget")
        if self.when == "chunk" and self.together() == "model":
            if self.layer_weights(2, 1.0) is not None:
                raise ValueError(
                    "got when=chunk with a budget that differs from layer to layer, which is decided once a text is read; use "
                    "when=read or when=always"
                )
            why = f"keep={self.keep}" if isinstance(self.keep, str) else f"spread={self.spread}"
            raise ValueError(
                f"got when=chunk with {why}, which decides over all layers once a text is read; use when=read, or a budget in "
                "tokens or a share, with spread=uniform or spread=heads"
            )
        stays = sum(self.always_kept())
        if not isinstance(self.keep, str) and 1 < self.keep < stays:
            raise ValueError(
                f"got keep={self.keep:g}, less than the {stays} tokens {self.what_stays()}, which always stay; set keep to "
                f"{stays} or more, or keep fewer of these"
            )

    # what a method says

    def score(self, layer: LayerInfo, store: ScoredKeyView, state: dict[str, Any]) -> Tensor:
        """How much each stored key is wanted, `[B, k or 1, S]`; what it says of padding does not matter."""
        raise NotImplementedError

    def always_kept(self) -> tuple[int, int]:
        """First and latest tokens that stay whatever they score."""
        return 0, 0

    def latest_share(self) -> float:
        """Share of a head's budget that its latest tokens take, where that is more than `always_kept` says."""
        return 0.0

    def what_stays(self) -> str:
        """How to call these in a sentence."""
        return "at both ends"

    def by_token(self) -> tuple[str, ...]:
        """What the state holds for each stored token, `[B, k or 1, S, ...]`; it follows them when they move."""
        return ()

    def layer_weights(self, num_layers: int, most: float) -> Sequence[float] | None:
        """Shares of the layers, in their order, that sum to `num_layers`, of what they keep beyond the tokens that always stay;
        a layer with a share of `most`, 1 or more, keeps its whole text. None for 1 each."""
        return None

    # what it shares with others

    def split(self, layer: LayerInfo) -> tuple[tuple[int, ...], ...]:
        heads = tuple(range(layer.num_kv_heads))
        return (heads,) if self.spread == "uniform" else tuple((head,) for head in heads)

    def together(self) -> Together:
        if self.spread == "all" or isinstance(self.keep, str) or self.layer_weights(2, 1.0) is not None:
            return "model"
        return "layer" if self.spread == "heads" else "slab"

    def compact(
        self, layer: LayerInfo, store: ScoredKeyView, state: dict[str, Any], *, event: Event
    ) -> Tensor | None:
        return self.compact_together([Held(layer, store, state)], event=event)[0]

    def compact_together(self, held: Sequence[Held], *, event: Event) -> list[Tensor | None]:
        """Places that stay, `[B, k, n]` a slab; see `Storage.compact_together`."""
        if event == "token":
            return [self._hold(h) if self.when == "always" else None for h in held]
        if event == "chunk" and self.when == "read":
            return [None] * len(held)
        budgets = self._budgets(held)
        full = all(bool((b >= _counts(h)).all()) for h, b in zip(held, budgets, strict=True))
        places = [None] * len(held) if full else self._choose(held, budgets)
        for h, kept, budget in zip(held, places, budgets, strict=True):
            target = budget if kept is None else (kept >= 0).sum(-1).amax(-1)
            h.state["target"] = target if len(target) > 1 else int(target)
        return self._follow(held, places)

    def _budgets(self, held: Sequence[Held]) -> list[Tensor]:
        """Tokens that each head of a slab may keep, before heads share: int64 `[B]` a slab."""
        seen = [self._seen(h) for h in held]
        if isinstance(self.keep, str):
            even = [torch.full_like(s, self._tokens_in_bytes(held)) for s in seen]
        elif self.keep > 1:
            even = [torch.full_like(s, int(self.keep)) for s in seen]
        else:
            even = [torch.tensor([resolve_keep(self.keep, int(n)) for n in s], device=s.device) for s in seen]
        if self.layer_weights(2, 1.0) is None:
            return even
        layers = sorted({h.layer.index for h in held})
        return [
            self._of_layer(b, s, layers.index(h.layer.index), len(layers))
            for h, b, s in zip(held, even, seen, strict=True)
        ]

    def _seen(self, held: Held) -> Tensor:
        """Tokens that have come, `[B]`: remembered where the latest may be dropped at the end of a chunk that also ends a text."""
        seen = held.store.positions.amax(dim=(1, 2)) + 1
        if self.when != "read":
            seen = held.state["seen"] = torch.maximum(seen, held.state.get("seen", seen))
        return seen

    def _of_layer(self, budget: Tensor, seen: Tensor, place: int, num_layers: int) -> Tensor:
        """A layer's part of budgets `[B]` a layer for texts of `seen` `[B]` tokens: whole, so that the parts sum to the whole."""
        parts = []
        for tokens, length in zip(budget.tolist(), seen.tolist(), strict=True):
            stays = min(tokens, sum(self.always_kept()))
            shared = tokens - stays
            weights = self.layer_weights(num_layers, max(1.0, (length - stays) / max(shared, 1)))
            assert weights is not None
            before, after = sum(weights[:place]), sum(weights[: place + 1])
            parts.append(stays + round(shared * after) - round(shared * before))
        return torch.tensor(parts, device=budget.device)

    def _tokens_in_bytes(self, held: Sequence[Held]) -> int:
        """Tokens a kv head that a budget in bytes pays for, an int64 position for each included."""
        assert isinstance(self.keep, str)
        rows = len(held[0].store.positions)
        per_token = sum(
            len(h.store.heads)
            * ((h.store.keys.shape[-1] + h.store.values.shape[-1]) * h.store.keys.element_size() + 8)
            for h in held
        )
        tokens = bytes_of(self.keep) // (rows * per_token)
        if tokens < max(1, sum(self.always_kept())):
            least = rows * per_token * max(1, sum(self.always_kept()))
            raise ValueError(
                f"got keep={self.keep}, which is {tokens} tokens a kv head; this model and this method need {least / 1e6:.3g}MB "
                "or more"
            )
        return tokens

    def _choose(self, held: Sequence[Held], budgets: Sequence[Tensor]) -> list[Tensor]:
        scores = [self._ranked(h, b) for h, b in zip(held, budgets, strict=True)]
        for h, budget in zip(held, budgets, strict=True):
            self._check_room(h, budget)
        if self.spread == "uniform":
            return [_best(s, b) for s, b in zip(scores, budgets, strict=True)]
        groups: dict[int, list[int]] = {}
        for number, h in enumerate(held):
            groups.setdefault(0 if self.spread == "all" else h.layer.index, []).append(number)
        places: list[Tensor] = [torch.empty(0)] * len(held)
        for numbers in groups.values():
            chosen = _best_of_all([scores[n] for n in numbers], [budgets[n] for n in numbers], self.floor)
            for number, mask in zip(numbers, chosen, strict=True):
                places[number] = places_of(mask)
        return places

    def _ranked(self, held: Held, budget: Tensor) -> Tensor:
        """Scores `[B, k or 1, S]`, float32: infinite for what always stays, -infinite for padding."""
        store = held.store
        scores = self.score(held.layer, store, held.state).float().nan_to_num(0.0, posinf=3e38, neginf=-3e38)
        first, latest = self.always_kept()
        positions = store.positions
        recent = (budget.double() * self.latest_share()).long().clamp(min=latest)[:, None, None]
        stays = (positions < first) | (positions > positions.amax(dim=-1, keepdim=True) - recent)
        return scores.masked_fill(stays, torch.inf).masked_fill(positions < 0, -torch.inf)

    def _check_room(self, held: Held, budget: Tensor) -> None:
        stays = sum(self.always_kept())
        for row, tokens in enumerate(budget.tolist()):
            seen = int(held.store.positions[row].max()) + 1
            if tokens < min(stays, seen):
                raise ValueError(
                    f"keep={self.keep} of {seen} tokens is {tokens}, less than the {stays} tokens {self.what_stays()}, which "
                    "always stay; raise keep, or keep fewer of these"
                )

    def _hold(self, held: Held) -> Tensor | None:
        """While generating: back to what was kept of the text, once a few tokens have come on top."""
        target, positions = held.state.setdefault("target", held.store.num_tokens), held.store.positions
        if len(positions) == 1 and held.store.num_tokens <= int(target) + SLACK_TOKENS:
            return None
        counts = _counts(held)
        budget = torch.as_tensor(target, device=positions.device).expand_as(counts)
        due = counts > budget + SLACK_TOKENS  # row by row, as if each were alone
        if not bool(due.any()):
            return None
        budget = torch.where(due, budget, counts)
        return self._follow([held], [_best(self._ranked(held, budget), budget)])[0]

    def _follow(self, held: Sequence[Held], places: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Move what the state holds by token to where the tokens go."""
        for h, kept in zip(held, places, strict=True):
            for name in self.by_token() if kept is not None else ():
                if name in h.state:
                    assert kept is not None
                    x = h.state[name]
                    index = kept.clamp(min=0).expand(len(kept), max(kept.shape[1], x.shape[1]), -1)
                    index = index.view(*index.shape, *[1] * (x.dim() - 3))
                    x = x.expand(len(x), index.shape[1], *x.shape[2:])
                    h.state[name] = x.gather(2, index.expand(*index.shape[:3], *x.shape[3:]))
        return list(places)


@dataclass(frozen=True, kw_only=True)
class WindowVotes(Eviction):
    """Keys score by the attention of the last tokens of a text, which always stay (SnapKV's observation window)."""

    window_tokens: int = 32  # last tokens, which vote and stay; SnapKV's LongBench runs
    pool_tokens: int = 7  # neighbours that share a vote, odd, 1 for none; SnapKV's LongBench runs
    pooling: Literal["max", "mean"] = "max"  # SnapKV's LongBench runs
    recall: bool = False  # a question brings back what was dropped, and votes itself
    tier: Literal["host", "disk"] = "host"  # where that waits

    def __post_init__(self) -> None:
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
        if self.tier not in ("host", "disk"):
            raise ValueError(f"got tier={self.tier!r}; allowed are 'host' and 'disk'")
        if self.recall and self.when != "read":
            raise ValueError(
                f"got recall=true with when={self.when}, which drops tokens before a text has ended; use when=read"
            )
        super().__post_init__()

    def always_kept(self) -> tuple[int, int]:
        return 0, self.window_tokens

    def what_stays(self) -> str:
        return "of the window"

    def lower_tier(self) -> Literal["host", "disk"] | None:
        return self.tier if self.recall else None

    def observe(self, step: Step) -> None:
        """Remember the queries of the last `window_tokens` tokens, over chunks."""
        if step.phase != "prefill" and self.when != "always":
            return
        remember_last(step, self.window_tokens)

    def compact_together(self, held: Sequence[Held], *, event: Event) -> list[Tensor | None]:
        places = super().compact_together(held, event=event)
        if event == "read" and self.when != "always":
            for h in held:
                h.state.pop("queries", None)
                h.state.pop("positions", None)
        return places

    def score(self, layer: LayerInfo, store: ScoredKeyView, state: dict[str, Any]) -> Tensor:
        """Attention that the window pays to each key before it, shared by neighbours, mean over a kv head's queries."""
        positions = store.positions
        latest = positions.amax(dim=-1, keepdim=True)
        before = (positions >= 0) & (positions <= latest - self.window_tokens)
        votes = attention_received(store, state["queries"], state["positions"])
        votes = votes.view(len(votes), len(store.heads), -1, store.num_tokens)
        votes = votes.masked_fill(~before[:, :, None], 0.0).flatten(1, 2)
        pool = functional.max_pool1d if self.pooling == "max" else functional.avg_pool1d
        votes = pool(votes, self.pool_tokens, stride=1, padding=self.pool_tokens // 2)
        return votes.view(len(votes), len(store.heads), -1, store.num_tokens).mean(2)


def attention_received(store: ScoredKeyView | Step, queries: Tensor, query_positions: Tensor) -> Tensor:
    """Causal attention `[B, h, S]`, float32, that every stored key gets from queries `[B, h, W, D]` at positions `[B, W]`, summed
    over them; scored in slices. Of a step's queries, give the step for its store."""
    view = store.store if isinstance(store, Step) else store
    positions, num_tokens = view.positions, view.num_tokens
    votes = queries.new_zeros((*queries.shape[:2], num_tokens), dtype=torch.float32)
    step = max(1, LOGITS_AT_ONCE // (votes.numel() or 1))
    groups = queries.shape[1] // positions.shape[1]
    for start in range(0, queries.shape[2], step):
        at = query_positions[:, start : start + step]
        logits = store.logits(queries[:, :, start : start + step], at, 0, num_tokens)
        seen = (positions[:, :, None] >= 0) & (positions[:, :, None] <= at[:, None, :, None])
        seen = seen if positions.shape[1] == 1 else seen.repeat_interleave(groups, dim=1)
        votes += logits.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0).sum(2)
    return votes


def remember_last(step: Step, num_tokens: int) -> None:
    """Keep the last `num_tokens` queries `[B, h, n, D]` and their positions `[B, n]`, over chunks, as `queries` and `positions` of
    the state."""
    for name, new, dim in (("queries", step.queries, 2), ("positions", step.query_positions, 1)):
        last = new.narrow(dim, max(0, new.shape[dim] - num_tokens), min(num_tokens, new.shape[dim]))
        if name in step.state and last.shape[dim] < num_tokens:
            last = torch.cat((step.state[name], last), dim)
            last = last.narrow(dim, max(0, last.shape[dim] - num_tokens), min(num_tokens, last.shape[dim]))
        step.state[name] = last.detach().clone()  # not a view, which would keep the whole chunk alive


def places_of(mask: Tensor) -> Tensor:
    """Places where `mask` `[B, k, S]` is true: int64 `[B, k, n]`, ascending, with -1 before those of rows that have fewer, so that
    the latest stay side by side."""
    num_tokens = mask.shape[-1]
    places = torch.arange(num_tokens, device=mask.device).expand_as(mask)
    ordered = torch.where(mask, places, -1).sort(dim=-1).values
    return ordered[..., num_tokens - int(mask.sum(dim=-1).max()) :]


def _counts(held: Held) -> Tensor:
    """Tokens that each row holds, `[B]`; the most of any head."""
    return (held.store.positions >= 0).sum(-1).amax(-1)


def _best(scores: Tensor, budget: Tensor) -> Tensor:
    """The `budget` `[B]` best places of each head of `[B, k, S]`, ascending, the earlier one of equals; -1 pads."""
    ranked = scores.sort(dim=-1, descending=True, stable=True)
    most = int(budget.max())
    places, spent = ranked.indices[..., :most], ranked.values[..., :most] == -torch.inf
    spent = spent | (torch.arange(places.shape[-1], device=places.device) >= budget[:, None])[:, None]
    return places.masked_fill(spent, -1).sort(dim=-1).values


def _best_of_all(scores: Sequence[Tensor], budgets: Sequence[Tensor], floor: float) -> list[Tensor]:
    """Masks `[B, k, S]` of the best keys of all heads together, as many as their budgets sum to; each head keeps `floor` of its
    own first."""
    owned = []
    for s, budget in zip(scores, budgets, strict=True):
        ranks = s.sort(dim=-1, descending=True, stable=True).indices.argsort(dim=-1)
        least = (floor * budget.double()).floor().long()[:, None, None]
        owned.append(s.masked_fill((ranks < least) & (s > -torch.inf), torch.inf))
    flat = torch.cat([x.flatten(1) for x in owned], dim=1)
    order = flat.sort(dim=-1, descending=True, stable=True).indices.argsort(dim=-1)
    heads = [s.shape[1] for s in scores]
    total = sum(b * k for b, k in zip(budgets, heads, strict=True))
    assert isinstance(total, Tensor)
    chosen = (order < total[:, None]) & (flat > -torch.inf)
    pieces = chosen.split([x[0].numel() for x in owned], dim=1)
    return [piece.view_as(s) for piece, s in zip(pieces, scores, strict=True)]
