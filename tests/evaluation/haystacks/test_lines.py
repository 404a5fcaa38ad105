"""Lines fill a number of tokens, never more, and nearly all of it, also where they vary in length."""

from __future__ import annotations

import itertools
import random

import pytest

from longspan.evaluation.haystacks import count_tokens
from longspan.evaluation.haystacks.lines import Lines, fill_lines, fill_lines_exactly
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(ASSETS)


def count(text: str) -> int:
    return count_tokens(TOKENIZER, text)


def uneven(seed: int) -> itertools.chain[str]:
    """Short lines of words and long ones of digits, in stretches: their rates of tokens a character differ."""
    rng = random.Random(seed)
    stretches = (
        [" ".join(rng.choices(("sea", "grey", "morning"), k=rng.randint(2, 30))) for _ in range(40)]
        if number % 2
        else [str(rng.getrandbits(200)) for _ in range(40)]
        for number in itertools.count()
    )
    return itertools.chain.from_iterable(stretches)


@pytest.mark.parametrize("tokens", [60, 500, 3000])
def test_what_is_counted_fits(tokens: int) -> None:
    for seed in range(5):
        filled = fill_lines(uneven(seed), tokens, count)
        assert 0.85 * tokens - 40 <= count("\n".join(filled)) <= tokens


@pytest.mark.parametrize("tokens", [500, 3000, 40_000])
def test_exact_filling_is_exact_for_uneven_lines(tokens: int) -> None:
    for seed in range(3):
        filled = fill_lines_exactly(uneven(seed), tokens, count)
        assert tokens - 60 <= count("\n".join(filled)) <= tokens


def test_a_source_that_ends_gives_what_there_was() -> None:
    assert fill_lines(iter(["one", "two"]), 1000, count) == ["one", "two"]
    assert fill_lines(iter([]), 1000, count) == []
    assert fill_lines(iter(["one"] * 50), 0, count) == []


def test_lines_as_a_haystack_are_cut_at_a_word_and_follow_the_generator() -> None:
    haystack = Lines(lambda rng: f"key {rng.randint(100, 999)} has the value {rng.getrandbits(8)}")
    first = haystack.slice(400, TOKENIZER, random.Random(1))
    assert 394 <= count("".join(first)) <= 400
    assert all(line.startswith("\nkey ") for line in first)
    assert (
        first
        == haystack.slice(400, TOKENIZER, random.Random(1))
        != haystack.slice(400, TOKENIZER, random.Random(2))
    )
