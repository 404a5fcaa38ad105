"""Two tables about wines, their rows as sentences, and rows of other tables that no query is about."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from longspan.evaluation.suites import _fact_lists as lists

COLOURS = ("red", "white", "pink", "golden")
VINTAGES = (
    "Reserve Harvest Hillside Riverbank Orchard Sunrise Monarch Comet Pilgrim Solstice Minuet Cloister Falconer"
).split()
SENTENCES = (
    "{name} is a {colour} wine of {year} from {winery}, sold at {price} crowns a bottle.",
    "{winery} sells {name}, a {colour} wine of {year}, for {price} crowns a bottle.",
    "At {price} crowns a bottle, {name} from {winery} is a {colour} wine of the year {year}.",
)
WINERY_SENTENCES = (
    "{winery} is a winery in {region} that was founded in {founded} and works {hectares} hectares.",
    "Founded in {founded}, the winery {winery} lies in {region} and works {hectares} hectares.",
)
CHEAPEST, DEAREST = 10, 199
HIGH_PRICE = 120


@dataclass(frozen=True, kw_only=True)
class Winery:
    """A row of the table winery."""

    winery: str
    region: str
    founded: int
    hectares: int


@dataclass(frozen=True, kw_only=True)
class Wine:
    """A row of the table wine."""

    name: str
    winery: str
    colour: str
    year: int
    price: int


class World:
    """Draws rows; names are given once."""

    def __init__(self, rng: random.Random, num_wineries: int) -> None:
        self.rng, self._given = rng, set[str]()
        heads = rng.sample(lists.PLACE_HEADS, 5)
        self.regions = [f"{head} Valley" for head in heads]
        pairs = rng.sample([(a, b) for a in lists.SURNAMES for b in lists.SURNAMES if a < b], num_wineries)
        self.wineries = [
            Winery(
                winery=f"{first} & {second}",
                region=self.regions[place % 5],
                founded=rng.randint(1600, 1950),
                hectares=rng.randint(5, 400),
            )
            for place, (first, second) in enumerate(pairs)
        ]

    def wine(
        self, *, winery: Winery | None = None, colour: str | None = None, price: int | None = None
    ) -> Wine:
        """A wine with some of its cells given."""
        while (name := f"{self._place()} {self.rng.choice(VINTAGES)}") in self._given:
            pass
        self._given.add(name)
        return Wine(
            name=name,
            winery=(winery or self.rng.choice(self.wineries)).winery,
            colour=colour or self.rng.choice(COLOURS),
            year=self.rng.randint(1960, 2020),
            price=self.rng.randint(CHEAPEST, DEAREST) if price is None else price,
        )

    def other(self, unlike: Callable[[Wine], bool]) -> Callable[[], Wine]:
        """A maker of wines that are not as described."""

        def make() -> Wine:
            while unlike(wine := self.wine()):
                pass
            return wine

        return make

    def sentence(self, row: Wine | Winery) -> str:
        """The row in words."""
        patterns = SENTENCES if isinstance(row, Wine) else WINERY_SENTENCES
        return self.rng.choice(patterns).format(**vars(row))

    def unrelated(self) -> Iterator[str]:
        """Rows of other tables, in words, without end."""
        rng, place = self.rng, self._place
        while True:
            person = f"{rng.choice(lists.FIRST_NAMES)} {rng.choice(lists.SURNAMES)}"
            yield rng.choice(
                (
                    f"The ferry {rng.choice(lists.SHIPS)} crosses from {place()} to {place()} in {rng.randint(20, 400)} "
                    f"minutes and carries {rng.randint(10, 300)} cars.",
                    f"On {rng.choice(lists.DAYS)}s the choir of {place()} sings under {person}, before "
                    f"{rng.randint(30, 900)} listeners.",
                    f"{person} is the {rng.choice(lists.ROLES)} of {place()} and has held the post for {rng.randint(2, 40)} "
                    "years.",
                    f"The library of {place()} lends {rng.randint(100, 9000)} books in {rng.choice(lists.LANGUAGES)}.",
                )
            )

    def _place(self) -> str:
        return self.rng.choice(lists.PLACE_HEADS) + self.rng.choice(lists.PLACE_TAILS)


def run(sql: str, wines: Sequence[Wine], wineries: Sequence[Winery]) -> list[str]:
    """Rows of the result as SQLite finds them, cells joined by ": "."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute(
            "create table wine (name text, winery text, colour text, year integer, price integer)"
        )
        database.execute("create table winery (winery text, region text, founded integer, hectares integer)")
        for table, rows, width in (("wine", wines, 5), ("winery", wineries, 4)):
            values = [tuple(vars(row).values()) for row in rows]
            database.executemany(f"insert into {table} values ({','.join('?' * width)})", values)
        found = database.execute(sql).fetchall()
    return [": ".join(str(cell) for cell in row) for row in found]
