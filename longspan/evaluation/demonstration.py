"""The demo's exam: facts hidden in the Python language reference, asked of several specs at growing lengths.

One text a length; every spec reads it once and answers all its questions. What would not fit the time left is left out
and said so, judged by how the same spec grew from shorter texts.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from longspan.evaluation.haystacks import Haystack, TokenizerLike, count_tokens
from longspan.evaluation.suites.facts import Fact, draw_facts

if TYPE_CHECKING:
    from longspan.engine.context import Answer
    from longspan.engine.model import SpanModel

WORST_GROWTH = 2.0  # exponent of time in length that is assumed before two lengths were measured
SPARE_SECONDS = 3.0
MAX_NEW_TOKENS = 16  # the longest answer has about twelve


@dataclass(frozen=True, kw_only=True)
class Exam:
    """A text with facts hidden in it; `depths` are where, 0 to 1, one in each equal part of the text."""

    length_tokens: int
    text: str
    facts: tuple[Fact, ...]
    depths: tuple[float, ...]


def make_exam(
    haystack: Haystack, length_tokens: int, num_facts: int, tokenizer: TokenizerLike, seed: int
) -> Exam:
    """Hide `num_facts` facts at random places, one in each `1/num_facts` of a text of about `length_tokens` tokens."""
    rng = random.Random(f"demo/{length_tokens}/{seed}")
    facts = draw_facts(num_facts, rng)
    room = length_tokens - 160 - sum(count_tokens(tokenizer, fact.statement) + 2 for fact in facts)
    if room < 64 * num_facts:
        raise ValueError(
            f"got a length of {length_tokens} tokens for {num_facts} facts; give {256 * num_facts} or more"
        )
    sentences = haystack.slice(room, tokenizer, rng)
    share = len(sentences) / num_facts
    places = [
        rng.randrange(math.ceil(share * i), max(math.ceil(share * (i + 1)), math.ceil(share * i) + 1))
        for i in range(num_facts)
    ]
    parts: list[str] = []
    hidden = dict(zip(places, facts, strict=True))
    for number, sentence in enumerate(sentences):
        if number in hidden:
            parts.append(f" {hidden[number].statement}")
        parts.append(sentence)
    text = "".join(parts).strip()
    depths = tuple(round(text.find(fact.statement) / len(text), 3) for fact in facts)
    return Exam(length_tokens=length_tokens, text=text, facts=tuple(facts), depths=depths)


@dataclass(kw_only=True)
class Result:
    """What one spec did at one length: `answers` beside the exam's facts, or `reason` why it was left out."""

    spec: str
    exam: Exam
    answers: list[Answer] = field(default_factory=list)
    read_seconds: float = 0.0
    kv_bytes: int = 0
    peak_kv_bytes: int = 0
    reason: str | None = None

    @property
    def right(self) -> list[bool]:
        return [
            fact.answer.lower() in answer.text.lower()
            for fact, answer in zip(self.exam.facts, self.answers, strict=False)
        ]

    def seconds(self, phase: str) -> float:
        return sum(answer.usage.seconds.get(phase, 0.0) for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        return sum(a.usage.generated_tokens for a in self.answers) / max(self.seconds("decode"), 1e-9)

    @property
    def sources_found(self) -> int:
        """Right answers whose first source is the hidden sentence."""
        pairs = zip(self.exam.facts, self.answers, self.right, strict=True)
        return sum(ok and bool(a.sources) and fact.statement in a.sources[0].text for fact, a, ok in pairs)


class Clock:
    """Time left of a budget, and what a spec will take at a length, judged by shorter ones."""

    def __init__(self, budget_seconds: float) -> None:
        self.deadline = time.monotonic() + budget_seconds
        self.taken: dict[str, list[tuple[int, float]]] = {}

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def note(self, spec: str, length: int, seconds: float) -> None:
        self.taken.setdefault(spec, []).append((length, seconds))

    def expected(self, spec: str, length: int) -> float:
        known = self.taken.get(spec, [])
        if not known:
            return 0.0
        last, seconds = known[-1]
        growth = WORST_GROWTH
        if len(known) > 1:
            before, earlier = known[-2]
            growth = min(max(math.log(seconds / earlier) / math.log(last / before), 1.0), WORST_GROWTH)
        return seconds * (length / last) ** growth


def run_demo(
    model: SpanModel,
    specs: Sequence[str],
    exams: Sequence[Exam],
    *,
    budget_seconds: float,
    on_progress: Callable[[str, Exam, int], None] | None = None,
) -> Iterator[Result]:
    """Every spec at every length, shorter before longer and the cheapest next, as far as the time goes.

    A spec that got nothing right at a length waits with the longer ones until no other is left.
    """
    clock, lost = Clock(budget_seconds), set[str]()
    waiting = {spec: list(exams) for spec in specs}
    while waiting:
        spec = min(
            waiting, key=lambda name: (name in lost, clock.expected(name, waiting[name][0].length_tokens))
        )
        exam = waiting[spec].pop(0)
        expected = clock.expected(spec, exam.length_tokens)
        if expected > clock.left - SPARE_SECONDS:
            for longer in [exam, *waiting.pop(spec)]:
                needed = clock.expected(spec, longer.length_tokens)
                reason = f"would take about {needed:.0f} s, {max(clock.left, 0):.0f} s are left"
                yield Result(spec=spec, exam=longer, reason=reason)
            continue
        started = time.monotonic()
        result = _measure(model.with_methods(spec), spec, exam, on_progress)
        yield result
        if not any(result.right):
            lost.add(spec)
        clock.note(spec, exam.length_tokens, time.monotonic() - started)
        if not waiting[spec]:
            del waiting[spec]


def _measure(
    model: SpanModel, spec: str, exam: Exam, on_progress: Callable[[str, Exam, int], None] | None
) -> Result:
    report = None if on_progress is None else lambda done: on_progress(spec, exam, done)
    context = model.read(exam.text, progress=report or False)
    result = Result(
        spec=spec, exam=exam, read_seconds=context.usage.seconds["read"], kv_bytes=context.kv_bytes
    )
    for fact in exam.facts:
        result.answers.append(context.ask(fact.question, max_new_tokens=MAX_NEW_TOKENS))
    peaks = [context.usage.peak_kv_bytes, *(answer.usage.peak_kv_bytes for answer in result.answers)]
    result.peak_kv_bytes = max(peaks)
    return result


def report_rows(results: Sequence[Result], about: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for `render_report`: one a question, one for each spec and length left out."""
    rows: list[dict[str, Any]] = []
    for result in results:
        shared = {
            "spec": result.spec,
            "task": "hidden facts",
            "length_tokens": result.exam.length_tokens,
            **about,
        }
        if result.reason is not None:
            depth = round(0.5 / len(result.exam.facts), 2)
            rows.append({**shared, "status": "skipped", "reason": result.reason, "depth": depth})
            continue
        num = len(result.exam.facts)
        for number, (answer, right) in enumerate(zip(result.answers, result.right, strict=True)):
            rows.append(
                {
                    **shared,
                    "status": "done",
                    "depth": round((number + 0.5) / num, 2),
                    "score": float(right),
                    "read_seconds": result.read_seconds,
                    "prefill_seconds": answer.usage.seconds["prefill"],
                    "decode_seconds": answer.usage.seconds["decode"],
                    "generated_tokens": answer.usage.generated_tokens,
                    "kv_bytes": result.kv_bytes,
                    "peak_kv_bytes": result.peak_kv_bytes,
                }
            )
    return rows


def report_answers(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Questions of the longest text that every answered spec saw, with what each spec said."""
    done = [result for result in results if result.answers]
    cards = []
    for exam in dict.fromkeys(result.exam for result in done):
        for number, fact in enumerate(exam.facts):
            given = [r for r in done if r.exam is exam]
            cards.append(
                {
                    "question": f"{exam.length_tokens // 1024}K tokens, depth {exam.depths[number]:.0%}: {fact.question}",
                    "expected": fact.answer,
                    "source": fact.statement,
                    "answers": [
                        {"spec": r.spec, "text": _with_source(r.answers[number]), "right": r.right[number]}
                        for r in given
                    ],
                }
            )
    return cards


def _with_source(answer: Answer) -> str:
    return answer.text + (f" [source: {answer.sources[0].text}]" if answer.sources else "")
