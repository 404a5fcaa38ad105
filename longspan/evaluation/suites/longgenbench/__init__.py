"""LongGenBench: many questions at once, to be answered one after the other in a single long output.

Paper: LongGenBench: Long-context Generation Benchmark (Liu et al., 2024)
`arithmetic` (word problems) and `choice` (four options) are made here, as many questions as fit beside their answers;
`gsm8k_*` and `mmlu_*` take published questions, a fixed number at a time. Scored by the share of questions answered right.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longspan.evaluation.haystacks.lines import fill_lines
from longspan.evaluation.metrics.text import need_references
from longspan.evaluation.published import DataTask, Question, Source
from longspan.evaluation.suites.longgenbench.problems import LETTERS, Problem, choice_problem, word_problem
from longspan.evaluation.task import Puzzle, Room, Sample, Task

CARD: dict[str, Any] = {
    "name": "longgenbench",
    "title": "LongGenBench: Long-context Generation Benchmark",
    "year": 2024,
    "version": 1,
    "metric": "share of the questions whose answer in the one output is right; mean over samples",
    "differs": [
        "arithmetic and choice are made here, from patterns; officially GSM8K, MMLU and CommonsenseQA, of which the first two "
        "are run from their files",
        "zero-shot with a stated format instead of eight worked examples",
        "answers are found by their numbers; officially by their order, so that one left out shifts all that follow",
        "a question that is not answered is wrong; officially it is left out of the mean",
        "signs and commas within numbers are read; officially commas are dropped and signs not seen",
        "the number of questions grows with the length asked for; officially it is set for each model",
    ],
    "paper_id": 34,
    "lengths": "any; most of the length is output",
    "needs": "nothing; the GSM8K or MMLU test file for gsm8k_* and mmlu_*",
    "licence": "generated here; GSM8K and MMLU: MIT",
}

STEP_TOKENS, LETTER_TOKENS = 80, 28
MOST_DIGITS = "9999"
ASK_NUMBERS = (
    "Answer all of the questions above, in order, step by step. Begin each answer with 'Answer_' and the question's number, "
    "for example 'Answer_1:', and end it with 'The answer is' and the number. Do not repeat the questions."
)
ASK_LETTERS = (
    "Answer all of the questions above, in order. Begin each answer with 'Answer_' and the question's number, for example "
    "'Answer_1:', and end it with 'The answer is' and the letter of the right option. Do not repeat the questions."
)


def numbered_answers(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> dict[str, float]:
    """Part of the questions answered right, and "answered": part of them with an answer of any sort.

    An answer is what follows "Answer_7" up to the next such mark. Of it counts the line after its last "answer is", or all
    where it has none of these words; of that the first lone letter, or the last number.

    Args:
        references: answers in the order of the questions.
        details: "letters", whether answers are letters A to D instead of numbers.
    """
    need_references(references)
    pieces = re.split(r"Answer_(\d+)", prediction)
    found = dict[int, str]()
    for number, text in zip(pieces[1::2], pieces[2::2], strict=True):
        found.setdefault(int(number), _final(text, letters=bool(details.get("letters"))))
    given = [found.get(number, "") for number in range(1, len(references) + 1)]
    right = sum(
        one == _final(other, letters=bool(details.get("letters")))
        for one, other in zip(given, references, strict=True)
    )
    return {"score": right / len(references), "answered": sum(map(bool, given)) / len(references)}


def _final(text: str, *, letters: bool) -> str:
    pattern = r"(?<![\w'])[A-D](?![\w'])" if letters else r"(?<![\d.])-?\d+(?:,\d{3})*(?:\.\d+)?"
    stated = re.split(r"(?i)answer is", text)
    tail = stated[-1].strip().split("\n")[0] if len(stated) > 1 else text
    found = re.findall(pattern, tail)
    if not found:
        return ""
    return str(found[0]) if letters else f"{float(found[-1].replace(',', '')):g}"


def _questions_text(texts: Iterable[str]) -> list[str]:
    return [f"Question_{number}: {text}" for number, text in enumerate(texts, start=1)]


def _maker(
    problem: Callable[[random.Random], Problem], answer_tokens: int, *, letters: bool
) -> Callable[[random.Random, Room], Puzzle]:
    ask = ASK_LETTERS if letters else ASK_NUMBERS

    def make(rng: random.Random, room: Room) -> Puzzle:
        known = dict[str, Problem]()

        def lines() -> Iterator[str]:
            while True:
                new = problem(rng)
                line = f"Question_{MOST_DIGITS}: {new.text}"
                if line not in known:
                    known[line] = new
                    yield line

        def cost(text: str) -> int:
            return room.count(text) + answer_tokens * text.count("Question_")

        chosen = [known[line] for line in fill_lines(lines(), room.left(ask, max_new_tokens=0), cost)]
        if not chosen:
            raise ValueError(
                f"{room.tokens} tokens are too few for a question and its answer; ask for 512 or more"
            )
        asked = _questions_text(one.text for one in chosen)
        context = "\n".join(asked)
        replies = [
            f"Answer_{number}: {one.steps}{' ' if one.steps else ''}The answer is {one.answer}."
            for number, one in enumerate(chosen, start=1)
        ]
        return Puzzle(
            needles=(),
            context=context,
            evidence=tuple(asked),
            question=ask,
            references=tuple(one.answer for one in chosen),
            answer="\n".join(replies),
            max_new_tokens=room.left(context, ask, max_new_tokens=0),
            details={"letters": letters},
        )

    return make


def _guess(rng: random.Random, sample: Sample) -> str:
    return "\n".join(
        f"Answer_{number}: {rng.choice(LETTERS)}" for number in range(1, len(sample.references) + 1)
    )


@dataclass(frozen=True, kw_only=True)
class BatchTask(DataTask):
    """Published questions, `at_once` of them in one prompt; the last ones, where there are fewer, are left out."""

    at_once: int

    def questions(self) -> Sequence[Question]:
        """All batches, in the order of the file."""
        single = super().questions()
        batches = [single[start : start + self.at_once] for start in range(0, len(single), self.at_once)]
        return [_batch(batch) for batch in batches if len(batch) == self.at_once]


def _batch(batch: Sequence[Question]) -> Question:
    replies = [f"Answer_{number}: The answer is {one.answer}." for number, one in enumerate(batch, start=1)]
    return Question(
        context="\n".join(_questions_text(one.context for one in batch)),
        question=batch[0].question,
        references=tuple(one.answer for one in batch),
        answer="\n".join(replies),
        details=batch[0].details,
    )


def parse_gsm8k(row: Mapping[str, Any]) -> Iterator[Question]:
    """A row of GSM8K: question, and a solution that ends in "#### 18"."""
    answer = str(row["answer"]).split("####")[1].strip().replace(",", "")
    yield Question(
        context=str(row["question"]),
        question=ASK_NUMBERS,
        references=(answer,),
        answer=answer,
        details={"letters": False},
    )


def parse_mmlu(row: Mapping[str, Any]) -> Iterator[Question]:
    """A row of MMLU: question, four choices, the number of the right one."""
    shown = " ".join(f"({letter}) {option}" for letter, option in zip(LETTERS, row["choices"], strict=True))
    letter = LETTERS[int(row["answer"])]
    yield Question(
        context=f"{row['question']} {shown}",
        question=ASK_LETTERS,
        references=(letter,),
        answer=letter,
        details={"letters": True},
    )


GSM8K = Source(
    hub="openai/gsm8k",
    licence="MIT",
    citation="Cobbe et al., Training Verifiers to Solve Math Word Problems, 2021",
)
MMLU = Source(
    hub="cais/mmlu",
    licence="MIT",
    citation="Hendrycks et al., Measuring Massive Multitask Language Understanding, 2020",
)
LABELS: dict[str, Any] = {
    "ability": "long generation",
    "diffusion": "low",
    "scope": "high",
    "answers": "derived",
    "metric": numbered_answers,
}
CHOOSING: dict[str, Any] = {**LABELS, "chance": 0.25, "guess": _guess}


def _published(at_once: int, *, mmlu: bool) -> BatchTask:
    return BatchTask(
        suite="longgenbench",
        source=MMLU if mmlu else GSM8K,
        file="mmlu_test.jsonl" if mmlu else "gsm8k_test.jsonl",
        parse=parse_mmlu if mmlu else parse_gsm8k,
        subset="all" if mmlu else "main",
        max_new_tokens=at_once * (LETTER_TOKENS if mmlu else STEP_TOKENS + 40),
        at_once=at_once,
        **(CHOOSING if mmlu else LABELS),
    )


TASKS: dict[str, Task | DataTask] = {
    "arithmetic": Task(make=_maker(word_problem, STEP_TOKENS, letters=False), haystack="own", **LABELS),
    "choice": Task(make=_maker(choice_problem, LETTER_TOKENS, letters=True), haystack="own", **CHOOSING),
    "gsm8k_10": _published(10, mmlu=False),
    "gsm8k_35": _published(35, mmlu=False),
    "mmlu_10": _published(10, mmlu=True),
    "mmlu_40": _published(40, mmlu=True),
}
