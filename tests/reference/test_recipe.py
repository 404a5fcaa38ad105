"""The recipe on a tiny scale: text, tokens, rows, network, resuming, export."""

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from longspan.evaluation.haystacks.pydoc import pydoc_text
from longspan.reference import ASSETS
from longspan.reference.config import SMOKE, ModelShape, RecipeConfig
from longspan.reference.corpus import clean_markdown, is_held_out, read_corpus
from longspan.reference.export import (
    dequantise,
    llama_config,
    llama_weights,
    load_exported,
    load_into,
    quantise,
)
from longspan.reference.network import Network, rotary_table
from longspan.reference.optimizer import orthogonalise
from longspan.reference.recipe import train_piece
from longspan.reference.rows import RowMaker
from longspan.reference.shards import TokenText, encode_document, read_shards, write_shard
from longspan.reference.tokenizer import load_tokenizer, train_tokenizer

TOKENIZER = load_tokenizer(ASSETS)
TINY = ModelShape(hidden=64, layers=2, query_heads=4, kv_heads=2, head_dim=16, mlp=96)


@pytest.fixture(scope="module")
def prose() -> TokenText:
    ids = encode_document(TOKENIZER, pydoc_text()[:200_000])
    tokens = np.concatenate([np.array([TOKENIZER.bos_token_id], dtype=np.uint16), ids])
    return TokenText(tokens=tokens, starts=np.array([0]))


@pytest.fixture(scope="module")
def maker(prose: TokenText) -> RowMaker:
    return RowMaker(TOKENIZER, prose, prose, RecipeConfig(task_share=1.0))


def test_markdown_becomes_prose(tmp_path: Path) -> None:
    raw = (
        "# Title: A\n\n## Author: B\n\n-------\n\n## One\n\nHe _said_ **so** [there](http://x).\n\n\n\nEnd.\n"
    )
    assert clean_markdown(raw) == "One\n\nHe said so there.\n\nEnd.\n"
    assert is_held_out("Leo Tolstoy/War and Peace")
    with pytest.raises(ValueError, match="does not exist"):
        list(read_corpus([tmp_path / "absent"]))
    with pytest.raises(ValueError, match="no usable text"):
        list(read_corpus([tmp_path]))


def test_tokenizer_keeps_digits_apart_and_text_whole() -> None:
    small = train_tokenizer([pydoc_text()[:30_000]], vocabulary_size=400)
    for tokenizer in (small, TOKENIZER):
        text = "A code of 4839 — né\n\n\tdef f(x):  # ok"
        assert tokenizer.decode(tokenizer(text).input_ids) == text
        assert [tokenizer.decode([index]) for index in tokenizer("is 483").input_ids][-4:] == [
            " ",
            "4",
            "8",
            "3",
        ]


def test_chat_template_is_the_trained_prompt() -> None:
    talk = [
        {"role": "user", "content": "C\n\nQ?"},
        {"role": "assistant", "content": "A."},
        {"role": "user", "content": "Q2?"},
    ]
    rendered = TOKENIZER.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert rendered == "<bos>C\n\nQ?\nAnswer: A.<eos>\n\nQ2?\nAnswer:"


def test_shards_come_back(tmp_path: Path) -> None:
    documents = [np.arange(5, 50, dtype=np.uint16), np.array([7, 8], dtype=np.uint16)]
    write_shard(tmp_path / "book-00.xz", documents, bos=0)
    text = read_shards([tmp_path], "book", bos=0, processes=1)
    assert text.starts.tolist() == [0, 46]
    assert text.tokens.tolist() == [0, *range(5, 50), 0, 7, 8]
    with pytest.raises(ValueError, match="no 'heldout' shards"):
        read_shards([tmp_path], "heldout", bos=0)


def test_rows_are_what_the_joined_text_gives(maker: RowMaker) -> None:
    """Nearly always: a proper name may be cut otherwise when its leading space is gone."""
    rng, equal, rows = random.Random(0), 0, 0
    while rows < 60:
        row = maker.make(rng, 768)
        assert len(row.tokens) == len(row.weights) == 768 and row.tokens[0] == TOKENIZER.bos_token_id
        for answer in row.answers:
            assert row.tokens[answer.end - 1] == TOKENIZER.eos_token_id
            before = TOKENIZER.decode(row.tokens[: answer.start].tolist())
            assert "\nAnswer:" in before[-250:]
        if row.answers:
            context = row.tokens[1 : row.answers[0].start].tolist()
            equal += TOKENIZER(TOKENIZER.decode(context)).input_ids == context
            rows += 1
    assert equal >= 0.9 * rows


def test_needles_are_hidden_as_the_suites_hide_them(maker: RowMaker) -> None:
    """Before the first sentence too: a model trained without loses a needle that is the text's very first sentence."""
    first = after_preamble = 0
    for seed in range(400):
        row = maker.make(random.Random(seed), 512)
        text = TOKENIZER.decode(row.tokens.tolist(), skip_special_tokens=True)
        first += text.startswith(("The ", "One of the special", "Remember: the "))
        after_preamble += bool(re.match(r"(?:A|Some) special magic .*\nOne of the special", text))
    assert first > 5 and after_preamble > 2


def test_a_crowded_row_asks_about_several_episodes(maker: RowMaker) -> None:
    rng, crowds = random.Random(4), []
    while len(crowds) < 30:
        row = maker.make(rng, 4096)
        if row.answers and row.answers[0].kind == "crowd":
            crowds.append(row)
    assert sum(len(row.answers) for row in crowds) > 30 * 6
    for row in crowds[:10]:
        context = TOKENIZER.decode(row.tokens[: row.answers[0].start].tolist())
        for answer in row.answers:
            reply = TOKENIZER.decode(row.tokens[answer.start : answer.end - 1].tolist())
            words = re.findall(r"\w+", reply.split(":")[-1])
            assert words and sum(word in context for word in words) >= len(words) - 1, reply


def test_one_seed_gives_one_row(maker: RowMaker) -> None:
    first, second = (maker.make(random.Random(9), 512) for _ in range(2))
    assert np.array_equal(first.tokens, second.tokens) and first.answers == second.answers


def _random_network() -> Network:
    torch.manual_seed(0)
    network = Network(TINY, compute_dtype=torch.float32, compile_blocks=False)
    with torch.no_grad():
        for weight in (network.out, network.down):
            weight.normal_(std=0.05)
        network.norms.uniform_(0.5, 1.5)
    return network


def test_network_is_a_llama() -> None:
    network = _random_network()
    lengths = [(16, 2), (32, 1)]
    cos, sin = rotary_table(TINY, lengths, torch.device("cpu"))
    tokens = torch.randint(3, TINY.vocabulary, (64,))
    ours = network.predictions(tokens, lengths, cos, sin)
    hidden = network.hidden(tokens, lengths, cos, sin)
    stock = LlamaForCausalLM(llama_config(TINY, bos=0, eos=1, pad=2)).eval()
    weights = llama_weights(network)
    stock.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    for row in (slice(0, 16), slice(16, 32), slice(32, 64)):
        with torch.no_grad():
            logits = stock(tokens[row][None]).logits[0]
        normed = hidden[row].float()
        normed = (
            normed * torch.rsqrt(normed.square().mean(-1, keepdim=True) + TINY.norm_eps) * network.norms[-1]
        )
        torch.testing.assert_close(normed @ network.embed.T, logits, atol=2e-5, rtol=1e-4)
        assert torch.equal(ours[row], logits.argmax(-1))


def test_int8_rows_are_within_half_a_step() -> None:
    weights = llama_weights(_random_network())
    for name, weight in dequantise(quantise(weights)).items():
        bound = weights[name].abs().amax(dim=-1, keepdim=True) / 127 * 0.51 + 1e-6 if weight.dim() == 2 else 0
        assert ((weight - weights[name]).abs() <= bound).all(), name


def test_orthogonalise_moves_singular_values_near_one() -> None:
    torch.manual_seed(1)
    for shape in ((3, 32, 64), (2, 96, 32)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
        assert values.min() > 0.5 and values.max() < 1.3


def test_learning_rate_rises_and_falls_to_zero() -> None:
    config = RecipeConfig(total_tokens=RecipeConfig().step_tokens * 2000)
    assert config.rate(0) == pytest.approx(1 / 150)
    assert config.rate(150) == 1.0
    assert config.rate(1075) == pytest.approx(0.5)
    assert config.rate(2000) == 0.0


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, prose: TokenText) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shard(shards / "book-00.xz", [prose.tokens[1:]], bos=TOKENIZER.bos_token_id)
    config = replace(SMOKE, shape=TINY, buckets=((256, 2),), warmup_steps=2)
    outs = [tmp_path / "whole", tmp_path / "parts"]

    def train(out: Path, steps: int, *, resume: bool) -> None:
        train_piece(
            config=replace(config, total_tokens=config.step_tokens * steps),
            tokenizer=TOKENIZER, shards=[shards], out=out, resume=resume, seconds=None, workers=0, stream=False,
        )  # fmt: skip

    constant = pytest.MonkeyPatch()
    constant.setattr(RecipeConfig, "rate", lambda self, step: 0.1)
    train(outs[0], 4, resume=False)
    train(outs[1], 2, resume=False)
    train(outs[1], 4, resume=True)
    constant.undo()
    whole, parts = (load_exported(out / "model").state_dict() for out in outs)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    again = Network(TINY, compute_dtype=torch.float32, compile_blocks=False)
    load_into(again, outs[0] / "model")
    assert torch.equal(again.embed.detach(), whole["model.embed_tokens.weight"])
    with pytest.raises(ValueError, match="nothing to resume"):
        train(tmp_path / "fresh", 2, resume=True)
