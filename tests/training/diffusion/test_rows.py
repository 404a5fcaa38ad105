"""Rows of the reference recipe, rearranged: the last answer ends the row, and only answers or text may be masked."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from longspan.reference import ASSETS
from longspan.reference.config import RecipeConfig
from longspan.reference.rows import RowMaker
from longspan.reference.tokenizer import load_tokenizer
from longspan.training.diffusion.rows import DiffusionRows, hold_out
from longspan.training.rows import TaskRows
from longspan.training.text import make_rows
from tests.models import word_tokenizer
from tests.training.tiny import text_folder

LENGTH = 768


@pytest.fixture(scope="module")
def recipe_rows(tmp_path_factory: pytest.TempPathFactory) -> RowMaker:
    recipe = RecipeConfig(buckets=((LENGTH, 2),), task_share=0.5)
    out = tmp_path_factory.mktemp("rows")
    made = make_rows(load_tokenizer(ASSETS), [], out, recipe, resume=False, smoke=True)
    assert isinstance(made, RowMaker)
    return made


def test_rows_end_with_an_answer_or_are_text(recipe_rows: RowMaker) -> None:
    tokenizer = load_tokenizer(ASSETS)
    maker = DiffusionRows(recipe_rows, tokenizer=tokenizer, block_tokens=16)
    rng = random.Random(0)
    rows = [maker.make(rng, LENGTH) for _ in range(40)]
    tasks = [row for row in rows if row.answers]
    assert 10 < len(tasks) < 30
    spares = []
    for row in rows:
        assert row.tokens.shape == row.weights.shape == (LENGTH,)
        assert row.tokens[0] == tokenizer.bos_token_id and row.weights[0] == 0
        if not row.answers:
            assert row.weights[1:].all()
            continue
        allowed = np.zeros(LENGTH, dtype=bool)
        for answer in row.answers:
            allowed[answer.start : answer.end] = True
            assert row.tokens[answer.end - 1] == tokenizer.eos_token_id
        last = row.answers[-1].end
        allowed[last:] = True
        assert (row.tokens[last:] == tokenizer.eos_token_id).all()
        assert np.array_equal(row.weights > 0, allowed)
        asked = tokenizer.decode(row.tokens[: row.answers[-1].start])
        assert "Answer:" in asked.splitlines()[-1]
        spares.append(LENGTH - last)
    assert min(spares) < 4 and 12 < max(spares) <= 16


def test_one_seed_gives_one_row(recipe_rows: RowMaker) -> None:
    maker = DiffusionRows(recipe_rows, tokenizer=load_tokenizer(ASSETS), block_tokens=16)
    first, second = (maker.make(random.Random(5), LENGTH) for _ in range(2))
    assert np.array_equal(first.tokens, second.tokens)


def test_what_is_held_out_is_the_end_and_stands_in_no_row(recipe_rows: RowMaker) -> None:
    total = len(recipe_rows.books.tokens)
    kept, held = hold_out(recipe_rows, 500)
    assert isinstance(kept, RowMaker)
    assert len(held) == 500 and len(kept.books.tokens) == len(kept.books.breaks) == total - 500
    assert kept.python is kept.books
    assert np.array_equal(np.concatenate([kept.books.tokens, held]), recipe_rows.books.tokens)
    _, eighth = hold_out(recipe_rows, total)
    assert len(eighth) == total // 8


def test_text_of_any_tokenizer_is_held_out(tmp_path: Path) -> None:
    recipe = RecipeConfig(buckets=((64, 2),), task_share=0.0)
    made = make_rows(
        word_tokenizer(), [text_folder(tmp_path / "text")], tmp_path, recipe, resume=False, smoke=False
    )
    kept, held = hold_out(made, 100)
    assert isinstance(kept, TaskRows)
    assert len(held) == 100
    rows = DiffusionRows(kept, tokenizer=word_tokenizer(), block_tokens=4)
    assert rows.make(random.Random(0), 64).weights.sum() == 63
