"""ManyICLBench's two sorts: solvers that read the examples only."""

from __future__ import annotations

import random
import re
from fractions import Fraction

import pytest

from longspan.evaluation.metrics import grade
from longspan.evaluation.suites.licon.utterances import THINGS
from longspan.evaluation.suites.manyicl import NUM_LABELS, TASKS, first_number, word_by_word
from longspan.evaluation.task import Puzzle, Room

ROOM = Room(tokens=4000, count=lambda text: len(text) // 4 + 1)


def shots(puzzle: Puzzle, mark: str) -> list[tuple[str, str]]:
    assert puzzle.context is not None
    pairs = [item.split(f"\n{mark}: ") for item in puzzle.context.split("\n\n")]
    return [(text, label) for text, label in pairs]


def asked(puzzle: Puzzle) -> str:
    return puzzle.question.split("\n\n")[1]


def test_only_examples_alike_in_both_thing_and_town_have_the_label() -> None:
    def kind(text: str, towns: set[str]) -> tuple[str, str]:
        thing = next(name for name, ways in THINGS.items() if any(way in text for way in ways))
        (town,) = [town for town in towns if town in text]
        return thing, town

    for seed in range(15):
        puzzle = TASKS["similar"].make(random.Random(seed), ROOM)
        texts = shots(puzzle, "label")
        starts = r"(?:In|From|moved to|morning|office in) ([A-Z]\w+)|^[A-Z]\w+ \w+, ([A-Z]\w+):"
        towns = {"".join(found) for text, _ in texts for found in re.findall(starts, text)}
        assert len(towns) == 6
        label_of: dict[tuple[str, str], set[str]] = {}
        for text, label in texts:
            label_of.setdefault(kind(text, towns), set()).add(label)
        assert len(label_of) == NUM_LABELS
        assert all(len(labels) == 1 for labels in label_of.values())
        assert label_of[kind(asked(puzzle), towns)] == {puzzle.references[0]}
        assert asked(puzzle) not in [text for text, _ in texts]


def solve(rows: list[tuple[dict[str, int], int]]) -> dict[str, Fraction]:
    """Unit prices by elimination; every good must come out."""
    goods = sorted({good for bought, _ in rows for good in bought})
    table = [[Fraction(bought.get(good, 0)) for good in goods] + [Fraction(total)] for bought, total in rows]
    for column in range(len(goods)):
        pivot = next(row for row in table[column:] if row[column])
        table.remove(pivot)
        pivot = [value / pivot[column] for value in pivot]
        table = [
            [value - row[column] * other for value, other in zip(row, pivot, strict=True)] for row in table
        ]
        table.insert(column, pivot)
    assert all(not any(row) for row in table[len(goods) :])
    return {good: table[number][-1] for number, good in enumerate(goods)}


@pytest.mark.parametrize("tokens", [560, 4000])
def test_the_bills_tell_all_prices(tokens: int) -> None:
    def bought(text: str) -> dict[str, int]:
        return {good: int(count) for count, good in re.findall(r"(\d+) x (\w+)", text)}

    for seed in range(20):
        puzzle = TASKS["prices"].make(random.Random(seed), Room(tokens=tokens, count=ROOM.count))
        price = solve([(bought(text), int(total)) for text, total in shots(puzzle, "total")])
        assert sum(price[good] * count for good, count in bought(asked(puzzle)).items()) == int(
            puzzle.references[0]
        )


def test_the_examples_tell_words_and_word_order() -> None:
    for seed in range(15):
        puzzle = TASKS["translation"].make(random.Random(seed), ROOM)
        pairs = [
            (english.lower().rstrip(".").replace("the ", "").split(), foreign.rstrip(".").split())
            for english, foreign in shots(puzzle, "translation")
        ]
        everywhere = set.intersection(*(set(foreign) for _, foreign in pairs))
        assert len(everywhere) == 1, "the mark of the object is in every sentence"
        lexicon: dict[str, str] = {}
        for word in {word for english, _ in pairs for word in english}:
            candidates = set.intersection(*(set(foreign) for english, foreign in pairs if word in english))
            (lexicon[word],) = candidates - everywhere
        # Places of the five English words in the foreign sentence, the same in all examples.
        places = {tuple(foreign.index(lexicon[word]) for word in english) for english, foreign in pairs}
        assert len(places) == 1
        words = asked(puzzle).lower().rstrip(".").replace("the ", "").split()
        built = [next(iter(everywhere))] * 6
        for word, place in zip(words, next(iter(places)), strict=True):
            built[place] = lexicon[word]
        assert " ".join(built) + "." == puzzle.references[0]


def test_word_orders_differ_between_samples() -> None:
    marks = set()
    for seed in range(40):
        puzzle = TASKS["translation"].make(random.Random(seed), ROOM)
        foreign = [words.rstrip(".").split() for _, words in shots(puzzle, "translation")]
        mark = set.intersection(*map(set, foreign))
        marks.add(foreign[0].index(next(iter(mark))))
    assert len(marks) >= 3


def test_numbers_and_words_are_marked() -> None:
    assert [first_number(text, ["1249"], {}) for text in ("1249", "total: 1,249 crowns", "249", "none")] == [
        1,
        1,
        0,
        0,
    ]
    wanted = ["zev ko fu fi zo za."]
    assert grade(word_by_word, "translation: Zev ko fu fi zo za", wanted) == {"score": 1.0, "words": 1.0}
    assert grade(word_by_word, "zev ko fu fi zo zu.", wanted) == {"score": 0.0, "words": pytest.approx(5 / 6)}
    assert grade(word_by_word, "ko fu fi zo za.", wanted) == {"score": 0.0, "words": 0.0}
    assert grade(word_by_word, "", wanted) == {"score": 0.0, "words": 0.0}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_too_few_examples_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"ask for \d+ or more"):
        TASKS[name].make(random.Random(0), Room(tokens=200, count=ROOM.count))
