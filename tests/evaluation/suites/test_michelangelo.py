"""Michelangelo: listings are run by Python, talks and stories are read again by a reader who knows only the text."""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from difflib import SequenceMatcher
from statistics import fmean
from typing import Any

import pytest

from longspan.evaluation.exams import PuzzleExam
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.metrics.text import mrcr
from longspan.evaluation.registry import find_task
from longspan.evaluation.sample import score
from longspan.evaluation.suites.michelangelo.latent_list import printed
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


def build(name: str, tokenizer: Any, seed: int, length: int = 4096) -> Sample:
    exam = find_task(f"michelangelo/{name}").exam
    assert isinstance(exam, PuzzleExam)
    return exam.build(
        length_tokens=length, depth=None, seed=seed, haystack=noise_haystack(), tokenizer=tokenizer
    )


@pytest.mark.parametrize("level", [1, 5, 20])
def test_python_prints_what_is_expected(level: int, tokenizer: Any) -> None:
    for seed in range(12):
        sample = build(f"latent_list_{level}", tokenizer, seed)
        view = re.findall(r"print\((.+?\)|.+?\])\)", sample.question)[0]
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(f"{sample.context}\nprint({view})", {})
        assert output.getvalue().splitlines()[-1] == sample.answer


def test_without_the_operations_that_matter_the_list_is_another(tokenizer: Any) -> None:
    changed = 0
    for seed in range(10):
        scope: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(build("latent_list_5", tokenizer, seed).context, scope)
        first = build("latent_list_5", tokenizer, seed).context.splitlines()[0]
        changed += f"a = {scope['a']}" != first
    assert changed >= 9


def test_only_the_numbers_of_the_first_line_count() -> None:
    assert printed("[12, 7]\nThe list has two items.", ["[12, 7]"], {}) == 1.0
    assert printed("12 7", ["[12, 7]"], {}) == 1.0
    assert printed("[7, 12]", ["[12, 7]"], {}) == 0.0
    assert printed("12", ["[12, 7]"], {}) == 0.0


def turns(context: str) -> list[tuple[str, str]]:
    """Requests and pieces of a talk."""
    found = re.split(r"(?:^|\n\n)User: Write an? (.+?)\.\n\nAssistant: ", context)
    return list(zip(found[1::2], found[2::2], strict=True))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_reader_of_the_talk_gives_the_right_piece(count: int, tokenizer: Any) -> None:
    ordinals = "first second third fourth fifth sixth seventh eighth".split()
    shares = list[float]()
    for seed in range(16):
        sample = build(f"mrcr_{count}", tokenizer, seed)
        code, nth, wish = re.findall(r"Prepend (\w{12}) to the (\w+) (.+?)\. Reply", sample.question)[0]
        talk = turns(sample.context)
        pieces = [piece for said, piece in talk if said == wish]
        assert len(pieces) == count
        assert len({piece for _, piece in talk}) == len(talk), "no piece twice"
        right = pieces[ordinals.index(nth)]
        assert score(f"{code} {right}", sample, mrcr) == 1.0
        assert score(right, sample, mrcr) == 0.0, "without its code"
        shares += [SequenceMatcher(a=right, b=piece).ratio() for piece in pieces]
    assert fmean(shares) == pytest.approx(1 / count + (1 - 1 / count) * 0.09, abs=0.07)


def test_pieces_of_other_kinds_have_little_in_common(tokenizer: Any) -> None:
    sample = build("mrcr_2", tokenizer, 1, 8192)
    right = sample.references[0][13:]
    others = [piece for _, piece in turns(sample.context) if piece != right]
    assert len(others) > 40
    assert fmean(SequenceMatcher(a=right, b=piece).ratio() for piece in others) < 0.12


def test_the_story_holds_the_right_option_or_none(tokenizer: Any) -> None:
    letters = Counter[str]()
    known = traps = 0
    for seed in range(40):
        sample = build("idk", tokenizer, seed, 1024)
        offers = dict(re.findall(r"\((\w)\) (.+)", sample.question))
        name = re.findall(r"(?:of|is|does|buy|does) ([A-Z][a-z]+), the \w+", sample.question)[0]
        about = [text for text in re.split(r"(?<=\.)\s", sample.context) if name in text]
        told = [letter for letter, offer in offers.items() if any(offer in text for text in about)]
        unknown = next(letter for letter, offer in offers.items() if offer == "I don't know")
        assert sample.references == (told[0] if told else unknown,)
        traps += any(offer in sample.context for letter, offer in offers.items() if letter not in told)
        known += bool(told)
        letters[sample.references[0]] += 1
    assert 10 <= known <= 30
    assert traps >= 36, "what is told of the other animal is offered"
    assert min(letters[letter] for letter in "ABCD") >= 3
