"""TSort: segments put back in the order of the answer give the prose again, word for word."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.exams import PuzzleExam
from longspan.evaluation.haystacks import Haystack
from longspan.evaluation.registry import find_task
from longspan.evaluation.sample import score
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


@pytest.fixture(scope="module")
def numbers() -> str:
    """Prose in which every sentence tells its place."""
    rng = random.Random(0)
    return " ".join(
        f"Sentence {number} is followed by {' '.join(['another'] * rng.randint(1, 9))}."
        for number in range(4000)
    )


def build(text: str, tokenizer: Any, seed: int, length: int) -> Sample:
    exam = find_task("adaleval/tsort").exam
    assert isinstance(exam, PuzzleExam)
    return exam.build(
        length_tokens=length, depth=None, seed=seed, haystack=Haystack(text), tokenizer=tokenizer
    )


def parts(context: str) -> dict[str, str]:
    found = re.split(r"(?:^|\n\n)\[(Before|Segment \d|After)\]\n", context)
    return dict(zip(found[1::2], found[2::2], strict=True))


@pytest.mark.parametrize("length", [1024, 4096])
def test_the_order_restores_the_prose(length: int, numbers: str, tokenizer: Any) -> None:
    orders = Counter[str]()
    for seed in range(20):
        sample = build(numbers, tokenizer, seed, length)
        cut = parts(sample.context)
        assert list(cut) == ["Before", "Segment 1", "Segment 2", "Segment 3", "Segment 4", "After"]
        order = re.findall(r"\d", sample.answer)
        restored = " ".join([cut["Before"], *(cut[f"Segment {number}"] for number in order), cut["After"]])
        told = [int(number) for number in re.findall(r"Sentence (\d+)", restored)]
        if max(told) < 3999:  # else the prose went round at its end
            assert told == list(range(told[0], told[0] + len(told)))
            assert restored in numbers
        sizes = [len(cut[f"Segment {number}"]) for number in order]
        assert max(sizes) < 1.6 * min(sizes)
        orders[sample.answer] += 1
    assert len(orders) >= 8


def test_answers_in_several_forms(numbers: str, tokenizer: Any) -> None:
    metric = find_task("adaleval/tsort").exam.labels.metric
    sample = build(numbers, tokenizer, 1, 1024)
    order = re.findall(r"\d", sample.answer)
    assert score(f"Answer: [{','.join(order)}]", sample, metric) == 1.0
    assert score(" then ".join(order), sample, metric) == 1.0
    assert score(f"[{', '.join(order[:3])}]", sample, metric) == 0.0
    assert score("[]", sample, metric) == 0.0
    assert score(f"[{', '.join(reversed(order))}]", sample, metric) == 0.0


def test_prose_of_one_long_sentence_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="tsort needs more than 5 sentences.*ask for 1024 or more"):
        build("Words without an end, " * 4, tokenizer, 0, 160)


def test_a_novel_is_cut_at_sentence_ends(shared_data: Path, tokenizer: Any) -> None:
    novel = (shared_data / "books" / "a-christmas-carol.md").read_text(encoding="utf-8")
    for seed in range(4):
        cut = parts(build(novel, tokenizer, seed, 8192).context)
        ends = [text for name, text in cut.items() if name != "After" and text[-1] in ".!?:;\"'”’)"]
        assert len(ends) >= 4
