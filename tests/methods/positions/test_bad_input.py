"""What a user can get wrong with any method of the family, found by their cards: one sentence each that says what to do.

A setting that no sentence refuses must give finite logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch
import transformers

from longspan.card import all_cards
from longspan.cli import run
from longspan.engine.api import load
from longspan.engine.model import SpanModel
from longspan.methods.positions.yarn import Yarn
from longspan.roles import Method
from longspan.spec import resolve
from tests.methods.positions.small import small_llama, some_ids, stock_rope
from tests.models import VOCAB, WINDOW, random_ids, random_model, word_tokenizer, words

CARDS = {name: card for name, card in all_cards().items() if card.family == "positions"}
DISTANCES = [name for name, card in CARDS.items() if "Positions" in card.roles]
WORST = (math.nan, math.inf, -math.inf, -1, 0, 1e-300, 0.5, 1e300, 2**31 - 1)
TYPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": WINDOW},
    "longrope": {"factor": 2.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    "llama3": {
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": WINDOW,
    },
}


def example(name: str) -> Method:
    return resolve(CARDS[name].example)[0].method


def numeric_settings() -> Iterator[tuple[str, str]]:
    """Every method's settings that are one number."""
    for name in CARDS:
        hints = get_type_hints(type(example(name)))
        for entry in fields(example(name)):
            hint = hints[entry.name]
            kinds = set(get_args(hint)) if get_origin(hint) is UnionType else {hint}
            if kinds & {int, float}:
                yield name, entry.name


@pytest.fixture(scope="module")
def llama() -> SpanModel:
    return load(small_llama())


def answer(model: SpanModel, methods: Any, num_tokens: int = WINDOW + 44) -> torch.Tensor:
    """Logits behind a question about a text beyond the window, chunk by chunk."""
    span = SpanModel(model.loaded, methods, chunk_tokens=128)
    context, question = span.read(some_ids(num_tokens), progress=False), some_ids(5, seed=2)
    branch = span.reader().open_question(context.run, question)
    logits = span.reader().advance(branch, question)
    assert logits is not None
    return logits


@pytest.mark.parametrize(("name", "setting"), list(numeric_settings()))
def test_a_number_is_refused_in_one_sentence_or_works(name: str, setting: str, llama: SpanModel) -> None:
    method = example(name)
    whole = float not in _kinds(method, setting)
    refused = 0
    for value in (number for number in WORST if not whole or isinstance(number, int)):
        try:
            changed = replace(method, **{setting: value})
            llama.with_methods(changed)
        except ValueError as error:
            said = str(error)
            assert (
                f"{setting}={value:g}" in said or f"{setting}={value}" in said or f"got {setting}" in said
            ), said
            assert "\n" not in said and any(
                word in said for word in ("allowed", "give", "write", "such as")
            ), said
            refused += 1
        else:
            assert bool(torch.isfinite(answer(llama, changed)).all()), f"{name}({setting}={value})"
    assert refused >= 1


def _kinds(method: Method, setting: str) -> set[Any]:
    hint = get_type_hints(type(method))[setting]
    return set(get_args(hint)) or {hint}


@pytest.mark.parametrize("value", [0.999, 0.0, -2.0, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", [name for name, setting in numeric_settings() if setting == "factor"])
def test_a_factor_below_one_or_no_number(name: str, value: float) -> None:
    with pytest.raises(
        ValueError, match=rf"got factor={value:g}; allowed is 1 \(no change\) or more.*factor=2 is"
    ):
        replace(example(name), factor=value)


def test_ends_of_yarns_ramp_are_numbers() -> None:
    """An infinite one was the bare message of a logarithm."""
    for fast in (math.inf, math.nan):
        with pytest.raises(
            ValueError, match=r"got beta_slow=1 and beta_fast=.*allowed is 0 < beta_slow < beta_fast"
        ):
            Yarn(factor=2, beta_fast=fast)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("abf(theta=1e200)", r"got theta=1e\+200; give a base .*, up to 1e\+30"),
        ("entropy_abf(theta=1e200)", r"got theta=1e\+200; give a base .*, up to 1e\+30"),
        (
            "longrope(factors=2, attention_factor=1e30)",
            r"got attention_factor=1e\+30; allowed is above 0 .* 1,000,000",
        ),
        ("temp_scale(form=constant, temperature=1e-200)", "got temperature=1e-200; allowed is 0.001 or more"),
    ],
)
def test_numbers_that_a_float32_cannot_follow(spec: str, message: str) -> None:
    """Each gave frequencies of 0, or logits that were no numbers."""
    with pytest.raises(ValueError, match=message):
        resolve(spec)


@pytest.mark.parametrize("spec", ["abf(theta=1e30)", "longrope(factors=2, attention_factor=1e6)"])
def test_the_largest_allowed_numbers_work(spec: str, llama: SpanModel) -> None:
    assert bool(torch.isfinite(answer(llama, spec)).all())
    rope = llama.with_methods(spec).plan.layers[0].info.rope
    assert rope is not None and bool((rope.inv_freq > 0).all())


def one_frequency() -> SpanModel:
    """A head of 16 dims of which two are rotated."""
    config = transformers.Phi3Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=VOCAB, max_position_embeddings=WINDOW, original_max_position_embeddings=WINDOW, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, partial_rotary_factor=0.125,
    )  # fmt: skip
    torch.manual_seed(0)
    return load(transformers.Phi3ForCausalLM(config).eval())


@pytest.mark.parametrize("name", DISTANCES)
def test_a_single_frequency_is_changed_or_refused(name: str) -> None:
    """Bases leave the fastest frequency alone: with one they divided by zero, or did nothing."""
    model = one_frequency()
    try:
        span = model.with_methods(CARDS[name].example)
    except ValueError as error:
        assert str(error).startswith(
            f"{name} keeps the fastest frequency and changes the others, but layer 0 of "
        )
        assert "has one alone; use pi" in str(error)
        for way_out in ("pi(factor=2)", "self_extend(window_tokens=64)"):
            assert not torch.equal(answer(model, way_out), answer(model, "dense"))
        return
    changed = not torch.equal(answer(model, CARDS[name].example), answer(model, "dense"))
    assert changed or name == "truncated_basis"  # which keeps a frequency that turns within the window
    assert changed or span.plan.layers[0].info.rope is model.plan.layers[0].info.rope


@pytest.mark.parametrize("name", DISTANCES)
def test_a_model_without_rotary_positions(name: str) -> None:
    model = load(gpt2())
    with pytest.raises(
        ValueError, match=f"^{name} changes rotary positions, but .*; use a model with rotary"
    ) as caught:
        model.with_methods(CARDS[name].example)
    assert "\n" not in str(caught.value)


def gpt2() -> transformers.PreTrainedModel:
    config = transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=WINDOW, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("rope_type", TYPES)
def test_a_model_that_already_scales(rope_type: str) -> None:
    """Refused are exactly the methods that set frequencies, and the two ways out that the sentence names are open."""
    scaled, plain = load(stock_rope({"rope_type": rope_type, **TYPES[rope_type]})), load(small_llama())
    refused = []
    for name in DISTANCES:
        sets = any(layer.new_rope for layer in plain.with_methods(CARDS[name].example).plan.layers)
        try:
            scaled.with_methods(CARDS[name].example)
        except ValueError as error:
            assert sets, name
            assert str(error) == (
                f"{name} sets new rotary frequencies, but this model already scales its own ({rope_type}); "
                "use the model as it is, or a method that maps positions instead (self_extend, lm_infinite)"
            )
            refused.append(name)
        else:
            assert not sets, name
    assert "pi" in refused and "self_extend" not in refused
    for way_out in ("dense", CARDS["self_extend"].example, CARDS["lm_infinite"].example):
        assert bool(torch.isfinite(answer(scaled, way_out)).all())


# on the command line


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Model folders by what they are."""
    models = {
        "plain": random_model(),
        "gpt2": gpt2(),
        "yarn": stock_rope({"rope_type": "yarn", **TYPES["yarn"]}),
        "gemma3": random_model("Gemma3"),
    }
    places = {}
    for name, model in models.items():
        path = tmp_path_factory.mktemp(name)
        model.save_pretrained(path)
        word_tokenizer().save_pretrained(path)
        places[name] = str(path)
    return places


def ask(folder: str, methods: str, tmp_path: Path) -> int:
    book = tmp_path / "book.txt"
    book.write_text(words(random_ids(40)))
    return run(["ask", str(book), "w5", "--model", folder, "--methods", methods, "--max-new-tokens", "2"])


@pytest.mark.parametrize(
    ("model", "methods", "message"),
    [
        ("plain", "pi(factor=0.5)", "pi: got factor=0.5; allowed is 1 (no change) or more"),
        ("plain", "ntk(factor=inf)", "ntk: got factor=inf; allowed is 1 (no change) or more"),
        ("plain", "yarn(factor=nan)", "yarn: factor takes a number, got nan (str)"),
        ("plain", "yarn(factor=1e300)", "yarn: got factor=1e+300; allowed is 1 (no change) or more, up to 1,000,000"),
        ("plain", "rope_contraction(factor=20000)", "rope_contraction divides the rotary base: got factor=20000"),
        ("plain", "self_extend(window_tokens=256)", "self_extend: got window_tokens=256, but"),
        ("plain", "string(shift_tokens=300)", "string: got shift_tokens=300"),
        ("plain", "dual_chunk(chunk_tokens=300)", "dual_chunk: got chunk_tokens=300"),
        ("plain", "pi(factor=2)+ntk(factor=2)", "pi and ntk both express distance on layer 0, which only one method can"),
        ("plain", "pi(factor=2) + pi(factor=3)", "pi and pi both express distance on layer 0, which only one method"),
        ("gpt2", "pi(factor=2)", "pi changes rotary positions, but no layer of"),
        ("gpt2", "lm_infinite()", "lm_infinite changes rotary positions, but no layer of"),
        ("yarn", "ntk(factor=2)", "ntk sets new rotary frequencies, but this model already scales its own (yarn); use"),
    ],
)  # fmt: skip
def test_the_command_line_says_it_in_one_line(
    model: str,
    methods: str,
    message: str,
    folders: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ask(folders[model], methods, tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("longspan: ") == 1
    said = error.split("longspan: ")[1]
    assert said.startswith(message) and said.count("\n") == 1


def test_the_command_line_says_what_a_method_leaves_alone(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(folders["gemma3"], "pi(factor=2)", tmp_path) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "pi leaves layer 0 as it is: it has a sliding window of its own" in shown
    assert ask(folders["plain"], "pi(factor=2)", tmp_path) == 0
    assert "leaves layer" not in capsys.readouterr().out
