"""SCBench: several questions over one shared context, one after another in a conversation, or each on its own.

A cache is read once and asked often, which is where methods that drop tokens for the first question fail the second. The
wrappers work over any task with answers: `scbench/multi_turn:ruler/niah_multikey_2`. A session joins several samples of the
inner task, each a numbered document of its own, and asks the question of each. In `multi_turn` every question follows the
earlier ones and the model's own answers; in `multi_request` all questions go to the same context, apart. The score is the mean
over the questions, three, or five in `multi_turn_5` and `multi_request_5`; sub-scores give each turn.

Paper: SCBench: A KV Cache-Centric Analysis of Long-Context Methods (Li et al., 2024)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from longspan.evaluation.exams import FIRST_SEED, AnswerExam, Exam, asked, costs
from longspan.evaluation.haystacks import Haystack, TokenizerLike, count_tokens
from longspan.evaluation.registry import TaskEntry, find_task
from longspan.evaluation.task import Labels, Sample

if TYPE_CHECKING:
    from longspan.engine.model import SpanModel

CARD: dict[str, Any] = {
    "name": "scbench",
    "title": "SCBench: A KV Cache-Centric Analysis of Long-Context Methods",
    "year": 2024,
    "version": 1,
    "metric": "mean over the questions of the inner task's metric; sub-scores turn_1, turn_2, ...",
    "differs": [
        "a wrapper over this benchmark's tasks instead of twelve data sets of its own",
        "the parts stand as numbered documents in one context, so that any task can be joined",
        "in multi_turn the history holds the model's own answers (SCBench gives the gold ones)",
    ],
    "paper_id": None,
    "lengths": "from twice the inner task's shortest",
    "needs": "what the inner task needs",
    "licence": "generated here",
}

Mode = Literal["multi_turn", "multi_request"]


@dataclass(frozen=True, kw_only=True)
class Session:
    """A context of several documents, and a question about each."""

    context: str
    parts: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class SessionExam(AnswerExam):
    """Several samples of one task over one context.

    Attributes:
        inner: full name of the task.
        mode: whether questions share one conversation, or only the context.
        num_questions: documents in the context, and questions.
    """

    inner: str
    mode: Mode
    num_questions: int = 3

    @property
    def _exam(self) -> Exam:
        exam = find_task(self.inner).exam
        if exam.labels is None:
            raise ValueError(
                f"{self.inner} asks no question, so there are no turns; wrap a task that has answers"
            )
        return exam

    @property
    def labels(self) -> Labels:
        """Of the inner task."""
        labels = self._exam.labels
        assert labels is not None
        return labels

    def num_items(self) -> int | None:
        """Sessions that the inner task's questions suffice for."""
        found = self._exam.num_items()
        return None if found is None else max(1, found // self.num_questions)

    def takes_depth(self, length_tokens: int, tokenizer: TokenizerLike) -> bool:
        """False: the documents lie one after another."""
        return False

    def build(
        self,
        *,
        length_tokens: int,
        depth: float | None,
        seed: int,
        haystack: Haystack,
        tokenizer: TokenizerLike,
    ) -> Session:
        """The session of this length and seed; the parts have equal lengths."""
        heads = [f"### Document {number}\n" for number in range(1, self.num_questions + 1)]
        asks = [f"This is about document {number}. " for number in range(1, self.num_questions + 1)]
        spent = max(count_tokens(tokenizer, "\n\n" + text) for text in heads)
        spent += max(count_tokens(tokenizer, text) for text in asks)
        start = FIRST_SEED if seed >= FIRST_SEED else 0
        first = start + (seed - start) * self.num_questions
        parts = []
        for place in range(self.num_questions):
            part = self._exam.build(
                length_tokens=length_tokens // self.num_questions - spent,
                depth=None,
                seed=first + place,
                haystack=haystack,
                tokenizer=tokenizer,
            )
            if not isinstance(part, Sample):
                raise ValueError(f"{self.inner} is a session already; wrap a task that asks one question")
            parts.append(part)
        context = "\n\n".join(head + part.context for head, part in zip(heads, parts, strict=True))
        return Session(context=context, parts=tuple(parts))

    def measure(self, model: SpanModel, item: Any) -> dict[str, Any]:
        """Read once, ask every question, score each."""
        assert isinstance(item, Session)
        first = context = model.read(item.context, progress=False)
        rows, usages = [], []
        for number, part in enumerate(item.parts, start=1):
            question = asked(model.tokenizer, f"This is about document {number}. {part.question}")
            answer = context.ask(
                question, answer_prefix=part.answer_prefix, max_new_tokens=part.max_new_tokens, sources=False
            )
            rows.append(self.marked(answer.text, part))
            usages.append(costs(first, answer.usage))
            if self.mode == "multi_turn" and number < len(item.parts):
                said = f"{part.answer_prefix} {answer.text}".strip() if part.answer_prefix else answer.text
                context = context.with_turn(question, said)
        scores = {f"turn_{number}": row["score"] for number, row in enumerate(rows, start=1)}
        whole = {
            name: max(usage[name] or 0 for usage in usages) for name in ("prefill_seconds", "peak_kv_bytes")
        }
        added = {
            name: sum(usage[name] for usage in usages) for name in ("generated_tokens", "decode_seconds")
        }
        return {
            **rows[0],
            **usages[0],
            **whole,
            **added,
            "score": fmean(scores.values()),
            "scores": scores,
            "question": "\n".join(str(row["question"]) for row in rows),
            "prediction": "\n".join(str(row["prediction"]) for row in rows),
            "references": [reference for row in rows for reference in row["references"]],
            "evidence": [piece for row in rows for piece in row["evidence"]],
            "depths": [],
            "excerpt": [excerpt for row in rows for excerpt in row["excerpt"]],
            "actual_tokens": context.num_tokens,
        }


def _wrapper(mode: Mode, num_questions: int = 3) -> Callable[[str, TaskEntry], SessionExam]:
    return lambda name, entry: SessionExam(
        name=name, inner=entry.name, mode=mode, num_questions=num_questions
    )


WRAPPERS: dict[str, Callable[[str, TaskEntry], SessionExam]] = {
    "multi_turn": _wrapper("multi_turn"),
    "multi_request": _wrapper("multi_request"),
    "multi_turn_5": _wrapper("multi_turn", 5),
    "multi_request_5": _wrapper("multi_request", 5),
}

TASKS: dict[str, SessionExam] = {
    f"{mode}_{short}": SessionExam(name=f"scbench/{mode}_{short}", inner=inner, mode=mode)
    for mode in ("multi_turn", "multi_request")
    for short, inner in (("kv", "ruler/niah_multikey_2"), ("facts", "facts/several"), ("vt", "ruler/vt"))
}
