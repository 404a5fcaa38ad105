"""Inverse permutation: the old order is restored from the two lines of the text alone."""

from __future__ import annotations

import re
from typing import Any

import pytest

from longspan.evaluation.exams import PuzzleExam
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.registry import find_task
from longspan.evaluation.sample import score
from longspan.evaluation.suites.inverse_permutation import items_in_place
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


def build(name: str, tokenizer: Any, seed: int, length: int = 2048) -> Sample:
    exam = find_task(f"inverse_permutation/{name}").exam
    assert isinstance(exam, PuzzleExam)
    return exam.build(
        length_tokens=length, depth=None, seed=seed, haystack=noise_haystack(), tokenizer=tokenizer
    )


def old_order(context: str) -> list[str]:
    places = [
        int(place)
        for place in re.findall(r"^Places in the old order: (.+)$", context, re.MULTILINE)[0].split()
    ]
    words = re.findall(r"^Words in the new order: (.+)$", context, re.MULTILINE)[0].split()
    assert sorted(places) == list(range(1, len(words) + 1))
    assert len(set(words)) == len(words)
    return [word for _, word in sorted(zip(places, words, strict=True))]


@pytest.mark.parametrize("task", ["whole", "whole_scratch"])
def test_the_whole_list_is_restored(task: str, tokenizer: Any) -> None:
    for seed in range(12):
        sample = build(task, tokenizer, seed)
        old = old_order(sample.context)
        assert len(old) == 16
        assert sample.answer == " ".join(old)


@pytest.mark.parametrize("task", ["places", "places_scratch"])
def test_eight_places_of_a_long_list(task: str, tokenizer: Any) -> None:
    sizes = []
    for length in (1024, 4096):
        for seed in range(6):
            sample = build(task, tokenizer, seed, length)
            old = old_order(sample.context)
            first, last = map(int, re.findall(r"\d+", sample.question))
            assert last - first == 7
            assert sample.answer == " ".join(old[first - 1 : last])
            sizes.append(len(old))
    assert min(sizes[6:]) > 3 * max(sizes[:6])


def test_scratch_tokens_follow_the_lists(tokenizer: Any) -> None:
    for seed in range(8):
        context = build("whole_scratch", tokenizer, seed).context
        assert context.endswith(". . . .")
        assert set(context.split("\n")[-1]) == {".", " "}
        context = build("places_scratch", tokenizer, seed).context
        tail = context[context.index("Words in the new order") :].split("\n", 1)[1]
        assert set(tail) == {".", " ", "\n"}
        assert tail.count(".") > 700
        assert ". ." not in build("places", tokenizer, seed).context


def test_each_place_counts(tokenizer: Any) -> None:
    sample = build("whole", tokenizer, 3)
    words = sample.answer.split()
    swapped = [words[1], words[0], *words[2:]]
    assert score(" ".join(swapped), sample, items_in_place) == pytest.approx(14 / 16)
    assert score(", ".join(words[:4]), sample, items_in_place) == pytest.approx(4 / 16)
    assert items_in_place(sample.answer, sample.references, {})["exact"] == 1.0
    assert items_in_place(sample.answer + " more", sample.references, {}) == {"score": 1.0, "exact": 0.0}


def test_too_little_room_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"ask for \d+ or more"):
        build("places", tokenizer, 0, 256)
