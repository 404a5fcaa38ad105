r"""NeedleBench: family lines traced by a reader of the sentences, and what \boxed{} lets pass."""

import random
import re

import pytest

from longspan.evaluation.suites import needlebench
from longspan.evaluation.suites.needlebench import boxed_match
from longspan.evaluation.task import Puzzle, Room

NAME = r"[A-Z]\w+(?: [A-Z])? [A-Z]\w+"
KIN = r"(?:(?:paternal|maternal) )?(?:grand)?(?:father|mother)|dad|mom"


def make(name: str, seed: int, tokens: int = 3000) -> Puzzle:
    return needlebench.TASKS[name].make(
        random.Random(seed), Room(tokens=tokens, count=lambda text: len(text) // 4 + 1)
    )


def parents(text: str) -> dict[str, tuple[str, int]]:
    """For each younger person the elder one and the generations between them."""
    found = {}
    for sentence in re.split(r"(?<=\.)\s", text):
        kin = re.search(rf"\b({KIN})\b", sentence)
        assert kin is not None, sentence
        people = re.findall(NAME, re.sub(r"^(To|The|Everyone) ", "", sentence))
        younger_first = sentence.startswith(("To ", "The ")) or " was brought up by " in sentence
        younger, elder = people[:2] if younger_first else people[1::-1]
        assert younger not in found and set(people) == {younger, elder}
        found[younger] = (elder, 2 if "grand" in kin[1] else 1)
    return found


def trace(person: str, line: dict[str, tuple[str, int]]) -> tuple[str, int, int]:
    """The eldest ancestor, the generations to it, and the sentences used."""
    generations = steps = 0
    while person in line:
        person, more = line[person]
        generations, steps = generations + more, steps + 1
    return person, generations, steps


@pytest.mark.parametrize("seed", range(5))
def test_family_lines_have_the_ends_and_the_length_that_are_answered(seed: int) -> None:
    for name in ("atc_eldest", "atc_ancestor", "atc_descendant", "atc_distance"):
        puzzle = make(name, seed)
        assert puzzle.context is not None
        line = parents(puzzle.context.split("\n", 1)[1])
        (youngest,) = set(line) - {elder for elder, _ in line.values()}
        eldest, generations, steps = trace(youngest, line)
        assert steps == len(line) > 40, "every sentence lies on the way"
        asked = puzzle.question.split("?")[0]
        if name == "atc_distance":
            assert puzzle.references == (str(generations),) and eldest in asked and youngest in asked
        elif name == "atc_descendant":
            assert puzzle.references == (youngest,) and asked.endswith(
                f"of {eldest} in generation {generations}"
            )
        else:
            assert puzzle.references == (eldest,) and youngest in asked
            assert name == "atc_eldest" or asked.endswith(f"generation {generations}")


@pytest.mark.parametrize("hops", [2, 3, 5])
def test_hidden_lines_lead_to_the_answer(hops: int) -> None:
    puzzle = make(f"multi_reasoning_{hops}", 1)
    youngest = re.search(rf"that ({NAME}) can be traced", puzzle.question)
    assert youngest is not None
    assert trace(youngest[1], parents(" ".join(puzzle.needles)))[::2] == (puzzle.references[0], hops)


def test_every_retrieved_thing_belongs_to_its_own_question() -> None:
    puzzle = make("multi_retrieval", 3)
    asked = re.findall(r"What did (.+?) bury in (\w+)\?", puzzle.question)
    assert len(asked) == len(set(puzzle.references)) == 5
    for (person, town), thing, needle in zip(asked, puzzle.references, puzzle.needles, strict=True):
        assert town in needle and person in needle and re.search(rf"\ban? {thing}\b", needle)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (r"So it is \boxed{Ada Barlow}.", 1.0),
        (r"\boxed{Otto Finch} no, \boxed{ 'Ada Barlow' }", 1.0),
        (r"\boxed{{Ada Barlow}}", 1.0),
        (r"\boxed{\text{Ada Barlow}}", 1.0),
        (r"\boxed{Ada~Barlow}", 1.0),
        (r"\boxed{Ada Barlow} or \boxed{Otto Finch}", 0.0),
        (r"\boxed{ada barlow}", 0.0),
        ("Ada Barlow", 0.0),
        ("", 0.0),
    ],
)
def test_boxed_answers(prediction: str, expected: float) -> None:
    assert boxed_match(prediction, ("Ada Barlow",), {}) == expected
