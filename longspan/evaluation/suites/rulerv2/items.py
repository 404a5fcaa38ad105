"""RULERv2's numbered questions: MMLU under seven-digit numbers, to copy or to solve."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from longspan.evaluation.published import Source, data_file
from longspan.evaluation.suites.ruler import distinct, random_number
from longspan.evaluation.suites.ruler.documents import cut_words
from longspan.evaluation.task import Puzzle, Room

__all__ = ["copy_all", "copy_nth", "copy_one", "solve"]

VALUES = 4
SHOTS = 5
TRIES = 400
MAX_SKIPPED = 40
LARGEST_SHARE = 8  # longer items would make depths uneven
MIN_CUT_TOKENS = 16
GROUP_TOKENS = 2000
LETTERS = ("A", "B", "C", "D")
COPY_ONE = "Below are some questions. You will be asked to copy one of them. Copy it word for word.\n\n"
COPY_SOME = "Below are some questions. You will be asked to copy some of them. Copy them word for word.\n\n"
SOLVE_ONE = (
    "Below are some questions. You will be asked to solve one of them. Put the letter of the answer, and nothing else, inside "
    "\\boxed{}.\n\n"
)
ORDINALS = ("first", "second", "third", "fourth")
MMLU = Source(
    hub=None,
    licence="MIT",
    citation="Hendrycks et al., Measuring Massive Multitask Language Understanding, 2021",
    url="https://github.com/hendrycks/test",
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question with its choices in one line, and the letter of the right one."""

    text: str
    letter: str


def mmlu() -> Sequence[Item]:
    """MMLU's test questions: all `*_test.csv` files beside the first one found in the suite's folder.

    Raises:
        DataMissing: there is none. ValueError: a row is not question, four choices, letter.
    """
    folder = data_file("rulerv2", "*_test.csv", MMLU).parent
    files = sorted(folder.glob("*_test.csv"))
    return _items(tuple(files), tuple(file.stat().st_mtime_ns for file in files))


@lru_cache(maxsize=2)
def _items(files: tuple[Path, ...], changed: tuple[int, ...]) -> Sequence[Item]:
    items: dict[str, Item] = {}
    for file in files:
        with open(file, encoding="utf-8", newline="") as stream:
            for number, row in enumerate(csv.reader(stream), start=1):
                if len(row) != 6 or row[5] not in LETTERS:
                    raise ValueError(
                        f"{file} row {number} has {len(row)} fields; a row of MMLU is the question, four choices and a "
                        "letter from A to D: fetch the file anew"
                    )
                choices = " ".join(
                    f"{letter}. {choice}" for letter, choice in zip(LETTERS, row[1:5], strict=True)
                )
                text = re.sub(r"\s+", " ", f"{row[0]} {choices}").strip()
                items.setdefault(text, Item(text=text, letter=row[5]))
    return tuple(items.values())


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Numbered questions as a context, the number asked for, and its own questions as they stand there."""

    context: str
    number: str
    pieces: tuple[str, ...]


def _lay_out(
    rng: random.Random,
    room: Room,
    head: str,
    num_tokens: int,
    asked: Sequence[Item],
    group: int = 1,
    shown: Mapping[str, Item] | None = None,
) -> _Layout:
    """The asked items under one number, in their order, among others, which share numbers in groups.

    Args:
        rng, room: as for the puzzle.
        head: text before the questions.
        num_tokens: room for head and questions.
        asked: the items of the number asked for.
        group: how many items share a number.
        shown: items that must stand there too, by number.
    """
    number = random_number(rng)
    pieces = [_numbered(number, item) for item in asked]
    fillers = [_numbered(other, item) for other, item in (shown or {}).items()]
    left = num_tokens - room.count(head) - sum(room.count(f"\n\n{piece}") for piece in [*pieces, *fillers])
    if left < 0:
        raise ValueError(
            f"the items asked for need more than {room.tokens} tokens; ask for {2 * room.tokens} or more"
        )
    taken = {item.text for item in [*asked, *(shown or {}).values()]}
    items, skipped = [item for item in mmlu() if item.text not in taken], 0

    def others() -> Iterator[str]:
        while items:
            pool, before = rng.sample(items, len(items)), len(fillers)
            for first in range(0, len(pool), group):
                other = random_number(rng)
                if other != number:
                    yield from (_numbered(other, item) for item in pool[first : first + group])
            if len(fillers) == before:
                return

    for line in others():
        cost = room.count(f"\n\n{line}")
        if cost > num_tokens // LARGEST_SHARE:
            continue
        if cost <= left:
            fillers.append(line)
            left -= cost
        else:
            skipped += 1
        if left < max(MIN_CUT_TOKENS, num_tokens // 200) or skipped > MAX_SKIPPED:
            break
    if left > MIN_CUT_TOKENS and items:
        fillers.append(cut_words(_numbered(random_number(rng), rng.choice(items)), left - 2, room.count))
    rng.shuffle(fillers)
    mixed = room.scatter(pieces, fillers, rng, ordered=True)
    return _Layout(context=head + "\n\n".join(mixed), number=number, pieces=tuple(pieces))


def _numbered(number: str, item: Item) -> str:
    return f"Question {number}: {item.text}"


def _short_items(rng: random.Random, room: Room, number: int, most_tokens: int) -> list[Item]:
    """`number` different items of at most so many tokens each.

    Raises:
        ValueError: none were found.
    """
    if number > 1 and room.tokens < GROUP_TOKENS:
        raise ValueError(f"{number} questions need more than {room.tokens} tokens; ask for 2048 or more")
    items, found = mmlu(), dict[str, Item]()
    for _ in range(TRIES):
        item = rng.choice(items)
        if room.count(item.text) <= most_tokens:
            found.setdefault(item.text, item)
        if len(found) == number:
            return list(found.values())
    raise ValueError(
        f"{number} questions of {most_tokens} tokens each were not found; ask for {room.tokens * 2} tokens or more"
    )


def copy_one(rng: random.Random, room: Room) -> Puzzle:
    """Copy the question of a number."""
    most = min(200, room.tokens // 10)
    asked = _short_items(rng, room, 1, most)
    ask = "Please copy the Question {} from the context."
    return _copying(rng, room, COPY_ONE, ask, asked, [asked[0].text], asked[0].text, most)


def copy_all(rng: random.Random, room: Room) -> Puzzle:
    """Copy all four questions of a number."""
    most = min(200, room.tokens // 20)
    asked = _short_items(rng, room, VALUES, most)
    texts = [item.text for item in asked]
    ask = "Please find and copy all the Question {} from the context."
    return _copying(rng, room, COPY_SOME, ask, asked, texts, "\n\n".join(texts), VALUES * most)


def copy_nth(*, copy_first: bool) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of puzzles that ask for the n-th question of a number, after all four of it or at once."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        most = min(200, room.tokens // 20)
        asked = _short_items(rng, room, VALUES, most)
        place = rng.randrange(VALUES)
        wanted = asked[place].text
        if not copy_first:
            ask = (
                f"Several questions of the context have the same number. Please copy the {ORDINALS[place]} Question {{}}, "
                "counted from the start of the context, and no other."
            )
            return _copying(rng, room, COPY_ONE, ask, asked, [wanted], wanted, most)
        ask = (
            "Please first copy all the Question {} from the context, in their order, and then copy the "
            f"{ORDINALS[place]} of them once more, in a paragraph of its own at the end."
        )
        answer = "\n\n".join([*(item.text for item in asked), wanted])
        return _copying(rng, room, COPY_ONE, ask, asked, [wanted], answer, (VALUES + 1) * most)

    return make


def _copying(
    rng: random.Random,
    room: Room,
    head: str,
    ask: str,
    asked: Sequence[Item],
    references: Sequence[str],
    answer: str,
    answer_tokens: int,
) -> Puzzle:
    max_new_tokens = answer_tokens + 24
    left = room.left(ask.format(1_234_567), max_new_tokens=max_new_tokens)
    laid = _lay_out(rng, room, head, left, asked, len(asked))
    return Puzzle(
        needles=(),
        context=laid.context,
        question=ask.format(laid.number),
        references=tuple(references),
        answer=answer,
        evidence=laid.pieces,
        max_new_tokens=max_new_tokens,
    )


def solve(*, copy_first: bool) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of puzzles that ask for the answer to a numbered question, after five solved ones of the context."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        most = min(160, room.tokens // 16)
        asked, *shots = _short_items(rng, room, 1 + SHOTS, most)
        ask = (
            "Please copy the Question {} from the context and then solve it with an answer from A, B, C, D."
            if copy_first
            else "Please solve the Question {} from the context with an answer from A, B, C, D."
        )
        shown = dict(zip(distinct(random_number, SHOTS, rng), shots, strict=True))

        def solved(number: str, item: Item) -> str:
            copied = f"{_numbered(number, item)}\n" if copy_first else ""
            return f"{copied}Solution: \\boxed{{{item.letter}}}"

        examples = "\n\n".join(
            f"{ask.format(number)}\n{solved(number, shot)}" for number, shot in shown.items()
        )
        before = f"Here are some examples:\n\n{examples}\n\nHere is the task to solve:\n\n"
        max_new_tokens = 48 + (most if copy_first else 0)
        left = room.left(before + ask.format(1_234_567), max_new_tokens=max_new_tokens)
        laid = _lay_out(rng, room, SOLVE_ONE, left, [asked], shown=shown)
        return Puzzle(
            needles=(),
            context=laid.context,
            question=before + ask.format(laid.number),
            references=(asked.letter,),
            answer=solved(laid.number, asked),
            evidence=laid.pieces,
            max_new_tokens=max_new_tokens,
        )

    return make
