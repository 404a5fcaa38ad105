"""Theory-of-mind tracking: where things are, and where somebody believes one to be, after every step of a story."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites.longproc.blocks import filled, scattered_blocks
from longspan.evaluation.task import Puzzle, Room

SPOTS = "table shelf chest drawer basket cupboard bench".split()
STEP_TOKENS = 150
LEAST_TOKENS = 1600
MOST_STEPS = 90
INTRO = "Each of the following stories tells, step by step, where people go and where they put things."
RULE = (
    "Somebody sees a thing while both are in the same room, and then believes it to be where it is; otherwise the belief stays "
    "as it was, at first None. Who has left a room and entered no other is nowhere: the location is then None."
)


@dataclass(kw_only=True)
class Story:
    """What is where, and what has been told."""

    rng: random.Random
    title: str
    people: dict[str, str | None] = field(default_factory=dict)
    things: dict[str, str] = field(default_factory=dict)
    spots: dict[str, list[str]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, rng: random.Random, title: str) -> Story:
        """Three people and two things in three rooms."""
        rooms = rng.sample(lists.PLACES_INSIDE, 3)
        spots = {place: [f"{place}'s {spot}" for spot in rng.sample(SPOTS, 2)] for place in rooms}
        people: dict[str, str | None] = {name: rng.choice(rooms) for name in rng.sample(lists.FIRST_NAMES, 3)}
        things = {name: rng.choice(spots[rng.choice(rooms)]) for name in rng.sample(lists.OBJECTS, 2)}
        parts = [f"{name} is in the {place}" for name, place in people.items()]
        parts += [f"the {name} is on the {spot}" for name, spot in things.items()]
        story = cls(rng=rng, title=title, people=people, things=things, spots=spots)
        story.lines = [f"Story of {title}.", f"Step 0: {'; '.join(parts)}."]
        return story

    def step(self, likely: str | None = None) -> None:
        """Somebody goes somewhere, or moves a thing in the room; `likely` is who acts half of the time."""
        rng = self.rng
        name = likely if likely and rng.random() < 0.4 else rng.choice(list(self.people))
        place = self.people[name]
        near = [thing for thing, spot in self.things.items() if place and spot.startswith(f"{place}'s ")]
        others = [one for one in self.spots if one != place]
        if place is None:
            self.people[name] = rng.choice(others)
            told = f"{name} enters the {self.people[name]}"
        elif near and rng.random() < 0.5:
            thing = rng.choice(near)
            self.things[thing] = next(spot for spot in self.spots[place] if spot != self.things[thing])
            told = f"{name} moves the {thing} to the {self.things[thing]}"
        elif near and rng.random() < 0.4:
            thing, self.people[name] = rng.choice(near), rng.choice(others)
            self.things[thing] = rng.choice(self.spots[str(self.people[name])])
            told = (
                f"{name} moves to the {self.people[name]} and takes the {thing} to the {self.things[thing]}"
            )
        elif rng.random() < 0.3:
            self.people[name] = None
            told = f"{name} leaves the {place}"
        else:
            self.people[name] = rng.choice(others)
            told = f"{name} moves to the {self.people[name]}"
        self.lines.append(f"Step {len(self.lines) - 1}: {told}.")

    def sees(self, name: str, thing: str) -> bool:
        """Whether both are in one room."""
        place = self.people[name]
        return place is not None and self.things[thing].startswith(f"{place}'s ")


def _others(rng: random.Random, titles: Iterator[str], steps: int) -> Iterator[str]:
    while True:
        story = Story.begin(rng, next(titles))
        for _ in range(rng.randint(3, max(4, steps // 2))):
            story.step()
        yield from story.lines


def _titles(rng: random.Random) -> Iterator[str]:
    given = set[str]()
    while True:
        title = (
            f"{rng.choice(lists.ADJECTIVES)} {rng.choice(lists.PLACE_HEADS)}{rng.choice(lists.PLACE_TAILS)}"
        )
        if title not in given:
            given.add(title)
            yield title.title()


def tom_tracking(rng: random.Random, room: Room) -> Puzzle:
    """One step for each 150 tokens of room, in one story of many."""
    titles, steps = _titles(rng), min(MOST_STEPS, max(4, room.tokens // STEP_TOKENS))
    story = Story.begin(rng, next(titles))
    name, thing = rng.choice(list(story.people)), rng.choice(list(story.things))
    belief, tracked = "None", list[str]()
    for number in range(steps + 1):
        if number:
            story.step(name)
        sees = story.sees(name, thing)
        belief = story.things[thing] if sees else belief
        tracked.append(
            f"- Step {number}: {{{name} location: {story.people[name]}; {thing} location: {story.things[thing]}; "
            f"{name} sees {thing}: {sees}; {name}'s belief on {thing}: {belief}}}"
        )
    answer = "\n".join((f"{name}'s belief on the {thing}:", *tracked, f"Final Answer: {belief}"))
    question = (
        f"Read the story of {story.title}. Where does {name} believe the {thing} to be? {RULE}\nWrite one line for every step, "
        f"from Step 0 on, in this form:\n- Step 0: {{{name} location: attic; {thing} location: loft's shelf; {name} sees {thing}: "
        f"False; {name}'s belief on {thing}: None}}\nEnd with 'Final Answer:' and the place."
    )
    output = room.count(answer) + 24
    asked = "\n".join(story.lines)
    left = room.left(INTRO, question, asked, max_new_tokens=output)
    if room.tokens < LEAST_TOKENS or left < 0:
        raise ValueError(
            f"{room.tokens} tokens are too few for a story and its beliefs; ask for 2048 or more"
        )
    fillers = filled(room, _others(rng, titles, steps), left)
    context = "\n".join((INTRO, *scattered_blocks(asked, fillers, "Story of", room, rng)))
    return Puzzle(
        needles=(),
        context=context,
        evidence=(asked,),
        question=question,
        references=(answer,),
        answer=answer,
        max_new_tokens=output,
    )
