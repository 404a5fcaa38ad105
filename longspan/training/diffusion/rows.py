"""The reference recipe's rows, arranged for a model that sees both ways: a row with tasks ends with its last answer.

A causal model never looks behind an answer, so the recipe may end a row with other text; here that text goes to the front,
and end tokens fill the block that the answer stands in. Weights say which tokens may be masked: 1 or 0.
"""

from __future__ import annotations

import random
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from longspan.errors import UserInputError
from longspan.reference.joints import Prose
from longspan.reference.rows import Row, RowMaker
from longspan.reference.shards import TokenText
from longspan.training.rows import TaskRows

Maker = RowMaker | TaskRows


class DiffusionRows:
    """Makes rows of any length; nothing is kept between rows, so one seed gives one row."""

    def __init__(self, rows: Maker, *, tokenizer: Any, block_tokens: int) -> None:
        self.config, self.block_tokens = rows.config, block_tokens
        self.end = tokenizer.eos_token_id
        self._break = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
        self._tasks, self._texts = (_with_share(rows, share) for share in (1.0, 0.0))

    def make(self, rng: random.Random, length: int) -> Row:
        """One row of `length` tokens: a conversation with probability `task_share`, otherwise text."""
        if rng.random() < self.config.task_share:
            spare = 0 if self.end is None else rng.randint(0, min(self.block_tokens, length // 8))
            row = self._tasks.make(rng, length - spare)
            if row.answers:
                return self._ended(row, rng, length, spare)
        row = self._texts.make(rng, length)
        return replace(row, weights=(row.weights > 0).astype(np.uint8))

    def _ended(self, row: Row, rng: random.Random, length: int, spare: int) -> Row:
        """[first token, other text, the row up to its last answer, end tokens]."""
        stop = row.answers[-1].end
        moved = length - spare - stop
        front = np.empty(0, dtype=row.tokens.dtype)
        if moved:
            front = self._texts.make(rng, max(64, moved + 1)).tokens[1 : moved + 1].astype(row.tokens.dtype)
            if moved > len(self._break):
                front[moved - len(self._break) :] = self._break
        ends = np.full(spare, self.end, dtype=row.tokens.dtype) if spare else front[:0]
        tokens = np.concatenate([row.tokens[:1], front, row.tokens[1:stop], ends])
        answers = tuple(
            replace(answer, start=answer.start + moved, end=answer.end + moved) for answer in row.answers
        )
        weights = np.zeros(length, dtype=np.uint8)
        for answer in answers:
            weights[answer.start : answer.end] = 1
        weights[length - spare :] = 1
        return Row(tokens=tokens, weights=weights, answers=answers)


def hold_out(rows: Maker, num_tokens: int) -> tuple[Maker, np.ndarray]:
    """A maker without the text's last `num_tokens`, at most an eighth of it; and these, ids `[N]`.

    Raises:
        ValueError: none are left to hold out.
    """
    tokens = rows.text.tokens if isinstance(rows, TaskRows) else rows.books.tokens
    held = min(num_tokens, len(tokens) // 8)
    if held < 1:
        raise UserInputError(f"the text has {len(tokens):,} tokens, too few to hold some out; give more text")
    kept = len(tokens) - held
    if isinstance(rows, TaskRows):
        starts = rows.text.starts[rows.text.starts < kept]
        text = TokenText(tokens=tokens[:kept], starts=starts)
        return TaskRows(rows.tokenizer, text, rows.config), tokens[kept:]
    made = copy(rows)
    made.books = Prose(tokens=tokens[:kept], breaks=rows.books.breaks[:kept])
    if rows.python.tokens is rows.books.tokens:
        made.python = made.books
    return made, tokens[kept:]


def _with_share(rows: Maker, share: float) -> Maker:
    made = copy(rows)
    made.config = replace(rows.config, task_share=share)
    return made
