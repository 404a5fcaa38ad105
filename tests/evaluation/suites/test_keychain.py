"""KeyChain: a solver follows the links and answers the question at their end."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from longspan.evaluation.published import DATA_VARIABLE, DataMissing
from longspan.evaluation.suites.keychain import FILES, NUM_CHAINS, NUM_LINKS, TASKS, two_way_match
from longspan.evaluation.task import Puzzle, Room

ROOM = Room(tokens=4000, count=lambda text: len(text) // 4 + 1)
FIRST_KEY = re.compile(r"from the key ([0-9a-f-]{36})")
SHARED = {
    "hotpotqa": ("hotpotqa-200.json", "hotpot_dev_distractor_v1.json"),
    "musique": ("musique-200.json", "musique_ans_v1.0_dev.jsonl"),
    "squad": ("squad-v2-dev-half.json", "dev-v2.0.json"),
}


def links_of(context: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in context.split("\n"):
        if line.startswith("{"):
            ((key, value),) = json.loads(line).items()
            assert key not in found
            found[key] = value
    return found


def follow(puzzle: Puzzle) -> tuple[str, int]:
    """The question at the end of the chain, and the number of its links."""
    assert puzzle.context is not None
    links, start = links_of(puzzle.context), FIRST_KEY.search(puzzle.question)
    assert start is not None
    key, length = start[1], 0
    while key in links:
        key, length = links[key], length + 1
    return key, length


def answer(question: str, context: str) -> str:
    """The answer to a two-hop question of the generated kind, read from the documents."""
    hop = re.search(r"the institution to which the (.+?) of the (.+?) has been lent", question)
    assert hop is not None
    keeper = re.search(rf"The {hop[1]} of the {hop[2]} has been on loan to the ([^.]+) for years", context)
    assert keeper is not None
    patterns = {
        "founded": (r"The {} was founded by ([^.]+)\.", r"It was ([^.]+) who founded the {}\.", r"The founder of the {} is ([^.]+)\."),
        "leads": (r"The {} is led by ([^.]+) today", r"([^.\n:]+) has charge of the {} today", r"the {} answers to ([^.]+)\."),
        "plans": (r"building of the {} was drawn by ([^.]+)\.", r"([^.\n:]+) drew the plans for the main building of the {}\."),
        "rival": (r"rival of the {} has its seat in ([^.]+)\.", r"In (\w+) sits the strongest rival of the {}\."),
    }  # fmt: skip
    kind = next(word for word in patterns if word in question)
    hits = [
        hit for pattern in patterns[kind] for hit in re.findall(pattern.replace("{}", keeper[1]), context)
    ]
    assert len(hits) == 1
    return str(hits[0]).strip()


@pytest.mark.parametrize("name", ["made", "made_steps"])
def test_the_chain_leads_to_the_question_and_the_documents_answer_it(name: str) -> None:
    for seed in range(60):
        puzzle = TASKS[name].make(random.Random(seed), ROOM)
        assert puzzle.context is not None
        question, length = follow(puzzle)
        assert length == NUM_LINKS
        assert answer(question, puzzle.context) == puzzle.references[0]
        assert puzzle.answer.count(puzzle.references[0]) == 1


def test_other_chains_lead_to_questions_with_other_answers() -> None:
    for seed in range(40):
        puzzle = TASKS["made"].make(random.Random(seed), ROOM)
        assert puzzle.context is not None
        right, _ = follow(puzzle)
        links = links_of(puzzle.context)
        assert len(links) == NUM_CHAINS * NUM_LINKS
        others = [value for value in links.values() if value.endswith("?") and value != right]
        assert len(others) == NUM_CHAINS - 1
        assert right not in puzzle.question
        assert puzzle.references[0] not in [answer(other, puzzle.context) for other in others]


def test_a_room_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ask for \d+ or more"):
        TASKS["made"].make(random.Random(0), Room(tokens=900, count=ROOM.count))


def test_absent_data_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(DataMissing, match=r"put hotpot_dev_distractor_v1\.json into"):
        TASKS["on_hotpotqa"].make(random.Random(0), ROOM)


@pytest.mark.parametrize("name", sorted(FILES))
def test_published_questions(
    name: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    (tmp_path / "keychain").mkdir()
    here, published = SHARED[name]
    (tmp_path / "keychain" / published).symlink_to(shared_data / "qa" / here)
    asked = set()
    for seed in range(30):
        room = Room(tokens=8000, count=ROOM.count)
        puzzle = TASKS[f"on_{name}"].make(random.Random(seed), room)
        assert puzzle.context is not None
        question, length = follow(puzzle)
        assert length == NUM_LINKS and question.strip()
        asked.add(question)
        used = room.count(puzzle.context) + room.count(puzzle.question) + puzzle.max_new_tokens
        assert 0.97 * room.tokens <= used <= room.tokens
        held = "\n".join(piece for piece in puzzle.evidence or () if not piece.startswith("{"))
        assert held
        if name != "hotpotqa":  # a bridge there may be answered by a title
            assert any(reference.lower() in held.lower() for reference in puzzle.references)
        assert two_way_match(puzzle.answer, puzzle.references, {}) == 1.0
    assert len(asked) > 20


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("Ines Halloran.", 1.0),
        ("The answer is Ines Halloran of Ravenford.", 1.0),
        ("First it was Boris. So the answer is \\boxed{Halloran}.", 1.0),
        ("The answer is Ines Halloran. Wait: the answer is Boris Finch.", 0.0),
        ("Ines Halloran was my first thought. The answer is Boris.", 0.0),
        ("a", 0.0),
        ("H", 0.0),
        ("The answer is the.", 0.0),
    ],
)
def test_the_settled_answer_matches_either_way(prediction: str, score: float) -> None:
    assert two_way_match(prediction, ["Ines Halloran"], {}) == score
