"""LongBench v2: 503 hard questions with four choices over texts of 8K to 2M words.

Single and several documents, long in-context learning, dialogues, code repositories and structured data.

Paper: LongBench v2: Towards Deeper Understanding and Reasoning on Realistic Long-context Multitasks (Bai et al., 2024)

Scored by the letter after "The correct answer is", with parts for easy and hard, short, medium and long.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from random import Random
from typing import Any

from longspan.evaluation.metrics import Metric
from longspan.evaluation.metrics.by_group import longbench_v2, longbench_v2_compensated
from longspan.evaluation.published import DataTask, Question, Source
from longspan.evaluation.suites._templates import guess_letter
from longspan.evaluation.task import Sample

CARD: dict[str, Any] = {
    "name": "longbench_v2",
    "title": "LongBench v2: Towards Deeper Understanding and Reasoning on Realistic Long-context Multitasks",
    "year": 2024,
    "version": 1,
    "metric": "accuracy of the letter after `The correct answer is`; parts by difficulty and length",
    "differs": [
        "the instruction is worded anew, with the same form of the answer, which the official scorer asks for",
        "the middle of the text is cut, not of the whole prompt, so that question and choices always stay",
        "answered greedily; the original samples at temperature 0.1",
        "only the setting without reasoning is here, 128 tokens an answer",
        "`all_compensated` gives a quarter for an answer without a letter, which the original has as a switch",
        "one task for each of the six domains beside all 503 questions",
    ],
    "paper_id": 251,
    "lengths": "any; texts of 8K to 2M words as published, their middle cut where they are longer than asked for",
    "needs": "data.json of the hub's data set",
    "licence": "Apache-2.0 for the data set, MIT for its code; the texts keep their own",
    "citation": "Bai et al., LongBench v2, arXiv 2412.15204, 2024",
}

SOURCE = Source(
    hub="THUDM/LongBench-v2",
    licence=CARD["licence"],
    citation=CARD["citation"],
    url="https://github.com/THUDM/LongBench",
)

LETTERS = "ABCD"
DOMAINS: Mapping[str, tuple[str, str]] = {
    "single_document_qa": ("Single-Document QA", "question answering"),
    "multi_document_qa": ("Multi-Document QA", "multi-hop"),
    "long_in_context_learning": ("Long In-context Learning", "many-shot learning"),
    "long_dialogue_history": ("Long-dialogue History Understanding", "dialogue"),
    "code_repository": ("Code Repository Understanding", "code understanding"),
    "long_structured_data": ("Long Structured Data Understanding", "structured data"),
}
"""Task to the domain's name in the data, and its ability."""


def parse(domain: str | None, row: Mapping[str, Any]) -> Iterable[Question]:
    """The question of a row; none where it is of another domain.

    Args:
        domain: as the data name it; None takes all.
        row: _id, domain, sub_domain, difficulty, length, question, choice_A to choice_D, answer, context.
    """
    if domain is not None and row["domain"] != domain:
        return
    if row["answer"] not in tuple(LETTERS):
        raise ValueError(f"`answer` is {row['answer']!r}, allowed are A, B, C and D")
    choices = "\n".join(f"({letter}) {row[f'choice_{letter}'].strip()}" for letter in LETTERS)
    yield Question(
        context=f"Read this text for a question about it.\n\n<text>\n{row['context'].strip()}",
        question=f"</text>\n\nQuestion about the text: {row['question'].strip()}\nChoices:\n{choices}\n\nWhich choice is right? "
        'Answer in this form: "The correct answer is (letter)".',
        references=(row["answer"],),
        answer=f"The correct answer is ({row['answer']})",
        details={
            "choices": list(LETTERS),
            "id": row["_id"],
            "domain": row["domain"],
            "sub_domain": row["sub_domain"],
            "difficulty": row["difficulty"],
            "length": row["length"],
        },
    )


def _task(domain: str | None, ability: str, metric: Metric = longbench_v2) -> DataTask:
    return DataTask(
        suite="longbench_v2",
        source=SOURCE,
        file="data.json",
        split="train",
        parse=partial(parse, domain),
        max_new_tokens=128,
        ability=ability,
        diffusion="high",
        scope="high",
        metric=metric,
        chance=1 / len(LETTERS),
        guess=_guess,
        answers="derived",
    )


def _guess(rng: Random, sample: Sample) -> str:
    return f"The correct answer is ({guess_letter(rng, sample)})"


TASKS: dict[str, DataTask] = {
    "all": _task(None, "reasoning"),
    "all_compensated": _task(None, "reasoning", longbench_v2_compensated),
    **{name: _task(domain, ability) for name, (domain, ability) in DOMAINS.items()},
}
