"""Training the gates of DuoAttention: it finds the heads that matter and leaves no trace."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from longspan.engine.api import load
from longspan.methods.attention.duo_attention import identify_heads, load_gates
from longspan.methods.attention.duo_attention.__main__ import main
from longspan.methods.attention.duo_attention.identify import NAME, make_lesson, streaming_attention
from tests.models import random_ids, random_model

TEXT = "the quick brown fox jumps over the lazy dog and runs. " * 40
SHORT = {"min_tokens": 560, "max_tokens": 600, "num_passkeys": 2, "sink_tokens": 4, "recent_tokens": 32}


def character_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {c: 3 + i for i, c in enumerate(string.printable)}
    raw = Tokenizer(WordLevel(vocab, unk_token="<pad>"))
    raw.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def model_where_heads_matter(matter: set[tuple[int, int]]) -> PreTrainedModel:
    """Heads elsewhere are cut off behind their attention."""
    model = random_model()
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            for kv in (0, 1):
                if (index, kv) not in matter:
                    layer.self_attn.o_proj.weight[:, kv * 32 : kv * 32 + 32] = 0
    return model


@pytest.mark.parametrize("matter", [{(0, 1), (1, 0)}, {(0, 0), (0, 1)}, {(1, 1)}])
def test_heads_that_need_far_text_keep_their_gates(matter: set[tuple[int, int]]) -> None:
    gates = identify_heads(
        model_where_heads_matter(matter),
        character_tokenizer(),
        TEXT,
        steps=16,
        learning_rate=0.2,
        l1_weight=0.05,
        **SHORT,
    )
    assert gates.shape == (2, 2) and gates.dtype == torch.float32
    for index in (0, 1):
        for kv in (0, 1):
            gate = float(gates[index, kv])
            assert gate > 0.3 if (index, kv) in matter else gate < 0.01


def test_gates_stay_in_range_and_training_is_repeatable() -> None:
    seen = []
    runs = [
        identify_heads(
            random_model(),
            character_tokenizer(),
            TEXT,
            steps=3,
            learning_rate=0.9,
            on_step=lambda step, loss, gates: seen.append((step, float(gates.min()), float(gates.max()))),
            **SHORT,
        )
        for _ in range(2)
    ]
    assert torch.equal(*runs)
    assert [step for step, _, _ in seen] == [0, 1, 2, 0, 1, 2]
    assert all(low >= 0.0 and high <= 1.0 for _, low, high in seen)


def test_sliding_layers_have_no_gates() -> None:
    gates = identify_heads(random_model("Gemma3"), character_tokenizer(), TEXT, steps=2, **SHORT)
    assert gates.isnan().tolist() == [[True, True], [False, False]]


def test_training_leaves_the_model_as_it_was() -> None:
    model = random_model()
    model.train()
    frozen = model.model.embed_tokens.weight.requires_grad_(False)
    ids = random_ids(40)[None]
    before, weights = model(ids).logits, {k: v.clone() for k, v in model.state_dict().items()}
    implementation, functions = model.config._attn_implementation, set(ALL_ATTENTION_FUNCTIONS)
    identify_heads(model, character_tokenizer(), TEXT, steps=2, **SHORT)
    assert torch.equal(model(ids).logits, before)
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert model.training and model.config._attn_implementation == implementation
    assert set(ALL_ATTENTION_FUNCTIONS) == functions and NAME not in functions
    assert all(p.requires_grad is (p is not frozen) and p.grad is None for p in model.parameters())


def test_an_attached_model_stays_attached() -> None:
    model = random_model()
    stock = model(random_ids(40)[None]).logits
    span = load(model, "dense", tokenizer=character_tokenizer())
    identify_heads(model, span.tokenizer, TEXT, steps=1, **SHORT)
    torch.testing.assert_close(
        torch.cat([part for _, part in span.logits(random_ids(40))]), stock[0], atol=1e-4, rtol=1e-4
    )
    span.detach()
    assert torch.equal(model(random_ids(40)[None]).logits, stock)


def test_lessons_score_exactly_the_values() -> None:
    tokenizer = character_tokenizer()
    text_ids = torch.tensor(tokenizer.encode(TEXT, add_special_tokens=False))
    lesson = make_lesson(tokenizer, text_ids, random.Random(4), 1000, 3)
    assert len(lesson.ids) == 1000 and lesson.ids[0] == tokenizer.bos_token_id
    whole = "".join(tokenizer.convert_ids_to_tokens(lesson.ids.tolist()))
    values = "".join(tokenizer.convert_ids_to_tokens(lesson.ids[lesson.scored + 1].tolist())).split()
    assert len(values) == 3 and all(len(value) == 7 and value.isdigit() for value in values)
    for value in values:
        needle = whole.index(f"is: {value}.")
        key = whole[:needle].rsplit("magic numbers for ", 1)[1].strip()
        assert f"What is the special magic number for {key} mentioned" in whole
        assert whole.index(f"for {key} mentioned in the provided text is {value}.") > needle


@pytest.mark.parametrize("num_tokens", [1, 63, 300, 1300])
@pytest.mark.parametrize(("sink", "recent"), [(0, 1), (5, 40), (300, 290)])
def test_streaming_attention_equals_its_mask(num_tokens: int, sink: int, recent: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, num_tokens, 8) for heads in (4, 2, 2))
    at = torch.arange(num_tokens)
    allowed = (at <= at[:, None]) & ((at < sink) | (at[:, None] - at < recent))
    logits = q @ k.repeat_interleave(2, 1).transpose(2, 3) * 0.3
    expected = logits.masked_fill(~allowed, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(
        streaming_attention(q, k, v, sink, recent, 0.3), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"min_tokens": 900}, "min_tokens=900, max_tokens=600"),
        ({"recent_tokens": 560}, "recent_tokens from 1 to below min_tokens=560"),
        ({"num_passkeys": 9}, "leave no room for text"),
        ({"max_tokens": 5000}, "a text of 2160 tokens; give one of 5000 or more"),
    ],
)
def test_bad_settings_say_what_to_do(changed: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        identify_heads(random_model(), character_tokenizer(), TEXT, **{**SHORT, **changed})


def test_the_command_makes_gates_that_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model().save_pretrained(tmp_path / "model")
    character_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    where = [str(tmp_path / name) for name in ("model", "text.txt", "gates.json")]
    assert main([*where, "--steps=2", *settings]) == 0
    assert len(load_gates(where[2]).alpha) == 2
    assert load_gates(where[2]).settings == {**SHORT, "steps": 2}
    assert load_gates(where[2]).fingerprints[0] == load(where[0]).info.fingerprint
    model = load(where[0], f'duo_attention(gates="{where[2]}")')
    assert load(where[0], model.spec, dtype="bfloat16").spec == model.spec
    assert model.read(random_ids(60), progress=False).num_tokens == 60
    assert capsys.readouterr().out.startswith("layer   0  ")
    assert main([where[0], str(tmp_path / "nothing"), where[2]]) == 2
    assert "there is no text at" in capsys.readouterr().err
