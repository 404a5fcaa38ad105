"""PRELUDE: stories of what was before a book, verdicts read from answers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from longspan.evaluation.metrics.prelude_rules import verdict
from longspan.evaluation.published import DataMissing
from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_the_cut_spares_the_question,
    exam,
    sample,
    scored,
)

HEAD = "id,book_name,char,caption,content,label\n"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    (tmp_path / "prelude" / "books").mkdir(parents=True)
    (tmp_path / "prelude" / "books" / "The_Long_Gate.txt").write_text(
        "Ada never left the valley. " * 300 + "End."
    )
    rows = '46,The Long Gate,Ada,,"Ada, a child, milked goats.",consistent\n47,The Long Gate,Ada,At sea,Ada sailed.,contradict\n'
    (tmp_path / "prelude" / "prelude.csv").write_text(HEAD + rows)
    return tmp_path


def test_a_story(data: Path) -> None:
    first, second = sample("prelude/stories"), sample("prelude/stories", 1)
    assert first.context.startswith("Ada never left the valley.")
    assert "what Ada did before" in first.question and "\n\nAda, a child, milked goats.\n\n" in first.question
    assert "\n\nAt sea\nAda sailed.\n\n" in second.question
    assert (first.references, second.references) == (("consistent",), ("contradict",))
    assert (
        scored("prelude/stories", first.answer)["score"]
        == scored("prelude/stories", second.answer, 1)["score"]
        == 1.0
    )
    assert scored("prelude/stories", "She was at sea. CONTRADICT")["score"] == 0.0
    assert scored("prelude/stories", "Hard to say.")["score"] == 0.0


def test_verdicts() -> None:
    assert (
        verdict("It is inconsistent.")
        == verdict("This contradicts the book")
        == verdict("not consistent")
        == "contradict"
    )
    assert verdict("It does not contradict it") == verdict("A contradiction? No: CONSISTENT") == "consistent"
    assert verdict("") is None


def test_a_guesser_is_right_half_the_time(data: Path) -> None:
    labels, rng, asked = exam("prelude/stories").labels, random.Random(0), sample("prelude/stories")
    assert labels.guess is not None and labels.chance == 0.5
    drawn = [labels.guess(rng, asked) for _ in range(200)]
    assert 70 < drawn.count("CONSISTENT") < 130 and len(set(drawn)) == 2


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "prelude" / "prelude.csv").write_text(HEAD + "1,The Long Gate,Ada,,x,maybe\n")
    with pytest.raises(ValueError, match="the label of 1 is 'maybe'; it must be consistent or contradict"):
        sample("prelude/stories")
    (data / "prelude" / "prelude.csv").write_text(HEAD + "1,Lost,Ada,,x,consistent\n")
    with pytest.raises(DataMissing, match=r"put books/Lost.txt into"):
        sample("prelude/stories")
    check_data_are_asked_for("prelude/stories", monkeypatch, "prelude")


def test_a_long_book_loses_its_middle(data: Path) -> None:
    check_the_cut_spares_the_question("prelude/stories", length=1200)
