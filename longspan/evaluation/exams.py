"""What a task does with a model: build one item, put it to the model, return the fields of a result row.

A value of a suite's `TASKS` is a `Task` (see `longspan.evaluation.sample`: a question over a long context), or an
object with the members of `Exam` when there is no question to answer, as in `suites/perplexity.py`. The runner sees
exams only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, Protocol

from longspan.errors import UserInputError, did_you_mean
from longspan.evaluation.haystacks import Haystack, TokenizerLike, count_tokens
from longspan.evaluation.sample import Room, Sample, Task, make_sample, score

if TYPE_CHECKING:
    from longspan.engine.model import SpanModel

__all__ = ["AnswerExam", "Exam", "TaskEntry", "find_task", "find_tasks"]

SUITES_ROOT = Path(__file__).with_name("suites")
SUITES_PACKAGE = "longspan.evaluation.suites"


class Exam(Protocol):
    """Builds items of one task and measures models on them.

    `kind` is "answer" when `measure` gives a `score` in 0..1, "likelihood" when it gives `nll` and `buckets`.
    """

    @property
    def kind(self) -> Literal["answer", "likelihood"]: ...

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
    """A question over a long context, answered greedily and scored by RULER's string match."""

    name: str
    task: Task
    kind: Literal["answer", "likelihood"] = "answer"

    def takes_depth(self, length_tokens: int, tokenizer: TokenizerLike) -> bool:
        """True for one needle of evidence: several would otherwise lie all in one place, which is another task."""
        room = Room(tokens=length_tokens, count=lambda text: count_tokens(tokenizer, text))
        puzzle = self.task.make(Random(0), room)
        evidence = puzzle.needles if puzzle.evidence is None else puzzle.evidence
        return puzzle.context is None and len(evidence) == 1

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
        from longspan.evaluation.haystacks.noise import noise_haystack

        return make_sample(
            self.task,
            name=self.name,
            haystack=noise_haystack() if self.task.haystack == "noise" else haystack,
            length_tokens=length_tokens,
            tokenizer=tokenizer,
            seed=seed,
            depth=depth,
        )

    def measure(self, model: SpanModel, item: Sample) -> dict[str, Any]:
        """Read the context, ask the question, score the answer."""
        context = model.read(item.context, progress=False)
        answer = context.ask(
            item.question, answer_prefix=item.answer_prefix, max_new_tokens=item.max_new_tokens, sources=False
        )
        usage = answer.usage
        return {
            "score": score(answer.text, item),
            "prediction": answer.text,
            "references": list(item.references),
            "question": item.question,
            "evidence": list(item.evidence),
            "actual_tokens": usage.cached_tokens + usage.prompt_tokens,
            "generated_tokens": usage.generated_tokens,
            "read_seconds": context.usage.seconds.get("read"),
            "prefill_seconds": usage.seconds.get("prefill"),
            "decode_seconds": usage.seconds.get("decode"),
            "kv_bytes": context.kv_bytes,
            "peak_kv_bytes": usage.peak_kv_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """A task as it was found.

    Attributes:
        suite: file name of its suite.
        name: of the task.
        exam: how it is run.
        generator: digest of the source that makes its items: another digest, other items.
    """

    suite: str
    name: str
    exam: Exam
    generator: str


@cache
def find_tasks() -> Mapping[str, TaskEntry]:
    """All tasks of all suites by name, found by walking the suites folder.

    Raises:
        ValueError: two suites have a task of the same name.
    """
    shared = (import_module("longspan.evaluation.sample"), import_module("longspan.evaluation.haystacks"))
    shared_source = b"".join(Path(str(module.__file__)).read_bytes() for module in shared)
    entries: dict[str, TaskEntry] = {}
    for path in sorted(SUITES_ROOT.glob("*.py")):
        if path.stem.startswith("_"):
            continue
        generator = hashlib.sha256(path.read_bytes() + shared_source).hexdigest()[:12]
        for name, task in import_module(f"{SUITES_PACKAGE}.{path.stem}").TASKS.items():
            if name in entries:
                raise ValueError(
                    f"task {name!r} is in suites {entries[name].suite!r} and {path.stem!r}; rename one."
                )
            exam: Exam = AnswerExam(name=name, task=task) if isinstance(task, Task) else task
            entries[name] = TaskEntry(suite=path.stem, name=name, exam=exam, generator=generator)
    return entries


def find_task(name: str) -> TaskEntry:
    """The task of that name.

    Raises:
        UserInputError: there is none; names the nearest.
    """
    entries = find_tasks()
    if name not in entries:
        raise UserInputError(f"there is no task {name!r}; {did_you_mean(name, entries)}")
    return entries[name]
