from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from longspan.engine.api import load
from longspan.methods.positions.pi import PositionInterpolation
from longspan.training.registry import canonical_scheme, read_scheme_cards, resolve_scheme
from longspan.training.schemes.shifted import Shifted
from longspan.training.shifted_attention import LEAKING, NAME, register, shifted_attention
from tests.methods.positions.small import one_rope, small_llama
from tests.models import random_ids, random_model

LENGTHS = (1, 2, 3, 5, 16, 63, 64, 129)
HEADS = ((2, 2), (4, 4), (4, 2), (4, 1), (6, 2), (6, 3), (3, 1), (5, 5))


def seen_pairs(num_heads: int, num_tokens: int, *, leak: bool = False) -> Tensor:
    """bool `[H, T, T]`, worked out pair by pair: which key each query of each head may see."""
    group = -(-num_tokens // 4)
    shift = group // 2
    seen = torch.zeros(num_heads, num_tokens, num_tokens, dtype=torch.bool)
    for head in range(num_heads):
        for i in range(num_tokens):
            for j in range(num_tokens):
                if head < num_heads // 2:
                    seen[head, i, j] = j <= i and i // group == j // group
                elif leak:  # places after every token moved half a group forward, the first to the end
                    at, other = (i - shift) % num_tokens, (j - shift) % num_tokens
                    seen[head, i, j] = other <= at and at // group == other // group
                else:
                    seen[head, i, j] = j <= i and (i + group - shift) // group == (j + group - shift) // group
    return seen


def dense(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    logits = (query @ key.mT * scale).masked_fill(~seen, -torch.inf)
    return logits.softmax(-1) @ value


def some_tensors(num_heads: int, num_kv_heads: int, num_tokens: int, *, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    shapes = [(batch, heads, num_tokens, 8) for heads in (num_heads, num_kv_heads, num_kv_heads)]
    return [torch.randn(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("leak", [False, True])
@pytest.mark.parametrize("num_heads,num_kv_heads", HEADS)
@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_equals_dense_attention_under_its_mask_forward_and_backward(
    num_tokens, num_heads, num_kv_heads, leak
):
    tensors = some_tensors(num_heads, num_kv_heads, num_tokens)
    got = shifted_attention(*tensors, scale=0.4, leak=leak)
    wanted = dense(*tensors, seen_pairs(num_heads, num_tokens, leak=leak), 0.4)
    assert torch.allclose(got, wanted, rtol=0, atol=1e-12)
    weights = torch.randn(got.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), tensors),
        torch.autograd.grad((wanted * weights).sum(), tensors),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)


def test_no_token_sees_a_later_one_unless_the_published_leak_is_asked_for():
    for leak in (False, True):
        query, key, value = some_tensors(4, 2, 32)
        shifted_attention(query, key, value, leak=leak)[:, :, :16].sum().backward()
        assert bool((value.grad[:, :, 16:] == 0).all()) != leak
        assert bool((value.grad[:, :, 4:16] != 0).any())
    assert not seen_pairs(4, 32).triu(1).any()
    assert seen_pairs(4, 32, leak=True)[:, :4, 28:].any()


def masked_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The stock model under the 4-D mask that shifted attention stands for."""
    config = model.config
    mask = seen_pairs(config.num_attention_heads, ids.shape[1])[None]
    if config.model_type == "gemma3_text":
        at = torch.arange(ids.shape[1])
        near = (at[:, None] >= at) & (at[:, None] - at < config.sliding_window)
        return model(
            ids, attention_mask={"full_attention": mask, "sliding_attention": near[None, None]}
        ).logits
    return model(ids, attention_mask=mask).logits


@pytest.mark.parametrize("num_tokens", [64, 101])
@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Phi3", "Gemma3"])
def test_a_model_in_training_attends_within_groups(family, num_tokens):
    model, ids = random_model(family).train(), random_ids(2 * num_tokens).view(2, -1)
    wanted = masked_logits(model, ids)
    wanted.square().mean().backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    stock = model(ids).logits
    model.set_attn_implementation(register())
    got = model(ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert (got - stock).abs().max().item() > 0.01
    got.square().mean().backward()
    for name, value in model.named_parameters():
        assert torch.allclose(value.grad, gradients[name], rtol=1e-3, atol=1e-6), name


def test_layers_computed_again_in_backward_give_the_same_gradients():
    model, ids = random_model().train(), random_ids(70)[None]
    model.set_attn_implementation(register())
    found = []
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(ids).logits.square().mean().backward()
        found.append(model.model.layers[0].self_attn.k_proj.weight.grad.clone())
        model.zero_grad()
    assert torch.allclose(found[0], found[1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("family", ["Llama", "Gemma3", "MistralSliding"])
def test_a_model_that_is_not_trained_is_dense(family):
    model, ids = random_model(family), random_ids(90)[None]
    with torch.no_grad():
        wanted = model(ids).logits
        tokens = model.generate(ids, max_new_tokens=3, do_sample=False)
        model.set_attn_implementation(register())
        assert torch.allclose(model(ids).logits, wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(model.generate(ids, max_new_tokens=3, do_sample=False), tokens)


def test_what_it_cannot_serve_is_refused_in_one_sentence():
    model, ids = random_model().train(), random_ids(40).view(2, 20)
    model.set_attn_implementation(register())
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with pytest.raises(ValueError, match="this batch has padding; give rows of one length without it"):
        model(ids, attention_mask=mask)
    with pytest.raises(ValueError, match="makes its own masks, and this model brought one"):
        model(ids, attention_mask=torch.ones(2, 1, 20, 20, dtype=torch.bool))
    with pytest.raises(ValueError, match="moves half of a layer's heads, and this one has 1"):
        shifted_attention(*some_tensors(1, 1, 8))


def test_the_scheme_names_its_attention():
    assert Shifted().attention() == NAME == "longspan_shifted"
    assert Shifted(leak=True).attention() == LEAKING
    model, ids = random_model().train(), random_ids(64)[None]
    logits = []
    for scheme in (Shifted(), Shifted(leak=True)):
        model.set_attn_implementation(scheme.attention())
        logits.append(model(ids).logits)
    assert float((logits[0] - logits[1]).abs().max()) > 0.01
    assert read_scheme_cards()["shifted"].paper_id == 55


def test_rows_are_in_full_length_and_in_order():
    scheme = Shifted()
    assert scheme.row_tokens(256, 1024) == 1024
    assert scheme.positions(1024, 1024, np.random.default_rng(0)).tolist() == list(range(1024))
    assert scheme.module(one_rope()) is None


def test_frequencies_are_interpolated_by_the_target_over_the_window():
    rope, rng = one_rope(), np.random.default_rng(0)
    for target, factor in ((1024, 4), (1025, 5)):
        got = Shifted().rope(rope, target, rng).inv_freq
        assert torch.equal(got, PositionInterpolation(factor=factor).rope(rope).inv_freq)
        planned = load(small_llama(), Shifted().spec(rope, target)).plan.layers[0].info.rope
        assert torch.allclose(planned.inv_freq, got, rtol=1e-6, atol=0)
    assert Shifted().rope(rope, 1024, rng) is Shifted().rope(rope, 1024, rng)
    plain = resolve_scheme('shifted(positions="")')
    assert plain.rope(rope, 1024, rng) is rope and plain.spec(rope, 1024) == "dense"
    other = resolve_scheme('shifted(positions="yarn(factor=4)", leak=true)')
    assert other.spec(rope, 1024) == "yarn(factor=4.0)" and other.leak
    for scheme in (Shifted(), plain, other):
        assert resolve_scheme(canonical_scheme(scheme)) == scheme
    with pytest.raises(ValueError, match="does not set rotary frequencies"):
        Shifted(positions_="snapkv()")
