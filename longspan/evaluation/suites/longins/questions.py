"""Small questions with a right and a wrong answer, of several kinds; none needs more than the question itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longspan.evaluation.suites import _fact_lists as words

__all__ = ["KINDS", "Kind", "Question"]

OPPOSITES = (
    "absent present,accept refuse,alive dead,ancient modern,asleep awake,backward forward,bitter sweet,borrow lend,bottom top,"
    "buy sell,cheap expensive,clean dirty,cold hot,dry wet,dull sharp,early late,empty full,enemy friend,enter leave,fast slow,"
    "find lose,first last,generous stingy,guilty innocent,heavy light,high low,inside outside,laugh weep,loose tight,loud quiet,"
    "major minor,narrow wide,near far,north south,often seldom,open shut,polite rude,poor rich,remember forget,rough smooth,"
    "simple difficult,strong weak,true false,victory defeat"
).split(",")
GROUPS = {  # no word that fits two of them
    "an animal": (
        "badger bear beaver bull camel cat crow dog donkey eagle falcon ferret fox hawk hedgehog heron horse lizard magpie mole "
        "monkey mouse otter owl parrot peacock pony raven seal snake sparrow squirrel stork swan tortoise weasel wolf"
    ).split(),
    "a colour": "beige black blue brown crimson green grey maroon mauve pink purple red scarlet turquoise white yellow".split(),
    "a food": (
        "apples apricots bacon biscuits bread butter cabbage cakes carrots cheese cucumbers honey lentils mushrooms noodles onions "
        "pancakes parsnips pears porridge potatoes pumpkins raisins rhubarb spinach strawberries turnips"
    ).split(),
    "a language": (
        "Basque Breton Catalan Czech Estonian Finnish Flemish Gaelic Hebrew Hungarian Icelandic Latvian Maltese Norwegian Persian "
        "Portuguese Romanian Russian Sanskrit Swedish Welsh"
    ).split(),
    "a tool": "anvil axe broom chisel drill hammer ladder lathe pliers rake saw screwdriver shovel spade spanner wheelbarrow".split(),
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question as it is put, the right answer, and a wrong one that looks like it."""

    put: str
    right: str
    wrong: str


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is to be done, and how a question of the kind is made."""

    instruction: str
    draw: Callable[[random.Random], Question]


def _near(number: int, rng: random.Random, step: int = 1) -> int:
    """Another number, not far; not below 0."""
    away = rng.choice((1, 2, 3, 10) if number > 20 else (1, 2)) * step
    return number + (away if number < away or rng.random() < 0.5 else -away)


def _other(right: str, options: Sequence[str], rng: random.Random) -> str:
    return rng.choice([option for option in options if option != right])


def _arithmetic(rng: random.Random) -> Question:
    first, second, sign = rng.randint(11, 999), rng.randint(11, 99), rng.choice("+-*")
    if sign == "-" and second > first:
        first, second = second, first
    right = {"+": first + second, "-": first - second, "*": first * second}[sign]
    return Question(put=f"{first} {sign} {second}", right=str(right), wrong=str(_near(right, rng)))


def _opposites(rng: random.Random) -> Question:
    asked, answers = list[str](), list[str]()
    picked = rng.sample(OPPOSITES, 4)
    for pair in picked[:3]:
        word, opposite = rng.sample(pair.split(), 2)
        asked.append(word)
        answers.append(opposite)
    wrong = list(answers)
    wrong[rng.randrange(3)] = rng.choice(picked[3].split())
    return Question(put=", ".join(asked), right=", ".join(answers), wrong=", ".join(wrong))


def _letters(rng: random.Random) -> Question:
    text = f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.OBJECTS)} {rng.choice(words.PLACES_INSIDE)}"
    letter = rng.choice(sorted(set(text) - set(" -")))
    right = text.count(letter)
    return Question(put=f"{letter} in {text}", right=str(right), wrong=str(right + rng.choice((-1, 1))))


def _sorting(rng: random.Random) -> Question:
    numbers = rng.sample(range(10, 1000), 5)
    right, place = sorted(numbers), rng.randrange(4)
    wrong = list(right)
    wrong[place], wrong[place + 1] = wrong[place + 1], wrong[place]
    return Question(put=_list(numbers), right=_list(right), wrong=_list(wrong))


def _list(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))


def _odd_one_out(rng: random.Random) -> Question:
    group, stranger = rng.sample(list(GROUPS.values()), 2)
    odd = rng.choice(stranger)
    shown = [*rng.sample(group, 3), odd]
    rng.shuffle(shown)
    return Question(put=_list(shown), right=odd, wrong=_other(odd, shown, rng))


def _membership(rng: random.Random) -> Question:
    name, group = rng.choice(list(GROUPS.items()))
    others = [word for other in GROUPS.values() if other is not group for word in other]
    shown = [*rng.sample(group, rng.randint(0, 5)), *rng.sample(others, 3)]
    rng.shuffle(shown)
    right = sum(word in group for word in shown)
    return Question(put=f"{name}: {_list(shown)}", right=str(right), wrong=str(_near(right, rng)))


def _weekdays(rng: random.Random) -> Question:
    start, days = rng.randrange(7), rng.randint(2, 99_999)
    right = words.DAYS[(start + days) % 7]
    return Question(put=f"{words.DAYS[start]}, {days}", right=right, wrong=_other(right, words.DAYS, rng))


def _clock(rng: random.Random) -> Question:
    start, more = rng.randrange(24 * 60), rng.randint(11, 240)
    end = start + more
    wrong = _near(end, rng, step=10)
    return Question(put=f"{_time(start)}, {more} minutes", right=_time(end), wrong=_time(wrong))


def _time(minutes: int) -> str:
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


def _buyers(rng: random.Random) -> Question:
    names, foods = rng.sample(words.FIRST_NAMES, 3), rng.sample(words.FOODS, 3)
    text = " ".join(f"{name} bought {food}." for name, food in zip(names, foods, strict=True))
    asked = rng.randrange(3)
    right = names[asked]
    return Question(put=f"{text} Who bought {foods[asked]}?", right=right, wrong=_other(right, names, rng))


def _names(rng: random.Random) -> Question:
    person = f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.SURNAMES)}"
    place = rng.choice(words.PLACE_HEADS) + rng.choice(words.PLACE_TAILS)
    ship, day = rng.choice(words.SHIPS), rng.choice(words.DAYS)
    text = f"On {day}, {person} left {place} on board the {ship}."
    kinds = {"person": person, "place": place, "ship": ship}
    kind = rng.choice(list(kinds))
    return Question(
        put=f"{kind}: {text}", right=kinds[kind], wrong=_other(kinds[kind], list(kinds.values()), rng)
    )


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def _inference(rng: random.Random) -> Question:
    animal, colour, name = rng.choice(words.ANIMALS), rng.choice(words.COLOURS), rng.choice(words.FIRST_NAMES)
    place, other = rng.sample([head + tail for head in words.PLACE_HEADS for tail in ("ford", "ton")], 2)
    where, said = rng.choice(((place, colour), (place, "another"), (other, colour)))
    right = "unknown" if where == other else "yes" if said == colour else "no"
    shown = colour if said == colour else _other(colour, words.COLOURS, rng)
    text = f"Every {animal} in {place} is {colour} and nothing else. {name} is {_article(animal)} in {where}. Is {name} {shown}?"
    return Question(put=text, right=right, wrong=_other(right, ("yes", "no", "unknown"), rng))


KINDS: dict[str, Kind] = {
    "arithmetic": Kind(instruction="Calculate.", draw=_arithmetic),
    "opposites": Kind(instruction="Give the opposite of each word, in the same order.", draw=_opposites),
    "letters": Kind(instruction="Count how often the letter stands in the words.", draw=_letters),
    "sorting": Kind(instruction="Sort the numbers, the smallest first.", draw=_sorting),
    "odd one out": Kind(instruction="Name the word that does not belong to the others.", draw=_odd_one_out),
    "membership": Kind(
        instruction="Count the words that name what stands before the colon.", draw=_membership
    ),
    "weekdays": Kind(
        instruction="Name the weekday that is this many days after the one given.", draw=_weekdays
    ),
    "clock": Kind(instruction="Add the minutes to the time of day.", draw=_clock),
    "buyers": Kind(instruction="Answer the question on the text.", draw=_buyers),
    "names": Kind(instruction="Find the name of what stands before the colon.", draw=_names),
    "inference": Kind(instruction="Say yes, no, or unknown if it does not follow.", draw=_inference),
}
