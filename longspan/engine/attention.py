"""The attention step of one layer: new tokens are stored, attend as the plan's methods say, and methods drop what they may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longspan.engine.plan import LayerPlan
from longspan.engine.run import Run
from longspan.engine.scored import ScoredSlab
from longspan.engine.store import Slab
from longspan.engine.visits import combine_visits
from longspan.errors import UserInputError
from longspan.ops.attend import Problem, attend, quantised_past
from longspan.roles import Step
from longspan.visit import Dense, Ranges, Visit


@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """T new tokens as one layer gets them.

    Args:
        queries: `[B, H, T, D]`.
        keys, values: `[B, K, T, D]`.
        positions: int64 `[B, T]`, -1 for padding.
        first: p when positions are p, p+1, ... in every row, else None.
        padded: some positions are -1.
        scale: factor on the logits.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    positions: Tensor
    first: int | None
    padded: bool
    scale: float

    @property
    def num_tokens(self) -> int:
        return self.queries.shape[2]

    def cut(self, start: int, stop: int) -> NewTokens:
        return replace(
            self,
            queries=self.queries[:, :, start:stop],
            keys=self.keys[:, :, start:stop],
            values=self.values[:, :, start:stop],
            positions=self.positions[:, start:stop],
            first=None if self.first is None else self.first + start,
        )


def attend_layer(run: Run, index: int, new: NewTokens) -> Tensor:
    """Attention output `[B, H, T, D]` of one layer for the run's next tokens."""
    plan = run.plan.layers[index]
    if plan.positions is not None:
        factor = plan.positions.logit_scale(new.positions.clamp(min=0), plan.info)
        if factor is not None:
            new = replace(new, queries=new.queries * factor[:, None, :, None].to(new.queries.dtype))
    last = index in (len(run.plan.layers) - 1, run.stop_after_layer)
    text, total = run.text_tokens(new.num_tokens), new.num_tokens
    guesses = total if run.phase == "decode" else total - text  # assisted decoding may take these back
    outs = _attend_tokens(run, index, new, 0, text)
    if text < total:  # guesses came along with the prompt
        if any(True for _ in (*run.plan.sharing("storage"), *run.plan.sharing("codec"))):
            raise UserInputError(
                f"{run.plan.spec} decides over all layers once the prompt is read, which guesses of assisted decoding that "
                "come along with it do not wait for; generate without an assistant"
            )
        run.close_layer(index)
        run.phase = "decode"
        outs += _attend_tokens(run, index, new, text, total)
        run.phase = "decode" if last else "prefill"
    run.slide(index, guesses)
    if last:
        run.peak_bytes = max(run.peak_bytes, run.kv_bytes)
        run.seen += total
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)


def _attend_tokens(run: Run, index: int, new: NewTokens, start: int, stop: int) -> list[Tensor]:
    """The tokens `[start, stop)`, chunk by chunk, each stored, attended to, and compacted where a method does."""
    plan, outs = run.plan.layers[index], []
    for first, end in _chunks(run, plan, start, stop):
        part = new if end - first == new.num_tokens else new.cut(first, end)
        outs.append(_attend_chunk(run, index, part))
        for slab in run.layers[index].slabs:
            slab.rest()
        if run.recalling:
            if end == stop:
                run.settle(index, "read")
        elif run.phase == "decode":
            run.settle(index, "token")
        elif (run.seen + end) % run.chunk_tokens == 0:
            run.settle(index, "chunk")
    return outs


def _chunks(run: Run, plan: LayerPlan, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut tokens at multiples of `chunk_tokens` of the text, where a method acts per chunk, or into shorter steps."""
    limits = [s.method.max_step_tokens() for s in plan.selections_for(run.phase)]  # type: ignore[attr-defined]
    most = min((limit for limit in limits if limit is not None), default=stop)
    whole = run.phase == "decode" or not (plan.selections or plan.storage or plan.codec)
    while start < stop:
        room = stop if whole else run.chunk_tokens - (run.seen + start) % run.chunk_tokens
        end = min(stop, start + room, start + most)
        yield start, end
        start = end


def _attend_chunk(run: Run, index: int, new: NewTokens) -> Tensor:
    """Store the tokens in every slab of the layer and attend."""
    info, slabs = run.plan.layers[index].info, run.layers[index].slabs
    for slab in slabs:
        if run.recalling and slab.archive is not None and slab.num_tokens <= slab.archive.num_tokens:
            slab.recall()
        cut = slice(None) if len(slabs) == 1 else list(slab.heads)
        slab.append(
            new.keys[:, cut],
            new.values[:, cut],
            new.positions,
            first=new.first,
            padded=new.padded,
            reserve_tokens=run.reserve_tokens,
        )
    if len(slabs) == 1:
        return _attend_slab(run, index, 0, new.queries, new)
    out = torch.empty_like(new.queries)
    for number, slab in enumerate(slabs):
        heads = [kv * info.num_groups + g for kv in slab.heads for g in range(info.num_groups)]
        out[:, heads] = _attend_slab(run, index, number, new.queries[:, heads], new)
    return out


def _attend_slab(run: Run, index: int, number: int, queries: Tensor, new: NewTokens) -> Tensor:
    """The query heads of one slab over all it holds, the new tokens included."""
    plan, slab = run.plan.layers[index], run.layers[index].slabs[number]
    rotary = plan.rotary(slab)
    logits = ScoredSlab(slab, rotary, new.scale).logits

    def step(method: object) -> Step:
        return Step(
            layer=plan.info,
            phase=run.phase,
            queries=queries,
            query_positions=new.positions,
            store=slab,
            num_new=new.num_tokens,
            state={} if method is None else run.state(index, method, number),
            logits=logits,
            rotated=rotary is None,
        )

    visit, bias = _visit(run, plan, slab, step), _bias(run, plan, step)
    past = None
    if slab.coded is not None:
        past = quantised_past(
            slab.coded.tokens,
            queries,
            slab.raw,
            visit=visit,
            rotary=rotary,
            bias=bias,
            filled=slab.filled,
            looked_at=bool(run.tracers),
        )
    keys, values = (slab.keys, slab.values) if past is None else slab.raw
    problem = Problem(
        queries=queries,
        keys=keys,
        values=values,
        query_positions=new.positions,
        key_positions=slab.positions,
        num_new=new.num_tokens,
        scale=new.scale,
        visit=visit,
        rotary=rotary,
        bias=bias,
        contiguous_from=slab.contiguous_from,
        filled=slab.filled,
        quantised=past,
    )
    out = attend(problem)
    if plan.storage is not None:
        plan.storage.observe(step(plan.storage))
    if plan.codec is not None:
        plan.codec.observe(step(plan.codec))
    for watch in run.watchers:
        watch(index, step(None))
    for trace in run.tracers:
        trace(plan.info, problem)
    return out


def _visit(run: Run, plan: LayerPlan, slab: Slab, step: Callable[[object], Step]) -> Visit:
    if plan.info.sliding_window_tokens is not None:
        return Ranges(sink_tokens=0, window_tokens=plan.info.sliding_window_tokens)
    chosen = [(scoped.scope.heads, scoped.method) for scoped in plan.selections_for(run.phase)]
    if not chosen:
        return Dense()
    visits = [(heads, method.visit(step(method))) for heads, method in chosen]  # type: ignore[attr-defined]
    return combine_visits(visits, slab.heads, plan.info.num_groups)


def _bias(run: Run, plan: LayerPlan, step: Callable[[object], Step]) -> Tensor | None:
    total = None
    for method in plan.steerings:
        given = step(method)
        given.state["ask"] = run.ask_states.get(run.plan.number(method), {}).get(plan.info.index)
        bias = method.bias(given)
        if bias is not None:
            total = bias if total is None else total + bias
    return total
