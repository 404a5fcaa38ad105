"""The demo's exam: facts in their part of the text, and what is left out when the time is short."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from longspan.evaluation import demonstration
from longspan.evaluation.demonstration import Clock, Exam, Result, make_exam, run_demo
from longspan.evaluation.haystacks.pydoc import pydoc_haystack
from tests.models import word_tokenizer


def test_facts_lie_one_in_each_part() -> None:
    exam = make_exam(pydoc_haystack(), 6000, 5, word_tokenizer(), seed=3)
    again = make_exam(pydoc_haystack(), 6000, 5, word_tokenizer(), seed=3)
    assert exam == again and exam != make_exam(pydoc_haystack(), 6000, 5, word_tokenizer(), seed=4)
    assert all(fact.statement in exam.text for fact in exam.facts)
    assert list(exam.depths) == sorted(exam.depths)
    words = len(word_tokenizer()(exam.text)["input_ids"])
    assert 0.9 * 6000 < words <= 6000


def test_a_text_too_short_for_its_facts_is_refused() -> None:
    with pytest.raises(ValueError, match="give 5120 or more"):
        make_exam(pydoc_haystack(), 1024, 20, word_tokenizer(), seed=0)


def test_time_is_judged_by_shorter_texts() -> None:
    clock = Clock(100)
    assert clock.expected("a", 4096) == 0
    clock.note("a", 4096, 1.0)
    assert clock.expected("a", 8192) == pytest.approx(4.0)
    clock.note("a", 8192, 2.0)
    assert clock.expected("a", 65536) == pytest.approx(16.0)
    clock.note("b", 4096, 1.0)
    clock.note("b", 8192, 4.0)
    assert clock.expected("b", 65536) == pytest.approx(256.0)


def test_a_spec_that_fails_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out is judged for its own length."""
    exams = [Exam(length_tokens=n, text="", facts=(), depths=()) for n in (1000, 2000, 4000)]
    monkeypatch.setattr(Result, "right", property(lambda result: [result.spec == "good"]))
    monkeypatch.setattr(
        Clock, "expected", lambda clock, spec, length: length / (100 if spec == "good" else 400)
    )
    monkeypatch.setattr(Clock, "left", property(lambda clock: 50.0 if len(order) < 5 else 9.0))
    monkeypatch.setattr(
        demonstration, "_measure", lambda model, spec, exam, report: Result(spec=spec, exam=exam)
    )
    order: list[tuple[str, int]] = []
    reasons = []
    model = SimpleNamespace(with_methods=lambda spec: None)
    for result in run_demo(model, ["good", "lost"], exams, budget_seconds=60):  # type: ignore[arg-type]
        order.append((result.spec, result.exam.length_tokens))
        reasons.append(result.reason)
    assert order[0] == ("lost", 1000) and order[1:4] == [("good", n) for n in (1000, 2000, 4000)]
    assert order[4:] == [("lost", 2000), ("lost", 4000)]
    assert reasons[:5] == [None] * 5 and reasons[5] == "would take about 10 s, 9 s are left"
