"""Assembling samples: exact lengths, needles where they belong, RULER's metric."""

import random
from dataclasses import replace

import pytest

from longspan.evaluation.haystacks import Haystack, count_tokens
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.haystacks.pydoc import pydoc_haystack
from longspan.evaluation.sample import TEMPLATE_TOKENS, Puzzle, Sample, Task, assemble, make_sample, score
from longspan.evaluation.suites import facts, keyvalue, ruler
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(ASSETS)
PYDOC = pydoc_haystack()
NOISE = noise_haystack()
PUZZLE = Puzzle(
    needles=("The blue cup is in the attic.", "The red cup is in the cellar."),
    question="Where is the blue cup?",
    references=("attic",),
    answer="in the attic.",
    max_new_tokens=16,
)
ALL_TASKS = [
    (f"{suite.CARD['name']}/{name}", task)
    for suite in (ruler, keyvalue, facts)
    for name, task in suite.TASKS.items()
]


def used_tokens(sample: Sample) -> int:
    texts = (sample.context, "\n\n" + sample.question, " " + sample.answer_prefix)
    return TEMPLATE_TOKENS + sample.max_new_tokens + sum(count_tokens(TOKENIZER, text) for text in texts)


@pytest.mark.parametrize(("name", "task"), ALL_TASKS, ids=[name for name, _ in ALL_TASKS])
@pytest.mark.parametrize("length", [1024, 4096])
def test_a_sample_has_its_length_and_holds_its_evidence(name: str, task: Task, length: int) -> None:
    haystack = NOISE if task.haystack == "noise" else PYDOC
    for seed in range(3):
        sample = make_sample(
            task, name=name, haystack=haystack, length_tokens=length, tokenizer=TOKENIZER, seed=seed
        )
        assert 0.98 * length <= used_tokens(sample) <= length + 2
        assert all(needle in sample.context for needle in sample.evidence)
        held = " ".join(sample.evidence) or sample.context
        assert all(reference in held for reference in sample.references)
        assert score(" ".join(sample.references), sample) == 1.0


def test_one_seed_gives_one_sample() -> None:
    def make(seed: int) -> Sample:
        return make_sample(
            facts.TASKS["several"],
            name="f",
            haystack=PYDOC,
            length_tokens=700,
            tokenizer=TOKENIZER,
            seed=seed,
        )

    assert make(3) == make(3)
    assert make(3).context != make(4).context


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_evidence_stands_at_the_wished_depth(depth: float) -> None:
    puzzle = replace(PUZZLE, evidence=PUZZLE.needles[:1])
    sample = assemble(puzzle, PYDOC, 2000, TOKENIZER, random.Random(1), depth)
    assert sample.depths[0] == pytest.approx(depth, abs=0.04)


def test_ordered_needles_keep_their_order() -> None:
    for seed in range(10):
        sample = assemble(replace(PUZZLE, ordered=True), PYDOC, 600, TOKENIZER, random.Random(seed))
        first, second = (sample.context.index(needle) for needle in PUZZLE.needles)
        assert first < second


def test_line_needles_stand_on_lines_of_their_own() -> None:
    sample = assemble(replace(PUZZLE, style="line"), NOISE, 800, TOKENIZER, random.Random(5))
    assert set(PUZZLE.needles) <= set(sample.context.split("\n"))


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"length_tokens is 40; ask for \d+ or more"):
        assemble(PUZZLE, PYDOC, 40, TOKENIZER, random.Random(0))
    with pytest.raises(ValueError, match=r"depth is 1.5; allowed is 0.0"):
        assemble(PUZZLE, PYDOC, 400, TOKENIZER, random.Random(0), 1.5)


def test_score_is_the_share_of_references_found() -> None:
    sample = replace(assemble(PUZZLE, PYDOC, 300, TOKENIZER, random.Random(0)), references=("Attic", "moon"))
    assert score("it is in the ATTIC.", sample) == 0.5
    assert score("", sample) == 0.0


def test_a_short_text_goes_round() -> None:
    sample = assemble(PUZZLE, Haystack("One is here. Two is there."), 400, TOKENIZER, random.Random(0))
    assert sample.context.count("Two is there.") > 20
    assert used_tokens(sample) <= 400
