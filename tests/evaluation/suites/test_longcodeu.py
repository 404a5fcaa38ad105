"""LongCodeU: a reader of the code alone, by text rather than by syntax tree, gives the same answers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.metrics import grade
from longspan.evaluation.registry import find_task
from longspan.evaluation.sample import score
from longspan.evaluation.suites.longcodeu import lines_f1, names_f1, sentence_match
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


def build(task: str, tokenizer: Any, seed: int) -> Sample:
    made: Sample = find_task(f"longcodeu/{task}").exam.build(
        length_tokens=4096, depth=None, seed=seed, haystack=noise_haystack(), tokenizer=tokenizer
    )
    return made


def file_of(context: str, path: str) -> str:
    return context.split(f"# Path: {path}\n")[1].split("# Path: ")[0]


def functions_of(text: str) -> dict[str, str]:
    """Bodies by name: from each `def` to the first later line that is not indented more."""
    found: dict[str, str] = {}
    lines = text.split("\n")
    for at, line in enumerate(lines):
        head = re.match(r"( *)(?:async )?def (\w+)", line)
        if head:
            stop = at + 1
            depth = re.compile(rf" {{{len(head[1]) + 1}}}")
            closed = line.rstrip().endswith(":")
            while stop < len(lines) and (not closed or not lines[stop].strip() or depth.match(lines[stop])):
                closed = closed or lines[stop].rstrip().endswith(":")
                stop += 1
            found[head[2]] = "\n".join(lines[at:stop])
    return found


def test_units(tokenizer: Any) -> None:
    for seed in range(12):
        sample = build("units", tokenizer, seed)
        path = re.search(r"in the file (\S+), but", sample.question)
        assert path is not None
        names = [name for name in functions_of(file_of(sample.context, path[1])) if not name.startswith("__")]
        assert score(", ".join(names), sample, names_f1) == 1.0


def test_data_flow(tokenizer: Any) -> None:
    for seed in range(12):
        sample = build("data_flow", tokenizer, seed)
        asked = re.search(r"variable `(\w+)` through the function (\w+) in", sample.question)
        assert asked is not None
        body = functions_of(sample.context)[asked[2]]
        lines = [line for line in body.split("\n") if re.search(rf"\b{asked[1]}\b", line)]
        assert score("\n".join(lines), sample, lines_f1) == 1.0
        assert any(
            re.search(rf"\b{asked[1]}\b.*(?<![=!<>])=(?!=)| for .*\b{asked[1]}\b|as {asked[1]}", one)
            for one in lines
        )


def test_calls(tokenizer: Any) -> None:
    for seed in range(12):
        sample = build("calls", tokenizer, seed)
        asked = re.search(r"the function (\w+) in the file (\S+) call", sample.question)
        assert asked is not None
        own = functions_of(file_of(sample.context, asked[2]))[asked[1]].split(":", 1)[1]
        own = re.sub(r"#.*", "", own)
        defined = functions_of(sample.context)
        called = {name for name in re.findall(r"(?<![\w.])(\w+)\(", own) if name in defined}
        assert called == set(sample.references)


def test_callers(tokenizer: Any) -> None:
    for seed in range(12):
        sample = build("callers", tokenizer, seed)
        asked = re.search(r"call the function (\w+) of", sample.question)
        assert asked is not None
        callers = [
            name
            for name, body in functions_of(sample.context).items()
            if name != asked[1] and re.search(rf"\b{asked[1]}\(", body)
        ]
        assert set(callers) == set(sample.references)


def test_documentation(tokenizer: Any) -> None:
    for seed in range(12):
        sample = build("documentation", tokenizer, seed)
        asked = re.search(r"say about (\S+) of the file (\S+)\?", sample.question)
        assert asked is not None
        found = re.findall(
            rf"^{re.escape(asked[2])}: {re.escape(asked[1])}\(.*\n    (.+)$", sample.context, re.MULTILINE
        )
        assert len(found) == 1
        assert score(f'"{found[0]}"', sample, sentence_match) == 1.0


@pytest.mark.parametrize(
    ("said", "precision", "recall"),
    [
        ("open, close", 1.0, 1.0),
        ("`File.open()` and close(self, now)", 1.0, 1.0),
        ("1. open\n2. close\n3. seek", 2 / 3, 1.0),
        ("open, open", 1.0, 1 / 2),
        ("seek", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_names_by_hand(said: str, precision: float, recall: float) -> None:
    parts = grade(names_f1, said, ["open", "close"], {})
    f1 = 2 * precision * recall / (precision + recall) if recall else 0.0
    assert parts == pytest.approx({"score": f1, "precision": precision, "recall": recall})


def test_lines_by_hand() -> None:
    wanted = ["x = 1", "if x:", "x = 1"]
    assert lines_f1("```python\n  x = 1\nif x:\n    x = 1\n```", wanted, {})["score"] == 1.0
    parts = lines_f1("x = 1\nreturn x", wanted, {})
    assert (parts["precision"], parts["recall"]) == (1 / 2, 1 / 3)
