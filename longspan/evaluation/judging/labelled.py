"""Answers with a known label, to measure judges by: a user's own, or made from the `facts` suite's invented facts."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.errors import UserInputError
from longspan.evaluation.judging.evidence import words_of
from longspan.evaluation.suites.facts import Fact, draw_facts

__all__ = ["KINDS", "LabelledPair", "labelled_facts", "read_labelled"]

KINDS = {
    "right": "the reference answer",
    "paraphrase": "the reference answer in other words, or within a sentence",
    "wrong entity": "an answer of the same kind that is another one; half of them say that it is not the "
    "right one",
    "vague": "on the subject, in the question's words, and without the answer",
}
_LABELS = {
    "correct": True, "right": True, "true": True, "yes": True, "1": True,
    "wrong": False, "incorrect": False, "false": False, "no": False, "0": False,
}  # fmt: skip
_FRAMES = (
    "According to the text, that would be {}.",
    "The text gives it as {}, if I read it rightly.",
    "It says so in one place: {}.",
)
_WRONG = ("{wrong}", "Not {right}, but {wrong}.")
_VAGUE = (
    'Asked "{}", the text has a clear answer, given in one of its sentences.',
    'There is a passage that settles "{}" once and for all.',
    'It is as the text says where it comes to "{}" and not otherwise.',
)
_ARTICLES = frozenset("a an the of".split())


@dataclass(frozen=True, kw_only=True)
class LabelledPair:
    """A question, its reference answer, an answer given, and whether that is right. kind: what sort of answer it is."""

    question: str
    reference: str
    prediction: str
    label: bool
    kind: str = "given"


def read_labelled(path: str | Path) -> tuple[LabelledPair, ...]:
    """Labelled pairs from a JSONL file: `{"question", "reference", "prediction", "label"}`, and "kind" if wished.

    Args:
        path: a UTF-8 file; `label` is true or false, 1 or 0, or a word such as "correct" and "wrong".

    Raises:
        ValueError: the file cannot be read, is empty, or has a line that is no such object.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserInputError(
            f"cannot read labelled pairs from {path} ({error}); give a JSONL file in UTF-8"
        ) from error
    # Not splitlines(), which also breaks at characters that JSON strings may hold.
    lines = enumerate(text.split("\n"), start=1)
    pairs = tuple(_pair(line, f"{path} line {number}") for number, line in lines if line.strip())
    if not pairs:
        raise UserInputError(f"{path} holds no labelled pair; write one JSON object a line")
    return pairs


def _pair(line: str, where: str) -> LabelledPair:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserInputError(f"{where} is not JSON; write one object a line") from error
    entry = entry if isinstance(entry, Mapping) else {}
    texts = {name: entry.get(name) for name in ("question", "reference", "prediction")}
    label = _LABELS.get(str(entry.get("label")).strip().lower())
    if label is None or not all(isinstance(text, str) for text in texts.values()):
        raise UserInputError(
            f"{where} is no labelled pair; give question, reference and prediction as text and label as "
            "true or false"
        )
    return LabelledPair(**texts, label=label, kind=str(entry.get("kind", "given")))


def labelled_facts(count: int, *, seed: int = 0) -> tuple[LabelledPair, ...]:
    """Pairs about invented facts, in turns of the four `KINDS` for each fact: half are right, half wrong.

    Args:
        count: pairs wanted, 1 or more.
        seed: the same seed gives the same pairs.
    """
    if count < 1:
        raise UserInputError(f"got count={count}; allowed is 1 or more labelled pairs")
    rng = random.Random(f"labelled/{seed}")
    pairs: list[LabelledPair] = []
    while len(pairs) < count:
        asked, other = draw_facts(2, rng, same_template=True)
        if _tells_apart(asked, other):
            pairs += _of_fact(asked, other, rng)
    return tuple(pairs[:count])


def _tells_apart(asked: Fact, other: Fact) -> bool:
    """Whether the other fact's answer is wrong here beyond doubt, and the question does not give the answer away."""
    own, foreign = set(words_of(asked.answer)), set(words_of(other.answer))
    telling = own - _ARTICLES
    return not (own <= foreign or foreign <= own or telling & set(words_of(asked.question)))


def _of_fact(asked: Fact, other: Fact, rng: random.Random) -> Iterator[LabelledPair]:
    given = {
        "right": asked.answer,
        "paraphrase": rng.choice(_FRAMES).format(_reworded(asked.answer)),
        "wrong entity": rng.choice(_WRONG).format(right=asked.answer, wrong=other.answer),
        "vague": rng.choice(_VAGUE).format(asked.question),
    }
    for kind, prediction in given.items():
        yield LabelledPair(
            question=asked.question,
            reference=asked.answer,
            prediction=prediction,
            label=kind in ("right", "paraphrase"),
            kind=kind,
        )


def _reworded(answer: str) -> str:
    """Dates and described things said the other way round; names and numbers as they are."""
    if date := re.fullmatch(r"the (\w+) of (\w+)", answer):
        return f"{date[2]} {date[1]}"
    if thing := re.fullmatch(r"(an?) ([\w-]+) ([\w-]+)", answer):
        article = "an" if thing[3][0] in "aeiou" else "a"
        return f"{article} {thing[3]}, and {thing[1]} {thing[2]} one"
    return answer
