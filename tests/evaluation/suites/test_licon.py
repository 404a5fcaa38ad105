"""Many-shot classification: rounds of one example a label, and a reader who finds the like examples."""

from __future__ import annotations

import csv
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from longspan.evaluation.published import DATA_VARIABLE, DataMissing
from longspan.evaluation.suites.licon import NUM_BANKING, TASKS
from longspan.evaluation.suites.licon.utterances import ACTIONS, INTENTS, THINGS
from longspan.evaluation.task import Puzzle, Room

ROOM = Room(tokens=8000, count=lambda text: len(text) // 4 + 1)


@pytest.fixture
def data(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    (tmp_path / "licon").symlink_to(shared_data / "labels")
    return shared_data / "labels"


def shots(puzzle: Puzzle) -> list[tuple[str, str]]:
    assert puzzle.context is not None
    pairs = [item.split("\nlabel: ") for item in puzzle.context.split("\n\n")]
    return [(text, label) for text, label in pairs]


def asked(puzzle: Puzzle) -> str:
    return puzzle.question.split("\n\n")[1]


def kind(text: str) -> tuple[str, str]:
    """Action and thing of a sentence, by the words of it."""
    things = [name for name, ways in THINGS.items() if any(way in text for way in ways)]
    actions = [
        name
        for name, ways in ACTIONS.items()
        if any(
            re.search(re.escape(way).replace(re.escape("{thing}"), ".+").lower(), text.lower())
            for way in ways
        )
    ]
    assert len(things) == 1, (text, things)
    assert len(actions) == 1, (text, actions)
    return actions[0], things[0]


@pytest.mark.parametrize("name", ["intents", "intents_words"])
def test_the_like_examples_have_the_answer_and_no_other_label(name: str) -> None:
    for seed in range(12):
        puzzle = TASKS[name].make(random.Random(seed), ROOM)
        of_kind: dict[tuple[str, str], set[str]] = {}
        for text, label in shots(puzzle):
            of_kind.setdefault(kind(text), set()).add(label)
        assert len(of_kind) == len(INTENTS) == 80
        assert all(len(labels) == 1 for labels in of_kind.values())
        assert len(set.union(*of_kind.values())) == 80
        assert of_kind[kind(asked(puzzle))] == {puzzle.references[0]}
        assert asked(puzzle) not in [text for text, _ in shots(puzzle)]
        assert len({text for text, _ in shots(puzzle)}) == len(shots(puzzle))


def test_whole_rounds_show_each_label_once_and_the_order_changes() -> None:
    labels = [label for _, label in shots(TASKS["intents"].make(random.Random(1), ROOM))]
    rounds = [labels[start : start + 80] for start in range(0, len(labels), 80)]
    assert len(rounds) >= 3
    assert all(sorted(map(int, one)) == list(range(80)) for one in rounds[:2])
    assert rounds[0] != rounds[1]


def test_labels_are_drawn_anew_for_each_sample() -> None:
    drawn = Counter[str]()
    for seed in range(300):
        puzzle = TASKS["intents"].make(random.Random(seed), Room(tokens=3000, count=ROOM.count))
        drawn[puzzle.references[0]] += 1
    assert len(drawn) > 70 and max(drawn.values()) < 15


def test_less_than_a_round_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"one round of 80 labels does not fit 1500 tokens; ask for \d+ or more"
    ):
        TASKS["intents"].make(random.Random(0), Room(tokens=1500, count=ROOM.count))


def test_absent_files_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(DataMissing, match=r"put banking77-train\.csv into"):
        TASKS["banking77"].make(random.Random(0), ROOM)


@pytest.mark.parametrize("name", ["banking77", "banking77_names"])
def test_banking77_shows_the_published_examples(name: str, data: Path) -> None:
    def table(part: str) -> dict[str, str]:
        with open(data / f"banking77-{part}.csv", encoding="utf-8", newline="") as stream:
            return {" ".join(row["text"].split()): row["category"] for row in csv.DictReader(stream)}

    train, test = table("train"), table("test")
    for seed in range(6):
        puzzle = TASKS[name].make(random.Random(seed), ROOM)
        label_of: dict[str, set[str]] = {}
        for text, label in shots(puzzle):
            label_of.setdefault(train[text], set()).add(label)
        assert len(label_of) == NUM_BANKING
        assert all(len(labels) == 1 for labels in label_of.values())
        assert label_of[test[asked(puzzle)]] == {puzzle.references[0]}
        if name == "banking77_names":
            assert all(labels == {category} for category, labels in label_of.items())


def test_a_file_cut_short_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "licon").mkdir()
    for part in ("train", "test"):
        (tmp_path / "licon" / f"banking77-{part}.csv").write_text("text,category\nHello,greeting\n")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match="has 1 categories instead of 77"):
        TASKS["banking77"].make(random.Random(0), ROOM)


def test_the_label_counts_with_and_without_its_prefix() -> None:
    metric = TASKS["intents"].metric
    assert [metric(text, ["57"], {}) for text in ("57", "label: 57", " 57\n\nAnother text", "label: 5", "577")] == [
        1.0, 1.0, 1.0, 0.0, 0.0,
    ]  # fmt: skip
