"""S3Eval: a random table and one SQL query, or the same query in words; the answer is what SQLite gives for it.

Paper: S3Eval: A Synthetic, Scalable, Systematic Evaluation Suite for Large Language Models (Lei et al., 2023)
The table has as many rows as fit. Names in it are made of syllables, so that no text and no knowledge holds the answer. A
sample is right when the first line of the answer gives all rows of the result, and no more.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from longspan.evaluation.haystacks.lines import EXACT_TOKENS
from longspan.evaluation.metrics.text import need_references
from longspan.evaluation.suites.s3eval.queries import (
    Query,
    Table,
    aggregate,
    arithmetic,
    compare,
    count,
    group_by,
    order_by,
    where,
    where_many,
)
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "s3eval",
    "title": "S3Eval: A Synthetic, Scalable, Systematic Evaluation Suite for Large Language Models",
    "year": 2023,
    "version": 1,
    "metric": "exact match of the rows of the result, which stand on the answer's first line; mean over samples",
    "differs": [
        "tables are drawn anew for each sample, cells are invented words and whole numbers; the official generator draws words "
        "of a vocabulary, and dates too",
        "eleven fixed templates, each as SQL and in words, instead of a grammar of SQL and questions that a language model wrote",
        "the number of rows follows from the length asked for, not from a table of lengths",
        "zero-shot with a stated answer format; numbers are compared as numbers, quotes and a final point are passed over",
    ],
    "paper_id": 222,
    "lengths": "any",
    "needs": "nothing",
    "licence": "generated here",
}

MAX_NEW_TOKENS = 64
FILLED = 0.997  # long tables are filled at an estimated rate, right to about half a per cent
PREFIX = "Result:"
FORMAT = "Answer with the rows of the result alone, on one line, separated by commas; join the cells of a row with ' | '."


def table_match(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the first line of the answer holds just the rows of the result.

    Args:
        references: the rows, cells joined by " | ".
        details: "ordered", whether the order of rows counts.
    """
    need_references(references)
    line = next((line for line in prediction.splitlines() if line.strip()), "")
    found = [_cells(row) for row in re.split("[,;]", re.sub(r"(?i)^\s*(result|answer)\s*:", "", line))]
    wanted = [_cells(row) for row in references]
    if not details.get("ordered"):
        found, wanted = sorted(found), sorted(wanted)
    return float(found == wanted)


def _cells(row: str) -> tuple[str, ...]:
    return tuple(_plain(cell) for cell in row.strip(" .|").split("|"))


def _plain(cell: str) -> str:
    text = cell.strip().rstrip(".").strip(" '\"`*()[]").lower()
    return f"{float(text):.2f}" if re.fullmatch(r"-?\d+(\.\d+)?", text) else text


def _maker(query_of: Callable[[Table], Query], *, sql: bool) -> Callable[[random.Random, Room], Puzzle]:
    def make(rng: random.Random, room: Room) -> Puzzle:
        table = Table(rng)
        query = query_of(table)
        asked = f"Execute this SQL query on the table: {query.sql};" if sql else query.text
        question, head = f"{asked}\n{FORMAT}", table.head()
        made = {table.line(row): row for row in query.wanted}
        wanted = list(made)

        def fillers() -> Iterator[str]:
            while True:
                row = query.filler()
                made[table.line(row)] = row
                yield table.line(row)

        left = room.left(head, question, PREFIX, "\n".join(wanted), max_new_tokens=MAX_NEW_TOKENS)
        left = left if left <= EXACT_TOKENS else int(left * FILLED)
        others = room.fill(fillers(), left) if left > 0 else []
        if not others:
            raise ValueError(f"{room.tokens} tokens are too few for a table; ask for 1024 or more")
        lines = room.scatter(wanted, others, rng)
        result = table.run(query.sql, [made[line] for line in lines])
        return Puzzle(
            needles=(),
            context="\n".join((head, *lines)),
            evidence=() if query.whole else tuple(wanted),
            question=question,
            answer_prefix=PREFIX,
            references=tuple(result),
            answer=", ".join(result),
            max_new_tokens=MAX_NEW_TOKENS,
            details={"ordered": query.ordered},
        )

    return make


LOOKUP: dict[str, Any] = {"ability": "table lookup", "diffusion": "low", "scope": "low", "places": True}
SEVERAL: dict[str, Any] = {"ability": "table lookup", "diffusion": "high", "scope": "high"}
AGGREGATION: dict[str, Any] = {
    "ability": "aggregation",
    "diffusion": "high",
    "scope": "high",
    "answers": "derived",
}

TEMPLATES: dict[str, tuple[Callable[[Table], Query], dict[str, Any]]] = {
    "where": (where, LOOKUP),
    "where_many": (where_many, {**LOOKUP, "diffusion": "high"}),
    "arithmetic": (arithmetic, {**LOOKUP, "ability": "arithmetic", "answers": "derived"}),
    "compare": (compare, SEVERAL),
    "order_by": (order_by, SEVERAL),
    "count": (count, {**AGGREGATION, "chance": 0.1}),
    "sum": (aggregate("sum({})", "sum of"), AGGREGATION),
    "average": (aggregate("round(avg({}), 2)", "average (to two decimals)"), AGGREGATION),
    "maximum": (aggregate("max({})", "highest"), AGGREGATION),
    "minimum": (aggregate("min({})", "lowest"), AGGREGATION),
    "group_by": (group_by, AGGREGATION),
}

TASKS: dict[str, Task] = {
    f"{name}_{form}": Task(
        make=_maker(query, sql=form == "sql"), haystack="own", metric=table_match, **labels
    )
    for name, (query, labels) in TEMPLATES.items()
    for form in ("sql", "text")
}
