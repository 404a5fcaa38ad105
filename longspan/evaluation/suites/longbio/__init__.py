"""LongBioBench: one text of many invented biographies, alike in everything but names and values; questions on some of them.

Every sentence of the text is of the kind that holds an answer, so nothing sticks out. Each task makes one before it harder:
several people asked at once, reworded sentences, first-person texts, then sums over what was found, then citations and
facts that are not given.

Paper: A Controllable Examination for Long-Context Language Models (Yang et al., 2025)
Scored by accuracy: the value stands in the answer; several values all stand there in the order asked for; the last number
is the difference in age; the two people named differ in age as asked.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from longspan.evaluation.metrics.citation import long_bio, long_bio_cite
from longspan.evaluation.suites.longbio import lists
from longspan.evaluation.suites.longbio.people import (
    ATTRIBUTES,
    Person,
    Wording,
    around,
    biography,
    numbered,
    people,
)
from longspan.evaluation.task import Puzzle, Room, Sample, Task

CARD: dict[str, Any] = {
    "name": "longbio",
    "title": "A Controllable Examination for Long-Context Language Models",
    "year": 2025,
    "version": 1,
    "metric": "accuracy, all or nothing; the citation tasks give the accuracy of answer and citation besides",
    "differs": [
        "sentences, values and prompts are our own; names have three parts, as in the original",
        "all tasks are asked without the two examples that reasoning and citation tasks have in the original",
        "idk removes the fact in half of the samples; the original asks about each person twice, with the fact and without, and "
        "wants both right",
        "a citation answer scores when answer and citation are right; the original reports the two separately, as `answer` and "
        "`citation` do here",
        "biographies are numbered from 1 in the citation tasks, from 0 in the original's code",
        "a few of the other people lack some attributes, so that the length is exact",
    ],
    "paper_id": 134,
    "lengths": "from 1K tokens; tasks on five or ten people need more",
    "needs": "nothing",
    "licence": "generated here",
}

NOT_STATED = "The answer is not stated"
VALUES = {"hobby": len(lists.HOBBIES), "major": len(lists.MAJORS)}
SAME_VALUE = fmean(
    1 / VALUES.get(key, 2000) for key in ATTRIBUTES
)  # days, towns and universities: 2,000 or more of each


def one(*, wording: Wording = "standard") -> Callable[[random.Random, Room], Puzzle]:
    """One attribute of one person is asked for."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        crowd = people(rng)
        person, key = next(crowd), rng.choice(ATTRIBUTES)
        question, prefix = (
            texts[key].format(name=person.name) for texts in (lists.QUESTIONS, lists.PREFIXES)
        )
        told = biography(person, rng, wording=wording)
        left = room.left(question, prefix, max_new_tokens=32)
        return Puzzle(
            needles=(),
            context="\n".join(around([told.text], crowd, left, room, rng, wording=wording)),
            evidence=(told.text if wording == "pronoun" else told.sentences[key],),
            question=question,
            answer_prefix=prefix,
            references=(person.values[key],),
            answer=person.values[key] + ".",
            max_new_tokens=32,
        )

    return make


def several(num_people: int, *, cite: bool = False) -> Callable[[random.Random, Room], Puzzle]:
    """One attribute of each of several people; with `cite`, the number of the biography follows each answer."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        crowd = people(rng)
        asked = list(itertools.islice(crowd, num_people))
        keys = [rng.choice(ATTRIBUTES) for _ in asked]
        told = [biography(person, rng) for person in asked]
        questions = [lists.QUESTIONS[key].format(name=who.name) for who, key in zip(asked, keys, strict=True)]
        question = questions[0] + " Give the answer only."
        if num_people > 1:
            question = "\n".join(f"{place}. {text}" for place, text in enumerate(questions, start=1))
            question += "\nAnswer the questions in this order, with the answers only."
        if cite:
            question += " Write after each answer the number of the biography that it is from, in brackets like these: [0]."
        tokens = (40 if cite else 32) * num_people
        left = room.left(question, "Answer:", max_new_tokens=tokens)
        texts = around([one.text for one in told], crowd, left, room, rng, cite=cite)
        values = [who.values[key] for who, key in zip(asked, keys, strict=True)]
        numbers = [texts.index(one.text) + 1 for one in told]
        said = (
            [f"{value} [{number}]" for value, number in zip(values, numbers, strict=True)] if cite else values
        )
        shown = numbered(texts) if cite else texts
        return Puzzle(
            needles=(),
            context="\n".join(shown),
            evidence=tuple(one.sentences[key] for one, key in zip(told, keys, strict=True)),
            question=question,
            answer_prefix="Answer:",
            references=tuple(values),
            answer=", ".join(said) + ".",
            max_new_tokens=tokens,
            details={"citations": numbers} if cite else {},
        )

    return make


def aged(num_people: int, *, ask: Literal["rank", "calculation"]) -> Callable[[random.Random, Room], Puzzle]:
    """The ages of several people, all different: their order, or the difference of two."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        crowd, asked = people(rng), list[Person]()
        for person in crowd:
            if person.values["age"] not in {other.values["age"] for other in asked}:
                asked.append(person)
            if len(asked) == num_people:
                break
        keys = ("age", *ATTRIBUTES[1:])
        told = [biography(person, rng, attributes=keys) for person in asked]
        listed = _listed([person.name for person in asked])
        by_age = sorted(asked, key=lambda person: int(person.values["age"]))
        if ask == "rank":
            question = f"Put these people in order of age, from the youngest to the oldest: {listed}. Give the names only."
            prefix, references = "The order is", tuple(person.name for person in by_age)
        else:
            question, prefix = (
                f"What is the difference in age, in years, between {listed}?",
                "The difference is",
            )
            references = (str(int(by_age[1].values["age"]) - int(by_age[0].values["age"])),)
        tokens = 32 * num_people if ask == "rank" else 12
        left = room.left(question, prefix, max_new_tokens=tokens)
        return Puzzle(
            needles=(),
            context="\n".join(around([one.text for one in told], crowd, left, room, rng, attributes=keys)),
            evidence=tuple(one.sentences["age"] for one in told),
            question=question,
            answer_prefix=prefix,
            references=references,
            answer=", ".join(references) + ".",
            max_new_tokens=tokens,
            details={"number": ask == "calculation"},
        )

    return make


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:-1]) + " and " + items[-1]


def multihop(num_people: int) -> Callable[[random.Random, Room], Puzzle]:
    """An attribute that the last person shares with the one before, and so on, until one whose value is told."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        crowd, key = people(rng), rng.choice(ATTRIBUTES)
        chain = list(itertools.islice(crowd, num_people))
        told = [biography(chain[0], rng)]
        for before, person in itertools.pairwise(chain):
            same = f"The {lists.NOUNS[key]} of {person.name} is the same as that of {before.name}."
            told.append(biography(person, rng, instead={key: same}))
        question, prefix = (
            texts[key].format(name=chain[-1].name) for texts in (lists.QUESTIONS, lists.PREFIXES)
        )
        left = room.left(question, prefix, max_new_tokens=32)
        return Puzzle(
            needles=(),
            context="\n".join(around([one.text for one in told], crowd, left, room, rng)),
            evidence=tuple(one.sentences[key] for one in told),
            question=question,
            answer_prefix=prefix,
            references=(chain[0].values[key],),
            answer=chain[0].values[key] + ".",
            max_new_tokens=32,
        )

    return make


def twodiff(rng: random.Random, room: Room) -> Puzzle:
    """Any two people whose ages differ by a number that is given, and that is the difference of two of them."""
    crowd, keys = people(rng), ("age", *ATTRIBUTES[1:])
    pair = list(itertools.islice(crowd, 2))
    while pair[0].values["age"] == pair[1].values["age"]:
        pair[1] = next(crowd)
    told = [biography(person, rng, attributes=keys).text for person in pair]
    apart = abs(int(pair[0].values["age"]) - int(pair[1].values["age"]))
    question = f"Name two people whose ages differ by exactly {apart} years. One pair is enough; give the two full names only."
    left = room.left(question, "Answer:", max_new_tokens=64)
    texts = around(told, crowd, left, room, rng, attributes=keys)
    context = "\n".join(texts)
    return Puzzle(
        needles=(),
        context=context,
        evidence=(),  # other pairs may do too
        question=question,
        answer_prefix="Answer:",
        references=tuple(person.name for person in pair),
        answer=_listed([person.name for person in pair]) + ".",
        max_new_tokens=64,
        details={"apart": apart, "ages": dict(re.findall(r"The age of (.+?) is (\d+)\.", context))},
    )


def ages_differ(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the answer names just two people of the text, and their ages differ by the number asked for.

    Official scorer: LongBio `AgeDiffEvaluator`.

    Args:
        details: "ages", age by full name; "apart", the difference asked for.
    """
    ages = [int(age) for name, age in details["ages"].items() if name in prediction]
    return float(len(ages) == 2 and abs(ages[0] - ages[1]) == details["apart"])


def idk(rng: random.Random, room: Room) -> Puzzle:
    """`standard`, but in half of the samples the text does not hold what is asked for."""
    crowd = people(rng)
    person, key, given = next(crowd), rng.choice(ATTRIBUTES), rng.random() < 0.5
    told = biography(person, rng, attributes=[one for one in ATTRIBUTES if given or one != key])
    question = (
        f"{lists.QUESTIONS[key].format(name=person.name)} "
        f"Give the answer only. If the text does not say it, write: {NOT_STATED}."
    )
    answer = person.values[key] if given else NOT_STATED
    left = room.left(question, "Answer:", max_new_tokens=32)
    return Puzzle(
        needles=(),
        context="\n".join(around([told.text], crowd, left, room, rng)),
        evidence=(told.sentences[key] if given else told.text,),
        question=question,
        answer_prefix="Answer:",
        references=(answer if given else "not stated",),
        answer=answer + ".",
        max_new_tokens=32,
    )


def _any_order(rng: random.Random, sample: Sample) -> str:
    return ", ".join(rng.sample(sample.references, len(sample.references)))


def _task(make: Callable[[random.Random, Room], Puzzle], ability: str, **labels: Any) -> Task:
    given = {"metric": long_bio, "diffusion": "low", "scope": "low", "answers": "derived", **labels}
    return Task(make=make, ability=ability, **given)


HARD: dict[str, Any] = {"diffusion": "high"}
SAME_AGE_GAP = sum(
    (2 * (63 - gap) / (63 * 62)) ** 2 for gap in range(1, 63)
)  # two ages of 18 to 80 differ by gap, twice

TASKS: dict[str, Task] = {
    "standard": _task(one(), "retrieval", chance=SAME_VALUE, places=True),
    **{f"multi_standard_{count}": _task(several(count), "retrieval", scope="high") for count in (2, 5, 10)},
    "paraphrase": _task(one(wording="paraphrase"), "retrieval", chance=SAME_VALUE, places=True, **HARD),
    "pronoun": _task(one(wording="pronoun"), "retrieval", chance=SAME_VALUE, places=True, **HARD),
    "calculation": _task(aged(2, ask="calculation"), "arithmetic", chance=SAME_AGE_GAP, **HARD),
    "rank_2": _task(aged(2, ask="rank"), "ordering", chance=1 / 2, guess=_any_order, **HARD),
    "rank_5": _task(aged(5, ask="rank"), "ordering", chance=1 / 120, guess=_any_order, scope="high", **HARD),
    "multihop_2": _task(multihop(2), "multi-hop", chance=SAME_VALUE, **HARD),
    "multihop_5": _task(multihop(5), "multi-hop", chance=SAME_VALUE, scope="high", **HARD),
    "twodiff": _task(twodiff, "search", metric=ages_differ, scope="high", **HARD),
    "citation_1": _task(several(1, cite=True), "citation", metric=long_bio_cite, places=True),
    "citation_2": _task(several(2, cite=True), "citation", metric=long_bio_cite, scope="high"),
    "idk": _task(idk, "abstention", chance=1 / 2, guess=lambda rng, sample: NOT_STATED, places=True),
}
