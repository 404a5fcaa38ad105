"""Laws of every generated task, found by its file: length, determinism, no leak, depths, and who scores what.

A perfect oracle scores 100; an answerer who never saw the text scores the stated chance; a reader of the last half of the
text scores what the depths of the evidence predict.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest

from longspan.evaluation.exams import FIRST_SEED, PuzzleExam
from longspan.evaluation.haystacks import Haystack, count_tokens
from longspan.evaluation.haystacks.pydoc import pydoc_haystack
from longspan.evaluation.published import DataMissing
from longspan.evaluation.registry import find_suite_cards, find_task, find_tasks
from longspan.evaluation.sample import TEMPLATE_TOKENS, score
from longspan.evaluation.task import Sample, Task
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

NAMES = [name for name, entry in find_tasks().items() if isinstance(entry.exam, PuzzleExam)]
LENGTHS = (1024, 2048, 4096, 8192)
NUM_SAMPLES = 48


@pytest.fixture(scope="module", autouse=True)
def _shared_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every suite finds the third-party files that stand beside the checkout, where there are some."""
    root = tmp_path_factory.mktemp("data")
    files = sorted((Path(__file__).resolve().parents[3] / "shared" / "data").glob("*/*.[cj]s*"))
    for suite in find_suite_cards():
        (root / suite).mkdir()
        for file in files:
            (root / suite / file.name).symlink_to(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGSPAN_DATA", str(root))
        yield


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


@lru_cache(maxsize=1)
def haystack() -> Haystack:
    return pydoc_haystack()


def task_of(name: str) -> Task:
    exam = find_task(name).exam
    assert isinstance(exam, PuzzleExam)
    return exam.task


def build(name: str, length: int, seed: int = 0, depth: float | None = None) -> Sample:
    sample: Sample = find_task(name).exam.build(
        length_tokens=length, depth=depth, seed=FIRST_SEED + seed, haystack=haystack(), tokenizer=tokenizer()
    )
    return sample


@cache
def shortest(name: str) -> int:
    """The shortest of the lengths that the task can fill; shorter ones must be refused in one sentence."""
    for length in LENGTHS:
        try:
            build(name, length)
        except DataMissing as error:
            pytest.skip(str(error))
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 300
        else:
            return length
    raise AssertionError(f"{name} cannot fill {LENGTHS[-1]} tokens")


@cache
def samples(name: str) -> Sequence[Sample]:
    return [build(name, shortest(name), seed) for seed in range(NUM_SAMPLES)]


def used_tokens(sample: Sample) -> int:
    texts = [sample.context, "\n\n" + sample.question]
    texts += [" " + sample.answer_prefix] if sample.answer_prefix else []
    return TEMPLATE_TOKENS + sample.max_new_tokens + sum(count_tokens(tokenizer(), text) for text in texts)


def guess(task: Task, mine: Sample, other: Sample, rng: random.Random) -> str:
    return task.guess(rng, mine) if task.guess is not None else other.answer


@pytest.mark.parametrize("name", NAMES)
def test_lengths_are_exact_and_a_seed_makes_one_sample(name: str) -> None:
    for length in (length for length in LENGTHS if length >= shortest(name)):
        for seed in range(3):
            sample = build(name, length, seed)
            slack = 24 if length < 2048 else 0  # one line that no longer fits
            assert 0.98 * length - slack <= used_tokens(sample) <= length + 2, (length, seed)
        assert build(name, length, 2) == sample
        assert build(name, length, 1) != sample


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_scores_100_and_silence_nothing(name: str) -> None:
    task = task_of(name)
    for sample in samples(name):
        assert score(sample.answer, sample, task.metric) == pytest.approx(1.0), sample.answer
        assert score("", sample, task.metric) == 0.0
        assert count_tokens(tokenizer(), " " + sample.answer) < sample.max_new_tokens


@pytest.mark.parametrize("name", NAMES)
def test_who_never_saw_the_text_scores_the_stated_chance(name: str) -> None:
    task, rng, drawn = task_of(name), random.Random(0), samples(name)
    scores = [
        score(guess(task, mine, other, rng), mine, task.metric)
        for shift in (1, 7, 19)
        for mine, other in zip(drawn, [*drawn[shift:], *drawn[:shift]], strict=True)
    ]
    spread = max(pstdev(scores), math.sqrt(task.chance * (1 - task.chance)))
    assert fmean(scores) == pytest.approx(task.chance, abs=4 * spread / math.sqrt(len(scores)) + 0.02)


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_of_the_last_half_scores_what_the_depths_predict(name: str) -> None:
    task, rng, drawn = task_of(name), random.Random(1), samples(name)
    if not any(sample.evidence for sample in drawn):
        pytest.skip("the answer is spread over the whole text")
    reached, predicted = [], []
    for mine, other in zip(drawn, [*drawn[5:], *drawn[:5]], strict=True):
        half = mine.context[len(mine.context) // 2 :]
        seen = [piece in half for piece in mine.evidence]
        guessed = guess(task, mine, other, rng)
        reached.append(score(_reply(mine, seen, guessed), mine, task.metric))
        expected = [depth >= 0.5 for depth in mine.depths]
        predicted.append(score(_reply(mine, expected, guessed), mine, task.metric))
    assert fmean(reached) == pytest.approx(fmean(predicted), abs=0.05)
    if min(len(sample.evidence) for sample in drawn) == 1:
        assert fmean(reached) < 0.5 + task.chance / 2 + 4 * 0.5 / math.sqrt(len(drawn))


def _reply(sample: Sample, seen: Sequence[bool], guessed: str) -> str:
    if all(seen):
        return sample.answer
    if len(seen) == len(sample.references) > 1:
        return " ".join(
            reference for reference, visible in zip(sample.references, seen, strict=True) if visible
        )
    return guessed


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_stands_in_the_evidence_and_nowhere_else(name: str) -> None:
    task = task_of(name)
    for sample in samples(name):
        rest = sample.context
        for piece in sample.evidence:
            assert rest.count(piece) == 1, piece
            rest = rest.replace(piece, " ", 1)
        if task.answers == "verbatim":
            around = f"{rest}\n{sample.question}\n{sample.answer_prefix}".lower()
            assert not [reference for reference in sample.references if reference.lower() in around]
            held = "\n".join(sample.evidence).lower()
            assert all(reference.lower() in held for reference in sample.references)


@pytest.mark.parametrize("name", NAMES)
def test_evidence_lies_at_all_depths(name: str) -> None:
    depths = [depth for sample in samples(name) for depth in sample.depths]
    if not depths:
        pytest.skip("the answer is spread over the whole text")
    assert all(0 <= depth <= 1 for depth in depths)
    assert sum(depth < 0.34 for depth in depths) >= 0.12 * len(depths)
    assert sum(depth > 0.66 for depth in depths) >= 0.12 * len(depths)


@pytest.mark.parametrize("name", NAMES)
def test_the_depth_asked_for_is_kept(name: str) -> None:
    length = max(2048, shortest(name))
    if not find_task(name).exam.takes_depth(length, tokenizer()):
        pytest.skip("the task places its evidence itself")
    for depth in (0.0, 0.5, 1.0):
        sample = build(name, length, 3, depth)
        assert sample.depths[0] == pytest.approx(depth, abs=0.12)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_samples_of_128k_take_under_a_minute(name: str) -> None:
    shortest(name)
    build(name, 131072, 0)
    began = time.process_time()
    made = [build(name, 131072, seed) for seed in range(1, 4)]
    assert (time.process_time() - began) / 3 < 0.6
    assert all(0.98 * 131072 <= used_tokens(sample) <= 1.005 * 131072 for sample in made)


def test_every_suite_has_a_whole_card() -> None:
    needed = {
        "name",
        "title",
        "year",
        "version",
        "metric",
        "differs",
        "paper_id",
        "lengths",
        "needs",
        "licence",
    }
    for suite, card in find_suite_cards().items():
        assert needed <= set(card) <= needed | {"citation"}, suite
        assert card["name"] == suite
        assert isinstance(card["differs"], list) and isinstance(card["version"], int)
