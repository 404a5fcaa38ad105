"""A question that is seen while the context is compressed: the text ends with it, and it is then asked.

Methods that drop or code keys by what the end of a text looks for (SnapKV and its kin) differ most by whether they have seen the
question. Elsewhere here they have not: the text is read, compressed, and then asked about. The wrapper works over any task with
answers: `compression/question_seen:ruler/niah_multikey_2`.

Paper: SCBench: A KV Cache-Centric Analysis of Long-Context Methods (Li et al., 2024)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from longspan.evaluation.exams import AnswerExam, Exam
from longspan.evaluation.haystacks import Haystack, TokenizerLike, count_tokens
from longspan.evaluation.registry import TaskEntry, find_task
from longspan.evaluation.task import Labels, Sample

CARD: dict[str, Any] = {
    "name": "compression",
    "title": "SCBench: A KV Cache-Centric Analysis of Long-Context Methods",
    "year": 2024,
    "version": 1,
    "metric": "the inner task's",
    "differs": [
        "the question stands at the end of the text as well as behind it, so that both are asked alike"
    ],
    "paper_id": None,
    "lengths": "the inner task's",
    "needs": "what the inner task needs",
    "licence": "generated here",
}


@dataclass(frozen=True, kw_only=True)
class SeenExam(AnswerExam):
    """Samples of a task, each with its question at the end of the text.

    Attributes:
        inner: full name of the task.
    """

    inner: str

    @property
    def _exam(self) -> Exam:
        exam = find_task(self.inner).exam
        if exam.labels is None:
            raise ValueError(f"{self.inner} asks no question; wrap a task that has answers")
        return exam

    @property
    def labels(self) -> Labels:
        """Of the inner task."""
        labels = self._exam.labels
        assert labels is not None
        return labels

    def num_items(self) -> int | None:
        """As many as the inner task has."""
        return self._exam.num_items()

    def takes_depth(self, length_tokens: int, tokenizer: TokenizerLike) -> bool:
        """As the inner task does."""
        return self._exam.takes_depth(length_tokens, tokenizer)

    def build(
        self,
        *,
        length_tokens: int,
        depth: float | None,
        seed: int,
        haystack: Haystack,
        tokenizer: TokenizerLike,
    ) -> Sample:
        """The inner task's sample, shorter by its question, and the question behind its text."""

        def inner(length: int) -> Sample:
            sample = self._exam.build(
                length_tokens=length, depth=depth, seed=seed, haystack=haystack, tokenizer=tokenizer
            )
            if not isinstance(sample, Sample):
                raise ValueError(f"{self.inner} asks several questions; wrap a task that asks one")
            return sample

        added = count_tokens(tokenizer, "\n\n" + inner(length_tokens).question)
        sample = inner(length_tokens - added)
        return replace(
            sample,
            task=self.name,
            length_tokens=length_tokens,
            context=f"{sample.context}\n\n{sample.question}",
        )


WRAPPERS: dict[str, Callable[[str, TaskEntry], SeenExam]] = {
    "question_seen": lambda name, entry: SeenExam(name=name, inner=entry.name)
}

TASKS: dict[str, SeenExam] = {
    f"question_seen_{short}": SeenExam(name=f"compression/question_seen_{short}", inner=inner)
    for short, inner in (("single", "ruler/niah_single_1"), ("kv64", "keyvalue/kv64"))
}
