"""The seam: every family, stock logits, stock generate, left padding, detach; layers that cannot be served."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from longspan.engine.api import applied, load
from longspan.errors import UnsupportedLayerError
from tests.models import FAMILIES, full_logits, random_ids, random_model


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_stock_in_chunks_and_after_detach(family: str) -> None:
    model, ids = random_model(family), random_ids(200)
    with torch.no_grad():
        stock = model(ids[None]).logits[0]
    span = load(model)
    torch.testing.assert_close(full_logits(span, ids, chunk_tokens=37), stock, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids[None]).logits[0], stock, atol=1e-6, rtol=1e-6
        )  # attached, no longspan cache
    span.detach()
    with torch.no_grad():
        assert torch.equal(model(ids[None]).logits[0], stock)


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_kept_before_rotation_equal_stock(family: str) -> None:
    if family == "MistralSliding":
        pytest.skip("no layer of it is open to methods")
    model, ids = random_model(family), random_ids(200)
    with torch.no_grad():
        stock = model(ids[None]).logits[0]
    span = load(model, "lm_infinite(global_tokens=4, window_tokens=4096, evict=false)")
    assert span.plan.pre_rotary
    torch.testing.assert_close(full_logits(span, ids, chunk_tokens=64), stock, atol=2e-5, rtol=1e-4)
    span.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_equals_stock_with_left_padding_beams_and_lookup(family: str) -> None:
    model = random_model(family)
    batch = torch.zeros(2, 90, dtype=torch.long)
    batch[0, 25:], batch[1] = random_ids(65), random_ids(90, seed=1)
    inputs = {
        "input_ids": batch,
        "attention_mask": (batch > 0).long(),
        "max_new_tokens": 8,
        "do_sample": False,
    }
    single = {"input_ids": batch[1:], "max_new_tokens": 8, "do_sample": False}
    calls = [inputs, {**inputs, "num_beams": 3}, {**single, "prompt_lookup_num_tokens": 3}]
    stock = [model.generate(**call) for call in calls]
    with applied(model, "dense"):
        ours = [model.generate(**call) for call in calls]
    for ours_ids, stock_ids in zip(ours, stock, strict=True):
        assert torch.equal(ours_ids, stock_ids)
    assert torch.equal(model.generate(**inputs), stock[0])


@pytest.mark.parametrize(
    "spec", ["snapkv(keep=0.5)", "duo_attention(retrieval_heads=[1], recent_tokens=32, sink_tokens=4)"]
)
def test_prompt_lookup_under_methods_that_free_equals_plain_decoding(spec: str) -> None:
    """Its first forward carries guesses behind the prompt; they are no part of the text that is compacted."""
    model = random_model()
    prompt = random_ids(40).repeat(3)[None]
    with applied(model, spec):
        plain = model.generate(prompt, max_new_tokens=20, do_sample=False)
        looked_up = model.generate(prompt, max_new_tokens=20, do_sample=False, prompt_lookup_num_tokens=4)
    assert torch.equal(plain, looked_up)


@pytest.mark.parametrize("family", ["Llama", "MistralSliding", "Gemma3"])
def test_rejected_guesses_leave_nothing_behind(family: str) -> None:
    """A sliding window still holds all it may see once guesses are taken back, also after hundreds of tokens."""
    model, prompt = random_model(family), random_ids(40).repeat(3)[None]
    call = {"max_new_tokens": 320, "do_sample": False}
    stock = model.generate(prompt, **call)
    with applied(model, "dense"):
        looked_up = model.generate(prompt, prompt_lookup_num_tokens=4, **call)
    assert torch.equal(stock, looked_up)


@pytest.mark.parametrize(
    "spec", ["snapkv(keep=0.5)", "duo_attention(retrieval_heads=[1], recent_tokens=32, sink_tokens=4)"]
)
def test_prompt_lookup_behind_left_padding_equals_plain_decoding(spec: str) -> None:
    """Guesses are found by their positions, which padding shifts against the number of tokens seen."""
    model = random_model()
    prompt = torch.cat([torch.zeros(30, dtype=torch.long), random_ids(40).repeat(3)])[None]
    call = {"attention_mask": (prompt > 0).long(), "max_new_tokens": 20, "do_sample": False}
    with applied(model, spec):
        plain = model.generate(prompt, **call)
        looked_up = model.generate(prompt, prompt_lookup_num_tokens=4, **call)
    assert torch.equal(plain, looked_up)


def test_a_model_in_training_is_so_again_when_detached() -> None:
    model = random_model().train()
    model.lm_head.eval()
    with applied(model, "dense"):
        assert not model.training
    span = load(model)
    assert not model.training
    span.detach()
    assert model.training and model.model.layers[0].training and not model.lm_head.training


def test_every_layer_that_keeps_keys_before_rotation_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from longspan.engine import model as module

    loaded = load(random_model()).loaded
    checked: list[list[bool]] = []
    monkeypatch.setattr(
        module,
        "check_parity",
        lambda model, stock, plan, name: checked.append([layer.pre_rotary for layer in plan.layers]),
    )
    for layer in (0, 1, 0):
        loaded.plan(f"on(layers={layer}, lm_infinite(evict=false))")
    assert checked == [[True, False], [False, True]]


def test_bfloat16_stays_close_to_stock() -> None:
    model, ids = random_model(dtype=torch.bfloat16), random_ids(120)
    with torch.no_grad():
        stock = model(ids[None]).logits[0].float()
    span = load(model)
    assert span.info.dtype == torch.bfloat16
    assert (full_logits(span, ids, chunk_tokens=50) - stock).abs().max() < 0.03 * stock.abs().max()
    span.detach()


def test_importing_leaves_the_registries_alone() -> None:
    import subprocess
    import sys

    code = (
        "import longspan, longspan.engine.api\n"
        "from transformers import AttentionInterface\n"
        "from transformers.masking_utils import AttentionMaskInterface as M\n"
        "assert 'longspan' not in AttentionInterface._global_mapping and 'longspan' not in M._global_mapping\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert AttentionInterface is not None and AttentionMaskInterface is not None


def test_softcap_layer_is_named() -> None:
    config = transformers.Gemma2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=500,
    )
    with pytest.raises(UnsupportedLayerError, match=r"layer 0 \(Gemma2Attention\) has logit soft-capping"):
        load(transformers.Gemma2ForCausalLM(config))


def test_latent_attention_is_named() -> None:
    config = transformers.DeepseekV3Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=500,
        n_routed_experts=4, q_lora_rank=32, kv_lora_rank=16, qk_rope_head_dim=8, v_head_dim=16, qk_nope_head_dim=8,
        n_group=1, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=16, intermediate_size=64,
    )  # fmt: skip
    with pytest.raises(UnsupportedLayerError, match="layer 0 works on its cached keys"):
        load(transformers.DeepseekV3ForCausalLM(config))


def test_bidirectional_model_is_refused() -> None:
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    with pytest.raises(UnsupportedLayerError, match="attends in both directions"):
        load(transformers.BertLMHeadModel(config))


def test_layer_without_rotary_is_named_by_the_probe() -> None:
    config = transformers.SmolLM3Config(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=500, pad_token_id=0,
    )  # fmt: skip
    model = transformers.SmolLM3ForCausalLM(config).eval()
    with pytest.raises(ValueError, match="layer 3 .* has none"):
        load(model, "pi(factor=2)")
    span = load(model, "on(layers=0-2, pi(factor=2))")
    assert [layer.new_rope for layer in span.plan.layers] == [True, True, True, False]
    span.detach()


def test_methods_on_a_model_of_sliding_windows_only_are_refused() -> None:
    with pytest.raises(ValueError, match="would change nothing: every layer it covers has a sliding window"):
        load(random_model("MistralSliding"), "snapkv(keep=0.5)")
