"""LightTransfer: lazy ratios against sums of attention, which layers stream, freed bytes, padding, and wrong settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.engine.api import applied, load
from longspan.errors import SpecError
from longspan.methods.cache.light_transfer import LightTransfer
from longspan.roles import Held
from longspan.spec import resolve
from tests.methods.cache.evicting import (
    Store,
    attentions_of,
    bytes_of_slabs,
    eager_model,
    layer_of,
    positions_of,
    random_text,
)
from tests.models import random_ids, random_model


def lazy_ratio(attention: Tensor, *, sinks: int, recent: int, last: int) -> float:
    """Mean over queries and heads of what stays at both ends, from attention `[K, G, S, S]`, key by key."""
    num_kv_heads, num_groups, num_tokens, _ = attention.shape
    total = 0.0
    for kv in range(num_kv_heads):
        for g in range(num_groups):
            for t in range(num_tokens - last, num_tokens):
                for k in range(num_tokens):
                    if k < sinks or k >= num_tokens - recent:
                        total += float(attention[kv, g, t, k])
    return total / (num_kv_heads * num_groups * last)


@pytest.mark.parametrize("chunk_tokens", [33, 300])
@pytest.mark.parametrize(("sinks", "recent", "last"), [(4, 30, 8), (0, 1, 1), (3, 50, 32)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_layer_that_a_loop_over_keys_finds_laziest_streams(
    seed: int, sinks: int, recent: int, last: int, chunk_tokens: int
) -> None:
    model, ids = random_model(seed=seed), random_ids(101)
    model.set_attn_implementation("eager")
    ratios = [lazy_ratio(a, sinks=sinks, recent=recent, last=last) for a in attentions_of(model, ids)]
    spec = f"light_transfer(sink_tokens={sinks}, recent_tokens={recent}, last_tokens={last})"
    context = load(model, spec, chunk_tokens=chunk_tokens).read(ids)
    ends = [*range(sinks), *range(101 - recent, 101)]
    wanted = [ends if ratio == max(ratios) else list(range(101)) for ratio in ratios]
    assert [layer[0] for layer in positions_of(context.run)] == wanted
    assert context.kept_tokens == (101 + sinks + recent) / 2
    assert context.kv_bytes == bytes_of_slabs(context.run)


def held_of(queries: Tensor, keys: Tensor, index: int, last: int) -> Held:
    num_tokens = keys.shape[2]
    positions = torch.arange(num_tokens)[None]
    state: dict[str, Any] = {"queries": queries[:, :, -last:], "positions": positions[:, -last:]}
    return Held(layer_of(4, 2, index), Store(keys, keys, positions[:, None]), state)


def test_the_share_counts_layers_and_the_most_lazy_go_first() -> None:
    """Of four layers, the last queries of two look at the first token, and of the second ever more so."""
    method = LightTransfer(sink_tokens=2, recent_tokens=10, last_tokens=4)
    held = []
    for index, strength in enumerate((0.0, 3.0, 6.0, -3.0)):
        queries, keys = random_text(90, seed=index)
        queries, keys = queries * 0.1, keys * 0.1
        queries[..., 0], keys[:, :, 0, 0] = 3.0, strength
        held.append(held_of(queries, keys, index, 4))
    ratios = [float(method.lazy_ratio(h)) for h in held]
    assert ratios[2] > ratios[1] > ratios[0] > ratios[3]
    kept = LightTransfer(sink_tokens=2, recent_tokens=10, last_tokens=4, lazy_layers=0.5).compact_together(
        held, event="read"
    )
    assert kept[0] is None and kept[3] is None
    for places in kept[1:3]:
        assert places is not None and places.tolist() == [[[0, 1, *range(80, 90)]]]


def test_a_streaming_layer_goes_on_streaming_while_it_generates() -> None:
    with applied(random_model(), "light_transfer(lazy_layers=0.5, recent_tokens=20)") as model:
        out = model.generate(
            random_ids(150)[None],
            max_new_tokens=120,
            min_new_tokens=120,
            do_sample=False,
            return_dict_in_generate=True,
        )
    held = sorted(layer[0] for layer in positions_of(out.past_key_values.run))
    full, stream = sorted(held, key=len, reverse=True)
    assert full == list(range(269))
    assert len(stream) <= 24 + 64
    assert stream[:4] == [0, 1, 2, 3] and stream[-20:] == list(range(249, 269))


def test_generate_with_left_padding_equals_single_runs() -> None:
    model = eager_model()
    for first, second in ((200, 140), (90, 181)):
        texts = [random_ids(first, seed=first), random_ids(second, seed=second)]
        longest = max(first, second)
        ids, mask = (torch.zeros(2, longest, dtype=torch.long) for _ in range(2))
        for row, text in enumerate(texts):
            ids[row, longest - len(text) :], mask[row, longest - len(text) :] = text, 1
        settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
        with applied(model, "light_transfer(recent_tokens=30)"):
            together = model.generate(ids, attention_mask=mask, **settings)
            for row, text in enumerate(texts):
                alone = model.generate(text[None], **settings)
                assert torch.equal(together[row, longest:], alone[0, len(text) :])


def test_no_share_leaves_every_layer_whole() -> None:
    context = load(random_model(), "light_transfer(lazy_layers=0, recent_tokens=8)").read(random_ids(80))
    assert context.kept_tokens == 80


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("lazy_layers=2", "got lazy_layers=2; allowed is 0 to 1"),
        ("sink_tokens=-1", "got sink_tokens=-1; allowed is 0 or more"),
        ("recent_tokens=0", "got recent_tokens=0; allowed is 1 or more"),
        ("last_tokens=0", "got last_tokens=0; allowed is 1 or more"),
    ],
)
def test_wrong_settings_are_refused(settings: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        resolve(f"light_transfer({settings})")
