"""SnapKV: the kept places against a loop over tokens, freed bytes, padding, chunks, and wrong settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from longspan import eviction
from longspan.card import read_card
from longspan.engine.api import applied, load
from longspan.engine.store import spare_tokens
from longspan.errors import SpecError
from longspan.methods.cache import snapkv as module
from longspan.methods.cache.snapkv import SnapKV
from longspan.roles import Step
from longspan.spec import resolve
from tests.methods.cache.evicting import HEAD_DIM, Store, layer_of


def kept_places(
    method: SnapKV,
    queries: Tensor,
    keys: Tensor,
    positions: Tensor | None = None,
    *,
    chunk: int | None = None,
) -> Tensor | None:
    """What the method keeps of one text, queries `[B, H, S, D]`, keys `[B, K, S, D]`, read in chunks."""
    num_tokens = keys.shape[2]
    positions = torch.arange(num_tokens).expand(len(keys), -1) if positions is None else positions
    layer, state = layer_of(queries.shape[1], keys.shape[1]), {}
    chunk = chunk or num_tokens
    for start in range(0, num_tokens, chunk):
        cut = slice(start, min(start + chunk, num_tokens))
        store = Store(keys[:, :, : cut.stop], keys[:, :, : cut.stop], positions[:, None, : cut.stop])
        step = Step(
            layer=layer,
            phase="prefill",
            queries=queries[:, :, cut],
            query_positions=positions[:, cut],
            store=store,
            num_new=cut.stop - cut.start,
            state=state,
            logits=store.logits,
        )
        method.observe(step)
        assert method.compact(layer, store, state, event="chunk") is None
    kept = method.compact(layer, store, state, event="read")
    assert method.compact(layer, store, state, event="token") is None
    assert set(state) <= {"target"}
    return kept


def brute_force(attention: Tensor, *, budget: int, window: int, pool: int, pooling: str) -> list[list[int]]:
    """Places kept per kv head, from softmax attention `[K, G, S, S]` of a whole text, token by token."""
    num_kv_heads, num_groups, num_tokens, _ = attention.shape
    places = []
    for kv in range(num_kv_heads):
        far = num_tokens - window
        votes = [0.0] * far
        for g in range(num_groups):
            sums = [float(attention[kv, g, far:, k].sum()) for k in range(far)]
            for k in range(far):
                near = sums[max(0, k - pool // 2) : k + pool // 2 + 1]
                votes[k] += (max(near) if pooling == "max" else sum(near) / pool) / num_groups
        best = sorted(range(far), key=lambda k: (-round(votes[k], 6), k))[: budget - window]
        places.append(sorted(best) + list(range(far, num_tokens)))
    return places


def dense_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """Causal softmax attention of one text, `[K, G, S, S]`."""
    num_kv_heads, num_tokens = keys.shape[1], keys.shape[2]
    grouped = queries[0].view(num_kv_heads, -1, num_tokens, HEAD_DIM)
    logits = torch.einsum("kgtd,ksd->kgts", grouped, keys[0]) * HEAD_DIM**-0.5
    return logits.masked_fill(~torch.ones(num_tokens, num_tokens).tril().bool(), -torch.inf).softmax(-1)


def random_text(
    num_tokens: int, *, heads: int = 4, kv_heads: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(seed)
    queries = torch.randn(1, heads, num_tokens, HEAD_DIM, generator=make) * 2
    return queries, torch.randn(1, kv_heads, num_tokens, HEAD_DIM, generator=make) * 2


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("pool", [1, 3, 7])
@pytest.mark.parametrize(
    ("num_tokens", "window", "keep"), [(61, 5, 20), (64, 8, 0.5), (129, 1, 17), (97, 32, 33)]
)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (3, 3)])
def test_keeps_what_a_loop_over_tokens_keeps(
    pooling: Any, pool: int, num_tokens: int, window: int, keep: float, heads: int, kv_heads: int
) -> None:
    queries, keys = random_text(num_tokens, heads=heads, kv_heads=kv_heads)
    method = SnapKV(keep=keep, window_tokens=window, pool_tokens=pool, pooling=pooling)
    kept = kept_places(method, queries, keys)
    budget = round(keep * num_tokens) if keep <= 1 else int(keep)
    wanted = brute_force(
        dense_attention(queries, keys), budget=budget, window=window, pool=pool, pooling=pooling
    )
    assert kept is not None
    assert kept.tolist() == [wanted]


def needle_text() -> tuple[Tensor, Tensor]:
    """Keys of noise that the window's queries turn from, but for one place in each kv head."""
    queries = torch.zeros(1, 4, 100, HEAD_DIM)
    queries[..., 0] = 6.0
    keys = torch.randn(1, 2, 100, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    keys[..., 0] = -1.0
    keys[0, 0, 11, 0] = keys[0, 1, 53, 0] = 6.0
    return queries, keys


def test_each_kv_head_keeps_its_own_far_needle() -> None:
    kept = kept_places(SnapKV(keep=10, window_tokens=8, pool_tokens=1), *needle_text())
    assert kept is not None and kept.shape == (1, 2, 10)
    first, second = kept[0].tolist()
    assert 11 in first and 53 not in first
    assert 53 in second and 11 not in second
    assert first[-8:] == second[-8:] == list(range(92, 100))


def test_pooling_keeps_the_needle_with_its_neighbours() -> None:
    kept = kept_places(SnapKV(keep=15, window_tokens=8, pool_tokens=7), *needle_text())
    assert kept is not None
    assert kept[0, 0].tolist() == [*range(8, 15), *range(92, 100)]
    assert kept[0, 1].tolist() == [*range(50, 57), *range(92, 100)]


@pytest.mark.parametrize("chunk", [1, 3, 7, 50, 96])
def test_chunks_of_any_size_keep_the_same(chunk: int) -> None:
    queries, keys = random_text(97)
    method = SnapKV(keep=30, window_tokens=9)
    whole, parts = kept_places(method, queries, keys), kept_places(method, queries, keys, chunk=chunk)
    assert whole is not None and parts is not None and torch.equal(whole, parts)


def test_the_window_is_scored_in_slices_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = random_text(97)
    method = SnapKV(keep=30, window_tokens=9)
    whole = kept_places(method, queries, keys)
    monkeypatch.setattr(eviction, "LOGITS_AT_ONCE", 2 * 4 * 97)
    sliced = kept_places(method, queries, keys)
    assert whole is not None and sliced is not None and torch.equal(whole, sliced)


@pytest.mark.parametrize("keep", [20, 0.4])
def test_rows_with_left_padding_keep_what_they_keep_alone(keep: float) -> None:
    method = SnapKV(keep=keep, window_tokens=6)
    texts = [random_text(length, seed=length) for length in (90, 55, 30)]
    queries, keys = torch.randn(3, 4, 90, HEAD_DIM), torch.randn(3, 2, 90, HEAD_DIM) * 9
    positions = torch.full((3, 90), -1)
    for row, (q, k) in enumerate(texts):
        length = q.shape[2]
        queries[row, :, 90 - length :], keys[row, :, 90 - length :] = q[0], k[0]
        positions[row, 90 - length :] = torch.arange(length)
    together = kept_places(method, queries, keys, positions)
    assert together is not None
    for row, (q, k) in enumerate(texts):
        alone = kept_places(method, q, k)
        assert alone is not None
        for head in range(2):
            places = [place for place in together[row, head].tolist() if place >= 0]
            assert [place - 90 + q.shape[2] for place in places] == alone[0, head].tolist()


def test_a_text_within_the_budget_is_kept_whole() -> None:
    queries, keys = random_text(40)
    assert kept_places(SnapKV(keep=40), queries, keys) is None
    assert kept_places(SnapKV(keep=1024), queries, keys) is None
    assert kept_places(SnapKV(keep=1.0, window_tokens=64), queries, keys) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("keep=0", "a fraction such as|fraction above 0"),
        ("keep=1.5", "whole number of tokens"),
        ("keep=16", "got keep=16, less than the 32 tokens of the window"),
        ("window_tokens=0", "got window_tokens=0; allowed is 1 or more"),
        ("pool_tokens=4", "got pool_tokens=4; allowed is an odd number"),
        ("pooling=median", "pooling takes max or mean"),
    ],
)
def test_wrong_settings_are_refused(settings: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        resolve(f"snapkv({settings})")


def test_a_share_below_the_window_is_refused_in_one_sentence() -> None:
    with pytest.raises(
        ValueError, match=r"keep=0.1 of 100 tokens is 10, less than the 32 tokens of the window"
    ):
        kept_places(SnapKV(keep=0.1), *random_text(100))


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        intermediate_size=96,
        vocab_size=500,
        max_position_embeddings=256,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            parameter.data *= 8
    return model


@pytest.mark.parametrize("chunk_tokens", [33, 64, 300])
def test_a_model_keeps_what_its_own_attention_votes_for_and_frees_the_rest(chunk_tokens: int) -> None:
    model = small_llama()
    ids = torch.randint(1, 500, (201,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        attentions = model(ids[None], output_attentions=True).attentions
    span = load(model, "snapkv(keep=0.25, window_tokens=16)", chunk_tokens=chunk_tokens)
    context = span.read(ids)
    assert context.kept_tokens == 50
    for layer, attention in zip(context.run.layers, attentions, strict=True):
        slab = layer.slabs[0]
        wanted = brute_force(attention[0].view(2, 2, 201, 201), budget=50, window=16, pool=7, pooling="max")
        assert slab.positions.tolist() == [wanted]
    # keys and values of 2 kv heads in 2 layers, and an int64 position for each head, with room for a question
    assert context.kv_bytes == 2 * 2 * (50 + spare_tokens(50)) * (2 * HEAD_DIM * 4 + 8)


def test_it_works_on_keys_that_are_kept_before_rotation() -> None:
    model = small_llama()
    ids = torch.randint(1, 500, (201,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        attentions = model(ids[None], output_attentions=True).attentions
    context = load(model, "self_extend(group_size=4, window_tokens=250) + snapkv(keep=0.25)").read(ids)
    for layer, attention in zip(context.run.layers, attentions, strict=True):
        wanted = brute_force(attention[0].view(2, 2, 201, 201), budget=50, window=32, pool=7, pooling="max")
        assert layer.slabs[0].positions.tolist() == [wanted]


def test_generate_with_left_padding_equals_single_runs() -> None:
    model = small_llama()
    make = torch.Generator().manual_seed(2)
    texts = [torch.randint(1, 500, (length,), generator=make) for length in (200, 140)]
    ids, mask = torch.zeros(2, 200, dtype=torch.long), torch.zeros(2, 200, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, 200 - len(text) :], mask[row, 200 - len(text) :] = text, 1
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    settings["return_dict_in_generate"] = True
    with applied(model, "snapkv(keep=0.25, window_tokens=16)"):
        together = model.generate(ids, attention_mask=mask, **settings)
        for row, text in enumerate(texts):
            alone = model.generate(text[None], **settings)
            assert torch.equal(together.sequences[row, 200:], alone.sequences[0, len(text) :])
            for both, one in zip(together.logits, alone.logits, strict=True):
                assert torch.allclose(both[row], one[0], atol=1e-4)


def test_the_card_reads() -> None:
    card = read_card(module.__file__)
    assert (card.name, card.roles, card.frees, card.phase) == ("snapkv", ("Storage",), "frees", "read")
    assert [parameter.name for parameter in card.parameters] == [
        "keep",
        "spread",
        "when",
        "floor",
        "window_tokens",
        "pool_tokens",
        "pooling",
        "recall",
        "tier",
    ]
    assert all(parameter.comment for parameter in card.parameters)
