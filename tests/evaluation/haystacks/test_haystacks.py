"""Haystacks: sentences, slices, sources."""

import random
from pathlib import Path

import pytest

from longspan.evaluation.haystacks import Haystack, count_tokens, split_sentences
from longspan.evaluation.haystacks.noise import NOISE, noise_haystack
from longspan.evaluation.haystacks.pydoc import pydoc_text
from longspan.evaluation.haystacks.text import text_haystack
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(ASSETS)


def test_sentences_join_to_the_text() -> None:
    text = pydoc_text()[:50_000]
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert max(map(len, sentences)) <= 400 or " " not in max(sentences, key=len)
    assert split_sentences('He said "Go!" She went.') == ['He said "Go!"', " She went."]


def test_a_slice_is_consecutive_and_of_the_wished_size() -> None:
    haystack = Haystack(pydoc_text())
    whole = "".join(haystack.sentences)
    for seed in range(5):
        part = "".join(haystack.slice(500, TOKENIZER, random.Random(seed)))
        assert part in whole or "\n" in part
        assert 480 <= count_tokens(TOKENIZER, part) <= 505


def test_noise_repeats_the_five_sentences() -> None:
    text = "".join(noise_haystack().sentences)
    assert text.count(NOISE) == 400


def test_text_from_files(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Second file.", encoding="utf-8")
    (tmp_path / "a.md").write_text("First file.", encoding="utf-8")
    assert "".join(text_haystack(tmp_path).sentences) == "First file.\n\nSecond file."
    with pytest.raises(ValueError, match="no text at"):
        text_haystack(tmp_path / "absent")
    with pytest.raises(ValueError, match="empty"):
        Haystack("  ")
