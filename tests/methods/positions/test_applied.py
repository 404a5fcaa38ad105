"""Every method that expresses distance, found by its card, inside `applied()` on four families.

Llama; Qwen3 (norms on queries and keys); Gemma3 (a sliding layer with a rotary embedding of its own before each full one);
Phi3 (half of a head is rotated).
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longspan.card import all_cards
from longspan.engine import attention
from longspan.engine.api import applied, load
from longspan.errors import UserInputError
from longspan.ops.attend.naive import naive_attend
from tests.models import WINDOW, full_logits, random_ids, random_model

FAMILIES = ("Llama", "Qwen3", "Gemma3", "Phi3")
CARDS = {name: card for name, card in all_cards().items() if card.family == "positions"}
READINGS = [name for name, card in CARDS.items() if "Reading" in card.roles]
NAMES = [name for name in CARDS if name not in READINGS]
TEXT = random_ids(WINDOW + 30, seed=3)
LAMBDA = {8: [1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.1, 4.0], 4: [1.0, 1.3, 2.0, 4.0]}
STOCK: dict[str, dict[str, Any]] = {  # spec to the `rope_parameters` with which transformers does the same
    "pi(factor=2.5)": {"rope_type": "linear", "factor": 2.5},
    "yarn(factor=4)": {"rope_type": "yarn", "factor": 4.0},
    "yarn(factor=8, beta_fast=16, beta_slow=2)": {
        "rope_type": "yarn",
        "factor": 8.0,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
    "longrope(factors={factors}, factor=4)": {"rope_type": "longrope", "factor": 4.0},
    "dynamic_ntk(factor=2)": {"rope_type": "dynamic", "factor": 2.0},
    "abf(theta=2000000)": {"rope_type": "default", "rope_theta": 2e6},
}
UNKNOWN_TO_PHI3 = ("linear", "dynamic", "yarn", "llama3")  # its config takes longrope alone
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def scaled(family: str, parameters: dict[str, Any]) -> PreTrainedModel:
    """The weights of `random_model`, with transformers doing the scaling in the layers that methods may change."""
    plain = random_model(family)
    settings = plain.config.to_dict()
    old = settings["rope_parameters"]
    given = {"original_max_position_embeddings": WINDOW, **_full(parameters, plain)}
    if given["rope_type"] in ("default", "linear", "dynamic"):
        del given["original_max_position_embeddings"]
    if family == "Phi3" and given["rope_type"] in UNKNOWN_TO_PHI3:
        return with_frequencies(plain, given)
    if "full_attention" in old:
        settings["rope_parameters"] = {**old, "full_attention": {**old["full_attention"], **given}}
    else:
        settings["rope_parameters"] = {**old, **given}
    model = type(plain)(type(plain.config)(**settings)).eval()
    model.load_state_dict(plain.state_dict())
    model.generation_config.pad_token_id = 0
    return model


def with_frequencies(model: PreTrainedModel, parameters: dict[str, Any]) -> PreTrainedModel:
    """The model with the frequencies that transformers gives a Llama of the same half rotated heads, for a text of `TEXT`."""
    parameters = {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5, **parameters}
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        head_dim=16,
        max_position_embeddings=WINDOW,
        rope_parameters=parameters,
    )
    made = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"), seq_len=len(TEXT))
    rotary = model.model.rotary_emb
    assert rotary.inv_freq.shape == made[0].shape
    rotary.inv_freq.copy_(made[0])
    rotary.attention_scaling = made[1]
    return model


def _full(parameters: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    if parameters["rope_type"] != "longrope":
        return parameters
    factors = LAMBDA[num_pairs(model)]
    return {**parameters, "short_factor": factors, "long_factor": factors}


def example(name: str, family: str) -> str:
    """The card's example; Gemma3's own base is a hundred times Llama's, and raised bases must be above it."""
    spec = CARDS[name].example
    return re.sub(r"theta=(\d+)", r"theta=\g<1>000", spec) if family == "Gemma3" else spec


def num_pairs(model: PreTrainedModel) -> int:
    """Rotary pairs of a layer that methods may change."""
    rotary = model.model.rotary_emb
    return len(getattr(rotary, "full_attention_inv_freq", getattr(rotary, "inv_freq", None)))


@torch.no_grad()
def forward(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(ids[None]).logits[0]


@torch.no_grad()
def generated(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Ids of a prompt and what follows it, and the scores `[t, V]` that chose it."""
    out = model.generate(
        ids[None], max_new_tokens=5, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    return out.sequences[0], torch.cat(out.scores)


def assert_same(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], tolerance: float = 1e-5) -> None:
    assert torch.equal(got[0], wanted[0])
    torch.testing.assert_close(got[1], wanted[1], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_the_identity_is_stock_generate(name: str, family: str) -> None:
    model = random_model(family)
    stock = generated(model, TEXT)
    with applied(model, CARDS[name].identity):
        assert_same(generated(model, TEXT), stock)
    again = generated(model, TEXT)
    assert torch.equal(again[0], stock[0]) and torch.equal(again[1], stock[1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_the_example_equals_the_naive_twin_and_the_text_read_in_chunks(
    name: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps, scales and frequencies: every step in float32, pair by pair, gives the same scores; so does `load`."""
    model, spec = random_model(family), example(name, family)
    stock = generated(model, TEXT)
    with applied(model, spec):
        got, whole = generated(model, TEXT), forward(model, TEXT)
        with monkeypatch.context() as patched:
            patched.setattr(attention, "attend", naive_attend)
            assert_same(got, generated(model, TEXT), tolerance=1e-4)
    assert (got[1][0] - stock[1][0]).abs().max() > 1e-4
    if "chunked_reading" not in CARDS[name].tolerances:
        chunked = full_logits(load(model, spec), TEXT, chunk_tokens=64)
        torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", STOCK)
def test_what_transformers_has_is_what_transformers_does(spec: str, family: str) -> None:
    model, stock = random_model(family), scaled(family, STOCK[spec])
    named = spec.replace("{factors}", str(LAMBDA[num_pairs(model)]))
    wanted = forward(stock, TEXT)
    with applied(model, named):
        torch.testing.assert_close(forward(model, TEXT), wanted, atol=1e-5, rtol=1e-5)
        if (
            STOCK[spec]["rope_type"] != "dynamic"
        ):  # its stored keys keep old frequencies in transformers alone
            assert_same(generated(model, TEXT), generated(stock, TEXT))
    assert (forward(model, TEXT) - wanted).abs().max() > 1e-4


SCALING_THEMSELVES = [
    pytest.param(family, parameters, id=f"{family}-{parameters['rope_type']}")
    for family in FAMILIES
    for parameters in ({p["rope_type"]: p for p in (*STOCK.values(), LLAMA3)}).values()
    if not (family == "Phi3" and parameters["rope_type"] in UNKNOWN_TO_PHI3)
    and parameters["rope_type"] != "default"
]


@pytest.mark.parametrize(("family", "parameters"), SCALING_THEMSELVES)
def test_a_model_that_scales_itself_keeps_its_own(family: str, parameters: dict[str, Any]) -> None:
    """All five types are left to transformers by `dense` and, where a text is short, by methods that map positions."""
    model, short = scaled(family, parameters), TEXT[: WINDOW - 20]
    stock, stock_short = generated(model, TEXT), generated(model, short)
    with applied(model, "dense"):
        assert_same(generated(model, TEXT), stock)
    with applied(model, CARDS["self_extend"].identity):
        assert_same(generated(model, short), stock_short)


@pytest.mark.parametrize("name", NAMES)
def test_sliding_layers_are_left_alone_and_it_is_said(name: str) -> None:
    """Gemma3's first layer gives what it gave, bit for bit; the full layer behind it does not."""
    model = random_model("Gemma3")
    seen: list[list[Tensor]] = []
    outputs: list[list[Tensor]] = []
    for layer in model.model.layers:
        rows: list[Tensor] = []
        seen.append(rows)
        layer.self_attn.register_forward_hook(lambda m, a, out, rows=rows: rows.append(out[0].detach()))
    for spec in ("dense", example(name, "Gemma3")):
        with applied(model, spec):
            for rows in seen:
                rows.clear()
            forward(model, TEXT)
            outputs.append([rows[-1] for rows in seen])
    (sliding_before, full_before), (sliding_after, full_after) = outputs
    assert torch.equal(sliding_after, sliding_before)
    assert (full_after - full_before).abs().max() > 1e-3
    span = load(model, example(name, "Gemma3"))
    assert span.plan.notes == (f"{name} leaves layer 0 as it is: it has a sliding window of its own",)
    sliding = span.plan.layers[0]
    assert not (sliding.new_rope or sliding.pre_rotary or sliding.positions)
    assert load(random_model(), CARDS[name].example).plan.notes == ()


def test_notes_name_every_method_and_only_layers_that_it_covers() -> None:
    model = load(random_model("Gemma3", num_layers=6))
    own = "they have a sliding window of their own"
    assert model.with_methods("pi(factor=2) + snapkv(keep=0.5) + truncate(keep_tokens=9)").plan.notes == (
        f"pi leaves layers [0, 2, 4] as they are: {own}",
        f"snapkv leaves layers [0, 2, 4] as they are: {own}",
    )
    assert model.with_methods("on(layers=1, pi(factor=2)) + on(layers=2-5, ntk(factor=2))").plan.notes == (
        f"ntk leaves layers [2, 4] as they are: {own}",
    )
    assert model.plan.notes == ()


@pytest.mark.parametrize("name", READINGS)
def test_what_reads_in_an_order_of_its_own_says_so(name: str) -> None:
    model = random_model()
    with (
        pytest.raises(UserInputError, match=f"^{name} reads a text in its own order.*use longspan.load"),
        applied(model, CARDS[name].example),
    ):
        pass
    assert "generate" not in vars(model) and model.config._attn_implementation != "longspan"


def test_two_methods_on_layers_of_their_own() -> None:
    """Each layer as if its method were everywhere: by a model whose layers are handed other rotary embeddings."""
    model, by_hand = random_model(), random_model()
    spans = [
        load(random_model(), spec).plan.layers[0].info.rope for spec in ("pi(factor=2)", "ntk(factor=5)")
    ]
    for layer, rope in zip(by_hand.model.layers, spans, strict=True):
        assert rope is not None
        angles = torch.outer(torch.arange(len(TEXT)).float(), rope.inv_freq).repeat(1, 2)[None]
        layer.self_attn.register_forward_pre_hook(
            lambda m, args, kwargs, a=angles: (args, {**kwargs, "position_embeddings": (a.cos(), a.sin())}),
            with_kwargs=True,
        )
    with applied(model, "on(layers=0, pi(factor=2)) + on(layers=1, ntk(factor=5))"):
        torch.testing.assert_close(forward(model, TEXT), forward(by_hand, TEXT), atol=1e-5, rtol=1e-5)


def test_phi3s_own_longrope_is_scaling_of_its_own() -> None:
    model = scaled("Phi3", {"rope_type": "longrope", "factor": 4.0})
    assert isinstance(model, transformers.Phi3ForCausalLM)
    with (
        pytest.raises(ValueError, match=r"already scales its own \(longrope\)"),
        applied(model, "yarn(factor=2)"),
    ):
        pass
