"""VaL Probing: a reader of the text retrieves what stands around the key; word recall by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from longspan.evaluation.haystacks import Haystack
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.haystacks.pydoc import pydoc_haystack
from longspan.evaluation.registry import find_task
from longspan.evaluation.sample import score
from longspan.evaluation.suites.film import word_recall
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

SEEDS = range(10)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


@pytest.fixture(scope="module")
def prose() -> Haystack:
    return pydoc_haystack()


def build(task: str, tokenizer: Any, seed: int, prose: Haystack, depth: float | None = None) -> Sample:
    made: Sample = find_task(f"film/{task}").exam.build(
        length_tokens=4096, depth=depth, seed=seed, haystack=prose, tokenizer=tokenizer
    )
    return made


@pytest.mark.parametrize("direction", ["forward", "backward", "bi"])
def test_document(direction: str, tokenizer: Any, prose: Haystack) -> None:
    for seed in SEEDS:
        sample = build(f"document_{direction}", tokenizer, seed, prose)
        key = sample.question.split(": ", 1)[1].split("\n")[0]
        assert len(key.split()) == 8 and sample.context.count(key) == 1
        (line,) = [line for line in sample.context.split("\n") if key in line]
        before, after = line.split(key)
        said = {"forward": after, "backward": before, "bi": line}[direction]
        assert (before == "") == (direction == "forward") and (after == "") == (direction == "backward")
        assert said.strip() == sample.references[0]


@pytest.mark.parametrize("direction", ["forward", "backward", "bi"])
def test_code(direction: str, tokenizer: Any, prose: Haystack) -> None:
    for seed in SEEDS:
        sample = build(f"code_{direction}", tokenizer, seed, prose)
        lines = [line.strip() for line in sample.context.split("\n")]
        if direction == "forward":
            name = re.search(r"of the function (\w+), and", sample.question)
            assert name is not None
            (at,) = [at for at, line in enumerate(lines) if re.match(rf"(?:async )?def {name[1]}\(", line)]
            said = "\n".join(lines[at + 1 : at + 3])
        else:
            (at,) = [at for at, line in enumerate(lines) if line == sample.question.split("\n")[1]]
            heads = [
                line for line in sample.context.split("\n")[: at + 1] if re.match(r"(?:async )?def ", line)
            ]
            name = re.search(r"def (\w+)", heads[-1])
            assert name is not None
            said = name[1] if direction == "backward" else f"{lines[at - 1]}\n{lines[at + 1]}"
        assert said == sample.references[0]


@pytest.mark.parametrize("direction", ["forward", "backward", "bi"])
def test_database(direction: str, tokenizer: Any, prose: Haystack) -> None:
    for seed in SEEDS:
        sample = build(f"database_{direction}", tokenizer, seed, prose)
        key = re.search(r"(Q\d+)|\"(.+?)\"", sample.question)
        assert key is not None
        records = re.findall(r"^<id: (.+), name: (.+), description: (.+)>$", sample.context, re.MULTILINE)
        assert len(records) > 50 and all(
            len({one[field] for one in records}) == len(records) for field in range(3)
        )
        ((number, name, about),) = [one for one in records if (key[1] or key[2]) in one]
        said = {"forward": f"{name} {about}", "backward": f"{number} {name}", "bi": f"{number} {about}"}[
            direction
        ]
        assert score(said, sample, word_recall) == 1.0


def test_where_prose_is_short_facts_fill_the_document(tokenizer: Any) -> None:
    sample = build("document_forward", tokenizer, 0, noise_haystack())
    lines = sample.context.split("\n")
    assert len(set(lines)) == len(lines) > 50
    assert "The grass is green." in lines


def test_the_place_asked_for_is_kept_by_length(tokenizer: Any, prose: Haystack) -> None:
    for task in ("document_bi", "code_backward", "database_forward"):
        starts = [build(task, tokenizer, 2, prose, depth).depths[0] for depth in (0.0, 0.5, 1.0)]
        assert starts == pytest.approx([0.0, 0.5, 1.0], abs=0.06)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("The cat sat on the mat.", 1.0),
        ("the CAT, sat on mat.", 4 / 5),
        ("The cat sat on the mat", 4 / 5),  # the official scorer takes "mat" and "mat." for two words
        ("a dog sat", 1 / 5),
        ("", 0.0),
    ],
)
def test_word_recall(said: str, expected: float) -> None:
    assert word_recall(said, ["The cat sat on the mat."], {}) == pytest.approx(expected)
