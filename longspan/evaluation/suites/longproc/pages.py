"""HTML to TSV: the items of a page as rows of a table."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites.longproc.blocks import filled
from longspan.evaluation.task import Puzzle, Room

ITEM_TOKENS = 190
MOST_ITEMS = 240
COLUMNS = ("name", "price", "colour", "stock")
HEAD = '<!DOCTYPE html>\n<html>\n<head><meta charset="utf-8"><title>{title}</title></head>\n<body>\n<h1>{title}</h1>'
FOOT = "</body>\n</html>"


@dataclass(frozen=True, kw_only=True)
class Item:
    """A thing for sale."""

    name: str
    price: int
    colour: str
    stock: int

    def row(self) -> str:
        """The item as a line of the table."""
        return "\t".join((self.name, str(self.price), self.colour, str(self.stock)))


def _markup(item: Item, form: int) -> str:
    """The item in the page's form of markup."""
    if form == 0:
        return (
            f'<article class="item"><h3>{item.name}</h3><p class="price"><b>{item.price}</b> crowns</p>'
            f'<p>Colour: {item.colour}</p><p><span class="stock">{item.stock}</span> in stock</p></article>'
        )
    if form == 1:
        return (
            f'<div class="item" data-stock="{item.stock}"><a href="#"><em>{item.name}</em></a><ul><li>{item.colour}</li>'
            f"<li>{item.price} crowns</li></ul></div>"
        )
    return (
        f"<section><header>{item.name} ({item.colour})</header><dl><dt>Price</dt><dd>{item.price} crowns</dd><dt>Stock</dt>"
        f"<dd>{item.stock}</dd></dl></section>"
    )


def _noise(rng: random.Random) -> Iterator[str]:
    while True:
        place = rng.choice(lists.PLACE_HEADS) + rng.choice(lists.PLACE_TAILS)
        person = f"{rng.choice(lists.FIRST_NAMES)} {rng.choice(lists.SURNAMES)}"
        thing, number = rng.choice(lists.OBJECTS), rng.randint(2, 900)
        yield rng.choice(
            (
                f'<li><a href="/{place.lower()}/{number}">Our shop in {place}</a></li>',
                f'<p class="review">{person} writes: the {thing} came after {rng.randint(2, 30)} days.</p>',
                f'<div class="advert"><img src="/img/{number}.png" alt="{thing}"></div>',
                f"<!-- {place}: part {number} -->",
                f'<p class="note">{person} of {place} looks after this page.</p>',
            )
        )


def html_to_tsv(rng: random.Random, room: Room) -> Puzzle:
    """One item for each 190 tokens of room, among reviews, links and notes."""
    number, form = min(MOST_ITEMS, max(3, room.tokens // ITEM_TOKENS)), rng.randrange(3)
    names: dict[str, None] = {}
    while len(names) < number:
        names[
            f"{rng.choice(lists.PLACE_HEADS)}{rng.choice(lists.PLACE_TAILS)} {rng.choice(lists.OBJECTS)}"
        ] = None
    items = [
        Item(
            name=name,
            price=rng.randint(2, 999),
            colour=rng.choice(lists.COLOURS),
            stock=rng.randint(0, 99),
        )
        for name in names
    ]
    table = "\n".join(("\t".join(COLUMNS), *(item.row() for item in items)))
    answer = f"```tsv\n{table}\n```"
    head = HEAD.format(title=f"{rng.choice(lists.SURNAMES)} & {rng.choice(lists.SURNAMES)}")
    question = (
        f"Take all items that are for sale from the page, in their order. Write them as a table of tab-separated values with the "
        f"columns {', '.join(COLUMNS)}, a header line first, between ```tsv and ```. Price and stock are numbers without a unit."
    )
    output = room.count(answer) + 24
    wanted = [_markup(item, form) for item in items]
    left = room.left(head, FOOT, question, "\n".join(wanted), max_new_tokens=output)
    if left < 0:
        raise ValueError(f"{room.tokens} tokens are too few for a page and its table; ask for 2048 or more")
    lines = room.scatter(wanted, filled(room, _noise(rng), left), rng, ordered=True)
    return Puzzle(
        needles=(),
        context="\n".join((head, *lines, FOOT)),
        evidence=tuple(wanted),
        question=question,
        references=(table,),
        answer=answer,
        max_new_tokens=output,
    )
