"""BABILong: published rows, and facts hidden in prose, answered by a reader of nothing but the context."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.exams import FIRST_SEED, PuzzleExam
from longspan.evaluation.haystacks import Haystack, count_tokens
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.metrics import grade
from longspan.evaluation.published import DataMissing
from longspan.evaluation.suites.babilong import LENGTHS, TASKS
from longspan.evaluation.suites.babilong.made import babi_stories
from longspan.evaluation.suites.babilong.prompts import PROMPTS
from longspan.evaluation.task import Sample, Task
from tests.evaluation.suites.local_data import (
    TOKENIZER,
    check_data_are_asked_for,
    check_rows_are_checked,
    exam,
    put,
    sample,
    scored,
)

ROW: dict[str, Any] = {
    "input": "It was a dark night. Mary went to the garden. The wind blew. Mary went to the office.",
    "question": "Where is Mary? ",
    "target": "office",
}
PEOPLE, PLACES = ("Mary", "John", "Daniel", "Sandra"), ("garden", "office", "kitchen", "hallway", "bedroom")


def story_lines() -> list[str]:
    """Twenty stories of five moves with two questions each, the second by who moved third."""
    lines = []
    for story in range(20):
        moves = [(PEOPLE[(story + 3 * step) % 4], PLACES[(story * 2 + step) % 5]) for step in range(5)]
        number = 0
        for step, (person, place) in enumerate(moves, start=1):
            number += 1
            lines.append(f"{number} {person} went to the {place}.")
            if step in (2, 5):
                who = moves[step - 1][0] if step == 2 else moves[2][0]
                last = max(index for index in range(step) if moves[index][0] == who)
                told = last + 1 + (1 if last >= 2 else 0)
                number += 1
                lines.append(f"{number} Where is {who}? \t{moves[last][1]}\t{told}")
    return lines


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    folder = tmp_path / "babilong" / "babi_data" / "en"
    folder.mkdir(parents=True)
    (folder / "qa1_single-supporting-fact_test.txt").write_text("\n".join(story_lines()) + "\n")
    return tmp_path


def made(seed: int, length: int = 2048, haystack: Haystack | None = None) -> Sample:
    task = TASKS["qa1"]
    assert isinstance(task, Task)
    return PuzzleExam(name="babilong/qa1", task=task).build(
        length_tokens=length,
        depth=None,
        seed=FIRST_SEED + seed,
        haystack=haystack or noise_haystack(),
        tokenizer=TOKENIZER,
    )


def read_it(one: Sample) -> str:
    """Answers from the text after the instruction: the last place that the person went to."""
    text = one.context.split("Write nothing else.", 1)[1]
    who = re.search(r"Where is (\w+)\?", one.question)
    assert who is not None
    places = re.findall(rf"{who[1]} went to the (\w+)\.", text)
    return str(places[-1])


def test_all_tasks_are_here() -> None:
    assert set(PROMPTS) == {f"qa{number}" for number in range(1, 21)}
    assert len(TASKS) == 20 + 10 * len(LENGTHS)


def test_a_reader_of_the_text_finds_the_answer(data: Path) -> None:
    for seed in range(30):
        one = made(seed)
        assert grade(TASKS["qa1"].metric, read_it(one), one.references, one.details)["score"] == 1.0
        assert grade(TASKS["qa1"].metric, "the attic", one.references, one.details)["score"] == 0.0
        starts = [one.context.index(fact) for fact in one.evidence]
        assert starts == sorted(starts)
        used = sum(count_tokens(TOKENIZER, part) for part in (one.context, one.question)) + 20 + 12
        assert 2048 * 0.98 <= used <= 2048
    assert len({made(seed).question for seed in range(30)}) > 1


def test_stories_keep_what_was_told_before_each_question(data: Path) -> None:
    stories = babi_stories("qa1")
    assert len(stories) == 40
    first, second = stories[:2]
    assert first.facts == ("Mary went to the garden.", "Sandra went to the office.")
    assert (first.question, first.answer, first.support) == ("Where is Sandra?", "office", (1,))
    assert second.facts[2:] == (
        "Daniel went to the kitchen.",
        "John went to the hallway.",
        "Mary went to the bedroom.",
    )
    assert (second.question, second.answer, second.support) == ("Where is Daniel?", "kitchen", (2,))


def test_too_little_room_and_bad_files_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="leaves room for other text in .* tokens; ask for 2048 or more"):
        made(0, 200)
    path = data / "babilong" / "qa2_two_test.txt"
    for text, message in (
        ("1 Mary went to the garden.\nno number\n", "line 2 does not start with a number"),
        ("1 Mary went.\n2 Where is Mary?\tgarden\t9\n", "line 2 is not a question of bAbI"),
        ("1 Mary went to the garden.\n", "holds no question of bAbI"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            babi_stories("qa2")
        path.unlink()
    with pytest.raises(DataMissing, match=r"put qa3_\*_test.txt into"):
        babi_stories("qa3")


def test_published_rows(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(data, "babilong/data/qa1/4k.json", [ROW])
    put(data, "babilong/data/qa2/4k.json", [{**ROW, "target": "garden"}])
    with pytest.raises(DataMissing, match="put 4k.json into"):
        sample("babilong/qa1_4k")
    put(data, "babilong/qa1/4k.json", [ROW])
    put(data, "babilong/qa2/data/4k.json", [{**ROW, "target": "garden"}])
    asked = sample("babilong/qa1_4k")
    assert asked.question == "</context>\n\nQuestion: Where is Mary?" and asked.references == ("office",)
    assert sample("babilong/qa2_4k").references == ("garden",)
    assert scored("babilong/qa1_4k", "The most recent location of Mary is office.")["score"] == 1.0
    assert scored("babilong/qa1_4k", "office or garden")["score"] == 0.0
    assert exam("babilong/qa1_4k").labels.metric_name == "babilong"
    of_a_file = {"question": "Where is Mary?"}
    assert grade(exam("babilong/qa1_4k").labels.metric, "the office", ["office"], of_a_file)["score"] == 1.0
    check_rows_are_checked(
        data, "babilong/qa1_4k", "babilong/qa1/4k.json", ROW, ("input", "question", "target")
    )
    check_data_are_asked_for(
        "babilong/qa10_1M", monkeypatch, "put 1M.json into DIR/babilong/qa10", "RMT-team/babilong"
    )
