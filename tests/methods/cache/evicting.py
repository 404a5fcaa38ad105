"""A store without an engine, random texts, and a small model, for the tests of methods that evict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longspan.engine.api import applied, load
from longspan.engine.context import Context
from longspan.engine.run import Run
from longspan.engine.store import spare_tokens
from longspan.eviction import Eviction
from longspan.roles import Event, LayerInfo, Step
from tests.models import random_ids, random_model, word_tokenizer, words

HEAD_DIM = 16
SLACK_TOKENS = 64


@dataclass
class Store:
    """Stored keys; logits are plain products."""

    keys: Tensor
    values: Tensor
    positions: Tensor
    heads: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.heads = self.heads or tuple(range(self.keys.shape[1]))

    @property
    def num_tokens(self) -> int:
        return self.keys.shape[2]

    @property
    def filled(self) -> bool:
        return bool((self.positions >= 0).all())

    def logits(self, queries: Tensor, query_positions: Tensor, start: int, stop: int) -> Tensor:
        keys = self.keys.repeat_interleave(queries.shape[1] // self.keys.shape[1], 1)
        return queries @ keys[:, :, start:stop].transpose(-1, -2) * HEAD_DIM**-0.5


def layer_of(num_heads: int, num_kv_heads: int, index: int = 0) -> LayerInfo:
    return LayerInfo(
        index=index,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=HEAD_DIM,
        scale=HEAD_DIM**-0.5,
        rope=None,
        sliding_window_tokens=None,
    )


def random_text(
    num_tokens: int, *, heads: int = 4, kv_heads: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Queries `[1, H, S, D]` and keys `[1, K, S, D]`."""
    make = torch.Generator().manual_seed(seed)
    queries = torch.randn(1, heads, num_tokens, HEAD_DIM, generator=make) * 2
    return queries, torch.randn(1, kv_heads, num_tokens, HEAD_DIM, generator=make) * 2


def padded(texts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Texts as left-padded rows, and their positions `[B, S]`; what stands in the padding is large."""
    longest = max(keys.shape[2] for _, keys in texts)
    queries, keys = (
        torch.full((len(texts), x.shape[1], longest, HEAD_DIM), 9.0) for x in (texts[0][0], texts[0][1])
    )
    positions = torch.full((len(texts), longest), -1)
    for row, (q, k) in enumerate(texts):
        length = k.shape[2]
        queries[row, :, longest - length :], keys[row, :, longest - length :] = q[0], k[0]
        positions[row, longest - length :] = torch.arange(length)
    return queries, keys, positions


def steps_of(num_tokens: int, chunk: int | None, answer: int) -> list[tuple[int, int, tuple[Event, ...]]]:
    """Where each step of a text and its answer starts and stops, and what events follow it."""
    text, steps = num_tokens - answer, []
    size = chunk or num_tokens
    for start in range(0, text, size):
        stop = min(start + size, text)
        events: tuple[Event, ...] = ("chunk",) if stop % size == 0 else ()
        steps.append((start, stop, (*events, "read") if stop == text else events))
    return [*steps, *((at, at + 1, ("token",)) for at in range(text, num_tokens))]


def held_after(
    method: Eviction,
    queries: Tensor,
    keys: Tensor,
    positions: Tensor | None = None,
    *,
    chunk: int | None = None,
    answer: int = 0,
) -> list[list[list[int]]]:
    """Positions that each head of each row holds of a text whose last `answer` tokens come one by one; keys are freed on the way."""
    B, K, num_tokens, _ = keys.shape
    at = torch.arange(num_tokens).expand(B, -1) if positions is None else positions
    layer, state = layer_of(queries.shape[1], K), {}
    held, places = keys[:, :, :0], at[:, None, :0].expand(B, K, 0)
    for start, stop, events in steps_of(num_tokens, chunk, answer):
        held = torch.cat([held, keys[:, :, start:stop]], 2)
        places = torch.cat([places, at[:, None, start:stop].expand(B, K, -1)], 2)
        store = Store(held, held, places)
        method.observe(
            Step(
                layer=layer,
                phase="decode" if events == ("token",) else "prefill",
                queries=queries[:, :, start:stop],
                query_positions=at[:, start:stop],
                store=store,
                num_new=stop - start,
                state=state,
                logits=store.logits,
            )
        )
        for event in events:
            kept = method.compact(layer, Store(held, held, places), state, event=event)
            if kept is not None:
                assert bool((kept[..., 1:] > kept[..., :-1]).logical_or(kept[..., 1:] < 0).all()) or B > 1
                index = kept.clamp(min=0).expand(B, K, -1)
                held = held.gather(2, index[..., None].expand(*index.shape, HEAD_DIM))
                places = torch.where(kept >= 0, places.gather(2, index), -1)
    return [[[p for p in head if p >= 0] for head in row] for row in places.tolist()]


def logits_of(queries: Tensor, keys: Tensor) -> list[list[list[list[float]]]]:
    """Scaled logits of one text as lists `[K][G][t][s]`."""
    num_kv_heads, num_tokens = keys.shape[1], keys.shape[2]
    grouped = queries[0].view(num_kv_heads, -1, num_tokens, HEAD_DIM).double()
    return (torch.einsum("kgtd,ksd->kgts", grouped, keys[0].double()) * HEAD_DIM**-0.5).tolist()


def softmax(row: list[float], visible: list[int]) -> dict[int, float]:
    """Attention over the visible places of a row of logits."""
    top = max(row[place] for place in visible)
    parts = {place: math.exp(row[place] - top) for place in visible}
    return {place: part / sum(parts.values()) for place, part in parts.items()}


def best(scores: dict[int, float], budget: int) -> list[int]:
    """The places that score highest, the earlier of equals, in order."""
    return sorted(sorted(scores, key=lambda place: (-scores[place], place))[:budget])


def eager_model() -> PreTrainedModel:
    model = random_model()
    model.set_attn_implementation("eager")
    return model


def attentions_of(model: PreTrainedModel, ids: Tensor) -> list[Tensor]:
    """Attention `[K, G, S, S]` of each layer over a text, by the model itself."""
    with torch.no_grad():
        found = model(ids[None], output_attentions=True).attentions
    return [x[0].view(2, 2, len(ids), len(ids)) for x in found]


def positions_of(run: Run) -> list[list[list[int]]]:
    """Positions that each kv head of each layer holds, row 0."""
    return [
        [head for slab in layer.slabs for head in slab.positions[0].expand(len(slab.heads), -1).tolist()]
        for layer in run.layers
    ]


def bytes_of_slabs(run: Run) -> int:
    """Bytes that what is held needs, with room for a question, counted from how many tokens each slab holds."""
    total = 0
    for layer in run.layers:
        for slab in layer.slabs:
            room = slab.num_tokens + spare_tokens(slab.num_tokens)
            total += room * (len(slab.heads) * 2 * HEAD_DIM * 4 + slab.positions.shape[1] * 8)
    return total


def read_words(spec: Any, num_tokens: int = 300, **settings: Any) -> Context:
    return load(random_model(), spec, tokenizer=word_tokenizer(), **settings).read(
        words(random_ids(num_tokens)), progress=False
    )


def generated(spec: Any, rows: list[Tensor], new_tokens: int) -> tuple[Tensor, Run]:
    """Tokens that a model under `longspan.applied` writes behind left-padded prompts, and the run behind them."""
    model, longest = random_model(), max(map(len, rows))
    ids, mask = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
    for number, row in enumerate(rows):
        ids[number, longest - len(row) :], mask[number, longest - len(row) :] = row, 1
    with applied(model, spec):
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
        )
    return out.sequences[:, longest:], out.past_key_values.run
