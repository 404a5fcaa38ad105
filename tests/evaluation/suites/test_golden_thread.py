"""Spinning the Golden Thread: the rules are read back from the text and answers written by them, part by part."""

from __future__ import annotations

import re
from typing import Any

import pytest

from longspan.evaluation.exams import PuzzleExam
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.registry import find_task, find_tasks
from longspan.evaluation.suites.golden_thread import golden_thread
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

TASKS = [name for name in find_tasks() if name.startswith("golden_thread/")]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


def build(name: str, tokenizer: Any, seed: int, length: int = 8192) -> Sample:
    exam = find_task(name).exam
    assert isinstance(exam, PuzzleExam)
    return exam.build(
        length_tokens=length, depth=None, seed=seed, haystack=noise_haystack(), tokenizer=tokenizer
    )


def read_rules(sample: Sample) -> tuple[str, int, dict[int, dict[str, str]]]:
    """Name and number of the parts, and for each part its events by sort."""
    found = re.search(r"from (\w+) 1 to \1 (\d+) in order", sample.question)
    assert found is not None
    part, number = found[1], int(found[2])
    due: dict[int, dict[str, str]] = {block: {} for block in range(1, number + 1)}
    for line in sample.context.splitlines()[1:]:
        numbers = [int(digits) for digits in re.findall(r"\b\d+\b", line)]
        event = line.split("must tell of ")[1].removesuffix(".")
        if line.startswith("Each"):
            sort, blocks = "range", range(numbers[0], numbers[1] + 1)
        elif line.startswith("Beginning"):
            sort, blocks = "periodic", range(numbers[0], number + 1, numbers[1])
        else:
            sort, blocks = "once", range(numbers[0], numbers[0] + 1)
        for block in blocks:
            assert sort not in due[block], "two events of one sort in one part"
            due[block][sort] = event
    return part, number, due


def write(part: str, due: dict[int, dict[str, str]]) -> str:
    return "\n".join(
        f"#*# {part} {block}: Much went on here. " + " ".join(f"We saw {event}." for event in events.values())
        for block, events in due.items()
    )


@pytest.mark.parametrize("task", TASKS)
def test_who_follows_the_rules_scores_1(task: str, tokenizer: Any) -> None:
    for seed in range(4):
        sample = build(task, tokenizer, seed)
        part, _, due = read_rules(sample)
        scores = golden_thread(write(part, due), (), sample.details)
        assert set(scores.values()) == {1.0}
        assert set(scores) == {"score", "stic_1", "completion", "once", "range", "periodic"}


def test_a_text_that_stops_half_way(tokenizer: Any) -> None:
    sample = build("golden_thread/diary", tokenizer, 1)
    part, number, due = read_rules(sample)
    kept = {block: events for block, events in due.items() if block <= number // 2}
    scores = golden_thread(write(part, kept), (), sample.details)
    checks = sum(map(len, due.values()))
    assert scores["completion"] == pytest.approx(len(kept) / number)
    assert scores["stic_1"] == 1.0
    assert scores["score"] == pytest.approx(sum(map(len, kept.values())) / checks)


def test_a_text_without_its_ranges(tokenizer: Any) -> None:
    sample = build("golden_thread/city", tokenizer, 2)
    part, _, due = read_rules(sample)
    ranges = sum("range" in events for events in due.values())
    checks = sum(map(len, due.values()))
    for events in due.values():
        events.pop("range", None)
    scores = golden_thread(write(part, due), (), sample.details)
    assert scores["once"] == scores["periodic"] == scores["completion"] == 1.0
    assert scores["range"] == 0.0
    assert scores["score"] == scores["stic_1"] == pytest.approx(1 - ranges / checks)


def test_events_shifted_by_one_part_score_low_and_copied_rules_nothing(tokenizer: Any) -> None:
    sample = build("golden_thread/skyscraper", tokenizer, 3)
    part, number, due = read_rules(sample)
    shifted = {block % number + 1: events for block, events in due.items()}
    scores = golden_thread(write(part, shifted), (), sample.details)
    assert scores["completion"] == 1.0 and scores["once"] == scores["periodic"] == 0.0
    assert set(golden_thread(sample.context, (), sample.details).values()) == {0.0}


def test_more_room_means_more_parts(tokenizer: Any) -> None:
    numbers = [
        read_rules(build("golden_thread/menu", tokenizer, 0, length))[1] for length in (2048, 4096, 8192)
    ]
    assert numbers[0] >= 8 and numbers[1] >= 1.9 * numbers[0] and numbers[2] >= 1.9 * numbers[1]
    with pytest.raises(ValueError, match="ask for 2048 or more"):
        build("golden_thread/menu", tokenizer, 0, 1024)


def test_details_without_checks_are_refused() -> None:
    with pytest.raises(ValueError, match="hold no check"):
        golden_thread("#*# Week 1: nothing", (), {"type": "Week", "number": 1})
