r"""NeedleBench: needles retrieved and joined from prose, and the Ancestral Trace Challenge, where every sentence is needed.

S-RT hides one sentence, M-RT five, whose answers are all asked for. M-RS hides a chain of kinship sentences and asks for the
eldest ancestor. The Ancestral Trace Challenge (ATC) is a text of kinship sentences only, in disorder, as many as fill the
room: who is the eldest ancestor, the n-th ancestor, the n-th descendant, or how many generations lie between two people.
Retrieval is scored by the share of the wanted words in the answer, reasoning by the last \boxed{...}, which must be right.

Paper: NeedleBench: Evaluating LLM Retrieval and Reasoning Across Varying Information Densities (Li et al., 2024)
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from longspan.evaluation.metrics.text import best_of
from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites.facts import with_article
from longspan.evaluation.suites.needlechain import person_name
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "needlebench",
    "title": "NeedleBench: Evaluating LLM Retrieval and Reasoning Across Varying Information Densities",
    "year": 2024,
    "version": 1,
    "metric": r"retrieval: share of the wanted words found in the answer; reasoning: whether the last \boxed{...} is right",
    "differs": [
        "needles, names and kinship sentences are our own, in English only",
        "letter case is ignored in retrieval; the official scorer asks for it",
        "needles stand at sentence ends and, where there are several, at random depths; the official ones cut the text at "
        "any token, at even distances",
        "M-RT hides five needles; officially one at each depth of a list",
        "ATC takes as many sentences as fill the length, instead of 2 to 512",
        "instructions come after the text, in our own words, with one example instead of three; 256 tokens are left for the answer",
        "in ATC the share of grandparents changes from sample to sample, so that the distance cannot be guessed",
        "sentences of ATC are separated by spaces",
    ],
    "paper_id": 20,
    "lengths": "from 1K tokens",
    "needs": "nothing",
    "licence": "generated here; the official generator is Apache-2.0",
}

REASONING_TOKENS = 256
NUM_RETRIEVED = 5
PARENTS = ("father", "mother", "dad", "mom")
GRANDPARENTS = (
    "grandfather",
    "grandmother",
    "paternal grandfather",
    "paternal grandmother",
    "maternal grandfather",
    "maternal grandmother",
)
BURIED = (
    "In {town}, {person} buried a {thing} beneath the {inside}.",
    "Beneath the {inside} in {town}, {person} buried a {thing}.",
    "It was a {thing} that {person} buried in {town}, beneath the {inside}.",
)
KINSHIP = (
    "{elder} is the {kin} of {younger}.",
    "The {kin} of {younger} is called {elder}.",
    "{younger} was brought up by {elder}, the {kin} of {younger}.",
    "To {younger}, {elder} is a {kin} and a good friend as well.",
    "{elder}, the {kin} of {younger}, taught {younger} to read and write.",
    "Everyone in town knows that {elder} is the {kin} of {younger}.",
)
NOTES = (
    "Names say nothing about who is a man or a woman, or about who inherits which surname. A parent is one generation older, "
    "a grandparent two: if Ann's mother is Bob and Bob's grandfather is Cy, then Cy is Ann's ancestor in the 3rd generation, "
    "Ann is Cy's descendant in the 3rd generation, their distance is 3 generations, and Cy is the eldest ancestor that Ann can be "
    r"traced to. End with the answer in \boxed{}, such as \boxed{Cy}."
)

Question = Literal["eldest", "ancestor", "descendant", "distance"]


def boxed_match(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    r"""1.0 if the text in the last \boxed{...} is a reference, LaTeX commands, quotes and spaces at its ends apart.

    Official scorer: NeedleBench `needlebench_atc_postprocess_v2`, which strips the same.
    """
    found = re.findall(r"\\boxed\{+((?:\\text\{[^}]*\}|[^{}])*)\}", prediction)
    if not found:
        return 0.0
    plain = re.sub(r"\\text\{([^}]*)\}", r"\1", found[-1]).replace("\\", "").replace("~", " ")
    plain = " ".join(re.sub(r"[\"']", "", plain).split())
    return best_of(lambda reference: float(plain == reference.strip()), references)


def retrieval(num_needles: int) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of puzzles that hide sentences of one kind and ask for the thing in each."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        drawn: dict[str, tuple[str, str]] = {}
        while len(drawn) < num_needles:
            thing = f"{rng.choice(lists.ADJECTIVES)} {rng.choice(lists.OBJECTS)}"
            person = f"{rng.choice(lists.FIRST_NAMES)} {rng.choice(lists.SURNAMES)}"
            town = rng.choice(lists.PLACE_HEADS) + rng.choice(lists.PLACE_TAILS)
            inside = rng.choice(lists.PLACES_INSIDE)
            hidden = rng.choice(BURIED).format(town=town, person=person, thing=thing, inside=inside)
            if thing not in {known for _, known in drawn.values()}:
                drawn[f"What did {person} bury in {town}?"] = (with_article(hidden), thing)
        questions = list(drawn)
        needles, things = zip(*drawn.values(), strict=True)
        order = "" if num_needles == 1 else " Answer one after the other, separated by commas."
        return Puzzle(
            needles=needles,
            question=" ".join(questions) + order,
            references=things,
            answer=", ".join(things) + ".",
            max_new_tokens=24 * num_needles,
        )

    return make


def _kinship(rng: random.Random, elder: str, younger: str, grandparents: float) -> tuple[str, int]:
    """A sentence about two people, and the generations between them."""
    generations = 2 if rng.random() < grandparents else 1
    kin = rng.choice(PARENTS if generations == 1 else GRANDPARENTS)
    return rng.choice(KINSHIP).format(elder=elder, younger=younger, kin=kin), generations


def _eldest_question(person: str) -> str:
    return f"Who is the eldest ancestor that {person} can be traced to in the text? {NOTES}"


def multi_reasoning(num_needles: int) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of puzzles that hide a chain of kinship sentences in prose and ask for its eldest person."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        people: dict[str, None] = {}
        while len(people) <= num_needles:
            people[person_name(rng, room)] = None
        names, share = list(people), len(GRANDPARENTS) / len(PARENTS + GRANDPARENTS)
        sentences = [
            _kinship(rng, elder, younger, share)[0] for elder, younger in zip(names, names[1:], strict=False)
        ]
        return Puzzle(
            needles=tuple(sentences),
            question=_eldest_question(names[-1]),
            references=(names[0],),
            answer=rf"\boxed{{{names[0]}}}",
            max_new_tokens=REASONING_TOKENS,
        )

    return make


def ancestral_trace(kind: Question) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of texts of one family line in disorder, and a question about its two ends."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        head = "Who is related to whom, in no order:\n"
        longest = f"{max(lists.FIRST_NAMES)} A {max(lists.SURNAMES)}"
        left = room.left(
            head, _trace_question(kind, longest, longest, 10_000), max_new_tokens=REASONING_TOKENS
        )
        grandparents, distance = rng.uniform(0.1, 0.9), 0
        names, sentences = [person_name(rng, room)], list[str]()
        known = set(names)
        while True:
            name = person_name(rng, room)
            if name in known:
                continue
            sentence, generations = _kinship(rng, names[-1], name, grandparents)
            left -= room.count(f" {sentence}")
            if left < 0:
                break
            known.add(name)
            names.append(name)
            sentences.append(sentence)
            distance += generations
        if len(sentences) < 2:
            raise ValueError(f"a family line needs more than {room.tokens} tokens; ask for 1024 or more")
        rng.shuffle(sentences)
        answers = {"descendant": names[-1], "distance": str(distance)}
        answer = answers.get(kind, names[0])
        return Puzzle(
            needles=(),
            context=head + " ".join(sentences),
            question=_trace_question(kind, names[0], names[-1], distance),
            references=(answer,),
            answer=rf"\boxed{{{answer}}}",
            evidence=(),
            max_new_tokens=REASONING_TOKENS,
        )

    return make


def _trace_question(kind: Question, eldest: str, youngest: str, distance: int) -> str:
    if kind == "eldest":
        return _eldest_question(youngest)
    asked = {
        "ancestor": f"Who is the ancestor of {youngest} in generation {distance}?",
        "descendant": f"Who is the descendant of {eldest} in generation {distance}?",
        "distance": f"How many generations lie between {eldest} and {youngest}?",
    }
    return f"{asked[kind]} {NOTES}"


RETRIEVAL: dict[str, Any] = {"ability": "retrieval", "diffusion": "low", "scope": "low"}
REASONING: dict[str, Any] = {
    "ability": "multi-hop",
    "diffusion": "high",
    "metric": boxed_match,
    "answers": "derived",
}
DENSE: dict[str, Any] = {**REASONING, "scope": "high", "haystack": "own"}

TASKS: dict[str, Task] = {
    "single_retrieval": Task(make=retrieval(1), **RETRIEVAL),
    "multi_retrieval": Task(make=retrieval(NUM_RETRIEVED), **RETRIEVAL),
    "multi_reasoning_2": Task(make=multi_reasoning(2), scope="low", **REASONING),
    "multi_reasoning_3": Task(make=multi_reasoning(3), scope="low", **REASONING),
    "multi_reasoning_5": Task(make=multi_reasoning(5), scope="low", **REASONING),
    "atc_eldest": Task(make=ancestral_trace("eldest"), **DENSE),
    "atc_ancestor": Task(make=ancestral_trace("ancestor"), **DENSE),
    "atc_descendant": Task(make=ancestral_trace("descendant"), **DENSE),
    # Of two texts of 1K tokens one in 25 has the same distance, of longer ones fewer.
    "atc_distance": Task(make=ancestral_trace("distance"), chance=0.02, **DENSE),
}
