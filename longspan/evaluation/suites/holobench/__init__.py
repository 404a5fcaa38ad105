"""HoloBench: database operations over rows that are written out as sentences and scattered among rows of other tables.

Paper: Holistic Reasoning with Long-Context LMs: A Benchmark for Database Operations on Massive Textual Data (Maekawa et al.,
2024)
Selection, counting, averages, extremes, a join of two tables, groups and orders; the gold answer is what SQLite finds. How
much of the text is about the query, and where that stands, is part of the task. Scored by the F1 of the answer's items.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal

from longspan.evaluation.haystacks.lines import EXACT_TOKENS
from longspan.evaluation.metrics.text import need_references
from longspan.evaluation.suites.holobench.rows import DEAREST, HIGH_PRICE, Wine, World, run
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "holobench",
    "title": "Holistic Reasoning with Long-Context LMs: A Benchmark for Database Operations on Massive Textual Data",
    "year": 2024,
    "version": 1,
    "metric": "F1 of the items of the answer's list against the rows of the result; for orders, items at their places",
    "differs": [
        "two invented tables (wines and wineries) with sentence patterns; the official five databases were put into words by a "
        "language model",
        "items are compared as texts; officially a language model labels each row of the result exact, partial or missing, which "
        "does not count items too many",
        "the share of rows of the queried tables is the task's (a half; a tenth in `sparse`, all in `dense`), and it is kept: the "
        "official loader lets other rows fill the whole length as well unless an amount is given",
        "the official orders uniform, begin, middle, end and bimodal are: uniform; `gathered` at the depth asked for; `split`",
        "the model answers with a list on one line instead of reasoning first",
    ],
    "paper_id": 22,
    "lengths": "any",
    "needs": "nothing",
    "licence": "generated here",
}

MAX_NEW_TOKENS = 112
FILLED = 0.997  # long texts are filled at an estimated rate, right to about half a per cent
PREFIX = "Answer:"
INTRO = "The following sentences are facts about wines, wineries and other things."
NAMES_ONLY = "Give their names on one line, separated by semicolons."


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query, the wines that its result comes from, and a maker of wines that it does not come from.

    Attributes:
        joined: the table winery is queried too.
        ordered: the order of the result counts.
        whole: every wine counts.
    """

    sql: str
    question: str
    wanted: Sequence[Wine]
    filler: Callable[[], Wine]
    joined: bool = False
    ordered: bool = False
    whole: bool = False


def _selection(world: World, fewest: int = 2, most: int = 4) -> Query:
    rng = world.rng
    return Query(
        sql=f"select name from wine where colour = 'red' and price > {HIGH_PRICE}",
        question=f"Which red wines cost more than {HIGH_PRICE} crowns a bottle? {NAMES_ONLY}",
        wanted=[
            world.wine(colour="red", price=rng.randint(HIGH_PRICE + 1, DEAREST))
            for _ in range(rng.randint(fewest, most))
        ],
        filler=world.other(lambda wine: wine.colour == "red" and wine.price > HIGH_PRICE),
    )


def _of_one_winery(world: World, fewest: int, most: int) -> tuple[str, list[Wine], Callable[[], Wine]]:
    house = world.wineries[0]
    prices = world.rng.sample(range(10, DEAREST + 1), world.rng.randint(fewest, most))
    wanted = [world.wine(winery=house, price=price) for price in prices]
    return house.winery, wanted, world.other(lambda wine: wine.winery == house.winery)


def _count(world: World) -> Query:
    house, wanted, filler = _of_one_winery(world, 2, 9)
    return Query(
        sql=f"select count(*) from wine where winery = '{house}'",
        question=f"How many wines come from {house}? Give the number.",
        wanted=wanted,
        filler=filler,
    )


def _average(world: World) -> Query:
    house, wanted, filler = _of_one_winery(world, 3, 5)
    return Query(
        sql=f"select round(avg(price), 2) from wine where winery = '{house}'",
        question=f"What is the average price, in crowns, of the wines from {house}? Give it to two decimals.",
        wanted=wanted,
        filler=filler,
    )


def _extreme(order: str, words: str) -> Callable[[World], Query]:
    def make(world: World) -> Query:
        house, wanted, filler = _of_one_winery(world, 3, 6)
        return Query(
            sql=f"select name from wine where winery = '{house}' order by price {order} limit 1",
            question=f"Which wine from {house} is the {words}? Give its name.",
            wanted=wanted,
            filler=filler,
        )

    return make


def _order(world: World) -> Query:
    house, wanted, filler = _of_one_winery(world, 3, 5)
    return Query(
        sql=f"select name from wine where winery = '{house}' order by price",
        question=f"List the wines from {house}, the cheapest first and the dearest last. {NAMES_ONLY}",
        wanted=wanted,
        filler=filler,
        ordered=True,
    )


def _join(world: World) -> Query:
    region = world.wineries[0].region
    houses = [house for house in world.wineries if house.region == region]
    names = {house.winery for house in houses}
    wanted = [world.wine(winery=world.rng.choice(houses)) for _ in range(world.rng.randint(2, 4))]
    return Query(
        sql=f"select wine.name from wine join winery on wine.winery = winery.winery where winery.region = '{region}'",
        question=f"Which wines come from a winery in {region}? {NAMES_ONLY}",
        wanted=wanted,
        filler=world.other(lambda wine: wine.winery in names),
        joined=True,
    )


def _group(world: World) -> Query:
    world.wineries = world.wineries[:4]
    return Query(
        sql="select winery, count(*) from wine group by winery",
        question="How many wines come from each winery? Write 'winery: number' for each, on one line, separated by semicolons.",
        wanted=[world.wine(winery=house) for house in world.wineries],
        filler=world.wine,
        whole=True,
    )


def item_f1(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """F1 of the items of a list, with "precision" and "recall"; an item counts as often as it is there.

    Items of the answer's first line are apart by semicolons; without any, and with several references, by commas or line ends.

    Args:
        references: items of the result.
        details: "ordered": items must stand at their places.
    """
    need_references(references)
    wanted, found = list(map(_plain, references)), _items(prediction, len(references))
    if details.get("ordered"):
        hits = sum(one == other for one, other in zip(found, wanted, strict=False))
    else:
        hits = (Counter(found) & Counter(wanted)).total()
    precision, recall = hits / max(1, len(found)), hits / len(wanted)
    score = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"score": score, "precision": precision, "recall": recall}


def _items(prediction: str, num_wanted: int) -> list[str]:
    lines = [line for line in prediction.strip().splitlines() if line.strip()]
    items = "".join(lines[:1]).split(";")
    if num_wanted > 1 and len(items) == 1:
        items = items[0].split(",") if "," in items[0] else lines
    return [item for item in map(_plain, items) if item]


def _plain(item: str) -> str:
    text = re.sub(r"^\s*(?:[-*\u2022]|\d+[.)](?=\s))\s*|\s+", " ", item.lower()).strip(" .'\"`*")
    return f"{float(text):.2f}" if re.fullmatch(r"\d+(\.\d+)?", text) else text


def _maker(
    query_of: Callable[[World], Query],
    *,
    density: float = 0.5,
    place: Literal["scattered", "gathered", "split"] = "scattered",
) -> Callable[[random.Random, Room], Puzzle]:
    def make(rng: random.Random, room: Room) -> Puzzle:
        world = World(rng, num_wineries=min(60, 5 + room.tokens // 1500))
        query = query_of(world)
        wineries = world.wineries if query.joined else []
        wanted = [world.sentence(wine) for wine in query.wanted]
        told = {wine.winery for wine in query.wanted}
        asked, others = list[str](), list[str]()
        for house in wineries:
            (asked if house.winery in told else others).append(world.sentence(house))
        fixed = [*wanted, *asked, *others]
        left = room.left(INTRO, query.question, PREFIX, max_new_tokens=MAX_NEW_TOKENS)
        left = left if left <= EXACT_TOKENS else int(left * FILLED)
        fillers = dict[str, Wine]()

        def sentence() -> str:
            wine = query.filler()
            text = world.sentence(wine)
            fillers[text] = wine
            return text

        taken = room.count("\n".join(fixed)) + 1
        if taken > left:
            raise ValueError(
                f"{room.tokens} tokens are too few for the rows of a query; ask for 1024 or more"
            )
        own = room.fill((sentence() for _ in repeat(None)), int(left * density) - taken)
        rest = left - taken - (room.count("\n".join(own)) + 1 if own else 0)
        unrelated = room.fill(world.unrelated(), rest) if density < 1 else []
        lines, pieces = _placed([*wanted, *asked], [*others, *own], unrelated, place, room, rng)
        wines = [*query.wanted, *(fillers[line] for line in own)]
        result = run(query.sql, wines, wineries)
        return Puzzle(
            needles=(),
            context="\n".join([INTRO, *lines]),
            evidence=() if query.whole else tuple(pieces),
            question=query.question,
            answer_prefix=PREFIX,
            references=tuple(result),
            answer="; ".join(result),
            max_new_tokens=MAX_NEW_TOKENS,
            details={"ordered": query.ordered},
        )

    return make


def _placed(
    wanted: list[str], own: list[str], unrelated: list[str], place: str, room: Room, rng: random.Random
) -> tuple[list[str], list[str]]:
    """The lines of the text, and the pieces that hold the answer: sentences, or blocks of the rows of the queried tables."""
    rows = [*wanted, *own]
    rng.shuffle(rows)
    if place == "gathered":
        block = "\n".join(rows)
        return room.scatter([block], unrelated, rng), [block]
    if place == "split":
        half = (len(rows) + 1) // 2
        blocks = ["\n".join(rows[:half]), "\n".join(rows[half:])]
        return [blocks[0], *unrelated, blocks[1]], blocks
    others = [*own, *unrelated]
    rng.shuffle(others)
    return room.scatter(wanted, others, rng), wanted


FINDING: dict[str, Any] = {"ability": "database operations", "diffusion": "high", "scope": "high"}
COUNTING: dict[str, Any] = {**FINDING, "ability": "aggregation", "answers": "derived"}


def _task(make: Callable[[random.Random, Room], Puzzle], labels: dict[str, Any]) -> Task:
    return Task(make=make, haystack="own", metric=item_f1, **labels)


TASKS: dict[str, Task] = {
    "selection": _task(_maker(_selection), FINDING),
    "selection_sparse": _task(_maker(_selection, density=0.1), FINDING),
    "selection_dense": _task(_maker(_selection, density=1.0), FINDING),
    "selection_gathered": _task(
        _maker(lambda world: _selection(world, 2, 2), density=0.08, place="gathered"),
        {**FINDING, "scope": "low", "places": True},
    ),
    "selection_split": _task(_maker(_selection, density=0.25, place="split"), FINDING),
    "join": _task(_maker(_join), FINDING),
    "order": _task(_maker(_order), FINDING),
    "maximum": _task(_maker(_extreme("desc", "dearest")), {**FINDING, "ability": "aggregation"}),
    "minimum": _task(_maker(_extreme("asc", "cheapest")), {**FINDING, "ability": "aggregation"}),
    "average": _task(_maker(_average), COUNTING),
    "count": _task(_maker(_count), {**COUNTING, "chance": 0.125}),
    "group": _task(_maker(_group), COUNTING),
}
