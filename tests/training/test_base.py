"""What can be extended, and what is refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from longspan.errors import UserInputError
from longspan.training.base import load_base
from longspan.training.registry import resolve_scheme
from tests.models import VOCAB, random_model, word_tokenizer
from tests.training.tiny import TARGET, WINDOW, tiny_model


def scaled_model() -> PreTrainedModel:
    parameters = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    return LlamaForCausalLM(LlamaConfig(**_tiny(), rope_parameters=parameters))


def _tiny() -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": WINDOW,
    }


def absolute_model() -> PreTrainedModel:
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=WINDOW)
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize(
    ("model", "scheme", "message"),
    [
        (
            tiny_model,
            'full(positions="yarn(factor=2)")',
            "enough for 128 tokens, and --length is 256: that takes 4 times",
        ),
        (tiny_model, 'pose(positions="pi(factor=3.9)")', "slows the slowest frequency 3.9 times"),
        (tiny_model, 'full(positions="abf(theta=20000)")', "abf(theta=20000.0) slows the slowest frequency"),
        (tiny_model, 'full(positions="abf(theta=5000)")', "abf raises the rotary base: got theta=5000"),
        (tiny_model, 'full(positions="longrope(factors=[4, 4])")', "longrope: got 2 factors"),
        (scaled_model, 'full(positions="pi(factor=4)")', "already scales its rotary positions (yarn)"),
        (scaled_model, "full", "already scales its rotary positions (yarn)"),
        (absolute_model, "full", "has no rotary positions in the layers"),
    ],
)
def test_refused_models_and_specs(model: Any, scheme: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_base(model(), resolve_scheme(scheme), TARGET, tokenizer=word_tokenizer())
    assert message in str(caught.value)


def test_a_model_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(UserInputError, match="has no tokenizer"):
        load_base(tiny_model(), resolve_scheme("full"), TARGET)


def test_nothing_stays_attached() -> None:
    model = tiny_model()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        before = model(ids).logits
    base = load_base(model, resolve_scheme("full"), TARGET, tokenizer=word_tokenizer())
    assert base.window_tokens == WINDOW
    assert base.model.config._attn_implementation == "sdpa"
    assert not any(module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)


def test_only_layers_that_see_the_whole_text_are_trained_under_other_positions() -> None:
    base = load_base(random_model("Gemma3"), resolve_scheme("full"), 1024, tokenizer=word_tokenizer())
    assert [int(module.layer_idx) for module in base.modules] == [1]


def test_smoke_is_a_tiny_model_with_the_same_tokenizer_and_a_sixteenth_of_the_window() -> None:
    base = load_base(
        random_model(),
        resolve_scheme('full(positions="pi(factor=4)")'),
        64,
        tokenizer=word_tokenizer(),
        smoke=True,
    )
    assert base.window_tokens == 16
    assert base.model.config.vocab_size == VOCAB
    assert base.model.config.eos_token_id == 2
