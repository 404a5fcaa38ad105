"""InfiniteBench: 12 tasks over about 100K tokens and more: retrieval, books, dialogue, code and arithmetic.

Books have their names replaced, so that a model cannot answer from memory; retrieval, arithmetic and running code are made
by program.

Paper: InfiniteBench: Extending Long Context Evaluation Beyond 100K Tokens (Zhang et al., 2024)

Scored by the official rules of each task: first number, word in the answer, letter, rougeLsum, token F1, values in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from longspan.evaluation.metrics import Metric
from longspan.evaluation.metrics.choice import longbook_choice, option_letter
from longspan.evaluation.metrics.code import code_debug
from longspan.evaluation.metrics.overlap_rouge import longbook_qa_chn, longbook_qa_eng, longbook_sum
from longspan.evaluation.metrics.retrieval import kv_retrieval, longdialogue_qa
from longspan.evaluation.metrics.text_numbers import code_run, math_calc, math_find, number_string, passkey
from longspan.evaluation.published import DataTask, Question, Source
from longspan.evaluation.suites._templates import guess_letter
from longspan.evaluation.suites.infinitebench.questions import (
    Row,
    book,
    book_choice,
    broken_code,
    hidden,
    numbers,
    pairs,
    running_code,
    running_values,
)
from longspan.evaluation.task import Level

CARD: dict[str, Any] = {
    "name": "infinitebench",
    "title": "InfiniteBench: Extending Long Context Evaluation Beyond 100K Tokens",
    "year": 2024,
    "version": 1,
    "metric": "by task: first number, word in the answer, letter, rougeLsum, token F1, part of the values in order; mean over "
    "questions",
    "differs": [
        "the instructions are worded anew, one for all models; the original has a template for each model it tested",
        "answers begin with the start that the original's templates for open models give, such as `The pass key is`",
        "tokens to generate are the original's for open models: 5 for code_run and code_debug, so no reasoning",
        "math_calc as published generates 30,000 tokens; its length must leave room for them",
        "the middle of the text is cut, not of the whole prompt, so that the question always stays",
        "code_debug_fixed and longbook_choice_eng_fixed take the first letter that stands alone; the official rules refuse a "
        "bare letter (code_debug) and read `Certainly` as C (longbook_choice_eng)",
    ],
    "paper_id": 264,
    "lengths": "any; texts of about 40K to 800K tokens as published, their middle cut where they are longer than asked for",
    "needs": "<task>.jsonl of the hub's data set; longbook_sum_eng needs rouge-score",
    "licence": "MIT for code and made tasks; the books keep their own",
    "citation": "Zhang et al., InfiniteBench: Extending Long Context Evaluation Beyond 100K Tokens, ACL 2024",
}

SOURCE = Source(
    hub="xinrongzhang2022/InfiniteBench",
    licence=CARD["licence"],
    citation=CARD["citation"],
    url="https://github.com/OpenBMB/InfiniteBench",
)


def parse(make: Callable[[Row], Question], row: Row) -> Iterable[Question]:
    """The question of a row: context, input, answer, options, and an id in some files.

    Args:
        make: of the task, from a row to its question.
        row: as published.
    """
    question = make(row)
    yield replace(question, details={**question.details, "id": row.get("id")})


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a task measures, in words of `Labels`, and how its questions are put."""

    make: Callable[[Row], Question]
    metric: Metric
    max_new_tokens: int
    ability: str
    diffusion: Level = "low"
    scope: Level = "low"
    chance: float = 0.0


KINDS: Mapping[str, Kind] = {
    "passkey": Kind(
        make=partial(hidden, "The pass key is"), metric=passkey, max_new_tokens=6, ability="retrieval"
    ),
    "number_string": Kind(
        make=partial(hidden, "The sequence of digits is"),
        metric=number_string,
        max_new_tokens=12,
        ability="retrieval",
    ),
    "kv_retrieval": Kind(make=pairs, metric=kv_retrieval, max_new_tokens=50, ability="retrieval"),
    "longbook_sum_eng": Kind(
        make=partial(book, "Read this book, to sum it up.", "Write a summary of the book above.", "Summary:"),
        metric=longbook_sum,
        max_new_tokens=1200,
        ability="summarisation",
        diffusion="high",
        scope="high",
    ),
    "longbook_qa_eng": Kind(
        make=partial(
            book,
            "Read this book for a question about it.",
            "Question: {input}\nAnswer in very few words.",
            "Answer:",
        ),
        metric=longbook_qa_eng,
        max_new_tokens=40,
        ability="question answering",
        diffusion="high",
    ),
    "longbook_choice_eng": Kind(
        make=book_choice,
        metric=longbook_choice,
        max_new_tokens=40,
        ability="question answering",
        diffusion="high",
        chance=1 / 4,
    ),
    "longbook_qa_chn": Kind(
        make=partial(book, "请先读完下面这本书。", "问题：{input}\n请用尽可能少的字回答。", "答案："),
        metric=longbook_qa_chn,
        max_new_tokens=40,
        ability="question answering",
        diffusion="high",
    ),
    "longdialogue_qa_eng": Kind(
        make=partial(
            book,
            'In this script the name of one character is hidden in one place, where it says "$$MASK$$".',
            'Who is "$$MASK$$" most likely? Give the name as the script has it before the colons, and nothing else.',
            "The hidden name is",
        ),
        metric=longdialogue_qa,
        max_new_tokens=40,
        ability="dialogue",
        diffusion="high",
    ),
    "math_find": Kind(
        make=numbers,
        metric=math_find,
        max_new_tokens=3,
        ability="aggregation",
        scope="high",
        chance=1 / 20,
    ),
    "math_calc": Kind(
        make=running_values,
        metric=math_calc,
        max_new_tokens=30_000,
        ability="arithmetic",
        diffusion="high",
        scope="high",
    ),
    "code_run": Kind(
        make=running_code,
        metric=code_run,
        max_new_tokens=5,
        ability="code execution",
        diffusion="high",
        chance=1 / 75,
    ),
    "code_debug": Kind(
        make=broken_code,
        metric=code_debug,
        max_new_tokens=5,
        ability="code understanding",
        diffusion="high",
        chance=1 / 4,
    ),
}
FIXED: Mapping[str, Kind] = {
    f"{name}_fixed": replace(KINDS[name], metric=option_letter)
    for name in ("code_debug", "longbook_choice_eng")
}


def _task(name: str, kind: Kind) -> DataTask:
    file = name.removesuffix("_fixed")
    return DataTask(
        suite="infinitebench",
        source=SOURCE,
        file=f"{file}.jsonl",
        split=file,
        parse=partial(parse, kind.make),
        max_new_tokens=kind.max_new_tokens,
        ability=kind.ability,
        diffusion=kind.diffusion,
        scope=kind.scope,
        metric=kind.metric,
        chance=kind.chance,
        guess=guess_letter if kind.chance == 1 / 4 else None,
        answers="derived",
    )


TASKS: dict[str, DataTask] = {name: _task(name, kind) for name, kind in {**KINDS, **FIXED}.items()}
