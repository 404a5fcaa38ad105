"""KeyChain: the question itself is hidden, at the end of a chain of UUIDs that is scattered over many documents.

From a key that the prompt gives, each link `{"key": "value"}` names the next key, until a value is a question. Other chains
of the same length lead to other questions about other documents. Then the question has to be answered from the documents.

Paper: LoongRL: Reinforcement Learning for Advanced Reasoning over Long Contexts (Wang et al., 2025)
Scored as in the paper's training: 1 if the answer's words hold the reference's, or the reference's hold the answer's.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from longspan.evaluation.metrics.text import best_of, normal_words
from longspan.evaluation.published import Source, data_file, read_rows
from longspan.evaluation.suites.lveval_made.facts import Institution, institutions, passage, two_hops
from longspan.evaluation.suites.ruler import random_uuid
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "keychain",
    "title": "LoongRL: Reinforcement Learning for Advanced Reasoning over Long Contexts",
    "year": 2025,
    "version": 1,
    "metric": "two-way match: the words of the reference stand in the answer, or those of the answer in the reference",
    "differs": [
        "the paper trains on KeyChain and gives its data for that; here it is an examination",
        "`made` and `made_steps` ask two-hop questions about generated documents; on_hotpotqa, on_musique and on_squad need files",
        "four links to a chain and four chains, the right one among them",
        "a link stands on a line of its own between two documents",
        "`made` asks for the answer at once; the other tasks give 512 tokens to reason in, a quarter of the paper's least",
        "the match compares words without case, articles and punctuation, so that a single letter matches nothing",
    ],
    "paper_id": 137,
    "lengths": "from 2K to 4K tokens on",
    "needs": "nothing; files of HotpotQA, MuSiQue or SQuAD for the tasks of those names",
    "licence": "generated here; HotpotQA and SQuAD CC BY-SA 4.0, MuSiQue CC BY 4.0",
}

NUM_LINKS = 4
NUM_CHAINS = 4
ANSWER_TOKENS = 32
STEPS_TOKENS = 512
SHORT_OF = 0.02
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
SETTLING = re.compile(r"answer is:?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question over documents.

    Attributes:
        question: as it stands at the end of a chain.
        answers: accepted.
        documents: those that hold the answer.
        evidence: pieces of them.
        others: further documents that were published with it.
    """

    question: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]
    evidence: tuple[str, ...]
    others: tuple[str, ...] = ()


Draw = Callable[[random.Random], tuple[Sequence[Asked], Iterable[str]]]
"""The right question, those of the other chains, and documents to fill up with."""


def chain(question: str, rng: random.Random) -> list[str]:
    """The links from a first key to the question, in their order."""
    keys = [random_uuid(rng) for _ in range(NUM_LINKS)]
    return [
        json.dumps({key: value}, ensure_ascii=False) for key, value in itertools.pairwise([*keys, question])
    ]


def key_chain(draw: Draw, *, steps: bool) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of puzzles on questions and documents that `draw` gives; with `steps` the model reasons in writing."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        asked, documents = draw(rng)
        chains = [chain(one.question, rng) for one in asked]
        start = next(iter(json.loads(chains[0][0])))
        question = (
            "One question about the text above is the right one. It is found by following a chain of links, each written as "
            f'{{"key": "value"}}, from the key {start}: each value is the next key, and the last value is the question. Other '
            "chains lead to wrong questions. Answer the right question from the documents. "
            + (
                'Reason step by step, then end with the line "The answer is" and the answer.'
                if steps
                else "Give the answer only."
            )
        )
        prefix, tokens = ("", STEPS_TOKENS) if steps else ("The answer is", ANSWER_TOKENS)
        links = list(itertools.chain.from_iterable(chains))
        wanted = [*asked[0].documents, *links]
        left = room.left(question, prefix, *wanted, max_new_tokens=tokens)
        if left < 200:
            raise ValueError(
                f"keychain needs more than {room.tokens} tokens here; ask for {room.tokens - left + 256} or more"
            )
        around = [document for one in asked[1:] for document in one.documents]
        fillers = room.fill_exactly(itertools.chain(around, documents), left)
        if left - room.count("\n".join(fillers)) > SHORT_OF * room.tokens:
            raise ValueError(
                f"the documents of this task are not enough for {room.tokens} tokens; ask for less, or give a larger file"
            )
        # The documents that hold wrong questions' answers came first, to be sure of their place.
        rng.shuffle(fillers)
        context = "\n".join(room.scatter(wanted, fillers, rng))
        told = [piece for piece in (*chains[0], *asked[0].evidence) if context.count(piece) == 1]
        answer = asked[0].answers[0]
        working = f"The chain leads to the question: {asked[0].question} The answer is {answer}."
        return Puzzle(
            needles=(),
            context=context,
            evidence=tuple(told),
            question=question,
            answer_prefix=prefix,
            references=asked[0].answers,
            answer=working if steps else f"{answer}.",
            max_new_tokens=tokens,
        )

    return make


def two_way_match(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the settled answer's words hold a reference's as they stand, or a reference's hold the answer's.

    Official scorer: LoongRL's reward, a substring either way. The answer is what the last "boxed" holds, or the rest of the
    line after the last "answer is", or else the whole text.
    """
    boxed, parts = BOXED.findall(prediction), SETTLING.split(prediction)
    settled = boxed[-1] if boxed else parts[-1].strip().split("\n")[0] if len(parts) > 1 else prediction
    said = " ".join(normal_words(settled))
    return best_of(lambda reference: _either_way(said, " ".join(normal_words(reference))), references)


def _either_way(said: str, wanted: str) -> float:
    return float(bool(said and wanted) and (f" {wanted} " in f" {said} " or f" {said} " in f" {wanted} "))


def made(rng: random.Random) -> tuple[Sequence[Asked], Iterable[str]]:
    """Two-hop questions about invented institutions."""
    first = next(institutions(rng))
    source = institutions(rng, without=[*first.values.values(), first.name])
    pairs: list[tuple[Institution, Institution]] = [(first, next(source))]
    pairs += [(next(source), next(source)) for _ in range(NUM_CHAINS - 1)]
    hops = [two_hops(keeper, lender, rng) for keeper, lender in pairs]
    asked = [
        Asked(question=one.question, answers=(one.answer,), documents=one.passages, evidence=one.facts)
        for one in hops
    ]
    return asked, (passage(one, rng) for one in source)


def published(file: str, parse: Callable[[Mapping[str, Any]], Iterable[Asked]], source: Source) -> Draw:
    """Questions of a published file, each with its documents; the documents of the others fill up."""

    def draw(rng: random.Random) -> tuple[Sequence[Asked], Iterable[str]]:
        rows = _asked(data_file("keychain", file, source), parse)
        asked = rng.sample(rows, NUM_CHAINS)
        known = {document for one in asked for document in one.documents}
        return asked, _different(rows, known, rng)

    return draw


def _different(rows: Sequence[Asked], known: set[str], rng: random.Random) -> Iterable[str]:
    for one in rng.sample(rows, len(rows)):
        for document in (*one.documents, *one.others):
            if document not in known:
                known.add(document)
                yield document


@lru_cache(maxsize=4)
def _asked(path: Path, parse: Callable[[Mapping[str, Any]], Iterable[Asked]]) -> Sequence[Asked]:
    found = list[Asked]()
    for number, row in enumerate(read_rows(path), start=1):
        try:
            found += parse(row)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise ValueError(
                f"row {number} of {path} is not as published ({type(error).__name__}: {error}); fetch the file anew"
            ) from error
    if len(found) < NUM_CHAINS:
        raise ValueError(
            f"{path} holds {len(found)} questions with an answer, {NUM_CHAINS} are needed; give the whole file"
        )
    return found


def _document(title: str, text: str) -> str:
    return f"{title}: {' '.join(text.split())}"


def parse_hotpotqa(row: Mapping[str, Any]) -> Iterable[Asked]:
    """A row of HotpotQA in the distractor setting."""
    if row["answer"] in ("yes", "no"):  # half of such guesses would be right
        return
    texts = {title: sentences for title, sentences in row["context"]}
    held = {title for title, _ in row["supporting_facts"]}
    documents = {title: _document(title, "".join(sentences)) for title, sentences in texts.items()}
    facts = [
        " ".join(texts[title][number].split())
        for title, number in row["supporting_facts"]
        if number < len(texts[title])  # a few published rows count one too many
    ]
    yield Asked(
        question=row["question"],
        answers=(row["answer"],),
        documents=tuple(documents[title] for title in texts if title in held),
        evidence=tuple(facts),
        others=tuple(documents[title] for title in texts if title not in held),
    )


def parse_musique(row: Mapping[str, Any]) -> Iterable[Asked]:
    """A row of MuSiQue's answerable questions."""
    parts = [
        (_document(part["title"], part["paragraph_text"]), part["is_supporting"])
        for part in row["paragraphs"]
    ]
    held = tuple(document for document, supporting in parts if supporting)
    yield Asked(
        question=row["question"],
        answers=(row["answer"], *row.get("answer_aliases", ())),
        documents=held,
        evidence=held,
        others=tuple(document for document, supporting in parts if not supporting),
    )


def parse_squad(row: Mapping[str, Any]) -> Iterable[Asked]:
    """An article of SQuAD: one question for each paragraph, the first that has an answer."""
    for paragraph in row["paragraphs"]:
        asked = next((one for one in paragraph["qas"] if one["answers"]), None)
        if asked is not None:
            document = _document(row["title"].replace("_", " "), paragraph["context"])
            answers = tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
            yield Asked(
                question=asked["question"], answers=answers, documents=(document,), evidence=(document,)
            )


def _source(url: str, licence: str, citation: str) -> Source:
    return Source(hub=None, licence=licence, citation=citation, url=url)


FILES: dict[str, tuple[str, Callable[[Mapping[str, Any]], Iterable[Asked]], Source]] = {
    "hotpotqa": (
        "hotpot_dev_distractor_v1.json",
        parse_hotpotqa,
        _source("https://hotpotqa.github.io", "CC BY-SA 4.0", "Yang et al., HotpotQA, 2018"),
    ),
    "musique": (
        "musique_ans_v1.0_dev.jsonl",
        parse_musique,
        _source("https://github.com/StonyBrookNLP/musique", "CC BY 4.0", "Trivedi et al., MuSiQue, 2022"),
    ),
    "squad": (
        "dev-v2.0.json",
        parse_squad,
        _source(
            "https://rajpurkar.github.io/SQuAD-explorer",
            "CC BY-SA 4.0",
            "Rajpurkar et al., Know What You Don't Know, 2018",
        ),
    ),
}
LABELS: dict[str, Any] = {
    "ability": "multi-hop",
    "diffusion": "high",
    "scope": "low",
    "metric": two_way_match,
}

TASKS: dict[str, Task] = {
    "made": Task(make=key_chain(made, steps=False), **LABELS),
    "made_steps": Task(make=key_chain(made, steps=True), **LABELS),
} | {
    f"on_{name}": Task(make=key_chain(published(*file), steps=True), answers="derived", **LABELS)
    for name, file in FILES.items()
}
