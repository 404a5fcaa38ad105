"""RULERv2's questions over HotpotQA documents, each under a random seven-digit number."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal

from longspan.evaluation.suites.ruler import distinct, random_number
from longspan.evaluation.suites.ruler.documents import Asked, Documents, documents_around, hotpot_qa
from longspan.evaluation.task import Puzzle, Room

__all__ = ["basic", "easy", "hard", "medium"]

TRIES = 256
ONE_DOCUMENT_SHARE = 10
LABEL = "Document 1234567:\n"
ANSWER_TOKENS = 64
INDEX_TOKENS = 16
COPY_TOKENS = 448

Kind = Literal["basic", "easy", "medium", "hard"]
HEADS: dict[Kind, str] = {
    "basic": "Below are some documents. A text is given at the end. Find the number of the document with that text, and give "
    "the number only, without any document contents.\n\n",
    "easy": "Below are some documents. A question is given at the end. Find the number of the document that helps most to "
    "answer it, and give the number only, without any document contents.\n\n",
    "medium": "Below are some documents. A question is given at the end. Answer it based on the documents.\n\n",
    "hard": "Below are some documents. A question is given at the end. Answer it based on the documents.\n\n",
}
PREFIXES: dict[Kind, str] = {
    "basic": "Most relevant document index:",
    "easy": "Index of the most relevant document:",
    "medium": "",
    "hard": "",
}
TOKENS: dict[Kind, int] = {
    "basic": INDEX_TOKENS,
    "easy": INDEX_TOKENS,
    "medium": COPY_TOKENS,
    "hard": ANSWER_TOKENS,
}


def _question(kind: Kind, asked: Asked, text: str) -> str:
    return {
        "basic": f"Text: {text}",
        "easy": f"Question: {asked.question}",
        "medium": "Please first find and copy the documents that help with the following question, each as it stands, with an "
        "empty line after it, and then answer it in the form 'Answer: ...'.\n\nQuestion: " + asked.question,
        "hard": f"Please answer the following question based on the documents.\n\nQuestion: {asked.question}",
    }[kind]


def _asked(kind: Kind, documents: Documents, rng: random.Random, room: Room) -> tuple[Asked, list[str], int]:
    """A question whose documents fit, the documents it needs, and the room for all documents.

    Raises:
        ValueError: none fits.
    """
    for _ in range(TRIES):
        asked = rng.choice(documents.questions)
        gold = [documents.texts[number] for number in asked.gold]
        question = _question(kind, asked, gold[0])
        left = room.left(HEADS[kind], question, PREFIXES[kind], max_new_tokens=TOKENS[kind])
        needed = [room.count(f"\n\n{LABEL}{text}") for text in gold]
        answer = room.count(f"Answer: {asked.answers[0]}") + (sum(needed) if kind == "medium" else 0)
        if kind in ("medium", "hard") and answer >= TOKENS[kind]:
            continue
        if kind == "basic" and needed[0] * ONE_DOCUMENT_SHARE > left:
            continue
        if sum(needed) <= left:
            return asked, gold, left
    raise ValueError(
        f"no question was found whose documents fit {room.tokens} tokens; ask for {room.tokens * 2} or more"
    )


def _documents(kind: Kind) -> Callable[[random.Random, Room], Puzzle]:
    def make(rng: random.Random, room: Room) -> Puzzle:
        documents = hotpot_qa("rulerv2")
        asked, gold, left = _asked(kind, documents, rng, room)
        related = [documents.texts[number] for number in asked.related]
        others = [text for text in documents.texts if text not in {*gold, *related}]
        rng.shuffle(others)
        around = documents_around(gold, related, others, left, room, LABEL)
        rng.shuffle(around)
        numbers = distinct(random_number, len(gold) + len(around), rng)
        pieces = [_labelled(number, text) for number, text in zip(numbers, [*gold, *around], strict=True)]
        wanted, fillers = pieces[: len(gold)], pieces[len(gold) :]
        if kind == "basic":
            wanted, fillers = pieces[:1], pieces[1:]
            rng.shuffle(fillers)
        references, answer = _answer(kind, asked, numbers[: len(gold)], wanted)
        return Puzzle(
            needles=(),
            context=HEADS[kind] + "\n\n".join(room.scatter(wanted, fillers, rng)),
            question=_question(kind, asked, gold[0]),
            answer_prefix=PREFIXES[kind],
            references=references,
            answer=answer,
            evidence=tuple(wanted),
            max_new_tokens=TOKENS[kind],
        )

    return make


def _labelled(number: str, text: str) -> str:
    return f"Document {number}:\n{text}"


def _answer(
    kind: Kind, asked: Asked, numbers: Sequence[str], wanted: Sequence[str]
) -> tuple[tuple[str, ...], str]:
    """References and the ideal answer."""
    if kind == "basic":
        return (numbers[0],), numbers[0]
    if kind == "easy":
        return tuple(numbers), numbers[0]
    if kind == "medium":
        return asked.answers, "\n\n".join([*wanted, f"Answer: {asked.answers[0]}"])
    return asked.answers, asked.answers[0]


basic = _documents("basic")
easy = _documents("easy")
medium = _documents("medium")
hard = _documents("hard")
