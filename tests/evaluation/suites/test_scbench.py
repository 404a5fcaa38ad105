"""Sessions over one context: every question about its own document; turns see earlier answers, requests do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from longspan.evaluation.exams import FIRST_SEED
from longspan.evaluation.haystacks import count_tokens
from longspan.evaluation.haystacks.pydoc import pydoc_haystack
from longspan.evaluation.registry import find_task
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(ASSETS)


def build(name: str, seed: int = 0, length: int = 3000) -> Any:
    return find_task(name).exam.build(
        length_tokens=length,
        depth=None,
        seed=FIRST_SEED + seed,
        haystack=pydoc_haystack(),
        tokenizer=TOKENIZER,
    )


class FakeContext:
    """Answers with the ideal answer of the document named in the question; keeps a record of turns."""

    def __init__(self, session: Any, wrong: int, history: tuple[str, ...] = ()) -> None:
        self.session, self.wrong, self.history = session, wrong, history
        self.asked: list[tuple[str, ...]] = []
        self.kv_bytes, self.num_tokens = 10, 100 + len(history)
        self.usage = SimpleNamespace(seconds={"read": 1.0}, backends=[])
        self.log: list[tuple[str, ...]] = []

    def ask(self, question: str, *, answer_prefix: str, **_: Any) -> Any:
        number = int(question.split("document ")[1].split(".")[0])
        assert question.endswith(self.session.parts[number - 1].question)
        self.log.append(self.history)
        text = "no idea" if number == self.wrong else self.session.parts[number - 1].answer
        usage = SimpleNamespace(
            generated_tokens=2,
            seconds={"prefill": 0.1 * number, "decode": 0.5},
            peak_kv_bytes=20 + number,
            backends=[],
        )
        return SimpleNamespace(text=text, usage=usage)

    def with_turn(self, question: str, answer: str) -> FakeContext:
        following = FakeContext(self.session, self.wrong, (*self.history, answer))
        following.log = self.log
        return following


@pytest.mark.parametrize("mode", ["multi_turn", "multi_request"])
def test_every_question_is_asked_and_the_mean_is_the_score(mode: str) -> None:
    name = f"scbench/{mode}:facts/single"
    session = build(name)
    context = FakeContext(session, wrong=2)
    row = find_task(name).exam.measure(
        SimpleNamespace(read=lambda text, progress: context, tokenizer=TOKENIZER), session
    )  # type: ignore[arg-type]
    assert row["scores"] == {"turn_1": 1.0, "turn_2": 0.0, "turn_3": 1.0}
    assert row["score"] == pytest.approx(2 / 3)
    assert (row["generated_tokens"], row["decode_seconds"], row["peak_kv_bytes"]) == (6, 1.5, 23)
    lengths = [len(history) for history in context.log]
    assert lengths == ([0, 1, 2] if mode == "multi_turn" else [0, 0, 0])
    assert mode == "multi_request" or context.log[2][1] == "no idea"


def test_documents_are_numbered_and_fill_the_length() -> None:
    session = build("scbench/multi_request_kv")
    for number, part in enumerate(session.parts, start=1):
        assert f"### Document {number}\n{part.context[:60]}" in session.context
        assert part.evidence[0] in session.context
    budgets = sum(part.max_new_tokens + count_tokens(TOKENIZER, part.question) for part in session.parts)
    assert 0.95 * 3000 <= count_tokens(TOKENIZER, session.context) + budgets + 60 <= 3060


def test_sessions_of_neighbouring_seeds_share_no_part() -> None:
    first, second = build("scbench/multi_turn_facts", 0), build("scbench/multi_turn_facts", 1)
    assert not {part.question for part in first.parts} & {part.question for part in second.parts}


def test_what_asks_nothing_is_refused() -> None:
    for inner, sentence in (
        ("perplexity", "asks no question"),
        ("scbench/multi_turn_kv", "is a session already"),
    ):
        with pytest.raises(ValueError, match=sentence):
            build(f"scbench/multi_turn:{inner}")
