"""Facts of bAbI hidden among the sentences of any prose: BABILong's samples, made at any length."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from longspan.evaluation.metrics.choice_labels import BABI_LABELS
from longspan.evaluation.published import Source, data_file
from longspan.evaluation.suites.babilong.prompts import PROMPTS
from longspan.evaluation.task import Puzzle, Room, Sample

__all__ = ["BABI", "Story", "babi_stories", "guess_label", "hidden_facts"]

BABI = Source(
    hub=None,
    licence="CC BY 3.0",
    citation="Weston et al., Towards AI-Complete Question Answering: A Set of Prerequisite Toy Tasks, 2015",
    url="https://research.facebook.com/downloads/babi/",
)
ANSWER_TOKENS = 20
TRIES = 64
MAX_FITS = 8
EXACT_TOKENS = 32_768
MOST_OF_THE_ROOM = 0.8


@dataclass(frozen=True, kw_only=True)
class Story:
    """One question of bAbI, the facts before it, and the numbers of those it rests on, counted from 0."""

    facts: tuple[str, ...]
    question: str
    answer: str
    support: tuple[int, ...]


def babi_stories(name: str) -> Sequence[Story]:
    """All questions of a task, from `<name>_..._test.txt` in the suite's folder.

    Raises:
        DataMissing: there is no such file. ValueError: a line is malformed; names it.
    """
    path = data_file("babilong", f"{name}_*_test.txt", BABI)
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=20)
def _read(path: Path, changed: int) -> Sequence[Story]:
    stories: list[Story] = []
    facts: dict[int, str] = {}
    for line, (number, rest) in enumerate(_numbered(path), start=1):
        if number == 1:
            facts = {}
        question, *answered = rest.split("\t")
        if not answered:
            facts[number] = question.strip()
            continue
        places = {fact: place for place, fact in enumerate(facts)}
        try:
            answer, support = answered[0].strip(), tuple(places[int(one)] for one in answered[1].split())
        except (IndexError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path} line {line} is not a question of bAbI (question, answer and numbers of facts, parted by tabs); "
                "fetch the file anew"
            ) from error
        stories.append(
            Story(facts=tuple(facts.values()), question=question.strip(), answer=answer, support=support)
        )
    if not stories:
        raise ValueError(f"{path} holds no question of bAbI; check the file")
    return tuple(stories)


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        number, _, rest = text.partition(" ")
        if not number.isdecimal() or not rest:
            raise ValueError(
                f"{path} line {line} does not start with a number and a space; fetch the file anew"
            )
        yield int(number), rest


def hidden_facts(name: str) -> Callable[[random.Random, Room], Puzzle]:
    """The maker of one task's puzzles.

    Args:
        name: qa1 to qa20.
    """

    def make(rng: random.Random, room: Room) -> Puzzle:
        stories = babi_stories(name)
        before = PROMPTS[name].text()
        for _ in range(TRIES):
            story = rng.choice(stories)
            question = f"Question: {story.question}"
            left = room.left(before, question, max_new_tokens=ANSWER_TOKENS)
            facts = room.count(" ".join(story.facts))
            if facts <= MOST_OF_THE_ROOM * left:
                break
        else:
            raise ValueError(
                f"no story of {name} among {TRIES} leaves room for other text in {room.tokens} tokens; ask for 2048 or more"
            )
        return Puzzle(
            needles=(),
            context=f"{before}\n\n{_hide(story, left, left - facts, room, rng)}",
            question=question,
            references=(story.answer,),
            answer=story.answer,
            # Later facts overrule earlier ones, so all must be seen; those told twice stand in no one place.
            evidence=tuple(fact for fact in story.facts if story.facts.count(fact) == 1),
            max_new_tokens=ANSWER_TOKENS,
            details={
                "question": story.question,
                "task": name,
                "support": [story.facts[number] for number in story.support],
            },
        )

    return make


def _hide(story: Story, left: int, budget: int, room: Room, rng: random.Random) -> str:
    """The facts in their order between the sentences of the caller's prose, in at most `left` tokens."""
    if room.haystack is None:
        raise ValueError("BABILong hides facts in prose; give a haystack")
    state, best = rng.getstate(), ""
    for _ in range(MAX_FITS):
        rng.setstate(state)
        sentences = room.haystack.slice(max(1, budget), room.tokenizer, rng)
        places = sorted(rng.randint(0, len(sentences)) for _ in story.facts)
        text = _between(story.facts, sentences, places)
        if left > EXACT_TOKENS:  # what seams cost is under 1% there, and counting takes seconds
            return text
        spare = left - room.count(text)
        if spare >= 0 and len(text) > len(best):
            best = text
        if 0 <= spare <= max(6, left // 200):
            break
        budget += spare - 3
    assert best, "a smaller budget gives a shorter text"
    return best


def _between(facts: Sequence[str], sentences: Sequence[str], places: Sequence[int]) -> str:
    parts, done = list[str](), 0
    for fact, place in zip(facts, places, strict=True):
        parts += [*sentences[done:place], f" {fact}"]
        done = place
    return "".join([*parts, *sentences[done:]]).strip()


def guess_label(rng: random.Random, sample: Sample) -> str:
    """One of the task's labels at random."""
    return rng.choice(BABI_LABELS[str(sample.details["task"])])
