"""Questions over documents that were published: MuSiQue, HotpotQA, SQuAD, each with the documents of all its questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from longspan.evaluation.published import Source, read_rows
from longspan.evaluation.suites._files import find_files, missing
from longspan.evaluation.suites.haystackcraft.retrieval import Corpus

__all__ = ["SETS", "Asked", "Collection", "collection"]

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question, its answers, and the numbers of the documents that it needs."""

    question: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The questions of one file, and all its documents."""

    questions: tuple[Asked, ...]
    corpus: Corpus


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """Where a set comes from, what its file may be called, and how a row becomes (question, answers, [(document, needed)])."""

    source: Source
    patterns: tuple[str, ...]
    parse: Callable[[Row], Iterator[tuple[str, tuple[str, ...], list[tuple[str, bool]]]]]


def _musique(row: Row) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, bool]]]]:
    documents = [
        (_document(part["title"], part["paragraph_text"]), bool(part["is_supporting"]))
        for part in row["paragraphs"]
    ]
    if row.get("answerable", True):
        yield row["question"], (row["answer"], *row.get("answer_aliases", ())), documents


def _hotpotqa(row: Row) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, bool]]]]:
    needed = {title for title, _ in row["supporting_facts"]}
    documents = [(_document(title, "".join(lines)), title in needed) for title, lines in row["context"]]
    yield row["question"], (row["answer"],), documents


def _squad(row: Row) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, bool]]]]:
    for part in row["paragraphs"]:
        document = _document(row["title"].replace("_", " "), part["context"])
        for asked in part["qas"]:
            if answers := tuple(dict.fromkeys(answer["text"] for answer in asked["answers"])):
                yield asked["question"], answers, [(document, True)]


def _document(title: str, text: str) -> str:
    return f"Article: {title}\n{' '.join(text.split())}"


SETS: dict[str, PublishedSet] = {
    "musique": PublishedSet(
        source=Source(
            hub=None,
            licence="CC BY 4.0",
            citation="Trivedi et al., MuSiQue: Multihop Questions via Single-hop Question Composition, 2022",
            url="https://github.com/StonyBrookNLP/musique",
        ),
        patterns=("musique*.json*",),
        parse=_musique,
    ),
    "hotpotqa": PublishedSet(
        source=Source(
            hub=None,
            licence="CC BY-SA 4.0",
            citation="Yang et al., HotpotQA: A Dataset for Diverse, Explainable Multi-hop Question Answering, 2018",
            url="https://hotpotqa.github.io",
        ),
        patterns=("hotpot*.json*",),
        parse=_hotpotqa,
    ),
    "squad": PublishedSet(
        source=Source(
            hub=None,
            licence="CC BY-SA 4.0",
            citation="Rajpurkar et al., Know What You Don't Know: Unanswerable Questions for SQuAD, 2018",
            url="https://rajpurkar.github.io/SQuAD-explorer",
        ),
        patterns=("squad*.json", "dev-v2.0.json"),
        parse=_squad,
    ),
}


def collection(name: str) -> Collection:
    """Questions and documents of a set.

    Raises:
        DataMissing: its file is not there. ValueError: the file is malformed.
    """
    chosen = SETS[name]
    found = [path for pattern in chosen.patterns for path in find_files("haystackcraft", pattern)]
    if not found:
        raise missing("haystackcraft", chosen.patterns[-1], chosen.source)
    path = found[0]
    return _read(name, path, path.stat().st_mtime_ns)


@lru_cache(maxsize=3)
def _read(name: str, path: Path, changed: int) -> Collection:
    numbers: dict[str, int] = {}
    questions = list[Asked]()
    for row_number, row in enumerate(read_rows(path), start=1):
        try:
            for question, answers, documents in SETS[name].parse(row):
                places = [(numbers.setdefault(text, len(numbers)), needed) for text, needed in documents]
                asked = Asked(
                    question=question,
                    answers=answers,
                    needed=tuple(dict.fromkeys(place for place, needed in places if needed)),
                )
                questions += [asked] if asked.needed else []
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"row {row_number} of {path} is not a row of {name} as published ({type(error).__name__}: {error}); "
                "check the file, or fetch it anew"
            ) from error
    if not questions:
        raise ValueError(f"{path} holds no question with documents; check the file")
    return Collection(questions=tuple(questions), corpus=Corpus(list(numbers)))
