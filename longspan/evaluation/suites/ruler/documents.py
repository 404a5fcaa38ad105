"""RULER's questions over documents: SQuAD and HotpotQA, with the question's own documents and random others."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from longspan.evaluation.published import DataMissing, Source, data_file, read_rows
from longspan.evaluation.task import Puzzle, Room

__all__ = [
    "HOTPOT_QA",
    "SQUAD",
    "Asked",
    "Documents",
    "documents_around",
    "find_data",
    "hotpot_qa",
    "numbered_documents",
    "qa_1",
    "qa_2",
    "squad",
]

ANSWER_TOKENS = 32
TRIES = 256
ONE_DOCUMENT_SHARE = 8  # a longer one could not stand at the depth asked for
MAX_SKIPPED = 24
LABEL = "Document {number}:\n"
INSTRUCTION = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
SQUAD = Source(
    hub=None,
    licence="CC BY-SA 4.0",
    citation="Rajpurkar et al., Know What You Don't Know: Unanswerable Questions for SQuAD, 2018",
    url="https://rajpurkar.github.io/SQuAD-explorer/",
)
HOTPOT_QA = Source(
    hub=None,
    licence="CC BY-SA 4.0",
    citation="Yang et al., HotpotQA: A Dataset for Diverse, Explainable Multi-hop Question Answering, 2018",
    url="https://hotpotqa.github.io/",
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question: its answers, and numbers of the documents that hold it and of those that go with it."""

    question: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    related: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Documents:
    """All different documents of a data set, and the questions on them."""

    texts: tuple[str, ...]
    questions: tuple[Asked, ...]


def find_data(suite: str, pattern: str, published: str, source: Source) -> Path:
    """The first file of the suite's folder that fits the pattern, or the one that is named as published.

    Raises:
        DataMissing: there is none; names the published file.
    """
    try:
        return data_file(suite, pattern, source)
    except DataMissing:
        return data_file(suite, published, source)


def squad(suite: str) -> Documents:
    """SQuAD v2's answerable questions: `squad*.json` or `dev-v2.0.json` in the suite's folder.

    Raises:
        DataMissing: the file is not there. ValueError: it is not as published.
    """
    path = find_data(suite, "squad*.json", "dev-v2.0.json", SQUAD)
    return _read(path, _squad_questions, path.stat().st_mtime_ns)


def hotpot_qa(suite: str) -> Documents:
    """HotpotQA with distractors: `hotpot*.json` (or .jsonl), rows in a list or one a line, in the suite's folder.

    Raises:
        DataMissing: the file is not there. ValueError: it is not as published.
    """
    path = find_data(suite, "hotpot*.json*", "hotpot_dev_distractor_v1.json", HOTPOT_QA)
    return _read(path, _hotpot_questions, path.stat().st_mtime_ns)


_Row = tuple[str, tuple[str, ...], list[str], list[str]]


@lru_cache(maxsize=4)
def _read(path: Path, parse: Callable[[Mapping[str, Any]], Iterable[_Row]], changed: int) -> Documents:
    numbers: dict[str, int] = {}
    questions = list[Asked]()
    for row, value in enumerate(read_rows(path), start=1):
        try:
            for question, answers, gold, related in parse(value):
                known = [
                    [numbers.setdefault(text, len(numbers)) for text in texts] for texts in (gold, related)
                ]
                others = tuple(dict.fromkeys(number for number in known[1] if number not in known[0]))
                questions.append(
                    Asked(question=question, answers=answers, gold=tuple(known[0]), related=others)
                )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"row {row} of {path} is not as published ({type(error).__name__}: {error}); fetch the file anew"
            ) from error
    if not questions:
        raise ValueError(f"{path} holds no answerable question; check the file")
    return Documents(texts=tuple(numbers), questions=tuple(questions))


def _squad_questions(article: Mapping[str, Any]) -> Iterator[_Row]:
    paragraphs = [paragraph["context"] for paragraph in article["paragraphs"]]
    for paragraph in article["paragraphs"]:
        for asked in paragraph["qas"]:
            if not asked.get("is_impossible"):
                answers = tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                yield asked["question"], answers, [paragraph["context"]], paragraphs


def _hotpot_questions(row: Mapping[str, Any]) -> Iterator[_Row]:
    supporting = {title for title, _ in row["supporting_facts"]}
    pages = [(title, f"{title}\n{''.join(sentences)}") for title, sentences in row["context"]]
    gold = list(dict.fromkeys(text for title, text in pages if title in supporting))
    if gold:
        yield row["question"], (row["answer"],), gold, [text for _, text in pages]


def cut_words(text: str, num_tokens: int, count: Callable[[str], int]) -> str:
    """The first words of a text, at most `num_tokens` tokens."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        if count(text[: ends[middle - 1]]) <= num_tokens:
            low = middle
        else:
            high = middle - 1
    return text[: ends[low - 1]] if low else ""


def documents_around(
    wanted: Sequence[str],
    related: Sequence[str],
    others: Sequence[str],
    num_tokens: int,
    room: Room,
    label: str = LABEL,
) -> list[str]:
    """As many documents beside the wanted ones as fit `num_tokens`: the related ones first, then others, round and round.

    The last is cut where that is needed to come near the wish.

    Args:
        wanted, related, others: texts of documents.
        num_tokens: room for all of them, the wanted ones included.
        room: counts tokens.
        label: stands before each, with its {number}.
    """
    left = num_tokens - room.count(numbered_documents(wanted, label) + "\n\n")
    usable = [text for text in (*related, *others) if text not in wanted]

    def endless() -> Iterator[str]:
        while usable:
            yield from usable
            usable[:] = others

    chosen, skipped = list[str](), 0
    for text in endless():
        cost = room.count("\n\n" + label.format(number=len(wanted) + len(chosen) + 1) + text)
        if cost <= left:
            chosen.append(text)
            left -= cost
        else:
            skipped += 1
        if skipped > MAX_SKIPPED or left <= num_tokens // 200:
            break
    left -= room.count("\n\n" + label.format(number=len(wanted) + len(chosen) + 1))
    if usable and left > 4:
        taken = set(chosen)
        fresh = [text for text in usable if text not in taken] or usable
        chosen.append(cut_words(max(fresh, key=len), left, room.count))
    return chosen


def numbered_documents(texts: Sequence[str], label: str = LABEL) -> str:
    """RULER's list of documents, numbered from 1."""
    return "\n\n".join(label.format(number=number) + text for number, text in enumerate(texts, start=1))


def _document_puzzle(documents: Documents, rng: random.Random, room: Room, *, least_share: int) -> Puzzle:
    """A question whose documents take at most 1 / `least_share` of the room, and whose shortest answer fits."""
    start = f"{INSTRUCTION}\n\nThe following are given documents.\n\n"
    for _ in range(TRIES):
        asked = rng.choice(documents.questions)
        question = f"{INSTRUCTION}\n\nQuestion: {asked.question}"
        gold = [documents.texts[number] for number in asked.gold]
        answer = min(asked.answers, key=len)
        left = room.left(start, question, max_new_tokens=ANSWER_TOKENS)
        needed = room.count(numbered_documents(gold))
        if needed * least_share <= left and room.count(f" {answer}") < ANSWER_TOKENS:
            break
    else:
        raise ValueError(
            f"no question was found whose documents fit {room.tokens} tokens; ask for {room.tokens * 2} or more"
        )
    related = [documents.texts[number] for number in asked.related]
    rng.shuffle(related)
    own = {*asked.gold, *asked.related}
    others = [text for number, text in enumerate(documents.texts) if number not in own]
    rng.shuffle(others)
    around = documents_around(gold, related, others, left, room)
    rng.shuffle(around)
    mixed = room.scatter(gold, around, rng)
    context = start + numbered_documents(mixed)
    return Puzzle(
        needles=(),
        context=context,
        question=question,
        references=asked.answers,
        answer=answer,
        evidence=tuple(gold),
        max_new_tokens=ANSWER_TOKENS,
    )


def qa_1(rng: random.Random, room: Room) -> Puzzle:
    """A SQuAD question: its paragraph, others of the same article, then random ones."""
    return _document_puzzle(squad("ruler"), rng, room, least_share=ONE_DOCUMENT_SHARE)


def qa_2(rng: random.Random, room: Room) -> Puzzle:
    """A HotpotQA question: the two documents it needs, its distractors, then random ones."""
    return _document_puzzle(hotpot_qa("ruler"), rng, room, least_share=1)
