"""NeedleChain: salaries that hang on one another, sentence by sentence, with nothing in the text that is not needed.

"Ada Barlow received $4800 last week." starts a chain; each further person earns twice, half or the same as the one before.
The chain stands forward, backward or in disorder; `parallel` gives every salary by itself. Asked are the salary of the last
person (in `parallel`, of any) or the total of all. As many people as fill the room. Scored right when the first number after
"## Answer:" is the wanted one.

Paper: NeedleChain: Measuring Intact Long-Context Reasoning Capability of Large Language Models (Moon and Lim, 2025)
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from typing import Any, Literal

from longspan.evaluation.metrics.text_numbers import needle_chain
from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "needlechain",
    "title": "NeedleChain: Measuring Intact Long-Context Reasoning Capability of Large Language Models",
    "year": 2025,
    "version": 1,
    "metric": "whether the first number after the last '## Answer:' is the wanted one",
    "differs": [
        "salaries are whole numbers by construction; of the official longest set 11% have decimals, which the scorer drops",
        "the first salary is 64 times a number from 11 to 99 instead of 1600, so that the answer cannot be guessed",
        "as many sentences as fill the length, instead of 5, 10 or 50",
        "names have two parts, from 32K tokens on three, so that there are enough",
        "the list of all names before the facts is left out: it stands in the order of the chain and takes half of the room",
        "the role of a financial assistant and the format of the answer are part of the question, in our own words",
    ],
    "paper_id": 198,
    "lengths": "from 1K tokens",
    "needs": "nothing",
    "licence": "generated here; the official repository has no licence",
}

ANSWER_TOKENS = 256
UNIT = 64
FIRST_FACTORS = range(11, 100)
MOST_DOUBLINGS = 12
INITIALS_FROM_TOKENS = 32_000

Order = Literal["forward", "backward", "chaotic", "parallel"]


def person_name(rng: random.Random, room: Room) -> str:
    """First name and surname, with an initial between them where a long text needs many."""
    middle = f" {rng.choice(string.ascii_uppercase)}" if room.tokens >= INITIALS_FROM_TOKENS else ""
    return f"{rng.choice(lists.FIRST_NAMES)}{middle} {rng.choice(lists.SURNAMES)}"


def _chain(
    rng: random.Random, room: Room, num_tokens: int, *, parallel: bool
) -> tuple[list[str], list[str], list[int]]:
    """Names, sentences and salaries of a chain, as many as fit; whole numbers within 64 of the first either way."""
    names, sentences, salaries = list[str](), list[str](), list[int]()
    known, first, doublings = set[str](), rng.choice(FIRST_FACTORS), MOST_DOUBLINGS // 2
    while True:
        name = person_name(rng, room)
        if name in known:
            continue
        if parallel:
            doublings = rng.randint(MOST_DOUBLINGS // 2 - 3, MOST_DOUBLINGS // 2 + 3)
            sentence = _received(name, first, doublings)
        elif not names:
            sentence = _received(name, first, doublings)
        else:
            step = rng.choice([way for way in (-1, 0, 1) if 0 <= doublings + way <= MOST_DOUBLINGS])
            doublings += step
            amount = {-1: "half as much as", 0: "the same salary as", 1: "twice as much as"}[step]
            sentence = f"{name} earns {amount} {names[-1]}."
        num_tokens -= room.count(f"\n{sentence}")
        if num_tokens < 0:
            return names, sentences, salaries
        known.add(name)
        names.append(name)
        sentences.append(sentence)
        salaries.append(first << doublings)


def _received(name: str, first: int, doublings: int) -> str:
    return f"{name} received ${first << doublings} last week."


def salaries(order: Order, *, total: bool) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of puzzles whose sentences stand in that order; asked is one salary, or the total of all."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        task = (
            "The sentences above are the salaries of all people in an office. Use them and nothing else. Explain in a few "
            "words, then end with the number in this format: '## Answer: $number'\n\n"
        )
        head = "There are 10000 workers in the office. Salary for each worker is as follows:\n"
        longest = f"{task}How much salary did {max(lists.FIRST_NAMES)} A {max(lists.SURNAMES)} get?"
        left = room.left(head, longest, max_new_tokens=ANSWER_TOKENS)
        names, sentences, amounts = _chain(rng, room, left, parallel=order == "parallel")
        if len(names) < 3:
            raise ValueError(
                f"a chain of salaries needs more than {room.tokens} tokens; ask for 1024 or more"
            )
        if order == "parallel" and not total:
            return _one_of_many(rng, room, task, names, sentences, amounts)
        question = (
            "How much is the total salary of all the people?"
            if total
            else f"How much salary did {names[-1]} get?"
        )
        wanted = sum(amounts) if total else amounts[-1]
        if order == "backward":
            sentences.reverse()
        elif order != "forward":
            rng.shuffle(sentences)
        return _puzzle(sentences, f"{task}{question}", wanted)

    return make


def _one_of_many(
    rng: random.Random,
    room: Room,
    task: str,
    names: Sequence[str],
    sentences: Sequence[str],
    amounts: Sequence[int],
) -> Puzzle:
    """The salaries are independent, so one sentence is enough: a needle among its like."""
    mixed = room.scatter(sentences[-1:], sentences[:-1], rng)
    return _puzzle(mixed, f"{task}How much salary did {names[-1]} get?", amounts[-1], sentences[-1:])


def _puzzle(sentences: Sequence[str], question: str, wanted: int, evidence: Sequence[str] = ()) -> Puzzle:
    head = f"There are {len(sentences)} workers in the office. Salary for each worker is as follows:\n"
    return Puzzle(
        needles=(),
        context=head + "\n".join(sentences),
        question=question,
        references=(str(wanted),),
        answer=f"## Answer: ${wanted}",
        evidence=tuple(evidence),
        max_new_tokens=ANSWER_TOKENS,
    )


REASONING: dict[str, Any] = {
    "ability": "multi-hop",
    "diffusion": "high",
    "scope": "high",
    "metric": needle_chain,
    "haystack": "own",
    "answers": "derived",
}

TASKS: dict[str, Task] = {
    "forward_last": Task(make=salaries("forward", total=False), **REASONING),
    "forward_total": Task(make=salaries("forward", total=True), **REASONING),
    "backward_last": Task(make=salaries("backward", total=False), **REASONING),
    "backward_total": Task(make=salaries("backward", total=True), **REASONING),
    "chaotic_last": Task(make=salaries("chaotic", total=False), **REASONING),
    "chaotic_total": Task(make=salaries("chaotic", total=True), **REASONING),
    "parallel_last": Task(
        make=salaries("parallel", total=False),
        places=True,
        **{**REASONING, "ability": "retrieval", "diffusion": "low", "scope": "low"},
    ),
    "parallel_total": Task(
        make=salaries("parallel", total=True), **{**REASONING, "ability": "aggregation", "diffusion": "low"}
    ),
}
