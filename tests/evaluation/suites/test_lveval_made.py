"""LV-Eval's techniques: confusing facts, replaced keywords, keywords before F1."""

from __future__ import annotations

import random
import re

import pytest

from longspan.evaluation.metrics import grade
from longspan.evaluation.suites.lveval_made import BLACKLIST, NUM_CONFUSING, TASKS
from longspan.evaluation.task import Puzzle, Room

ROOM = Room(tokens=3000, count=lambda text: len(text) // 4 + 1)
READ = {
    "Who founded the (.+)": (
        r"The {} was founded by ([^.]+)\.",
        r"It was ([^.]+) who founded the {}\.",
        r"The founder of the {} is ([^.]+)\.",
    ),
    "Who leads the (.+) today": (
        r"The {} is led by ([^.]+) today\.",
        r"([^.#\n]+) has charge of the {} today",
        r"the {} answers to ([^.]+)\.",
    ),
    "Who drew the plans for the main building of the (.+)": (
        r"main building of the {} was drawn by ([^.]+)\.",
        r"([^.#\n]+) drew the plans for the main building of the {}\.",
    ),
    "In which town does the strongest rival of the (.+) have its seat": (
        r"strongest rival of the {} has its seat in ([^.]+)\.",
        r"In (\w+) sits the strongest rival of the {}\.",
    ),
    "What is the greatest treasure of the (.+)": (
        r"greatest treasure of the {} is the ([^.]+)\.",
        r"Visitors of the {} come above all to see the ([^.]+)\.",
    ),
}


def told(question: str, text: str, name: str = "") -> list[str]:
    """Every value that the text gives for what the question asks, of the institution `name` or that of the question."""
    for asked, patterns in READ.items():
        found = re.search(asked + r"\?", question)
        if found:
            place = name or re.escape(found[1])
            return [
                hit.strip() for pattern in patterns for hit in re.findall(pattern.replace("{}", place), text)
            ]
    raise AssertionError(question)


def asked_of(puzzle: Puzzle) -> str:
    return puzzle.question.split("Question: ")[1]


def test_one_sentence_answers_and_others_with_like_names_mislead() -> None:
    for seed in range(80):
        puzzle = TASKS["one_hop"].make(random.Random(seed), ROOM)
        assert puzzle.context is not None
        question = asked_of(puzzle)
        assert told(question, puzzle.context) == [puzzle.references[0]]
        town = re.findall(r"the ([A-Z]\w+) [A-Z]", question)[0]
        like = set(told(question, puzzle.context, rf"(?:\w+ )?{town}(?: \w+)+?")) - {puzzle.references[0]}
        assert len(like) == NUM_CONFUSING, (question, like)


def test_two_hops_lead_to_the_answer() -> None:
    for seed in range(80):
        puzzle = TASKS["two_hop"].make(random.Random(seed), ROOM)
        assert puzzle.context is not None
        question = asked_of(puzzle)
        hop = re.search(r"institution to which the (.+?) of the (.+?) has been lent", question)
        assert hop is not None
        keepers = re.findall(
            rf"The {hop[1]} of the {hop[2]} has been on loan to the ([^.]+) for years\.", puzzle.context
        )
        assert len(keepers) == 1
        assert told(question.replace(hop[0], keepers[0]), puzzle.context) == [puzzle.references[0]]
        assert len(re.findall("has been on loan", puzzle.context)) == 2


def test_what_the_world_knows_is_replaced() -> None:
    for seed in range(80):
        puzzle = TASKS["replaced"].make(random.Random(seed), ROOM)
        assert puzzle.context is not None
        known = puzzle.details["memory"]
        assert not re.search(rf"\b{known}\b", puzzle.context)
        subject = re.search(r"(?:capital|author) of (.+)\?|owe (.+)\?", asked_of(puzzle))
        assert subject is not None
        name = subject[1] or subject[2]
        values = re.findall(
            rf"\b(?:The capital|The author) of {name} is ([^.]+)\.|The world owes {name} to ([^.]+)\.",
            puzzle.context,
        )
        assert ["".join(pair) for pair in values] == [puzzle.references[0]]
        assert puzzle.context.count(name) >= NUM_CONFUSING + 2


def test_memory_is_told_apart_from_reading() -> None:
    details = {"keywords": "Brindleford", "blacklist": BLACKLIST, "memory": "Paris"}
    metric = TASKS["replaced"].metric
    assert grade(metric, "Brindleford", ["Brindleford"], details) == {"score": 1.0, "memory": 0.0}
    assert grade(metric, "Paris", ["Brindleford"], details) == {"score": 0.0, "memory": 1.0}


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("Ines Halloran", 1.0),
        ("ines halloran.", 1.0),
        # Two of four words right, both wanted words found: precision 1/2, recall 1.
        ("It was Ines Halloran", 2 / 3),
        # One of the two keywords is half of them, which is enough; precision 1/2, recall 1/2.
        ("Ines Finch", 0.5),
        ("nobody knows the founder", 0.0),
    ],
)
def test_keywords_come_before_f1(prediction: str, score: float) -> None:
    details = {"keywords": "Ines Halloran", "blacklist": BLACKLIST}
    assert grade(TASKS["one_hop"].metric, prediction, ["Ines Halloran"], details)["score"] == pytest.approx(
        score
    )


def test_too_small_rooms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ask for \d+ or more"):
        TASKS["two_hop"].make(random.Random(0), Room(tokens=300, count=ROOM.count))
