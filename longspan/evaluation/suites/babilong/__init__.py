"""BABILong: facts of bAbI, hidden in their order among the sentences of a book; the question needs one to three of them.

Tasks qa1 to qa20 are made at any length from bAbI's text files and the caller's prose. Tasks such as qa1_4k are the published
samples, which have books of PG-19 around the facts.

Paper: BABILong: Testing the Limits of LLMs with Long Context Reasoning-in-a-Haystack (Kuratov et al., 2024)

Scored by the labels in the answer's first sentence: the right ones, and of those that the question does not name no other.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from longspan.evaluation.metrics import Metric
from longspan.evaluation.metrics.choice_labels import BABI_LABELS, babilong, babilong_fixed
from longspan.evaluation.published import DataTask, Question, Source
from longspan.evaluation.suites.babilong.made import ANSWER_TOKENS, guess_label, hidden_facts
from longspan.evaluation.suites.babilong.prompts import PROMPTS
from longspan.evaluation.task import Task

__all__ = ["CARD", "SOURCE", "TASKS", "parse"]

CARD: dict[str, Any] = {
    "name": "babilong",
    "title": "BABILong: Testing the Limits of LLMs with Long Context Reasoning-in-a-Haystack",
    "year": 2024,
    "version": 1,
    "metric": "the right labels, and no other, in the answer's first sentence; mean over samples",
    "differs": [
        "instructions and examples are worded anew and ask for one word; the original asks for a sentence in qa1 to qa3",
        "made samples: the prose is the caller's; the original takes PG-19, sentences of 10 tokens and more",
        "made samples: any file of bAbI serves, `en` or `en-10k`; the original draws from the training half of v1.2 en-10k",
        "all facts of a made sample count as its evidence; those that the question rests on are in its details",
        "made samples: stories are drawn that leave a fifth of the room for other text",
        "made samples are scored with labels as whole words; the official rule of the published ones reads `none` as `one` too, "
        "so that `none` is never right in qa7, and sees `no` in `not`",
        "published samples longer than asked for lose their middle, and with it facts: take the length's own file",
    ],
    "paper_id": None,
    "lengths": "made: any from 1K tokens; published: 0k to 1M",
    "needs": "made: qa*_test.txt of bAbI; published: the folders qa1 to qa10 of the hub's data folder, <length>.json in each",
    "licence": "Apache-2.0 for code and published samples; bAbI has been given out under BSD and CC BY 3.0",
    "citation": "Kuratov et al., BABILong: Testing the Limits of LLMs with Long Context Reasoning-in-a-Haystack, NeurIPS 2024",
}

SOURCE = Source(
    hub="RMT-team/babilong",
    licence=CARD["licence"],
    citation=CARD["citation"],
    url="https://github.com/booydar/babilong",
)

LENGTHS = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M")
NUM_PUBLISHED = 10
ONE_FACT = (1, 4, 5, 6, 9, 10, 11, 12, 13)
COUNTS = (7, 8)
LISTED_SHARE = 0.233  # of qa8's answers, 7% name several things, which no single label gets right


def parse(name: str, row: Mapping[str, Any]) -> Iterable[Question]:
    """The question of a row: input, question, target.

    Args:
        name: qa1 to qa10.
        row: as published.
    """
    if not row["target"].strip():
        raise ValueError("`target` is empty")
    yield Question(
        context=f"{PROMPTS[name].text()}\n\n<context>\n{row['input'].strip()}",
        question=f"</context>\n\nQuestion: {row['question'].strip()}",
        references=(row["target"].strip(),),
        details={"question": row["question"].strip(), "task": name},
    )


def _of_task(name: str, metric: Metric) -> Metric:
    """The metric with the task's labels also where `details` does not name the task, as in files of predictions."""

    @functools.wraps(metric)
    def scored(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> Any:
        return metric(prediction, references, {"task": name, **details})

    return scored


def _labels(number: int) -> dict[str, Any]:
    name = f"qa{number}"
    ability = "retrieval" if number in ONE_FACT else "aggregation" if number in COUNTS else "multi-hop"
    return {
        "ability": ability,
        "diffusion": "low" if ability == "retrieval" else "high",
        "scope": "high" if ability == "aggregation" else "low",
        "chance": LISTED_SHARE if number == 8 else 1 / len(BABI_LABELS[name]),
        "guess": guess_label,
        "answers": "derived",
    }


def _made(number: int) -> Task:
    return Task(
        make=hidden_facts(f"qa{number}"), metric=_of_task(f"qa{number}", babilong_fixed), **_labels(number)
    )


def _published(number: int, length: str) -> DataTask:
    # The files of all tasks have the same names, so that each task's folder is the place to look.
    return DataTask(
        suite=f"babilong/qa{number}",
        source=SOURCE,
        file=f"{length}.json",
        subset=length,
        split=f"qa{number}",
        parse=partial(parse, f"qa{number}"),
        max_new_tokens=ANSWER_TOKENS,
        metric=_of_task(f"qa{number}", babilong),
        **_labels(number),
    )


TASKS: dict[str, Task | DataTask] = {
    **{f"qa{number}": _made(number) for number in range(1, len(PROMPTS) + 1)},
    **{
        f"qa{number}_{length}": _published(number, length)
        for number in range(1, NUM_PUBLISHED + 1)
        for length in LENGTHS
    },
}
