"""Counting-Stars: the counts of the text, in its order."""

from __future__ import annotations

import random
import re

import pytest

from longspan.evaluation.haystacks.pydoc import pydoc_haystack
from longspan.evaluation.metrics import grade
from longspan.evaluation.sample import make_sample
from longspan.evaluation.suites.counting_stars import TASKS, in_order
from longspan.evaluation.task import Room
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer


@pytest.mark.parametrize(("name", "each"), [("acquisition", 1), ("reasoning", 2)])
def test_the_counts_stand_in_the_text_in_this_order(name: str, each: int) -> None:
    tokenizer, haystack = load_tokenizer(ASSETS), pydoc_haystack()
    for seed in range(5):
        sample = make_sample(
            TASKS[name], name=name, haystack=haystack, length_tokens=8192, tokenizer=tokenizer, seed=seed
        )
        counts = re.findall(r"(\d+) ★", sample.context)
        assert len(counts) == len(set(counts)) == 32 * each
        # The wrong count of a sentence stands before the right one.
        assert tuple(counts[each - 1 :: each]) == sample.references
        assert sorted(sample.depths) == list(sample.depths)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_short_texts_have_fewer_counts(name: str) -> None:
    def room(tokens: int) -> Room:
        return Room(tokens=tokens, count=lambda text: len(text) // 4 + 1)

    sizes = [
        len(TASKS[name].make(random.Random(0), room(tokens)).references) for tokens in (1000, 2000, 9000)
    ]
    assert sizes[0] < sizes[1] <= sizes[2] == 32
    with pytest.raises(ValueError, match=r"ask for \d+ or more"):
        TASKS[name].make(random.Random(0), room(200))


@pytest.mark.parametrize(
    ("prediction", "score", "found"),
    [
        ("57, 12, 640, 31.", 1.0, 1.0),
        ("[57, 12, 640, 31]", 1.0, 1.0),
        ("12, 640, 31", 0.75, 0.75),
        # Sorted: the longest run in the right order is 12 31, 12 640 or 57 640.
        ("12, 31, 57, 640", 0.5, 1.0),
        ("57, 12, 640, 31, 7", 0.8, 1.0),
        ("576, 3", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_order_and_surplus_count(prediction: str, score: float, found: float) -> None:
    marked = grade(in_order, prediction, ("57", "12", "640", "31"))
    assert marked == {"score": pytest.approx(score), "found": pytest.approx(found)}
