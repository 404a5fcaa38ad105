from __future__ import annotations

import logging

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longspan.engine.api import applied, load
from longspan.engine.store import Slab
from longspan.methods.positions.dynamic_ntk import DynamicNtk
from tests.methods.positions.small import (
    HEAD_DIM,
    WINDOW,
    decoded_logits,
    one_layer,
    one_model,
    one_rope,
    read_logits,
    small_llama,
    some_ids,
    stock_rope,
    worst,
)
from tests.models import full_logits, random_ids, random_model

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}


def frequencies_by_hand(num_tokens: int, *, factor: float, window: int) -> torch.Tensor:
    """The post's formula in float64: the base for a text of so many tokens."""
    times = max(1.0, factor * num_tokens / window - (factor - 1))
    base = 10_000.0 * times ** (HEAD_DIM / (HEAD_DIM - 2))
    return base ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)


@torch.no_grad()
def logits_by_step(
    model: LlamaForCausalLM, ids: torch.Tensor, ends: list[int], *, factor: float, window: int
) -> torch.Tensor:
    """Logits `[T, V]` where the step up to each of `ends` turns its pairs by the frequencies of that length."""
    at = torch.arange(len(ids))
    hidden = model.model.embed_tokens(ids)
    for layer in model.model.layers:
        normed, attention = layer.input_layernorm(hidden), layer.self_attn
        q, k, v = (
            project(normed).view(len(ids), -1, HEAD_DIM).transpose(0, 1).double()
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        k, v = (x.repeat_interleave(len(q) // len(k), dim=0) for x in (k, v))
        half, rows = HEAD_DIM // 2, []
        q, k = torch.complex(q[..., :half], q[..., half:]), torch.complex(k[..., :half], k[..., half:])
        for start, end in zip([0, *ends], ends, strict=False):
            angle = (at[start:end, None] - at[None, :end])[..., None] * frequencies_by_hand(
                end, factor=factor, window=window
            )
            turn = torch.polar(torch.ones_like(angle), angle)
            logits = torch.einsum("htd,hsd,tsd->hts", q[:, start:end], k[:, :end].conj(), turn).real
            logits = logits / HEAD_DIM**0.5
            later = at[None, :end] > at[start:end, None]
            rows.append(logits.masked_fill(later, -torch.inf).softmax(-1) @ v[:, :end])
        mixed = torch.cat(rows, dim=1).transpose(0, 1).reshape(len(ids), -1).float()
        hidden = hidden + attention.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden))


@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("rotary_dims", [8, 16, 64])
def test_equals_transformers_dynamic_at_every_length(factor, rotary_dims):
    config = LlamaConfig(
        hidden_size=rotary_dims,
        num_attention_heads=1,
        head_dim=rotary_dims,
        max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "dynamic", "factor": factor, "rope_theta": 10_000.0},
    )
    rope = one_rope(rotary_dims=rotary_dims)
    for num_tokens in (1, WINDOW - 1, WINDOW, WINDOW + 1, 300, 1000, 131_072):
        wanted, scaling = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=num_tokens)
        got = DynamicNtk(factor=factor).rope_at(rope, num_tokens)
        assert torch.allclose(got.inv_freq, wanted, rtol=1e-5, atol=0)
        assert got.scaling == scaling == 1.0


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_text_read_at_once_equals_transformers_dynamic(kv_heads):
    ids = some_ids(411)
    with torch.no_grad():
        wanted = stock_rope(DYNAMIC, kv_heads=kv_heads)(ids[None]).logits[0]
    span = load(small_llama(kv_heads=kv_heads), "dynamic_ntk(factor=2)")
    assert worst(read_logits(span, ids, chunk_tokens=1024), wanted) < 1e-5
    assert worst(read_logits(load(small_llama(kv_heads=kv_heads)), ids, chunk_tokens=1024), wanted) > 0.05


@pytest.mark.parametrize("chunk_tokens", [1024, 64, 13])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_every_step_turns_all_keys_with_the_base_of_its_end(kv_heads, chunk_tokens):
    ids, model = some_ids(151), small_llama(kv_heads=kv_heads)
    ends = [*range(chunk_tokens, 151, chunk_tokens), 151]
    wanted = logits_by_step(model, ids, ends, factor=3.0, window=48)
    span = load(model, "dynamic_ntk(factor=3, window_tokens=48)")
    assert worst(read_logits(span, ids, chunk_tokens=chunk_tokens), wanted) < 1e-5


def test_generated_tokens_turn_all_keys_anew_where_transformers_leaves_old_ones():
    ids, model = some_ids(290), small_llama()
    wanted = logits_by_step(model, ids, [270, *range(271, 291)], factor=2.0, window=WINDOW)[270:]
    got = decoded_logits(load(model, "dynamic_ntk()"), ids, num_read=270)
    assert worst(got, wanted) < 1e-5
    stock = stock_rope(DYNAMIC)
    with torch.no_grad():
        cache = stock(ids[None, :270], use_cache=True).past_key_values
        rows = [stock(ids[None, i : i + 1], past_key_values=cache).logits[0, -1] for i in range(270, 290)]
    assert worst(torch.stack(rows), wanted) > 0.01


def test_within_the_trained_window_nothing_changes():
    rope = one_rope()
    assert DynamicNtk(factor=4).rope_at(rope, WINDOW) is rope
    ids, model = some_ids(WINDOW), small_llama()
    loaded = load(model)
    plain = read_logits(loaded, ids, chunk_tokens=100)
    got = read_logits(loaded.with_methods("dynamic_ntk(factor=4)"), ids, chunk_tokens=100)
    assert worst(got, plain) < 1e-6


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma3", "Phi3"])
def test_a_step_equals_ntk_at_the_factor_of_its_length(family):
    """s = 2 * 200 / 80 - 1 = 4, on partial rotary and on layers with a base of their own, too."""
    ids = random_ids(200)
    wanted = full_logits(load(random_model(family), "ntk(factor=4)"), ids)
    got = full_logits(load(random_model(family), "dynamic_ntk(window_tokens=80)"), ids)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    model = random_model(family)
    with applied(model, "dynamic_ntk(window_tokens=80)"), torch.no_grad():
        torch.testing.assert_close(model(ids[None]).logits[0], wanted, atol=1e-4, rtol=1e-4)
        assert model.generate(ids[None], max_new_tokens=4, do_sample=False).shape[1] <= 204


def test_what_a_storage_method_frees_does_not_shorten_the_text():
    ids, model = some_ids(200), small_llama()
    loaded = load(model, chunk_tokens=50)
    span = loaded.with_methods("dynamic_ntk(window_tokens=64) + snapkv(keep=0.25)")
    run = span.read(ids).run
    slabs = run.layers[0].slabs
    assert max(slab.num_tokens for slab in slabs) < 100
    assert {slab.end for slab in slabs} == {200}
    layer = span.plan.layers[0]
    wanted = frequencies_by_hand(200, factor=2.0, window=64)
    rotary = layer.rotary(slabs[0])
    assert rotary is not None
    assert torch.allclose(rotary.inv_freq.double(), wanted, rtol=1e-5, atol=0)
    assert bool(torch.isfinite(span.reader().advance(run, ids[:1])).all())
    assert {slab.end for slab in slabs} == {201}


def test_the_end_of_a_slab():
    slab = Slab((0,))
    keys = torch.zeros(2, 1, 3, 4)
    slab.append(keys, keys, torch.tensor([[-1, 0, 1], [0, 1, 2]]), first=None, padded=True)
    assert slab.end == 3
    plain = Slab((0,))
    plain.append(keys, keys, torch.tensor([[5, 6, 7], [5, 6, 7]]), first=5)
    assert plain.end == 8
    plain.crop(1)
    assert plain.end == 7


def test_nothing_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        DynamicNtk(factor=3.5).rope_at(one_rope(), 999)
    assert caplog.records == []


def test_bad_settings():
    with pytest.raises(ValueError, match=r"got factor=0.5; allowed is 1 \(no change\) or more"):
        DynamicNtk(factor=0.5)
    with pytest.raises(ValueError, match="got window_tokens=0; allowed is 1 or more, or none"):
        DynamicNtk(window_tokens=0)


def test_models_that_it_cannot_serve_are_refused():
    with pytest.raises(ValueError, match="dynamic_ntk changes rotary positions, but no layer of toy"):
        DynamicNtk().check(one_model(one_layer()))
    with pytest.raises(ValueError, match="already scales its own"):
        load(stock_rope({"rope_type": "linear", "factor": 2.0}), "dynamic_ntk()")
