"""Training rows for any tokenizer: text cut within documents, and questions about needles hidden in it.

A task row is what the benchmark shows a model: the context, the question in the model's chat template, the answer and the
template's end. Only the answer has loss.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from longspan.engine.prompt import Prompt, encode, text_chunks
from longspan.evaluation.exams import asked
from longspan.evaluation.haystacks import Haystack
from longspan.evaluation.sample import make_sample
from longspan.evaluation.suites import facts, keyvalue, ruler
from longspan.evaluation.task import Task
from longspan.reference.config import RecipeConfig
from longspan.reference.rows import Answer, Row
from longspan.reference.shards import TokenText

TASKS: dict[str, Task] = {
    f"{suite}/{name}": tasks[name]
    for suite, tasks, names in (
        (
            "ruler",
            ruler.TASKS,
            ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery"),
        ),
        ("keyvalue", keyvalue.TASKS, ("kv64", "keys8_numbers", "keys8_words")),
        ("facts", facts.TASKS, ("single", "several")),
    )
    for name in names
}
MAX_DRAWS = 8
SPARE_TOKENS = 8  # what joining context, question and answer may add to their counts


class TaskRows:
    """Makes rows of any length; nothing is kept between rows, so one seed gives one row."""

    def __init__(self, tokenizer: Any, text: TokenText, config: RecipeConfig) -> None:
        self.tokenizer, self.text, self.config = tokenizer, text, config
        self._prompt = Prompt.of(tokenizer)
        self._ends = np.append(text.starts[1:], len(text.tokens))

    def make(self, rng: random.Random, length: int) -> Row:
        """One row of `length` tokens: a task with probability `task_share`, otherwise text."""
        if rng.random() < self.config.task_share:
            for _ in range(MAX_DRAWS):
                try:
                    row = self._task_row(rng, length)
                except ValueError:  # a puzzle that says that this row is too short for it
                    continue
                if row is not None:
                    return row
        weights = np.ones(length, dtype=np.uint8)
        weights[0] = 0
        return Row(tokens=self._slice(rng, length), weights=weights, answers=())

    def _slice(self, rng: random.Random, length: int) -> np.ndarray:
        """int32 `[length]` of one document where it is long enough; a shorter one is followed by the next."""
        place = rng.randrange(len(self.text.tokens))
        document = int(np.searchsorted(self.text.starts, place, side="right")) - 1
        start, end = int(self.text.starts[document]), int(self._ends[document])
        first = start if end - start < length else min(place, end - length)
        part = self.text.tokens[first : first + length]
        return np.concatenate([part, self.text.tokens[: length - len(part)]])

    def _task_row(self, rng: random.Random, length: int) -> Row | None:
        name = rng.choice(sorted(TASKS))
        prose = self.tokenizer.decode(self._slice(rng, length).tolist(), skip_special_tokens=True)
        sample = make_sample(
            TASKS[name],
            name=name,
            haystack=Haystack(prose),
            length_tokens=length - SPARE_TOKENS,
            tokenizer=self.tokenizer,
            seed=rng.getrandbits(48),
        )
        chunks, _ = text_chunks(self.tokenizer, sample.context, len(self.tokenizer))
        before = np.concatenate([chunk.numpy() for chunk in chunks])
        question = self._prompt.question(asked(self.tokenizer, sample.question), sample.answer_prefix)
        question_ids = encode(self.tokenizer, question).numpy()
        joint = "" if question[-1:].isspace() else " "
        answer_ids = encode(self.tokenizer, joint + sample.answer).numpy()
        if self.tokenizer.eos_token_id is not None:
            answer_ids = np.append(answer_ids, self.tokenizer.eos_token_id)
        start = len(before) + len(question_ids)
        end = start + len(answer_ids)
        if end > length:
            return None
        tokens = np.concatenate([before, question_ids, answer_ids, self._slice(rng, length)[: length - end]])
        weights = np.zeros(length, dtype=np.uint8)
        weights[start:end] = self.config.answer_weight
        answer = Answer(kind=name, turn=0, start=start, end=end)
        return Row(tokens=tokens.astype(np.int32), weights=weights, answers=(answer,))
