"""What the suites' puzzles say."""

import random
import re
from collections import Counter

import pytest

from longspan.evaluation.sample import Room
from longspan.evaluation.suites import facts, keyvalue, ruler

ROOM = Room(tokens=4000, count=lambda text: len(text) // 4 + 1)


def test_single_needle_uses_rulers_words() -> None:
    puzzle = ruler.TASKS["niah_single_1"].make(random.Random(0), ROOM)
    match = re.fullmatch(r"One of the special magic numbers for (\S+) is: (\d{7})\.", puzzle.needles[0])
    assert match is not None
    key, value = match.groups()
    assert puzzle.question == f"What is the special magic number for {key} mentioned in the provided text?"
    assert puzzle.answer_prefix == f"The special magic number for {key} mentioned in the provided text is"
    assert puzzle.references == (value,) and puzzle.answer == f"{value}."


def test_several_values_are_listed_in_order_of_appearance() -> None:
    puzzle = ruler.TASKS["niah_multivalue"].make(random.Random(1), ROOM)
    assert len(puzzle.needles) == 4 and puzzle.ordered
    assert [needle.split(": ")[1].rstrip(".") for needle in puzzle.needles] == list(puzzle.references)
    assert puzzle.answer == ", ".join(puzzle.references) + "."


def test_variable_chain_is_connected() -> None:
    puzzle = ruler.TASKS["vt"].make(random.Random(2), ROOM)
    assert puzzle.needles[0].startswith(f"VAR {puzzle.references[0]} = ")
    for earlier, later, needle in zip(
        puzzle.references, puzzle.references[1:], puzzle.needles[1:], strict=False
    ):
        assert needle == f"VAR {later} = VAR {earlier}"


def test_common_and_frequent_words_are_the_most_frequent() -> None:
    common = ruler.TASKS["cwe"].make(random.Random(3), ROOM)
    assert common.context is not None
    counts = Counter(re.findall(r"\d+\. (\S+)", common.context))
    assert {word for word, _ in counts.most_common(10)} == set(common.references)
    frequent = ruler.TASKS["fwe"].make(random.Random(3), ROOM)
    assert frequent.context is not None
    coded = Counter(re.findall(r" ([a-z]{6})(?= |$)", frequent.context.split("coded words. ")[1]))
    ranked = [word for word, _ in coded.most_common(3)]
    assert sorted(ranked) == sorted(frequent.references)


def test_too_small_rooms_are_refused() -> None:
    small = Room(tokens=150, count=ROOM.count)
    for task in ("cwe", "fwe"):
        with pytest.raises(ValueError, match="ask for"):
            ruler.TASKS[task].make(random.Random(0), small)


def test_key_value_pairs() -> None:
    puzzle = keyvalue.TASKS["kv64"].make(random.Random(4), ROOM)
    table = dict(line.split(": ") for line in puzzle.needles)
    assert len(table) == 64
    assert table[puzzle.question.split("key ")[1].rstrip("?")] == puzzle.references[0]
    few = keyvalue.TASKS["kv64"].make(random.Random(4), Room(tokens=480, count=ROOM.count))
    assert len(few.needles) == 10


def test_eight_facts_share_one_wording() -> None:
    puzzle = keyvalue.TASKS["keys8_facts"].make(random.Random(6), ROOM)
    assert len(set(puzzle.needles)) == 8
    assert puzzle.references[0] in (puzzle.evidence or ("",))[0]


def test_similar_facts_differ_in_combinations_only() -> None:
    """Each question has one answer, though most of its words stand in other facts too."""
    shared = 0
    for seed in range(40):
        drawn = facts.draw_facts(8, random.Random(seed), same_template=True, similar=True)
        assert len({fact.question for fact in drawn}) == 8
        words = [set(re.findall(r"[A-Z]\w+", fact.statement)[1:]) for fact in drawn]
        shared += sum(any(mine & other for other in words if other is not mine) for mine in words)
    plain = facts.draw_facts(8, random.Random(3), same_template=True)
    assert plain == facts.draw_facts(8, random.Random(3), same_template=True, similar=False)
    assert shared > 40 * 8 / 4


def test_facts_ask_for_what_they_state() -> None:
    rng = random.Random(7)
    drawn = facts.draw_facts(300, rng)
    assert len({fact.question for fact in drawn}) == 300
    assert all(fact.answer.removeprefix("a ").removeprefix("an ") in fact.statement for fact in drawn)
    assert not any(re.search(r"\ba [aeio]", fact.statement) for fact in drawn)
    seen = {fact.statement.split()[0] for fact in facts.draw_facts(20, rng, held_out=True)}
    assert seen
