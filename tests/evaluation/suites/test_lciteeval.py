"""L-CiteEval: a reader of the passages answers with citations, and citations are scored by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.metrics import grade
from longspan.evaluation.registry import find_task
from longspan.evaluation.suites.lciteeval import cited_claims
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


def build(task: str, tokenizer: Any, seed: int, depth: float | None = None) -> Sample:
    made: Sample = find_task(f"lciteeval/{task}").exam.build(
        length_tokens=4096, depth=depth, seed=seed, haystack=noise_haystack(), tokenizer=tokenizer
    )
    return made


def found(context: str, pattern: str) -> list[tuple[str, int]]:
    """What a pattern catches, with the number of the passage."""
    passages = re.split(r"^(?:Passage|Conversation) \[(\d+)\]: ", context, flags=re.MULTILINE)[1:]
    numbered = zip(passages[::2], passages[1::2], strict=True)
    return [(value, int(number)) for number, text in numbered for value in re.findall(pattern, text)]


def single_hop(context: str, question: str) -> str:
    name = re.search(r"(?:does|did) (\w+ \w+) ", question)
    assert name is not None
    pattern = {
        "telephone": rf"{name[1]} has the telephone number (\d+)",
        "keep": rf"{name[1]} keeps an? (.+?) in the",
        "move": rf"{name[1]} moved to (\w+) in",
        "work": rf"{name[1]} works as an? .+? in (\w+)\.",
    }[next(word for word in ("telephone", "keep", "move", "work") if word in question)]
    ((value, number),) = found(context, pattern)
    return f"{value} [{number}]"


def multi_hop(context: str, question: str) -> str:
    name = re.search(r"where (\w+ \w+) works|that (\w+ \w+) moved", question)
    assert name is not None
    who = name[1] or name[2]
    ((town, first),) = found(context, rf"{who} (?:works as an? .+? in|moved to) (\w+)")
    ((mayor, second),) = found(context, rf"The mayor of {town} is (\w+ \w+)\.")
    return f"{mayor} [{first}][{second}]"


def counting(context: str, question: str) -> str:
    name = re.search(r"did (\w+ \w+) count", question)
    assert name is not None
    stars = found(context, rf"{name[1]} counted (\d+) stars")
    assert len(stars) == 5
    return "; ".join(f"{value} [{number}]" for value, number in stars)


def summary(context: str, question: str) -> str:
    name = re.search(r"project (\w+ \w+):", question)
    assert name is not None
    patterns = (
        "Project {} is led by (.+?)\\.",
        "The budget of project {} is (\\d+)",
        "project {} meet in (\\w+)",
        "emblem of project {} is an? (.+?)\\.",
        "Project {} must be finished by (.+?)\\.",
    )
    told = [found(context, pattern.format(name[1])) for pattern in patterns]
    return "\n".join(f"- {value} [{number}]" for ((value, number),) in told)


def dialogue(context: str, question: str) -> str:
    said = [
        found(context, rf'{name} said: "I bought an? (.+?)\."')
        for name in re.findall(r"did (\w+ \w+) buy", question)
    ]
    return ", ".join(f"{value} [{number}]" for ((value, number),) in said)


SOLVERS = {
    "single_hop": single_hop,
    "multi_hop": multi_hop,
    "counting": counting,
    "summary": summary,
    "dialogue": dialogue,
}


@pytest.mark.parametrize("task", SOLVERS)
def test_a_reader_of_the_passages_answers_and_cites(task: str, tokenizer: Any) -> None:
    for seed in range(12):
        sample = build(task, tokenizer, seed)
        said = SOLVERS[task](sample.context, sample.question)
        parts = grade(cited_claims, said, sample.references, sample.details)
        assert parts == {
            "score": 1.0,
            "correctness": 1.0,
            "citation_f1": 1.0,
            "citation_precision": 1.0,
            "citation_recall": 1.0,
        }


@pytest.mark.parametrize("task", SOLVERS)
def test_passages_are_numbered_from_one(task: str, tokenizer: Any) -> None:
    numbers = re.findall(
        r"^(?:Passage|Conversation) \[(\d+)\]: ", build(task, tokenizer, 0).context, re.MULTILINE
    )
    assert [int(number) for number in numbers] == list(range(1, len(numbers) + 1))
    assert len(numbers) > 30


TWO: dict[str, Any] = {"support": [[3], [7, 9]]}


@pytest.mark.parametrize(
    ("said", "correctness", "precision", "recall"),
    [
        ("brass key [3], Ada Finch [7][9].", 1.0, 1.0, 1.0),
        ("brass key [3], Ada Finch [7].", 1.0, 1.0, 1 / 2),  # one of two passages: not supported
        ("brass key [3][4], Ada Finch [7][9].", 1.0, 3 / 4, 1.0),
        ("brass key and Ada Finch [3][7][9].", 1.0, 1.0, 1.0),
        ("brass key [3].", 1 / 2, 1.0, 1.0),
        ("brass key, Ada Finch.", 1.0, 0.0, 0.0),
        ("brass key [3]. Nobody else [5]", 1 / 2, 1 / 2, 1 / 2),
        ("a brass keyhole [3]", 0.0, 0.0, 0.0),
        ("brass key [3], Ada Finch [1][2][4][7][9]", 1.0, 1 / 4, 1 / 2),  # the first three count
        ("", 0.0, 0.0, 0.0),
    ],
)
def test_citations_by_hand(said: str, correctness: float, precision: float, recall: float) -> None:
    parts = grade(cited_claims, said, ["brass key", "Ada Finch"], TWO)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert parts == pytest.approx(
        {
            "score": correctness * f1,
            "correctness": correctness,
            "citation_f1": f1,
            "citation_precision": precision,
            "citation_recall": recall,
        }
    )


def test_a_number_in_a_citation_is_no_answer() -> None:
    parts = grade(cited_claims, "none [123]", ["123"], {"support": [[123]]})
    assert parts["score"] == parts["correctness"] == 0.0
