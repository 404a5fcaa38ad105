"""Mathematical word problems, each premise of which carries one number."""

from __future__ import annotations

import random
from collections.abc import Iterable

from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites.longreason.passages import Maker, Problem, people, scene

__all__ = ["SUMS"]

GOODS = "candles,baskets,lanterns,cheeses,teapots,ribbons,flutes,kettles,brooms,cushions".split(",")


def _others(right: int, tempting: Iterable[int], rng: random.Random) -> tuple[str, ...]:
    """Three wrong numbers, first those that come of leaving out a step; as often above the right one as below."""
    reach = max(4, right // 2)
    near = rng.sample(range(1, reach), 3)
    numbers = dict.fromkeys([*tempting, *(right - gap for gap in near), *(right + gap for gap in near)])
    below = [number for number in numbers if 0 < number < right]
    above = [number for number in numbers if number > right]
    num_below = min(rng.randrange(4), len(below))
    return tuple(str(number) for number in [*below[:num_below], *above[: 3 - num_below]])


def _stall(rng: random.Random) -> Problem:
    """Stock of a stall: crates brought, sold, brought again; what the sale made."""
    event, (seller, helper) = scene(rng), people(2, rng)
    goods = rng.choice(GOODS)
    crates, each, sold, price = rng.randint(4, 12), rng.randint(6, 15), rng.randint(10, 20), rng.randint(2, 9)
    rest = crates * each - sold
    ruined = rng.randint(2, rest // 2)
    left = rest - ruined
    return Problem(
        scene=event,
        premises=(
            f"{seller} brought {crates} crates of {goods} to the stall, all crates alike.",
            f"In every crate of {seller}'s there were {each} {goods}.",
            f"{seller} had sold {sold} of the {goods} when the rain came.",
            f"The rain ruined {ruined} of the {goods} that {seller} had not yet sold, and {helper} carried them off.",
            f"Each of the sound {goods} left after the rain was bought for {price} crowns, and {seller} went home with none.",
        ),
        question=f"At {event}, how many crowns did {seller} take for the {goods} that were sold after the rain?",
        right=str(left * price),
        wrong=_others(left * price, (rest * price, (crates * each - ruined) * price, left), rng),
        working=(
            f"{crates} crates of {each} are {crates * each} {goods}. {sold} were sold, which leaves {rest}, and {ruined} were "
            f"ruined, which leaves {left}. At {price} crowns each they made {left * price} crowns."
        ),
    )


def _ages(rng: random.Random) -> Problem:
    """Ages by comparison, along a chain; asked for a year to come."""
    event, (first, second, third, fourth) = scene(rng), people(4, rng)
    young, factor, older, younger, later = (
        rng.randint(5, 12), rng.randint(2, 4), rng.randint(3, 15), rng.randint(2, 4), rng.randint(3, 20)
    )  # fmt: skip
    two, three = young * factor, young * factor + older
    four = three - younger
    times = {2: "twice", 3: "three times", 4: "four times"}[factor]
    return Problem(
        scene=event,
        premises=(
            f"{first} was {young} years old on that day.",
            f"{second} was {times} as old as {first} on that day.",
            f"{third} was {older} years older than {second}.",
            f"{fourth} was {younger} years younger than {third}.",
        ),
        question=f"How old was {fourth} {later} years after {event}?",
        right=str(four + later),
        wrong=_others(four + later, (four, three + later, two + older + younger + later), rng),
        working=(
            f"{first} was {young}, so {second} was {two}, {third} was {three} and {fourth} was {four}; {later} years later "
            f"{fourth} was {four + later}."
        ),
    )


def _journey(rng: random.Random) -> Problem:
    """Two legs with speed and hours, and a way that was already behind."""
    event, (rider, friend) = scene(rng), people(2, rng)
    fast, hours, slow, more, walked = (
        rng.randint(8, 18), rng.randint(2, 6), rng.randint(3, 6), rng.randint(2, 5), rng.randint(2, 9)
    )  # fmt: skip
    whole = walked + fast * hours + slow * more
    return Problem(
        scene=event,
        premises=(
            f"On the way there {rider} first walked {walked} miles to the stable.",
            f"From the stable {rider} rode for {hours} hours, until the horse went lame.",
            f"While it was sound, {rider}'s horse went {fast} miles in every hour.",
            f"Once the horse was lame, {rider} led it at {slow} miles in every hour.",
            f"{friend} saw {rider} arrive {more} hours after the horse had gone lame.",
        ),
        question=f"How many miles was the whole way that {rider} travelled to {event}?",
        right=str(whole),
        wrong=_others(whole, (whole - walked, walked + fast * (hours + more), walked + fast * hours), rng),
        working=(
            f"{walked} miles on foot, {hours} hours at {fast} are {fast * hours} miles, {more} hours at {slow} are "
            f"{slow * more} miles; together {whole} miles."
        ),
    )


def _wages(rng: random.Random) -> Problem:
    """Daily pay, days, a share given away, a debt."""
    event, (worker, other) = scene(rng), people(2, rng)
    hours, pay, days, debt = rng.randint(5, 10), rng.randint(2, 6), rng.randint(4, 9), rng.randint(7, 25)
    earned = hours * pay * days
    return Problem(
        scene=event,
        premises=(
            f"{worker} put up benches for {hours} hours on each working day.",
            f"For every hour of work {worker} was paid {pay} crowns.",
            f"{worker} was hired for {days} days, and missed none.",
            f"Out of the wages {worker} paid back {debt} crowns that were owed to {other}, and spent nothing else.",
        ),
        question=f"How many crowns of the wages from {event} did {worker} keep?",
        right=str(earned - debt),
        wrong=_others(earned - debt, (earned, hours * pay - debt, hours * pay * (days - 1) - debt), rng),
        working=(
            f"{hours} hours at {pay} crowns are {hours * pay} a day and {earned} in {days} days; less {debt} that is "
            f"{earned - debt} crowns."
        ),
    )


def _tables(rng: random.Random) -> Problem:
    """Guests at tables, some of whom did not come; shares of a food."""
    event, (cook, guest) = scene(rng), people(2, rng)
    food = rng.choice(lists.FOODS)
    tables, seats, absent, each, spare = (
        rng.randint(4, 12), rng.randint(4, 10), rng.randint(3, 11), rng.randint(2, 5), rng.randint(3, 19)
    )  # fmt: skip
    came = tables * seats - absent
    return Problem(
        scene=event,
        premises=(
            f"The supper was laid on {tables} tables, and no seat was to stay empty.",
            f"Every table of the supper had {seats} seats.",
            f"Of the people for whom the seats were meant, {absent} stayed at home, and nobody came in their place.",
            f"{cook} gave {each} plates of {food} to everyone who sat at the supper.",
            f"{guest} counted {spare} plates of {food} that were left when all had been served.",
        ),
        question=f"How many plates of {food} had {cook} made for {event}?",
        right=str(came * each + spare),
        wrong=_others(
            came * each + spare, (tables * seats * each + spare, came * each, came * each - spare), rng
        ),
        working=(
            f"{tables} tables of {seats} are {tables * seats} seats; {absent} stayed away, so {came} sat there. {each} plates "
            f"each are {came * each}, and {spare} were left: {came * each + spare}."
        ),
    )


SUMS: tuple[Maker, ...] = (_stall, _ages, _journey, _wages, _tables)
"""Kinds of word problem."""
