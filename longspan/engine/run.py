"""One request's state: what each layer holds, what each method remembers, and the attention step itself.

A run belongs to one context or one call of `generate`; nothing of it lives on the model's modules, so one attached model
serves many runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from longspan.engine.plan import LayerPlan, Plan
from longspan.engine.scored import ScoredSlab
from longspan.engine.store import SPARE_TOKENS, LayerStore, Slab
from longspan.engine.visits import combine_visits
from longspan.ops.attend import Problem, Rotary, attend, naive_logits
from longspan.roles import Phase, Step
from longspan.visit import Dense, Ranges, Visit


class StopForward(Exception):
    """Raised inside a forward when the run wants no layer after the current one; caught by the reader."""


@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """Positions of the tokens of one forward, as every layer sees them.

    positions: int64 `[B, T]`, -1 for padding. first: p when they are p, p+1, ... in every row, else None.
    """

    positions: Tensor
    first: int | None


@dataclass(kw_only=True, eq=False)
class Run:
    """State of one request under one plan."""

    plan: Plan
    chunk_tokens: int
    layers: list[LayerStore] = field(default_factory=list)
    states: dict[tuple[int, int, int], dict[str, Any]] = field(default_factory=dict)
    seen: int = 0
    phase: Phase = "prefill"
    reserve_tokens: int = 0
    token_ids: list[Tensor] = field(default_factory=list)
    origin: Tensor | None = None
    stop_after_layer: int | None = None
    watchers: list[Callable[[int, Step], None]] = field(default_factory=list)
    prompt_tokens: int | None = None
    last_queries: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor]] = field(default_factory=dict)
    ask_states: dict[int, dict[int, Any]] = field(default_factory=dict)
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        if not self.layers:
            for layer in self.plan.layers:
                heads = tuple(range(layer.info.num_kv_heads))
                groups = (heads,) if layer.storage is None else layer.storage.split(layer.info)
                self.layers.append(LayerStore([Slab(group) for group in groups]))

    # what is held

    @property
    def kv_bytes(self) -> int:
        return sum(layer.num_bytes for layer in self.layers)

    @property
    def kept_tokens(self) -> float:
        """Tokens held, averaged over kv heads and layers that hold any."""
        kept = [layer.kept_tokens for layer in self.layers if layer.kept_tokens]
        return sum(kept) / max(len(kept), 1)

    @property
    def ids(self) -> Tensor:
        """Token ids seen so far, `[S]`."""
        if len(self.token_ids) > 1:
            self.token_ids = [torch.cat(self.token_ids)]
        return self.token_ids[0] if self.token_ids else torch.zeros(0, dtype=torch.long)

    def fork(self) -> Run:
        """A run that goes on from here and leaves this one as it is; shares tensors until one of them writes."""
        return Run(
            plan=self.plan,
            chunk_tokens=self.chunk_tokens,
            layers=[layer.fork() for layer in self.layers],
            states={key: dict(state) for key, state in self.states.items()},
            seen=self.seen,
            phase=self.phase,
            token_ids=list(self.token_ids),
            origin=self.origin,
            ask_states=self.ask_states,
        )

    def give_back(self, parent: Run) -> None:
        """End of a fork: hand the spare room of shared tensors back to the run it came from."""
        for layer, other in zip(self.layers, parent.layers, strict=True):
            layer.give_back(other)

    def state(self, layer: int, method: object, slab: int = 0) -> dict[str, Any]:
        """What `method` remembers for a layer and slab."""
        return self.states.setdefault((layer, self.plan.number(method), slab), {})

    # the attention step

    def attend_layer(
        self, index: int, queries: Tensor, keys: Tensor, values: Tensor, new: NewTokens, scale: float
    ) -> Tensor:
        """Attention of one layer for T new tokens: queries `[B, H, T, D]`, keys and values `[B, K, T, D]`."""
        plan = self.plan.layers[index]
        if plan.positions is not None:
            factor = plan.positions.logit_scale(new.positions.clamp(min=0), plan.info)
            if factor is not None:
                queries = queries * factor[:, None, :, None].to(queries.dtype)
        last = index in (len(self.plan.layers) - 1, self.stop_after_layer)
        text, total = self._text_tokens(queries.shape[2]), queries.shape[2]
        outs = self._attend_tokens(index, queries, keys, values, new, scale, slice(0, text))
        if text < total:  # guesses of assisted decoding came along with the prompt
            self._close_layer(index)
            self.phase = "decode"
            outs += self._attend_tokens(index, queries, keys, values, new, scale, slice(text, total))
            self.phase = "decode" if last else "prefill"
        if plan.info.sliding_window_tokens is not None:
            self._slide(index, plan.info.sliding_window_tokens)
        if last:
            self.peak_bytes = max(self.peak_bytes, self.kv_bytes)
            self.seen += total
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)

    def _text_tokens(self, num_tokens: int) -> int:
        """How many of the next tokens still belong to the text that is read."""
        if self.phase == "decode" or self.prompt_tokens is None:
            return num_tokens
        return min(num_tokens, max(self.prompt_tokens - self.seen, 0))

    def _attend_tokens(
        self,
        index: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        new: NewTokens,
        scale: float,
        tokens: slice,
    ) -> list[Tensor]:
        """The tokens of a slice, chunk by chunk, each stored, attended to, and compacted where a method does."""
        plan, outs = self.plan.layers[index], []
        for first, end in self._chunks(plan, tokens.stop - tokens.start):
            start, stop = tokens.start + first, tokens.start + end
            cut = slice(start, stop)
            part = NewTokens(
                positions=new.positions[:, cut], first=None if new.first is None else new.first + start
            )
            given = (queries[:, :, cut], keys[:, :, cut], values[:, :, cut])
            outs.append(self._attend_chunk(index, plan, *given, part, scale))
            whole = (self.seen + stop) % self.chunk_tokens == 0
            if plan.storage is not None and (self.phase == "decode" or whole):
                self._compact(index, plan, "chunk" if self.phase == "prefill" else "token")
        return outs

    def finish_reading(self) -> None:
        """End of a text: methods that compact after reading do so, and spare room is given back."""
        if self.phase == "decode":
            return
        self.peak_bytes = max(self.peak_bytes, self.kv_bytes)
        for index in range(len(self.plan.layers)):
            self._close_layer(index)
        self.phase = "decode"

    def _close_layer(self, index: int) -> None:
        """The text ends here, for one layer."""
        plan = self.plan.layers[index]
        if plan.storage is not None and self.layers[index].slabs[0].num_tokens:
            self._compact(index, plan, "read")
        for slab in self.layers[index].slabs:
            slab.fit()

    def crop(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` tokens (rejected guesses of assisted decoding)."""
        for plan, layer in zip(self.plan.layers, self.layers, strict=True):
            for slab in layer.slabs:
                gone = num_tokens
                if plan.storage is not None or plan.info.sliding_window_tokens is not None:
                    gone = int((slab.positions.amax(dim=(0, 1)) >= self.seen - num_tokens).sum())
                slab.crop(gone)
        self.seen -= num_tokens
        self.token_ids = [self.ids[: self.seen]]

    def select_rows(self, rows: Tensor) -> None:
        """Take batch rows (beam search, repeats) of everything held."""
        for layer in self.layers:
            for slab in layer.slabs:
                slab.select_rows(rows)
        for state in self.states.values():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    state[key] = value.index_select(0, rows.to(value.device))

    def last_logits(self, index: int) -> Tensor:
        """Logits of the last query of row 0 at a layer, by position: `[H, tokens seen]`, -inf where nothing is held."""
        plan = self.plan.layers[index]
        parts: dict[int, Tensor] = {}
        for slab in self.layers[index].slabs:
            queries, positions = self.last_queries[index, slab.heads]
            logits = naive_logits(
                queries, slab.keys, positions, slab.positions, self._rotary(plan), plan.info.scale
            )[0, :, 0]
            at = slab.positions[0].repeat_interleave(logits.shape[0] // slab.positions.shape[1], dim=0)
            row = logits.new_full((logits.shape[0], self.seen + 1), -torch.inf)
            row.scatter_(1, torch.where(at < 0, self.seen, at), logits)
            parts.update(zip(slab.heads, row[:, : self.seen].split(plan.info.num_groups), strict=True))
        return torch.cat([parts[head] for head in sorted(parts)])

    def _chunks(self, plan: LayerPlan, num_tokens: int) -> Iterator[tuple[int, int]]:
        """Cut T tokens at multiples of `chunk_tokens` of the text, where a method acts per chunk, or into shorter steps."""
        limits = [s.method.max_step_tokens() for s in plan.selections_for(self.phase)]  # type: ignore[attr-defined]
        most = min((limit for limit in limits if limit is not None), default=num_tokens)
        whole = self.phase == "decode" or not (plan.selections or plan.storage)
        start = 0
        while start < num_tokens:
            room = num_tokens if whole else self.chunk_tokens - (self.seen + start) % self.chunk_tokens
            stop = min(num_tokens, start + room, start + most)
            yield start, stop
            start = stop

    def _attend_chunk(
        self,
        index: int,
        plan: LayerPlan,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        new: NewTokens,
        scale: float,
    ) -> Tensor:
        layer = self.layers[index]
        for slab in layer.slabs:
            cut = _heads(slab, len(layer.slabs))
            slab.append(
                keys[:, cut],
                values[:, cut],
                new.positions,
                first=new.first,
                reserve_tokens=self.reserve_tokens,
            )
        if len(layer.slabs) == 1:
            return self._attend_slab(index, plan, 0, queries, new, scale)
        out = torch.empty_like(queries)
        for number, slab in enumerate(layer.slabs):
            heads = [kv * plan.info.num_groups + g for kv in slab.heads for g in range(plan.info.num_groups)]
            out[:, heads] = self._attend_slab(index, plan, number, queries[:, heads], new, scale)
        return out

    def _attend_slab(
        self, index: int, plan: LayerPlan, number: int, queries: Tensor, new: NewTokens, scale: float
    ) -> Tensor:
        slab = self.layers[index].slabs[number]
        rotary = self._rotary(plan)

        def step(method: object) -> Step:
            return Step(
                layer=plan.info,
                phase=self.phase,
                queries=queries,
                query_positions=new.positions,
                store=slab,
                num_new=queries.shape[2],
                state={} if method is None else self.state(index, method, number),
                logits=lambda q, at, start, stop: naive_logits(
                    q, slab.keys[:, :, start:stop], at, slab.positions[:, :, start:stop], rotary, scale
                ),
            )

        problem = Problem(
            queries=queries,
            keys=slab.keys,
            values=slab.values,
            query_positions=new.positions,
            key_positions=slab.positions,
            num_new=queries.shape[2],
            scale=scale,
            visit=self._visit(plan, slab, step),
            rotary=rotary,
            bias=self._bias(index, plan, step),
            contiguous_from=slab.contiguous_from,
        )
        out = attend(problem)
        if plan.storage is not None:
            plan.storage.observe(step(plan.storage))
        for watch in self.watchers:
            watch(index, step(None))
        return out

    def _visit(self, plan: LayerPlan, slab: Slab, step: Callable[[object], Step]) -> Visit:
        if plan.info.sliding_window_tokens is not None:
            return Ranges(sink_tokens=0, window_tokens=plan.info.sliding_window_tokens)
        chosen = [(scoped.scope.heads, scoped.method) for scoped in plan.selections_for(self.phase)]
        if not chosen:
            return Dense()
        visits = [(heads, method.visit(step(method))) for heads, method in chosen]  # type: ignore[attr-defined]
        return combine_visits(visits, slab.heads, plan.info.num_groups)

    def _bias(self, index: int, plan: LayerPlan, step: Callable[[object], Step]) -> Tensor | None:
        total = None
        for method in plan.steerings:
            given = step(method)
            given.state["ask"] = self.ask_states.get(self.plan.number(method), {}).get(index)
            bias = method.bias(given)
            if bias is not None:
                total = bias if total is None else total + bias
        return total

    @staticmethod
    def _rotary(plan: LayerPlan) -> Rotary | None:
        if not plan.pre_rotary:
            return None
        rope = plan.info.rope
        assert rope is not None
        return Rotary(inv_freq=rope.inv_freq, scaling=rope.scaling, bands=plan.bands)

    def _compact(self, index: int, plan: LayerPlan, event: Any) -> None:
        assert plan.storage is not None
        for number, slab in enumerate(self.layers[index].slabs):
            view = ScoredSlab(slab, self._rotary(plan), plan.info.scale)
            index_kept = plan.storage.compact(
                plan.info, view, self.state(index, plan.storage, number), event=event
            )
            if index_kept is not None:
                slab.keep(index_kept)

    def _slide(self, index: int, window_tokens: int) -> None:
        """Free what a sliding-window layer can no longer see, not at every token."""
        for slab in self.layers[index].slabs:
            extra = slab.num_tokens - window_tokens
            if extra > SPARE_TOKENS or (extra > 0 and self.phase == "prefill"):
                slab.drop_oldest(extra)


def _heads(slab: Slab, num_slabs: int) -> slice | list[int]:
    return slice(None) if num_slabs == 1 else list(slab.heads)
