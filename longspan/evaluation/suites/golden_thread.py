"""Spinning the Golden Thread: a long text in numbered parts, with events that must come at their places.

Paper: LongGenBench: Benchmarking Long-Form Generation in Long Context LLMs (Wu et al., 2024; first called Spinning the Golden
Thread)
A diary, a menu, a skyscraper or a city is described week by week, floor by floor, block by block; events are set for single
parts, for ranges and at intervals. Scored without a judge by the events' words: STIC-2, the part of all events that are told
where they belong, is the score; "completion" (parts that are there) and "stic_1" (events told in those) come with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longspan.evaluation.metrics.text_constraints import BLOCK_MARK, numbered_blocks, sgt_completion
from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "golden_thread",
    "title": "LongGenBench: Benchmarking Long-Form Generation in Long Context LLMs",
    "year": 2024,
    "version": 1,
    "metric": "STIC-2: part of all events that stand in the part of the text where they belong, parts left out counting as "
    "wrong; mean over samples; completion rate and STIC-1 beside it",
    "differs": [
        "whether a part tells an event is judged by its words (at least half of the event's names and things must be there) "
        "instead of by a language model",
        "events are invented from lists of names and things, no two alike, so that a text about anything else scores 0",
        "the number of parts follows from the length asked for (about 160 tokens, 100 words, a part) instead of 52 weeks, or 100 "
        "floors or blocks, of 200 words and more",
        "one wording for each scenario; no two events of one sort fall on the same part",
    ],
    "paper_id": 170,
    "lengths": "from 2K tokens; most of the length is output",
    "needs": "nothing",
    "licence": "generated here",
}

PART_TOKENS = 160
LEAST_PARTS = 8
SPARE_TOKENS = 96
SORTS = ("once", "range", "periodic")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is written, and how its events are called.

    Attributes:
        part: name of a part; its number follows.
        task: the whole, with {number} parts.
        event: an event, with a {thing}, a {person} and a {place}.
    """

    part: str
    task: str
    event: str


SCENARIOS = {
    "diary": Scenario(
        part="Week",
        task="Write the diary of {person} for {number} weeks, one entry for each week.",
        event="the {thing} lesson with {person} in {place}",
    ),
    "menu": Scenario(
        part="Week",
        task="Write the menu of {person}'s inn for {number} weeks, one menu for each week.",
        event="the {thing} dinner cooked by {person} of {place}",
    ),
    "skyscraper": Scenario(
        part="Floor",
        task="Describe a skyscraper of {number} floors, designed by {person}, one floor after the other.",
        event="the {thing} gallery run by {person} from {place}",
    ),
    "city": Scenario(
        part="Block",
        task="Describe the {number} blocks of a city laid out by {person}, one block after the other.",
        event="the {thing} market named after {person} of {place}",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event, its distinctive words, and where it belongs."""

    text: str
    words: str
    sort: str
    parts: tuple[int, ...]

    def rule(self, name: str) -> str:
        """The instruction."""
        if self.sort == "once":
            return f"{name} {self.parts[0]} must tell of {self.text}."
        if self.sort == "range":
            return (
                f"Each part from {name} {self.parts[0]} to {name} {self.parts[-1]} must tell of {self.text}."
            )
        step = self.parts[1] - self.parts[0]
        return (
            f"Beginning with {name} {self.parts[0]}, every {step} {name.lower()}s must tell of {self.text}."
        )


class Events:
    """Draws events; a name is given once."""

    def __init__(self, scenario: Scenario, number: int, rng: random.Random) -> None:
        self._scenario, self._rng, self._number = scenario, rng, number
        self._given = set[str]()

    def new(self, sort: str, parts: Sequence[int]) -> Event:
        """An event for these parts."""
        rng = self._rng
        while True:
            thing = f"{rng.choice(lists.ADJECTIVES)} {rng.choice(lists.OBJECTS)}"
            person = f"{rng.choice(lists.FIRST_NAMES)} {rng.choice(lists.SURNAMES)}"
            place = rng.choice(lists.PLACE_HEADS) + rng.choice(lists.PLACE_TAILS)
            words = f"{thing} {person} {place}"
            if words not in self._given:
                break
        self._given.add(words)
        text = self._scenario.event.format(thing=thing, person=person, place=place)
        return Event(text=text, words=words, sort=sort, parts=tuple(parts))

    def all(self) -> list[Event]:
        """About a quarter of the parts have an event of their own; ranges cover a fifth, intervals a fifth to a third."""
        rng, number = self._rng, self._number
        single = rng.sample(range(1, number + 1), number // 4)
        events = [self.new("once", [part]) for part in sorted(single)]
        stretch = max(16, number // 5)
        for start in range(1, number + 1, stretch):
            length = rng.randint(2, 4)
            last = min(start + stretch - 1, number)
            if last - start + 1 >= length:
                first = rng.randint(start, last - length + 1)
                events.append(self.new("range", range(first, first + length)))
        step = rng.randint(3, 5)
        events.append(self.new("periodic", range(rng.randint(1, step), number + 1, step)))
        return events


def golden_thread(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """STIC-2, the part of all checks that are met, as "score"; "stic_1", of those whose block is there; "completion", of blocks.

    What stands before the first "#*#" is not looked at, so that the instructions copied count for nothing. Sub-scores "once",
    "range" and "periodic" are parts of the checks of existing blocks, as the official evaluation counts.

    Args:
        references: not used.
        details: as `sgt_completion` takes them.
    """
    text = "".join(prediction.partition(BLOCK_MARK)[1:])
    parts = sgt_completion(text, references, details)
    blocks = numbered_blocks(text, str(details["type"]))
    met = present = wanted = 0.0
    for sort in SORTS:
        checks = details.get(f"checks_{sort}", {})
        here = sum(int(block) in blocks for block in checks)
        met += parts.get(sort, 0.0) * here
        present, wanted = present + here, wanted + len(checks)
    if not wanted:
        raise ValueError("the details hold no check; give checks_once, checks_range or checks_periodic")
    return {
        **parts,
        "score": met / wanted,
        "stic_1": met / present if present else 0.0,
        "completion": parts["score"],
    }


def _ideal(scenario: Scenario, number: int, events: Sequence[Event]) -> str:
    """A text, as short as may be, that tells every event where it belongs."""
    due: dict[int, list[str]] = {}
    for event in events:
        for part in event.parts:
            due.setdefault(part, []).append(event.text)
    blocks = []
    for part in range(1, number + 1):
        told = ", and of ".join(due.get(part, ()))
        blocks.append(
            f"{BLOCK_MARK} {scenario.part} {part}: " + (f"It tells of {told}." if told else "A quiet one.")
        )
    return "\n".join(blocks)


def _maker(scenario: Scenario) -> Callable[[random.Random, Room], Puzzle]:
    def make(rng: random.Random, room: Room) -> Puzzle:
        owner = f"{rng.choice(lists.FIRST_NAMES)} {rng.choice(lists.SURNAMES)}"
        number = (room.tokens - SPARE_TOKENS) // PART_TOKENS
        while number >= LEAST_PARTS:
            events = Events(scenario, number, rng).all()
            rules = [event.rule(scenario.part) for event in events]
            rng.shuffle(rules)
            task = scenario.task.format(number=number, person=owner)
            context = "\n".join((task, *rules))
            question = (
                f"{task} Write all parts from {scenario.part} 1 to {scenario.part} {number} in order and leave none out, about "
                f"100 words each. Begin each part with '{BLOCK_MARK} {scenario.part}' and its number, for example "
                f"'{BLOCK_MARK} {scenario.part} 1:'. Tell every event above in the parts that it is set for, with all its names."
            )
            left = room.left(context, question, max_new_tokens=0)
            if left >= number * PART_TOKENS * 0.8:
                break
            number = min(number - 1, int(number * 0.95))
        else:
            raise ValueError(
                f"{room.tokens} tokens are too few for {LEAST_PARTS} parts of a long text; ask for 2048 or more"
            )
        checks = {
            f"checks_{sort}": {
                str(part): event.words for event in events if event.sort == sort for part in event.parts
            }
            for sort in SORTS
        }
        return Puzzle(
            needles=(),
            context=context,
            evidence=tuple(rules),
            question=question,
            references=tuple(event.text for event in events),
            answer=_ideal(scenario, number, events),
            max_new_tokens=left,
            details={"type": scenario.part, "number": number, **checks},
        )

    return make


LABELS: dict[str, Any] = {
    "ability": "long generation",
    "diffusion": "low",
    "scope": "high",
    "answers": "derived",
    "metric": golden_thread,
    "haystack": "own",
}

TASKS: dict[str, Task] = {name: Task(make=_maker(scenario), **LABELS) for name, scenario in SCENARIOS.items()}
