"""HoloBench: sentences are read back into rows, and the operations done in plain Python, not by SQLite."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from longspan.evaluation.exams import PuzzleExam
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.registry import find_task
from longspan.evaluation.suites.holobench import item_f1
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

HOUSE = r"[A-Z]\w+ & [A-Z]\w+"
WINE = (
    rf"^(?P<name>[A-Z]\w+ [A-Z]\w+) is a (?P<colour>\w+) wine of \d+ from (?P<house>{HOUSE}), sold at (?P<price>\d+) crowns",
    rf"^(?P<house>{HOUSE}) sells (?P<name>[A-Z]\w+ [A-Z]\w+), a (?P<colour>\w+) wine of \d+, for (?P<price>\d+) crowns",
    rf"^At (?P<price>\d+) crowns a bottle, (?P<name>[A-Z]\w+ [A-Z]\w+) from (?P<house>{HOUSE}) is a (?P<colour>\w+) wine of",
)
Row = dict[str, str]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


def build(task: str, tokenizer: Any, seed: int, length: int = 2048, depth: float | None = None) -> Sample:
    exam = find_task(f"holobench/{task}").exam
    assert isinstance(exam, PuzzleExam)
    return exam.build(
        length_tokens=length, depth=depth, seed=seed, haystack=noise_haystack(), tokenizer=tokenizer
    )


def wines(context: str) -> list[Row]:
    found = [re.match(pattern, line) for line in context.splitlines() for pattern in WINE]
    return [match.groupdict() for match in found if match]


def names(rows: list[Row]) -> list[str]:
    return [row["name"] for row in rows]


@pytest.mark.parametrize(
    "task",
    ["selection", "selection_sparse", "selection_dense", "selection_gathered", "selection_split"],
)
def test_selection(task: str, tokenizer: Any) -> None:
    for seed in range(8):
        sample = build(task, tokenizer, seed)
        (bound,) = re.findall(r"more than (\d+)", sample.question)
        chosen = [
            row for row in wines(sample.context) if row["colour"] == "red" and int(row["price"]) > int(bound)
        ]
        assert Counter(names(chosen)) == Counter(sample.references)


@pytest.mark.parametrize("task", ["order", "maximum", "minimum", "average", "count"])
def test_wines_of_one_winery(task: str, tokenizer: Any) -> None:
    for seed in range(8):
        sample = build(task, tokenizer, seed)
        (house,) = re.findall(HOUSE, sample.question)
        rows = [row for row in wines(sample.context) if row["house"] == house]
        rows.sort(key=lambda row: int(row["price"]))
        mean = sum(int(row["price"]) for row in rows) / len(rows)
        wanted = {
            "order": names(rows),
            "maximum": names(rows[-1:]),
            "minimum": names(rows[:1]),
            "average": [f"{mean:.2f}"],
            "count": [str(len(rows))],
        }[task]
        assert item_f1("; ".join(wanted), sample.references, sample.details)["score"] == 1.0


def test_join_needs_both_tables(tokenizer: Any) -> None:
    for seed in range(8):
        sample = build("join", tokenizer, seed)
        regions = dict(
            re.findall(rf"^({HOUSE}) is a winery in (\w+ Valley)", sample.context, re.MULTILINE)
            + re.findall(rf"the winery ({HOUSE}) lies in (\w+ Valley)", sample.context)
        )
        (region,) = re.findall(r"\w+ Valley", sample.question)
        chosen = [row for row in wines(sample.context) if regions[row["house"]] == region]
        assert Counter(names(chosen)) == Counter(sample.references)
        assert len(set(regions.values())) > 1


def test_groups(tokenizer: Any) -> None:
    for seed in range(4):
        sample = build("group", tokenizer, seed)
        counted = Counter(row["house"] for row in wines(sample.context))
        assert {f"{house}: {number}" for house, number in counted.items()} == set(sample.references)
        assert len(counted) == 4


@pytest.mark.parametrize(
    ("task", "least", "most"),
    [("selection", 0.4, 0.6), ("selection_sparse", 0.06, 0.16), ("selection_dense", 0.99, 1.0)],
)
def test_the_share_of_relevant_text(task: str, least: float, most: float, tokenizer: Any) -> None:
    sample = build(task, tokenizer, 1, 8192)
    lines = sample.context.splitlines()[1:]
    relevant = sum(len(line) for line in lines if any(re.match(pattern, line) for pattern in WINE))
    assert least <= relevant / sum(map(len, lines)) <= most


def test_relevant_rows_gathered_or_split(tokenizer: Any) -> None:
    for depth in (0.0, 0.5, 1.0):
        sample = build("selection_gathered", tokenizer, 2, depth=depth)
        block = sample.evidence[0].splitlines()
        assert len(block) == len(wines(sample.context)) == len(wines(sample.evidence[0]))
        assert sample.depths[0] == pytest.approx(depth, abs=0.12)
    sample = build("selection_split", tokenizer, 2)
    first, last = sample.evidence
    assert len(wines(first)) + len(wines(last)) == len(wines(sample.context))
    assert sample.context.splitlines()[1] == first.splitlines()[0] and sample.context.endswith(last)


@pytest.mark.parametrize(
    ("answer", "references", "ordered", "score"),
    [
        ("A B; C D", ("C D", "A B"), False, 1.0),
        ("A B, C D.", ("C D", "A B"), False, 1.0),
        ("1. A B\n2. C D", ("C D", "A B"), False, 1.0),
        ("A B; X; Y; Z", ("C D", "A B"), False, 2 * 0.25 * 0.5 / 0.75),
        ("A B; A B", ("C D", "A B"), False, 0.5),
        ("C D; A B", ("A B", "C D"), True, 0.0),
        ("A B; D; C", ("A B", "C", "D"), True, 1 / 3),
        ("136.40", ("136.4",), False, 1.0),
        ("9\nThat is all.", ("9",), False, 1.0),
        ("", ("9",), False, 0.0),
    ],
)
def test_item_f1(answer: str, references: tuple[str, ...], ordered: bool, score: float) -> None:
    assert item_f1(answer, references, {"ordered": ordered})["score"] == pytest.approx(score)
