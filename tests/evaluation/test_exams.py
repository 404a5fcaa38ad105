"""Exams on the real engine, with a tiny random model: what is measured equals what transformers itself gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import longspan
from longspan.evaluation.haystacks import Haystack
from longspan.evaluation.haystacks.pydoc import pydoc_text
from longspan.evaluation.limits import Limits
from longspan.evaluation.results import ResultLog
from longspan.evaluation.runner import Runner, Setup, grid
from longspan.evaluation.suites.perplexity import position_nll

TEXT = pydoc_text()[:60_000]


@pytest.fixture(scope="module")
def model() -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    return longspan.load(LlamaForCausalLM(config).eval(), tokenizer=tokenizer)


@pytest.mark.parametrize("chunk_tokens", [64, 100, 1000])
def test_perplexity_equals_the_loss_of_transformers(model: Any, chunk_tokens: int) -> None:
    ids = tuple(model.tokenizer.encode(TEXT)[:700])
    buckets = position_nll(model, ids, 256, chunk_tokens)
    tensor = torch.tensor([ids])
    with torch.no_grad():
        logits = model.hf_model(tensor, use_cache=False).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], tensor[0, 1:], reduction="none")
    assert [(bucket.start, bucket.end, bucket.num_tokens) for bucket in buckets] == [
        (0, 256, 255), (256, 512, 256), (512, 700, 188),
    ]  # fmt: skip
    expected = [losses[:255].mean(), losses[255:511].mean(), losses[511:].mean()]
    assert [bucket.nll for bucket in buckets] == pytest.approx([value.item() for value in expected], abs=1e-4)


def test_rows_of_the_real_engine(model: Any, tmp_path: Path) -> None:
    runner = Runner(
        model=model,
        haystack=Haystack(TEXT),
        setup=Setup.of(model, "pydoc"),
        log=ResultLog(tmp_path / "results.jsonl"),
        limits=Limits(),
    )
    jobs = grid(
        specs=["dense"], tasks=["niah_single_2", "perplexity"], lengths=[600], depths=[0.5], seeds=[1],
        tokenizer=model.tokenizer,
    )  # fmt: skip
    answer, likelihood = (outcome.row for outcome in runner.run(jobs))
    assert answer["status"] == likelihood["status"] == "done"
    assert 0.9 * (600 - 128) < answer["actual_tokens"] <= 600
    # 2 layers x (keys, values) x 2 kv heads x 16 dims x 4 bytes a token, and the spare room of a store
    assert answer["kv_bytes"] >= 2 * 2 * 2 * 16 * 4 * answer["actual_tokens"] * 0.8
    assert answer["peak_kv_bytes"] >= answer["kv_bytes"]
    assert 0 < answer["generated_tokens"] <= 128
    assert min(answer["read_seconds"], answer["prefill_seconds"], answer["decode_seconds"]) > 0
    assert answer["fingerprint"] == model.info.fingerprint
    assert answer["dtype"] == "float32"
    assert 5 < likelihood["nll"] < 8
