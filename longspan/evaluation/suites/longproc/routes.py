"""Path traversal: follow the only way out of each city. Travel planning: order the cities of a trip by its rules."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics import ordering_steps
from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites.longproc.blocks import filled
from longspan.evaluation.task import Puzzle, Room

VEHICLES = ("bus", "train", "plane", "ferry")
SIDES = ("", "", "North ", "South ", "East ", "West ", "New ", "Old ", "Upper ", "Lower ")
HOP_TOKENS = 100
MOST_HOPS = 250
TRIP_TOKENS = 1024
PATH_INTRO = "In an invented world, each city has a one-way connection to just one other city, by bus, train, plane or ferry."
TRIP_INTRO = (
    "These are the wishes for a trip, and direct flights. Flights go one way. The day of arrival and the day of departure both "
    "count as days in a city, so that one leaves a city and arrives in the next on the same day."
)


class Cities:
    """Invented cities, none drawn twice."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._given = rng, set[str]()

    def new(self) -> str:
        """A city not drawn before."""
        choose = self._rng.choice
        while (
            name := f"{choose(SIDES)}{choose(lists.PLACE_HEADS)}{choose(lists.PLACE_TAILS)}"
        ) in self._given:
            pass
        self._given.add(name)
        return name


def path_traversal(rng: random.Random, room: Room) -> Puzzle:
    """A route of one hop for each 100 tokens of room, through as many cities as fit."""
    cities, hops = Cities(rng), min(MOST_HOPS, max(4, room.tokens // HOP_TOKENS))
    stops = [cities.new() for _ in range(hops + 1)]
    known = list(stops)
    legs = [(start, rng.choice(VEHICLES), end) for start, end in zip(stops, stops[1:], strict=False)]
    wanted = [_connection(*leg) for leg in legs]
    route = "\n".join(f"From {start}, take a {vehicle} to {end}." for start, vehicle, end in legs)
    answer = f"<Route>\n{route}\n</Route>"
    question = (
        f"Find the route from {stops[0]} to {stops[-1]}. Write one line for each step, between <Route> and </Route>, such as "
        "'From Paris, take a train to Rome.'"
    )
    output = room.count(answer) + 24

    def fillers() -> Iterator[str]:
        yield _connection(stops[-1], rng.choice(VEHICLES), rng.choice(stops[:-1]))
        while True:
            city = cities.new()
            yield _connection(city, rng.choice(VEHICLES), rng.choice(known))
            known.append(city)

    left = room.left(PATH_INTRO, question, "\n".join(wanted), max_new_tokens=output)
    if left < 100:
        raise ValueError(f"{room.tokens} tokens are too few for a world of cities; ask for 1024 or more")
    lines = room.scatter(wanted, filled(room, fillers(), left), rng)
    return Puzzle(
        needles=(),
        context="\n".join((PATH_INTRO, *lines)),
        evidence=tuple(wanted),
        question=question,
        references=(route,),
        answer=answer,
        max_new_tokens=output,
    )


def _connection(start: str, vehicle: str, end: str) -> str:
    return f"The only way out of {start} is the {vehicle} to {end}."


def path_score(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """`path_traversal_fixed`, with the official partial score, which counts the first wrong line, as "partial_official"."""
    official = ordering_steps.path_traversal(prediction, references, details)
    return {
        **ordering_steps.path_traversal_fixed(prediction, references, details),
        "partial_official": official["partial"],
    }


def travel_planning(rng: random.Random, room: Room) -> Puzzle:
    """A trip of 5 to 12 cities, a third of them on fixed days, among flights between other cities."""
    cities, number = Cities(rng), min(12, 4 + room.tokens // TRIP_TOKENS + 1)
    order = [cities.new() for _ in range(number)]
    stays = {city: rng.randint(2, 7) for city in order}
    day, plan = 1, list[tuple[int, int, str]]()
    for city in order:
        plan.append((day, day + stays[city] - 1, city))
        day = plan[-1][1]
    fixed = {city: (first, last) for first, last, city in rng.sample(plan, max(1, number // 3))}
    wishes = [
        f"Be in {city} from day {fixed[city][0]} to day {fixed[city][1]}."
        if city in fixed
        else f"Stay in {city} for {stays[city]} days."
        for city in order
    ]
    used = list(zip(order, order[1:], strict=False))
    others = [(start, end) for start in order for end in order if start != end and (start, end) not in used]
    spare = rng.sample(others, 2 * number)
    wanted = [*wishes, *(_flight(*pair) for pair in used)]
    near = [_flight(*pair) for pair in spare]
    answer = "<Plan>\n" + "\n".join(f"Day {first}-{last}: {city}" for first, last, city in plan) + "\n</Plan>"
    question = (
        f"Plan the trip of {number} cities in {day} days, with direct flights only; it may begin in any of the cities. Write one "
        "line for each city, in order, between <Plan> and </Plan>, such as 'Day 1-4: Paris'. You may work it out before that."
    )
    output = max(2 * room.count(answer), min(room.tokens // 4, 4000))
    left = room.left(TRIP_INTRO, question, "\n".join((*wanted, *near)), max_new_tokens=output)
    if left < 60:
        raise ValueError(f"{room.tokens} tokens are too few for a trip and its plan; ask for 2048 or more")
    fillers = [*near, *filled(room, _far_flights(cities, rng), left)]
    rng.shuffle(fillers)
    return Puzzle(
        needles=(),
        context="\n".join((TRIP_INTRO, *room.scatter(wanted, fillers, rng))),
        evidence=tuple(wanted),
        question=question,
        references=(answer,),
        answer=answer,
        max_new_tokens=output,
        details={
            "stays": stays,
            "fixed": {city: list(days) for city, days in fixed.items()},
            "flights": [list(pair) for pair in (*used, *spare)],
        },
    )


def _flight(start: str, end: str) -> str:
    return f"There is a direct flight from {start} to {end}."


def _far_flights(cities: Cities, rng: random.Random) -> Iterator[str]:
    known = [cities.new(), cities.new()]
    while True:
        known.append(cities.new())
        yield _flight(*rng.sample([known[-1], rng.choice(known[:-1])], 2))


def travel_score(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """1.0 if the lines in <Plan>...</Plan> keep all rules; "partial": part of the stays before the first that breaks one.

    Args:
        references: not used; any plan that keeps the rules is right.
        details: "stays" (city to days), "fixed" (city to first and last day), "flights" (pairs of cities).
    """
    stays, fixed = details["stays"], details["fixed"]
    flights = {tuple(pair) for pair in details["flights"]}
    tagged = re.search(r"<Plan>(.*?)</Plan>", prediction, re.DOTALL)
    if tagged is None:
        return {"score": 0.0, "partial": 0.0, "extracted": 0.0}
    lines = [line for line in tagged[1].splitlines() if line.strip()]
    day, city, seen = 1, "", list[str]()
    for line in lines:
        found = re.fullmatch(r"\s*Day (\d+)\s*(?:-|\u2013|to)\s*(\d+):\s*(.+?)\.?\s*", line)
        if found is None:
            break
        first, last, name = int(found[1]), int(found[2]), found[3]
        if name not in stays or name in seen or first != day or last - first + 1 != stays[name]:
            break
        if (seen and (city, name) not in flights) or (name in fixed and [first, last] != list(fixed[name])):
            break
        day, city = last, name
        seen.append(name)
    score = float(len(seen) == len(stays) == len(lines))
    return {"score": score, "partial": len(seen) / len(stays), "extracted": 1.0}
