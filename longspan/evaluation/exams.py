"""What a task does with a model: build one item, put it to the model, return the fields of a result row.

A value of a suite's `TASKS` is a `Task` (`longspan.evaluation.task`: puzzles over a long context), a `DataTask`
(`longspan.evaluation.published`: published questions), or an object with the members of `Exam` when there is no question to
answer, as in `suites/perplexity.py`. The runner sees exams only.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Literal, Protocol

from longspan.evaluation.haystacks import Haystack, TokenizerLike, count_tokens
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.metrics import grade
from longspan.evaluation.published import DataTask, cut_middle
from longspan.evaluation.sample import TEMPLATE_TOKENS, make_sample
from longspan.evaluation.task import SEAM_TOKENS, Labels, Room, Sample, Task

if TYPE_CHECKING:
    from longspan.engine.model import SpanModel

__all__ = ["FIRST_SEED", "AnswerExam", "DataExam", "Exam", "PuzzleExam", "asked", "costs", "exam_of"]

FIRST_SEED = 1_000_000
"""Seeds from here on are for evaluation: the reference model has been trained on samples of smaller seeds."""

EXCERPT_CHARACTERS = 160
EXCERPTS = 4


class Exam(Protocol):
    """Builds items of one task and measures models on them.

    `kind` is "answer" when `measure` gives a `score` in 0..1, "likelihood" when it gives `nll` and `buckets`.
    """

    @property
    def kind(self) -> Literal["answer", "likelihood"]: ...

    @property
    def labels(self) -> Labels | None:
        """What the task measures; None without answers."""
        ...

    def num_items(self) -> int | None:
        """How many different items there are; None where seeds make as many as are asked for.

        Raises:
            ValueError: the data are absent or malformed.
        """
        ...

    def takes_depth(self, length_tokens: int, tokenizer: TokenizerLike) -> bool:
        """True when the place of the answer can be chosen."""
        ...

    def build(
        self,
        *,
        length_tokens: int,
        depth: float | None,
        seed: int,
        haystack: Haystack,
        tokenizer: TokenizerLike,
    ) -> Any:
        """One item; the same arguments give the same item. ValueError: there is none of this length."""
        ...

    def measure(self, model: SpanModel, item: Any) -> dict[str, Any]:
        """Fields of the result row, see `longspan.evaluation.results`."""
        ...


@dataclass(frozen=True, kw_only=True)
class AnswerExam:
    """A question over a long context, answered greedily and scored by the task's metric."""

    name: str
    kind: Literal["answer", "likelihood"] = "answer"

    @property
    def labels(self) -> Labels:
        """Of the task."""
        raise NotImplementedError

    def measure(self, model: SpanModel, item: Sample) -> dict[str, Any]:
        """Read the context, ask the question, score the answer."""
        context = model.read(item.context, progress=False)
        answer = context.ask(
            asked(model.tokenizer, item.question),
            answer_prefix=item.answer_prefix,
            max_new_tokens=item.max_new_tokens,
            sources=False,
        )
        return {
            **self.marked(answer.text, item),
            **costs(context, answer.usage),
            "actual_tokens": answer.usage.cached_tokens + answer.usage.prompt_tokens,
            "cut": answer.usage.generated_tokens >= item.max_new_tokens,
        }

    def marked(self, prediction: str, item: Sample) -> dict[str, Any]:
        """The fields that say what was asked, answered and scored."""
        scores = dict(grade(self.labels.metric, prediction, item.references, item.details))
        return {
            "score": scores.pop("score"),
            "scores": scores,
            "metric": self.labels.metric_name,
            "ability": self.labels.ability,
            "diffusion": self.labels.diffusion,
            "scope": self.labels.scope,
            "prediction": prediction,
            "references": list(item.references),
            "question": item.question,
            "evidence": list(item.evidence),
            "depths": list(item.depths),
            "excerpt": excerpts(item),
            "truncated": item.truncated,
        }


def asked(tokenizer: TokenizerLike, question: str) -> str:
    """The question as it follows the context: a model without a chat template gets the line breaks that a template brings."""
    return question if getattr(tokenizer, "chat_template", None) else f"\n\n{question}\n"


def costs(context: Any, usage: Any) -> dict[str, Any]:
    """Seconds, bytes and kernels of one answer over a context that was read."""
    used = [*context.usage.backends, *usage.backends]
    return {
        "generated_tokens": usage.generated_tokens,
        "read_seconds": context.usage.seconds.get("read"),
        "prefill_seconds": usage.seconds.get("prefill"),
        "decode_seconds": usage.seconds.get("decode"),
        "kv_bytes": context.kv_bytes,
        "peak_kv_bytes": usage.peak_kv_bytes,
        "backends": sorted({f"{row['op']}={row['backend']}" for row in used}),
    }


def excerpts(item: Sample) -> list[list[str]]:
    """The first pieces of evidence with the text around them: [before, evidence, after]."""
    found = []
    for piece in item.evidence[:EXCERPTS]:
        start = item.context.find(piece)
        if start >= 0:
            end = start + len(piece)
            before = item.context[max(0, start - EXCERPT_CHARACTERS) : start]
            found.append([before, piece, item.context[end : end + EXCERPT_CHARACTERS]])
    return found


@dataclass(frozen=True, kw_only=True)
class PuzzleExam(AnswerExam):
    """Puzzles that a suite invents, at any length."""

    task: Task

    @property
    def labels(self) -> Labels:
        """Of the task."""
        return self.task

    def num_items(self) -> None:
        """As many as there are seeds."""
        return None

    def takes_depth(self, length_tokens: int, tokenizer: TokenizerLike) -> bool:
        """True for one piece of evidence: several would otherwise lie all in one place, which is another task."""
        room = Room(
            tokens=length_tokens - TEMPLATE_TOKENS,
            count=lambda text: count_tokens(tokenizer, text),
            haystack=noise_haystack(),
            tokenizer=tokenizer,
        )
        puzzle = self.task.make(Random(0), room)
        evidence = puzzle.needles if puzzle.evidence is None else puzzle.evidence
        return (puzzle.context is None or self.task.places) and len(evidence) == 1

    def build(
        self,
        *,
        length_tokens: int,
        depth: float | None,
        seed: int,
        haystack: Haystack,
        tokenizer: TokenizerLike,
    ) -> Sample:
        """The sample of this length, depth and seed."""
        return make_sample(
            self.task,
            name=self.name,
            haystack=noise_haystack() if self.task.haystack == "noise" else haystack,
            length_tokens=length_tokens,
            tokenizer=tokenizer,
            seed=seed,
            depth=depth,
        )


@dataclass(frozen=True, kw_only=True)
class DataExam(AnswerExam):
    """Published questions; contexts longer than the length asked for lose their middle, as in LongBench."""

    task: DataTask

    @property
    def labels(self) -> Labels:
        """Of the task."""
        return self.task

    def num_items(self) -> int:
        """Questions in the file."""
        return len(self.task.questions())

    def takes_depth(self, length_tokens: int, tokenizer: TokenizerLike) -> bool:
        """False: the text is as it was published."""
        return False

    def build(
        self,
        *,
        length_tokens: int,
        depth: float | None,
        seed: int,
        haystack: Haystack,
        tokenizer: TokenizerLike,
    ) -> Sample:
        """The question whose number is `seed` (counted from 0, or from the first seed of evaluation)."""
        questions = self.task.questions()
        number = seed - FIRST_SEED if seed >= FIRST_SEED else seed
        if number >= len(questions):
            raise ValueError(
                f"{self.name} has {len(questions)} questions, number {number} was asked for; ask for fewer samples"
            )
        chosen = questions[number]
        parts = (chosen.question, chosen.answer_prefix)
        taken = sum(count_tokens(tokenizer, part) + SEAM_TOKENS for part in parts if part)
        left = length_tokens - TEMPLATE_TOKENS - self.task.max_new_tokens - taken
        if left < 1:
            raise ValueError(
                f"question and answer of {self.name} alone need {length_tokens - left} tokens, length_tokens is "
                f"{length_tokens}; ask for more"
            )
        context, truncated = cut_middle(chosen.context, left, tokenizer)
        kept = tuple(piece for piece in chosen.evidence if piece in context)
        return Sample(
            task=self.name,
            length_tokens=length_tokens,
            seed=seed,
            context=context,
            question=chosen.question,
            answer_prefix=chosen.answer_prefix,
            references=chosen.references,
            answer=chosen.answer or chosen.references[0],
            evidence=kept,
            depths=tuple(round(context.index(piece) / max(1, len(context)), 4) for piece in kept),
            max_new_tokens=self.task.max_new_tokens,
            details=chosen.details,
            truncated=truncated,
        )


def exam_of(name: str, task: Any) -> Exam:
    """The exam of a value of a suite's `TASKS`."""
    if isinstance(task, Task):
        return PuzzleExam(name=name, task=task)
    if isinstance(task, DataTask):
        return DataExam(name=name, task=task)
    exam: Exam = task
    return exam
