"""LongGenBench: questions are read back from the text and solved by their wording; answers are found by number."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.exams import DataExam, PuzzleExam
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.published import DataMissing
from longspan.evaluation.registry import find_task
from longspan.evaluation.sample import score
from longspan.evaluation.suites.longgenbench import numbered_answers
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

Numbers = list[int]
SOLVERS: dict[str, Any] = {
    "fills": lambda n: n[0] * n[1] + n[2],
    "On each of": lambda n: n[0] - n[1] * n[2],
    "baskets": lambda n: n[0] * n[1] + n[2] * n[3],
    "walks": lambda n: 2 * (n[0] + n[0] + n[1]),
    "years older": lambda n: n[0] + n[1] + n[2],
    "friends share": lambda n: n[1] // n[0] - n[2],
    "a week and already": lambda n: (n[3] * n[0] - n[2]) / n[1],
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


def build(task: str, tokenizer: Any, seed: int, length: int = 4096) -> Sample:
    exam = find_task(f"longgenbench/{task}").exam
    assert isinstance(exam, PuzzleExam | DataExam)
    return exam.build(
        length_tokens=length, depth=None, seed=seed, haystack=noise_haystack(), tokenizer=tokenizer
    )


def questions(sample: Sample) -> list[str]:
    found = re.findall(r"^Question_(\d+): (.+)$", sample.context, flags=re.MULTILINE)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [text for _, text in found]


def test_word_problems(tokenizer: Any) -> None:
    kinds = set()
    for seed in range(4):
        sample = build("arithmetic", tokenizer, seed)
        asked = questions(sample)
        for text, wanted in zip(asked, sample.references, strict=True):
            (kind,) = [kind for kind in SOLVERS if kind in text]
            kinds.add(kind)
            assert SOLVERS[kind]([int(number) for number in re.findall(r"\d+", text)]) == int(wanted), text
            assert int(wanted) > 0
    assert kinds == set(SOLVERS)


def solve_choice(text: str) -> list[int]:
    """Places of the options that are right."""
    options = re.findall(r"\([A-D]\) (\S+)", text)
    numbers = [int(option) for option in options if option.isdigit()]
    asked = text.split(" (A)")[0]
    if "alphabet" in asked:
        return [options.index(sorted(options)[-1])]
    if "largest" in asked:
        return [numbers.index(max(numbers))]
    if found := re.search(r"(\d+) days after a (\w+)", asked):
        monday = datetime.date(2024, 1, 1)
        start = next(
            monday + datetime.timedelta(gap)
            for gap in range(7)
            if f"{monday + datetime.timedelta(gap):%A}" == found[2]
        )
        return [options.index(f"{start + datetime.timedelta(int(found[1])):%A}")]
    given = [int(number) for number in re.findall(r"\d+", asked)]
    if "divided" in asked:
        return [place for place, number in enumerate(numbers) if number % given[0] == 0]
    return [numbers.index(2 * given[-1] - given[-2])]


def test_choices_have_one_right_option(tokenizer: Any) -> None:
    for seed in range(4):
        sample = build("choice", tokenizer, seed)
        asked = questions(sample)
        assert ["ABCD"[place] for text in asked for place in solve_choice(text)] == list(sample.references)


def test_more_room_means_more_questions_and_a_longer_output(tokenizer: Any) -> None:
    short, long = (build("arithmetic", tokenizer, 1, length) for length in (2048, 8192))
    assert len(long.references) > 3 * len(short.references)
    assert long.max_new_tokens > 3 * short.max_new_tokens
    assert long.max_new_tokens > 80 * len(long.references)


@pytest.mark.parametrize(
    ("answer", "letters", "right", "answered"),
    [
        ("Answer_1: 2 * 9 = 18. The answer is 18.\nAnswer_2: The answer is 1,200.", False, 1.0, 1.0),
        ("Answer_2: The answer is 1200.", False, 0.5, 0.5),
        (
            "Answer_1: So the answer is 2 * 9 = 18.\nAll 2 done.\nAnswer_2: the answer is 1200",
            False,
            1.0,
            1.0,
        ),
        ("Answer_1: 18\nAnswer_1: 7\nAnswer_2: 3 and then 1200.0", False, 1.0, 1.0),
        ("Answer_1: The answer is -18. Answer_2: I do not know.", False, 0.0, 0.5),
        ("18\n1200", False, 0.0, 0.0),
    ],
)
def test_answers_are_found_by_number(answer: str, letters: bool, right: float, answered: float) -> None:
    found = numbered_answers(answer, ("18", "1200"), {"letters": letters})
    assert found == {"score": right, "answered": answered}


def test_letters() -> None:
    found = numbered_answers(
        "Answer_1: (B) because A is not.\nAnswer_2: The answer is C, not A. Answer_3: D",
        ("B", "C", "D"),
        {"letters": True},
    )
    assert found["score"] == 1.0, "of several letters the first counts"
    assert numbered_answers("Answer_1: Because", ("B",), {"letters": True})["score"] == 0.0


def test_published_questions_come_in_batches(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "longgenbench"
    folder.mkdir()
    rows = [
        {"question": f"What is {number} plus 1?", "answer": f"Add.\n#### 1,{number:03}"}
        for number in range(25)
    ]
    (folder / "gsm8k_test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    choices = [
        {"question": f"Pick {number % 4}", "choices": list("wxyz"), "answer": number % 4}
        for number in range(10)
    ]
    (folder / "mmlu_test.jsonl").write_text("\n".join(map(json.dumps, choices)), encoding="utf-8")
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    exam = find_task("longgenbench/gsm8k_10").exam
    assert exam.num_items() == 2, "25 questions make two batches of ten"
    sample = build("gsm8k_10", tokenizer, 1)
    assert questions(sample)[0] == "What is 10 plus 1?"
    assert sample.references[0] == "1010"
    assert exam.labels is not None and score(sample.answer, sample, exam.labels.metric) == 1.0
    sample = build("mmlu_10", tokenizer, 0)
    assert questions(sample)[1] == "Pick 1 (A) w (B) x (C) y (D) z"
    assert "".join(sample.references) == "ABCDABCDAB"
    with pytest.raises(DataMissing, match="mmlu_test.jsonl"):
        monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path / "elsewhere"))
        build("mmlu_40", tokenizer, 0)
