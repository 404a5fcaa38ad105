"""LongIns: an exam of many small questions that somebody has answered; which answers are wrong?

GIST states one task for all questions, LIST states it with every question, LIMT mixes blocks of different tasks.

Paper: LongIns: A Challenging Long-context Instruction-based Exam for LLMs (Gavin et al., 2024)
Scored by F1 of the numbers of the questions that were answered wrongly.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from longspan.evaluation.metrics.text import need_references
from longspan.evaluation.suites.longins.questions import KINDS, Kind, Question
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "longins",
    "title": "LongIns: A Challenging Long-context Instruction-based Exam for LLMs",
    "year": 2024,
    "version": 1,
    "metric": "F1 of the question numbers that stand in brackets in the answer",
    "differs": [
        "questions are made here, of eleven kinds with one right answer each, not drawn from Super-NaturalInstructions and BIG-bench",
        "a tenth of the answers is wrong, as in the paper, but at least 2 and at most 40, so that the answer stays short",
        "exams have any length; the paper's go up to 16K tokens",
        "the prompt is in our own words",
    ],
    "paper_id": 35,
    "lengths": "from 1K tokens",
    "needs": "nothing",
    "licence": "generated here",
}

WRONG_SHARE = 0.1
WRONG_AT_LEAST, WRONG_AT_MOST = 2, 40
NUMBER_TOKENS = 8
SPARE_TOKENS = 1
MAX_DRAWS = 64
MANY = 100_000  # no kind has fewer questions
BLOCK = (3, 8)
FEWEST_QUESTIONS, TRIAL_QUESTIONS = 10, 48
INTRODUCTION = "An exam was filled in. Each line is one question: its number in brackets, what was asked, and the answer given."
QUESTION = (
    "Which questions of the exam were answered wrongly? Give the numbers of the wrong answers only, all in one list in "
    "brackets, such as [1, 2]."
)
Mode = Literal["gist", "list", "limt"]


def bracketed_f1(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """F1 of the set of all numbers in brackets against the references, with "precision" and "recall".

    Official scorer: LongIns `calculate_f1_score`. Its fault: numbers without brackets are not seen, and an answer that thinks
    aloud about "[3]" names it.

    Args:
        references: the numbers, each in brackets.
    """
    need_references(references)
    inside = " ".join(re.findall(r"\[(.*?)\]", prediction))
    found = {int(number) for number in re.findall(r"\d+", inside)}
    wanted = {int(reference.strip("[]")) for reference in references}
    right = len(found & wanted)
    if not right:
        return {"score": 0.0, "precision": 0.0, "recall": 0.0}
    precision, recall = right / len(found), right / len(wanted)
    return {"score": 2 * precision * recall / (precision + recall), "precision": precision, "recall": recall}


def _questions(mode: Mode, kind: Kind, rng: random.Random) -> Iterator[Question]:
    """Questions without end, the first 100,000 all different; with their instruction except in a gist."""
    seen = set[str]()
    while True:
        for _ in range(rng.randint(*BLOCK)):
            drawn = kind.draw(rng)
            if drawn.put not in seen or len(seen) >= MANY:
                seen.add(drawn.put)
                lead = "" if mode == "gist" else f"{kind.instruction} "
                yield Question(put=lead + drawn.put, right=drawn.right, wrong=drawn.wrong)
        if mode == "limt":
            kind = rng.choice([other for other in KINDS.values() if other is not kind])


def _line(number: int, question: Question, answer: str) -> str:
    return f"[{number}] {question.put} Answer: {answer}"


def _wrong_numbers(asked: Sequence[Question], num_wrong: int, room: Room, rng: random.Random) -> list[int]:
    """Which questions get their wrong answer, such that these cost about no more than a token each above the right ones."""
    for _ in range(MAX_DRAWS):
        numbers = sorted(rng.sample(range(1, len(asked) + 1), num_wrong))
        chosen = [asked[number - 1] for number in numbers]
        costs = [room.count(f" {one.wrong}") - room.count(f" {one.right}") for one in chosen]
        if sum(costs) <= num_wrong * SPARE_TOKENS:
            break
    return numbers


def exam(mode: Mode) -> Callable[[random.Random, Room], Puzzle]:
    """An exam in which a tenth of the answers is wrong."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        kind = rng.choice(list(KINDS.values()))
        head = (
            f"{INTRODUCTION} The task is the same for all: {kind.instruction}"
            if mode == "gist"
            else INTRODUCTION
        )
        source = _questions(mode, kind, rng)
        first = list(itertools.islice(source, TRIAL_QUESTIONS))
        each = sum(
            room.count("\n" + _line(number, one, one.right)) for number, one in enumerate(first, start=1)
        ) / len(first)
        num_wrong = max(WRONG_AT_LEAST, min(WRONG_AT_MOST, round(WRONG_SHARE * room.tokens / each)))
        tokens = NUMBER_TOKENS * (num_wrong + 1)
        left = room.left(head, QUESTION, "Answer:", max_new_tokens=tokens)
        if left < FEWEST_QUESTIONS * each:
            raise ValueError(
                f"an exam of {FEWEST_QUESTIONS} questions does not fit {room.tokens} tokens; ask for 1024 or more"
            )
        by_line = dict[str, Question]()

        def lines() -> Iterator[str]:
            for number, one in enumerate(itertools.chain(first, source), start=1):
                line = _line(number, one, one.right)
                by_line[line] = one
                yield line

        asked = [by_line[line] for line in room.fill_exactly(lines(), left - num_wrong * SPARE_TOKENS)]
        wrong = _wrong_numbers(asked, num_wrong, room, rng)
        shown = [
            _line(number, one, one.wrong if number in wrong else one.right)
            for number, one in enumerate(asked, start=1)
        ]
        return Puzzle(
            needles=(),
            context="\n".join((head, *shown)),
            evidence=tuple(shown[number - 1] for number in wrong),
            question=QUESTION,
            answer_prefix="Answer:",
            references=tuple(f"[{number}]" for number in wrong),
            answer=str(wrong),
            max_new_tokens=tokens,
        )

    return make


TASKS: dict[str, Task] = {
    mode: Task(
        make=exam(mode),
        ability="error finding",
        diffusion="high",
        scope="high",
        metric=bracketed_f1,
        chance=WRONG_SHARE,
        answers="derived",
    )
    for mode in ("gist", "list", "limt")
}
