"""PRELUDE: is an invented story of what a character did before a novel consistent with it, or does it contradict it?

The official data set could not be read. The columns are those of a public set made in its manner (two novels, 140 labelled
stories): id, book_name, char, caption, content, label. Scored by the verdict.

Paper: PRELUDE: A Benchmark Designed to Require Global Comprehension and Reasoning over Long Contexts (Yu et al., 2025)
"""

from __future__ import annotations

import glob
import random
from collections.abc import Iterable
from typing import Any

from longspan.evaluation.metrics.prelude_rules import consistency, verdict
from longspan.evaluation.published import Question, Source
from longspan.evaluation.suites._files import GroupedTask, Row, find_files, find_text
from longspan.evaluation.task import Sample

CARD: dict[str, Any] = {
    "name": "prelude",
    "title": "PRELUDE: A Benchmark Designed to Require Global Comprehension and Reasoning over Long Contexts",
    "year": 2025,
    "version": 1,
    "metric": "verdict right",
    "differs": [
        "field names and scorer could not be checked against the official data; the columns are those of a public set in its manner",
        "the prompt is in our own words, and asks for the verdict after an explanation",
        "the paper reports F1 of the classes and, by people, whether the reasoning is right; here accuracy",
    ],
    "paper_id": 213,
    "lengths": "40K to 600K tokens",
    "needs": "prelude.csv (or .jsonl) with the columns above, and each book as books/<book_name>.txt",
    "licence": "not stated where it was seen",
    "citation": "Yu et al., 2025",
}

SOURCE = Source(
    hub=None,
    licence="see the page",
    citation="Yu et al., PRELUDE: A Benchmark Designed to Require Global Comprehension and Reasoning over Long Contexts, 2025",
    url="https://arxiv.org/abs/2508.09848",
)
ASK = (
    "Below is an invented story of what {char} did before the events of the book above.\n\n{title}{content}\n\n"
    "Could it have happened, given all that the book tells, or does the book contradict it, openly or by what follows from it? Explain "
    "briefly, then end with one word on a line of its own: CONSISTENT or CONTRADICT."
)


def _book(name: str) -> str:
    # Files of the public set have underscores for spaces.
    for one in (name, name.replace(" ", "_")):
        pattern = f"books/{glob.escape(one)}.txt"
        if find_files("prelude", pattern):
            break
    return find_text("prelude", pattern, SOURCE)


def _question(row: Row) -> Iterable[Question]:
    label = verdict(str(row["label"]))
    if label is None:
        raise ValueError(f"the label of {row['id']} is {row['label']!r}; it must be consistent or contradict")
    title = f"{row['caption']}\n" if row.get("caption") else ""
    yield Question(
        context=_book(row["book_name"]),
        question=ASK.format(char=row["char"], title=title, content=row["content"]),
        references=(label,),
        answer=label.upper(),
        details={"id": row["id"], "book": row["book_name"], "character": row["char"]},
    )


def _guess(rng: random.Random, sample: Sample) -> str:
    return rng.choice(("CONSISTENT", "CONTRADICT"))


TASKS: dict[str, GroupedTask] = {
    "stories": GroupedTask(
        suite="prelude",
        source=SOURCE,
        file="prelude.csv",
        pattern="prelude.*",
        parse=_question,
        max_new_tokens=512,
        ability="verification",
        diffusion="high",
        scope="high",
        metric=consistency,
        chance=0.5,
        guess=_guess,
        answers="derived",
    )
}
