"""S3Eval: the table is read back from the text and the query answered in plain Python, not by SQLite."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from longspan.evaluation.exams import PuzzleExam
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.registry import find_task, find_tasks
from longspan.evaluation.suites.s3eval import table_match
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

TASKS = [name for name in find_tasks() if name.startswith("s3eval/")]

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


def build(name: str, tokenizer: Any, seed: int, depth: float | None = None) -> Sample:
    exam = find_task(name).exam
    assert isinstance(exam, PuzzleExam)
    return exam.build(
        length_tokens=2048, depth=depth, seed=seed, haystack=noise_haystack(), tokenizer=tokenizer
    )


def read_table(context: str) -> Rows:
    header, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in context.splitlines()
        if line.startswith("|")
    ]
    return [
        {name: int(cell) if cell.isdigit() else cell for name, cell in zip(header, line, strict=True)}
        for line in lines
    ]


def run_sql(sql: str, rows: Rows) -> list[str]:
    """The few forms of SQL that the suite asks, read by regular expressions."""
    found = re.fullmatch(
        r"select (?P<what>.+?) from my_table(?: where (?P<where>.+?))?"
        r"(?: group by (?P<group>\w+))?(?: order by (?P<order>\w+) desc limit (?P<limit>\d+))?",
        sql,
    )
    assert found is not None, sql
    for condition in (found["where"] or "").split(" and ") if found["where"] else ():
        left, sign, right = condition.split(" ", 2)
        value = (
            (lambda row, right=right: row[right])
            if right.isidentifier()
            else (lambda row, right=right: right)
        )
        if sign == "=":
            rows = [row for row in rows if row[left] == right.strip("'")]
        else:
            rows = [row for row in rows if row[left] > int(value(row))]
    if found["group"]:
        counted = Counter(row[found["group"]] for row in rows)
        return [f"{kind} | {number}" for kind, number in counted.items()]
    if found["order"]:
        rows = sorted(rows, key=lambda row: -row[found["order"]])[: int(found["limit"])]
    what = found["what"]
    if what == "count(*)":
        return [str(len(rows))]
    if function := re.search(r"(sum|avg|max|min)\((\w+)\)", what):
        values = [row[function[2]] for row in rows]
        mean = round(sum(values) / len(values), 2)
        return [str({"sum": sum(values), "avg": mean, "max": max(values), "min": min(values)}[function[1]])]
    if " + " in what:
        return [str(sum(row[name] for name in what.split(" + "))) for row in rows]
    return [str(row[what]) for row in rows]


@pytest.mark.parametrize("task", [name for name in TASKS if name.endswith("_sql")])
def test_sql_on_the_text_gives_the_answer(task: str, tokenizer: Any) -> None:
    for seed in range(10):
        sample = build(task, tokenizer, seed)
        sql = sample.question.split(": ", 1)[1].split(";")[0]
        found = run_sql(sql, read_table(sample.context))
        assert table_match(", ".join(found), sample.references, sample.details) == 1.0
        assert Counter(found) == Counter(sample.references)


def test_words_ask_for_the_same_as_sql(tokenizer: Any) -> None:
    for seed in range(8):
        sample = build("s3eval/where_many_text", tokenizer, seed)
        found = re.search(
            r"the (\w+) of the row whose (\w+) is (\w+), whose (\w+) is (\w+) and whose (\w+) is above (\d+)",
            sample.question,
        )
        assert found is not None
        name, first, one, second, other, number, bound = found.groups()
        (row,) = [
            row
            for row in read_table(sample.context)
            if row[first] == one and row[second] == other and row[number] > int(bound)
        ]
        assert sample.references == (row[name],)
        sample = build("s3eval/minimum_text", tokenizer, seed)
        found = re.search(r"lowest (\w+) of the rows whose (\w+) is (\w+)\?", sample.question)
        assert found is not None
        values = [row[found[1]] for row in read_table(sample.context) if row[found[2]] == found[3]]
        assert len(values) >= 3 and sample.answer == str(min(values))


def test_near_misses_stand_in_the_table(tokenizer: Any) -> None:
    near = 0
    for seed in range(8):
        sample = build("s3eval/where_many_sql", tokenizer, seed)
        conditions = re.findall(r"(\w+) = '(\w+)'", sample.question)
        near += sum(
            any(row[name] == value for name, value in conditions) for row in read_table(sample.context)
        )
    assert near > 8 * 5


def test_the_row_asked_for_stands_at_the_depth_asked_for(tokenizer: Any) -> None:
    for depth in (0.0, 0.5, 1.0):
        sample = build("s3eval/where_sql", tokenizer, 3, depth)
        lines = [line for line in sample.context.splitlines() if line.startswith("|")][2:]
        assert lines.index(sample.evidence[0]) == pytest.approx(depth * (len(lines) - 1), abs=1)


@pytest.mark.parametrize(
    ("answer", "references", "ordered", "score"),
    [
        ("a | 2, b | 3", ("b | 3", "a | 2"), False, 1.0),
        ("Result: | b | 3 |; | a | 2 |.\nThat is all.", ("b | 3", "a | 2"), False, 1.0),
        ("a, b", ("b", "a"), True, 0.0),
        ("b, a", ("b", "a"), True, 1.0),
        ("b", ("b", "a"), False, 0.0),
        ("a, b, c", ("b", "a"), False, 0.0),
        ("'a', 'b'", ("a", "b"), True, 1.0),
        ("598.330", ("598.33",), False, 1.0),
        ("598.3", ("598.33",), False, 0.0),
        ("717", ("717.0",), False, 1.0),
        ("", ("717.0",), False, 0.0),
    ],
)
def test_table_match(answer: str, references: tuple[str, ...], ordered: bool, score: float) -> None:
    assert table_match(answer, references, {"ordered": ordered}) == score
