"""Random tables, and queries whose rows are known before the table is filled up."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

COLUMNS = (
    "agent batch berth branch carrier channel client depot district dossier envoy estate fleet grade guild harbor ledger "
    "lineage marker mission outpost parcel patron permit quarter ration roster sector series shift signal squad station "
    "stream supply tenant terminal vendor vessel warden"
).split()
KINDS = 4
LOW, MIDDLE, HIGH = 100, 600, 999

Row = dict[str, str | int]


class Names:
    """Invented words of seven letters, none given twice, so that none is a part of another."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._given = rng, set[str]()

    def new(self) -> str:
        """A word not given before."""
        while True:
            letters = [
                self._rng.choice("bdfgklmnprstvz" if place % 2 == 0 else "aeiou") for place in range(7)
            ]
            word = "".join(letters)
            if word not in self._given:
                self._given.add(word)
                return word


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query with its rows, for a table whose columns have parts to play: key, name, kind, zone, number, amount.

    Attributes:
        sql: the query. text: the same in words. Both hold column names.
        wanted: rows that the result comes from. filler: makes a row that it does not come from.
        ordered: whether the order of the rows of the result counts.
        whole: whether every row counts.
    """

    sql: str
    text: str
    wanted: Sequence[Row]
    filler: Callable[[], Row]
    ordered: bool = False
    whole: bool = False


class Table:
    """Column names for the parts, and a maker of rows."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.words = rng, Names(rng)
        parts = ["key", "name", "kind", "zone", "number", "amount"]
        self.names = dict(zip(parts, rng.sample(COLUMNS, len(parts)), strict=True))
        self.order = rng.sample(parts, len(parts))
        self.kinds, self.zones = ([self.words.new() for _ in range(KINDS)] for _ in range(2))

    def row(self, **fixed: str | int) -> Row:
        """A random row with some cells given."""
        row: Row = {
            "key": self.words.new(),
            "name": self.words.new(),
            "kind": self.rng.choice(self.kinds),
            "zone": self.rng.choice(self.zones),
            "number": self.rng.randint(LOW, HIGH),
            "amount": self.rng.randint(LOW, HIGH),
        }
        return {**row, **fixed}

    def other(self, unlike: Callable[[Row], bool]) -> Callable[[], Row]:
        """A maker of rows that are not as described."""

        def make() -> Row:
            while unlike(row := self.row()):
                pass
            return row

        return make

    def line(self, row: Row) -> str:
        """The row as it stands in the text."""
        return "| " + " | ".join(str(row[part]) for part in self.order) + " |"

    def head(self) -> str:
        """What stands above the rows."""
        names = " | ".join(self.names[part] for part in self.order)
        return f"Here is the table my_table.\n\n| {names} |\n|{'---|' * len(self.order)}"

    def run(self, sql: str, rows: Sequence[Row]) -> list[str]:
        """Rows of the result, cells joined, as SQLite finds them."""
        with closing(sqlite3.connect(":memory:")) as database:
            kinds = {"number": "integer", "amount": "integer"}
            columns = ", ".join(f"{self.names[part]} {kinds.get(part, 'text')}" for part in self.order)
            database.execute(f"create table my_table ({columns})")
            values = [tuple(row[part] for part in self.order) for row in rows]
            database.executemany(f"insert into my_table values ({','.join('?' * len(self.order))})", values)
            found = database.execute(sql).fetchall()
        return [" | ".join(str(cell) for cell in row) for row in found]


def where(table: Table) -> Query:
    """The name of the row with a key."""
    row, name = table.row(), table.names
    return Query(
        sql=f"select {name['name']} from my_table where {name['key']} = '{row['key']}'",
        text=f"What is the {name['name']} of the row whose {name['key']} is {row['key']}?",
        wanted=[row],
        filler=table.row,
    )


def where_many(table: Table) -> Query:
    """The name of the only row that meets three conditions."""
    row, name = table.row(number=table.rng.randint(MIDDLE + 1, HIGH)), table.names
    return Query(
        sql=f"select {name['name']} from my_table where {name['kind']} = '{row['kind']}' and {name['zone']} = '{row['zone']}' "
        f"and {name['number']} > {MIDDLE}",
        text=f"What is the {name['name']} of the row whose {name['kind']} is {row['kind']}, whose {name['zone']} is "
        f"{row['zone']} and whose {name['number']} is above {MIDDLE}?",
        wanted=[row],
        filler=table.other(
            lambda one: (
                one["kind"] == row["kind"] and one["zone"] == row["zone"] and int(one["number"]) > MIDDLE
            )
        ),
    )


def count(table: Table) -> Query:
    """How many rows meet two conditions."""
    kind, name = table.kinds[0], table.names
    wanted = [
        table.row(kind=kind, number=table.rng.randint(MIDDLE + 1, HIGH))
        for _ in range(table.rng.randint(2, 11))
    ]
    return Query(
        sql=f"select count(*) from my_table where {name['kind']} = '{kind}' and {name['number']} > {MIDDLE}",
        text=f"How many rows have {kind} as their {name['kind']} and a {name['number']} above {MIDDLE}?",
        wanted=wanted,
        filler=table.other(lambda one: one["kind"] == kind and int(one["number"]) > MIDDLE),
    )


def aggregate(function: str, words: str) -> Callable[[Table], Query]:
    """A template: a function of the amounts of one kind."""

    def make(table: Table) -> Query:
        kind, name = table.kinds[0], table.names
        wanted = [table.row(kind=kind) for _ in range(table.rng.randint(3, 6))]
        sql = function.format(name["amount"])
        return Query(
            sql=f"select {sql} from my_table where {name['kind']} = '{kind}'",
            text=f"What is the {words} {name['amount']} of the rows whose {name['kind']} is {kind}?",
            wanted=wanted,
            filler=table.other(lambda one: one["kind"] == kind),
        )

    return make


def group_by(table: Table) -> Query:
    """Rows of each kind."""
    name = table.names
    return Query(
        sql=f"select {name['kind']}, count(*) from my_table group by {name['kind']}",
        text=f"How many rows are there of each {name['kind']}? Give each {name['kind']} and its number of rows.",
        wanted=[table.row(kind=kind) for kind in table.kinds],
        filler=table.row,
        whole=True,
    )


def order_by(table: Table) -> Query:
    """Names of the three highest numbers, in order."""
    name, top = table.names, table.rng.sample(range(900, HIGH + 1), 3)
    return Query(
        sql=f"select {name['name']} from my_table order by {name['number']} desc limit 3",
        text=f"Give the {name['name']} of the three rows with the highest {name['number']}, the highest first.",
        wanted=[table.row(number=value) for value in top],
        filler=lambda: table.row(number=table.rng.randint(LOW, 899)),
        ordered=True,
    )


def compare(table: Table) -> Query:
    """Names of the two rows whose number is above their amount."""

    def pair(larger: str, smaller: str) -> Row:
        first, second = table.rng.sample(range(LOW, HIGH + 1), 2)
        return table.row(**{larger: max(first, second), smaller: min(first, second)})

    name = table.names
    return Query(
        sql=f"select {name['name']} from my_table where {name['number']} > {name['amount']}",
        text=f"Give the {name['name']} of each row whose {name['number']} is larger than its {name['amount']}.",
        wanted=[pair("number", "amount") for _ in range(2)],
        filler=lambda: pair("amount", "number"),
    )


def arithmetic(table: Table) -> Query:
    """Sum of two cells of the row with a key."""
    row, name = table.row(), table.names
    return Query(
        sql=f"select {name['number']} + {name['amount']} from my_table where {name['key']} = '{row['key']}'",
        text=f"What are {name['number']} and {name['amount']} together in the row whose {name['key']} is {row['key']}?",
        wanted=[row],
        filler=table.row,
    )
