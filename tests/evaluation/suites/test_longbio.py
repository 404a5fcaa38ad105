"""LongBioBench: every question is answered again by a reader of the text, who knows nothing of how it was made."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pytest

from longspan.evaluation.exams import PuzzleExam
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.registry import find_task, find_tasks
from longspan.evaluation.sample import score
from longspan.evaluation.suites.longbio import ages_differ, lists
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

TASKS = [name for name in find_tasks() if name.startswith("longbio/")]
NAME = r"([A-Z][a-z]+ [A-Z][a-z]+ [A-Z][a-z]+)"
ASKED = {
    rf"the birthday of {NAME}\?": "birthday",
    rf"was {NAME} born\?": "birthplace",
    rf"the hobby of {NAME}\?": "hobby",
    rf"did {NAME} study\?": "university",
    rf"the major of {NAME}\?": "major",
    rf"did {NAME} work\?": "work",
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


def build(name: str, tokenizer: Any, seed: int, length: int = 4096) -> Sample:
    exam = find_task(name).exam
    assert isinstance(exam, PuzzleExam)
    return exam.build(
        length_tokens=length, depth=None, seed=seed, haystack=noise_haystack(), tokenizer=tokenizer
    )


def read(context: str) -> dict[tuple[str, str], str]:
    """What the text says, by person and attribute; facts told through another person are followed up."""
    told: dict[tuple[str, str], str] = {}
    for noun, name, value in re.findall(
        rf"The (birthday|age|birthplace|hobby|university|major) of {NAME} (?:is|was) (.+?)\.", context
    ):
        told[name, noun] = value
    for name, value in re.findall(rf"The town where {NAME} worked was (.+?)\.", context):
        told[name, "work"] = value
    for name, value in re.findall(rf"The town of work of {NAME} is (.+?)\.", context):
        told[name, "work"] = value
    for name, noun in told:
        while other := re.fullmatch(rf"the same as that of {NAME}", told[name, noun]):
            told[name, noun] = told[other[1], noun]
    return told


def asked(question: str) -> list[tuple[str, str]]:
    found = [
        (match.start(), match[1], noun)
        for pattern, noun in ASKED.items()
        for match in re.finditer(pattern, question)
    ]
    return [(name, noun) for _, name, noun in sorted(found)]


@pytest.mark.parametrize(
    "task",
    [
        "standard",
        "multi_standard_2",
        "multi_standard_5",
        "multi_standard_10",
        "multihop_2",
        "multihop_5",
        "idk",
    ],
)
def test_a_reader_of_plain_sentences_finds_the_answers(task: str, tokenizer: Any) -> None:
    answers = []
    for seed in range(12):
        sample = build(f"longbio/{task}", tokenizer, seed)
        told = read(sample.context)
        answers.append(", ".join(told.get(key, "The answer is not stated") for key in asked(sample.question)))
        assert answers[-1] + "." == sample.answer
    if task == "idk":
        assert 2 <= answers.count("The answer is not stated") <= 10


def test_citations_are_the_numbers_of_the_biographies(tokenizer: Any) -> None:
    metric = find_task("longbio/citation_2").exam.labels.metric
    for seed in range(8):
        sample = build("longbio/citation_2", tokenizer, seed)
        texts = dict(re.findall(r"^Bio \[(\d+)\]: (.+)$", sample.context, flags=re.MULTILINE))
        assert list(texts) == [str(number) for number in range(1, len(texts) + 1)]
        found = []
        for name, noun in asked(sample.question):
            number = next(
                number for number, text in texts.items() if f"of {name}." in text.split(". ")[0] + "."
            )
            found.append(f"{read(texts[number])[name, noun]} [{number}]")
        assert ", ".join(found) + "." == sample.answer
        assert score(", ".join(sample.references), sample, metric) == 0.0, "right answers without citations"


@pytest.mark.parametrize("task", ["calculation", "rank_2", "rank_5"])
def test_sums_over_ages(task: str, tokenizer: Any) -> None:
    for seed in range(8):
        sample = build(f"longbio/{task}", tokenizer, seed)
        told = read(sample.context)
        ages = {name: int(told[name, "age"]) for name in re.findall(NAME, sample.question.split(":")[-1])}
        if task == "calculation":
            first, second = ages.values()
            assert sample.answer == f"{abs(first - second)}."
        else:
            assert len(ages) == int(task[-1])
            assert sample.answer == ", ".join(sorted(ages, key=ages.__getitem__)) + "."


def test_any_pair_of_the_right_difference_will_do(tokenizer: Any) -> None:
    sample = build("longbio/twodiff", tokenizer, 5)
    ages = {name: int(value) for (name, noun), value in read(sample.context).items() if noun == "age"}
    wanted = int(re.findall(r"\d+", sample.question)[0])
    for first, second in combinations(ages, 2):
        right = abs(ages[first] - ages[second]) == wanted
        assert score(f"{second} and {first}", sample, ages_differ) == right
    assert score(", ".join(ages), sample, ages_differ) == 0.0, "all people are no pair"


@pytest.mark.parametrize("task", ["paraphrase", "pronoun"])
def test_reworded_texts_hold_the_value_once_and_never_the_plain_sentence(task: str, tokenizer: Any) -> None:
    for seed in range(8):
        sample = build(f"longbio/{task}", tokenizer, seed)
        (evidence,) = sample.evidence
        assert sample.references[0].lower() in evidence.lower()
        assert not read(sample.context)
        ((name, _),) = asked(sample.question)
        assert evidence.count(name) == 1


def test_values_are_not_part_of_each_other() -> None:
    for values in (lists.HOBBIES, lists.MAJORS):
        assert len(set(values)) == len(values)
        assert not [(one, other) for one in values for other in values if one != other and one in other]


def test_all_fifteen_tasks_are_there() -> None:
    assert len(TASKS) == 15


def test_too_many_people_for_the_room_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="10 people need about 2400 tokens.*ask for 2560 or more"):
        build("longbio/multi_standard_10", tokenizer, 0, 2048)
