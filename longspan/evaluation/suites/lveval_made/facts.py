"""Institutions with names, heads, treasures and dates, what is said about them, and facts that the world knows."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from longspan.evaluation.suites import _fact_lists as lists

__all__ = [
    "ATTRIBUTES",
    "QUESTIONS",
    "TRUTHS",
    "Institution",
    "Truth",
    "TwoHops",
    "alike",
    "institutions",
    "loan",
    "passage",
    "some_name",
    "tell",
    "two_hops",
]

KINDS = (
    "Observatory,Museum,Orchestra,Grammar School,Printing Works,Brewery,Botanical Garden,Savings Bank,Canal Company,Theatre,"
    "Glassworks,Rowing Club,Hospital,Shipyard,Paper Mill,Academy"
).split(",")
PREFIXES = "Old,New,Upper,Lower,Royal,First,Free,Second,Great,Little".split(",")
STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "founder": (
        "The {name} was founded by {value}.",
        "It was {value} who founded the {name}.",
        "The founder of the {name} is {value}.",
    ),
    "head": (
        "The {name} is led by {value} today.",
        "{value} has charge of the {name} today.",
        "Today the {name} answers to {value}.",
    ),
    "architect": (
        "The main building of the {name} was drawn by {value}.",
        "{value} drew the plans for the main building of the {name}.",
    ),
    "rival": (
        "The strongest rival of the {name} has its seat in {value}.",
        "In {value} sits the strongest rival of the {name}.",
    ),
    "treasure": (
        "The greatest treasure of the {name} is the {value}.",
        "Visitors of the {name} come above all to see the {value}.",
    ),
}
ATTRIBUTES = tuple(STATEMENTS)
QUESTIONS: Mapping[str, str] = {
    "founder": "Who founded the {name}?",
    "head": "Who leads the {name} today?",
    "architect": "Who drew the plans for the main building of the {name}?",
    "rival": "In which town does the strongest rival of the {name} have its seat?",
    "treasure": "What is the greatest treasure of the {name}?",
}
ASIDES = (
    "Its records are not complete.",
    "Its doors are open on most days.",
    "It has seen better times, and worse.",
    "Much of this was put in order only lately.",
    "Nothing else of note is known about its early days.",
    "A small shop sells postcards of it.",
    "It lives on fees, gifts and a little land.",
    "Its roof was mended after the great storm and has held since.",
)


@dataclass(frozen=True, kw_only=True)
class Institution:
    """A name, and a value for each of `ATTRIBUTES`."""

    name: str
    values: Mapping[str, str]


def person(rng: random.Random) -> str:
    """First name and surname."""
    return f"{rng.choice(lists.FIRST_NAMES)} {rng.choice(lists.SURNAMES)}"


def town(rng: random.Random) -> str:
    """An invented place."""
    return rng.choice(lists.PLACE_HEADS) + rng.choice(lists.PLACE_TAILS)


def _thing(rng: random.Random) -> str:
    return f"{rng.choice(lists.ADJECTIVES)} {rng.choice(lists.OBJECTS)}"


def some_name(rng: random.Random) -> str:
    """A name for an institution: a town and a kind."""
    return f"{town(rng)} {rng.choice(KINDS)}"


MAKERS: Mapping[str, Callable[[random.Random], str]] = {
    "founder": person,
    "head": person,
    "architect": person,
    "rival": town,
    "treasure": _thing,
}


def institutions(rng: random.Random, *, without: Collection[str] = ()) -> Iterator[Institution]:
    """Institutions without end, no name twice; none has a value of `without`, or one in its name."""
    known = set[str]()
    while True:
        name = some_name(rng)
        values = {key: make(rng) for key, make in MAKERS.items()}
        clear = not any(value in without for value in values.values()) and not any(
            one in name for one in without
        )
        if clear and name not in known:
            known.add(name)
            yield Institution(name=name, values=values)


def alike(name: str, count: int, rng: random.Random) -> list[str]:
    """Names that are easily taken for `name`: "Old Ravenford Museum" for "Ravenford Museum"."""
    place, kind = name.split(" ", 1)
    near = [f"{prefix} {name}" for prefix in PREFIXES]
    near += [f"{place} {prefix} {kind}" for prefix in PREFIXES]
    near += [f"{place} {other}" for other in KINDS if other != kind]
    return rng.sample(near, count)


def tell(key: str, name: str, value: str, rng: random.Random) -> str:
    """One sentence that says an attribute's value."""
    return rng.choice(STATEMENTS[key]).format(name=name, value=value)


def passage(one: Institution, rng: random.Random, *, facts: Mapping[str, str] | None = None) -> str:
    """A heading and some sentences about an institution; a fact in `facts` is told in those words, in place of its own."""
    told = dict(facts or {})
    for key in rng.sample(ATTRIBUTES, rng.randint(0 if told else 1, len(ATTRIBUTES))):
        told.setdefault(key, tell(key, one.name, one.values[key], rng))
    sentences = [*told.values(), *rng.sample(ASIDES, rng.randint(0, 2))]
    rng.shuffle(sentences)
    return f"### {one.name}\n{' '.join(sentences)}"


@dataclass(frozen=True, kw_only=True)
class TwoHops:
    """A question whose answer takes two passages.

    Attributes:
        key: attribute asked for. thing, lender, keeper: the first hop: whose thing has been lent to whom.
        question, answer: what is asked, of the keeper.
        facts: the two sentences that hold the answer.
        passages: the passages in which they stand.
    """

    key: str
    thing: str
    lender: str
    keeper: str
    question: str
    answer: str
    facts: tuple[str, str]
    passages: tuple[str, str]


def loan(thing: str, lender: str, keeper: str) -> str:
    """The sentence that leads from a lender to the keeper of its treasure."""
    return f"The {thing} of the {lender} has been on loan to the {keeper} for years."


def two_hops(keeper: Institution, lender: Institution, rng: random.Random) -> TwoHops:
    """What is true of the institution that keeps the treasure of another."""
    key = rng.choice([key for key in ATTRIBUTES if key != "treasure"])
    thing, answer = lender.values["treasure"], keeper.values[key]
    lent, fact = loan(thing, lender.name, keeper.name), tell(key, keeper.name, answer, rng)
    return TwoHops(
        key=key,
        thing=thing,
        lender=lender.name,
        keeper=keeper.name,
        question=QUESTIONS[key].format(
            name=f"institution to which the {thing} of the {lender.name} has been lent"
        ),
        answer=answer,
        facts=(lent, fact),
        passages=(
            passage(lender, rng, facts={"treasure": lent}),
            passage(keeper, rng, facts={key: fact}),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A kind of fact that everyone knows, and how it is told with another value.

    Attributes:
        pairs: subject and true value.
        statement, question: with slots "subject" and, in the first, "value".
        twins: facts with which it may be confused.
        before, after: sentences around it.
        values: values to put in the true one's place, all different.
    """

    pairs: tuple[tuple[str, str], ...]
    statement: str
    question: str
    twins: tuple[str, str, str]
    before: str
    after: str
    values: Callable[[int, random.Random], list[str]]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    pairs = (line.split("=") for line in text.split(";"))
    return tuple((subject.strip(), value.strip()) for subject, value in pairs)


def _different(make: Callable[[random.Random], str]) -> Callable[[int, random.Random], list[str]]:
    def values(count: int, rng: random.Random) -> list[str]:
        found = dict[str, None]()
        while len(found) < count:
            found[make(rng)] = None
        return list(found)

    return values


TRUTHS = (
    Truth(
        pairs=_pairs(
            "France=Paris;Italy=Rome;Spain=Madrid;Portugal=Lisbon;Austria=Vienna;Denmark=Copenhagen;Norway=Oslo;Sweden=Stockholm;"
            "Finland=Helsinki;Poland=Warsaw;Hungary=Budapest;Greece=Athens;Ireland=Dublin;Japan=Tokyo;Egypt=Cairo;Kenya=Nairobi;"
            "Peru=Lima;Chile=Santiago;Cuba=Havana;Canada=Ottawa;India=New Delhi;Thailand=Bangkok;Iceland=Reykjavik;Ghana=Accra"
        ),
        statement="The capital of {subject} is {value}.",
        question="What is the capital of {subject}?",
        twins=(
            "The former capital of {subject} is {value}.",
            "The largest port of {subject} is {value}.",
            "The summer residence in {subject} is {value}.",
        ),
        before="Among the countries with which it kept up a trade was {subject}.",
        after="Letters took a fortnight to arrive there.",
        values=_different(town),
    ),
    Truth(
        pairs=_pairs(
            "Hamlet=William Shakespeare;Pride and Prejudice=Jane Austen;Oliver Twist=Charles Dickens;War and Peace=Leo Tolstoy;"
            "Don Quixote=Miguel de Cervantes;Moby-Dick=Herman Melville;Faust=Johann Wolfgang von Goethe;Frankenstein=Mary Shelley;"
            "Dracula=Bram Stoker;Treasure Island=Robert Louis Stevenson;Les Misérables=Victor Hugo;Madame Bovary=Gustave Flaubert;"
            "The Divine Comedy=Dante Alighieri;Walden=Henry David Thoreau;Middlemarch=George Eliot;Ulysses=James Joyce"
        ),
        statement="The author of {subject} is {value}.",
        question="Who is the author of {subject}?",
        twins=(
            "The first translator of {subject} is {value}.",
            "The author of The Return of {subject} is {value}.",
            "The author of the preface to {subject} is {value}.",
        ),
        before="On the shelf of the reading room stands a copy of {subject}.",
        after="It is often lent out in winter.",
        values=_different(person),
    ),
    Truth(
        pairs=_pairs(
            "the telephone=Alexander Graham Bell;dynamite=Alfred Nobel;the diesel engine=Rudolf Diesel;penicillin=Alexander Fleming;"
            "radium=Marie Curie;the law of gravitation=Isaac Newton;the periodic table=Dmitri Mendeleev;X-rays=Wilhelm Röntgen;"
            "oxygen=Joseph Priestley;the theory of relativity=Albert Einstein;the moons of Jupiter=Galileo Galilei;"
            "the laws of heredity=Gregor Mendel;the planet Uranus=William Herschel;the pendulum clock=Christiaan Huygens"
        ),
        statement="The world owes {subject} to {value}.",
        question="To whom does the world owe {subject}?",
        twins=(
            "The world owes the first book on {subject} to {value}.",
            "The world owes a forgotten rival of {subject} to {value}.",
            "The town owes its first lecture on {subject} to {value}.",
        ),
        before="A lecture was held there on the history of {subject}.",
        after="The hall was full on that evening.",
        values=_different(person),
    ),
)
