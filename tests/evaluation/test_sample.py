"""Assembling samples: exact lengths, needles where they belong, RULER's metric."""

import random
from dataclasses import replace

import pytest

from longspan.evaluation.haystacks import Haystack, count_tokens
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.haystacks.pydoc import pydoc_haystack
from longspan.evaluation.sample import TEMPLATE_TOKENS, Puzzle, Sample, assemble, make_sample, score
from longspan.evaluation.suites import facts
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


def used_tokens(sample: Sample) -> int:
    texts = (sample.context, "\n\n" + sample.question, " " + sample.answer_prefix)
    return TEMPLATE_TOKENS + sample.max_new_tokens + sum(count_tokens(TOKENIZER, text) for text in texts)


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


@pytest.mark.parametrize("depth", [None, 0.0, 0.5, 1.0])
def test_ordered_needles_keep_their_order(depth: float | None) -> None:
    puzzle = replace(PUZZLE, ordered=True, evidence=PUZZLE.needles[1:])
    for seed in range(10):
        sample = assemble(puzzle, PYDOC, 2000, TOKENIZER, random.Random(seed), depth)
        first, second = (sample.context.index(needle) for needle in PUZZLE.needles)
        assert first < second
        assert depth is None or sample.depths[0] == pytest.approx(depth, abs=0.06)


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
