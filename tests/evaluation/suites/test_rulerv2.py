"""RULERv2: a solver that looks numbers up in the context, and the soft scores."""

from __future__ import annotations

import csv
import random
import re
from pathlib import Path

import pytest

from longspan.evaluation.published import DATA_VARIABLE, DataMissing
from longspan.evaluation.suites import rulerv2
from longspan.evaluation.suites.rulerv2.scoring import copied, copied_last, copied_or_answered
from longspan.evaluation.task import Puzzle, Room

WORDS = (
    "river theorem mass court cell energy virus treaty market enzyme poem atom law nerve angle vector".split()
)


def make(name: str, seed: int, tokens: int = 4000) -> Puzzle:
    return rulerv2.TASKS[name].make(
        random.Random(seed), Room(tokens=tokens, count=lambda text: len(text) // 4 + 1)
    )


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "rulerv2"
    folder.mkdir()
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    return folder


@pytest.fixture
def mmlu(data: Path) -> dict[str, str]:
    """Made-up questions in the published layout; the letter of each by its text in one line."""
    rng, letters = random.Random(0), dict[str, str]()
    (data / "test").mkdir()
    for subject in ("algebra", "law"):
        with open(data / "test" / f"{subject}_test.csv", "w", encoding="utf-8", newline="") as stream:
            for number in range(60):
                asked = (
                    f"Which of {subject} {number} is\n{' '.join(rng.choices(WORDS, k=rng.randint(3, 12)))}?"
                )
                row = [asked, *(" ".join(rng.choices(WORDS, k=2)) for _ in range(4)), rng.choice("ABCD")]
                csv.writer(stream).writerow(row)
                line = asked.replace("\n", " ") + "".join(
                    f" {letter}. {row[place]}" for place, letter in enumerate("ABCD", 1)
                )
                letters[line] = row[5]
    return letters


def numbered(context: str, word: str = "Question") -> list[tuple[str, str]]:
    """Number and text of every item, in order."""
    parts = context.split("\n\n")[1:]
    return [
        (match[1], match[2])
        for part in parts
        if (match := re.fullmatch(rf"{word} (\d{{7}}):\s(.*)", part, re.DOTALL))
    ]


@pytest.mark.parametrize("seed", range(3))
def test_questions_are_found_by_their_number(mmlu: dict[str, str], seed: int) -> None:
    for name, number in (
        ("mk_niah_easy", 1),
        ("mv_niah_easy", 4),
        ("mv_niah_medium", 4),
        ("mv_niah_hard", 4),
    ):
        puzzle = make(name, seed)
        asked = re.search(r"Question (\d{7})", puzzle.question)
        assert asked is not None and puzzle.context is not None
        texts = [text for found, text in numbered(puzzle.context) if found == asked[1]]
        assert len(texts) == number and set(texts) <= set(mmlu)
        if name in ("mv_niah_medium", "mv_niah_hard"):
            place = next(
                place
                for place, word in enumerate(("first", "second", "third", "fourth"))
                if f"the {word} " in puzzle.question
            )
            assert puzzle.references == (texts[place],)
            assert puzzle.answer.split("\n\n") == (
                [*texts, texts[place]] if name == "mv_niah_medium" else [texts[place]]
            )
        else:
            assert list(puzzle.references) == texts


@pytest.mark.parametrize("name", ["mk_niah_medium", "mk_niah_hard"])
def test_solved_questions_have_their_letters(mmlu: dict[str, str], name: str) -> None:
    puzzle = make(name, 2)
    assert puzzle.context is not None
    items = numbered(puzzle.context)
    assert len({number for number, _ in items}) == len(items)
    table = dict(items)
    *shots, task = re.findall(r"Please (?:solve|copy) the Question (\d{7})", puzzle.question)
    letters = re.findall(r"\\boxed\{([A-D])\}", puzzle.question)
    assert [mmlu[table[shot]] for shot in shots] == letters and len(letters) == 5
    assert puzzle.references == (mmlu[table[task]],) and task not in shots
    assert (table[task] in puzzle.answer) == (name == "mk_niah_medium")


def test_magic_numbers_are_those_of_the_key() -> None:
    for name, number in (("mk_niah_basic", 1), ("mv_niah_basic", 4)):
        puzzle = make(name, 4)
        key = re.search(r"numbers? for (\S+) mentioned", puzzle.question)
        assert key is not None and puzzle.context is not None
        lines = re.findall(r"One of the special magic numbers for (\S+) is: (\d{10})\.", puzzle.context)
        assert [value for found, value in lines if found == key[1]] == list(puzzle.references)
        keys = [found for found, _ in lines]
        assert sum(keys.count(found) == number for found in keys) > 0.9 * len(keys)


def test_absent_or_malformed_data_are_named(data: Path) -> None:
    with pytest.raises(DataMissing, match=r"_test\.csv"):
        make("mk_niah_easy", 0)
    with pytest.raises(DataMissing, match="hotpot_dev_distractor_v1"):
        make("qa_hard", 0)
    (data / "law_test.csv").write_text("Who?,a,b,c,d,A\nWho else?,a,b,c,d,\n")
    with pytest.raises(ValueError, match="row 2"):
        make("mk_niah_easy", 0)


def test_few_long_questions_end_the_search(data: Path) -> None:
    rows = [["short?", "a", "b", "c", "d", "A"], [" ".join(WORDS * 300), "a", "b", "c", "d", "B"]]
    with open(data / "law_test.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    assert make("mk_niah_easy", 0).references == ("short? A. a B. b C. c D. d",)


def test_documents_have_the_numbers_that_are_answered(data: Path, shared_data: Path) -> None:
    (data / "hotpotqa-200.json").symlink_to(shared_data / "qa" / "hotpotqa-200.json")
    for seed in range(3):
        puzzle = make("qa_basic", seed)
        assert puzzle.context is not None
        text = puzzle.question.removeprefix("Text: ")
        assert [number for number, found in numbered(puzzle.context, "Document") if found == text] == [
            puzzle.answer
        ]
        easy = make("qa_easy", seed)
        assert easy.context is not None and easy.evidence is not None
        table = dict(numbered(easy.context, "Document"))
        assert [f"Document {number}:\n{table[number]}" for number in easy.references] == list(easy.evidence)
        medium = make("qa_medium", seed)
        assert medium.evidence is not None and all(piece in medium.answer for piece in medium.evidence)
        assert medium.answer.endswith(f"Answer: {medium.references[0]}")


def test_scores_are_soft() -> None:
    assert copied("so: one two three four.", ("one two three four",), {}) == 1.0
    assert copied("one two x four", ("one two three four",), {}) == pytest.approx(0.75)
    assert copied("one two", ("one two three four", "one two"), {}) == pytest.approx((0.5 + 1.0) / 2)
    assert copied("<think>one two</think> none", ("one two",), {}) == 0.0
    assert (
        copied("It is one. Answer: two", ("two",), {}) == 1.0
        and copied("one Answer: two", ("one",), {}) == 0.0
    )
    assert copied_last("one two\n\nthree four", ("three four",), {}) == 1.0
    assert copied_last("three four\n\none two", ("three four",), {}) == 0.0
    assert copied_or_answered("Document 1234567:\nParis is here.\n\nIt is Rome", ("Paris", "Rome"), {}) == 1.0
    assert copied_or_answered("Document 1234567:\nParis is here.\n\nIt is Rome", ("Paris",), {}) == 0.0
