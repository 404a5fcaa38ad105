"""Text becomes rows: within documents, with questions about needles, the same from what a run keeps."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from longspan.errors import UserInputError
from longspan.evaluation.haystacks.pydoc import pydoc_text
from longspan.reference import ASSETS
from longspan.reference.config import RecipeConfig
from longspan.reference.rows import RowMaker
from longspan.reference.shards import TokenText, encode_document, write_shard
from longspan.reference.tokenizer import load_tokenizer
from longspan.training.rows import TASKS, TaskRows
from longspan.training.text import check_folders, count_text, is_reference, make_rows, read_documents
from tests.models import word_tokenizer
from tests.training.tiny import text_folder

REFERENCE = load_tokenizer(ASSETS)
PROSE = pydoc_text()[:150_000]


def recipe(length: int, *, task_share: float = 0.0) -> RecipeConfig:
    return RecipeConfig(buckets=((length, 2),), task_share=task_share, answer_weight=40, seed=1)


@pytest.fixture(scope="module")
def prose() -> TokenText:
    ids = encode_document(REFERENCE, PROSE).astype(np.int32)
    return TokenText(tokens=ids, starts=np.array([0]))


def test_a_row_stays_within_a_document_that_is_long_enough(tmp_path: Path) -> None:
    rows = make_rows(
        word_tokenizer(), [text_folder(tmp_path / "text")], tmp_path, recipe(200), resume=False, smoke=False
    )
    assert isinstance(rows, TaskRows)
    assert rows.text.starts.tolist() == [0, 601, 1202]
    assert count_text(rows) == 1803
    rng = random.Random(0)
    for _ in range(50):
        row = rows.make(rng, 200)
        assert row.tokens.dtype == np.int32
        assert (row.tokens[1:] == 1).sum() == 0  # bos stands before a document
        assert row.weights[0] == 0 and (row.weights[1:] == 1).all()


def test_short_documents_follow_one_another(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "text", documents=5, words=50)
    rows = make_rows(word_tokenizer(), [folder], tmp_path, recipe(120), resume=False, smoke=False)
    rng = random.Random(0)
    for _ in range(50):
        row = rows.make(rng, 120)
        assert len(row.tokens) == 120
        assert np.flatnonzero(row.tokens == 1).tolist() == [0, 51, 102]


def test_all_places_of_a_long_document_are_used(prose: TokenText) -> None:
    rows = TaskRows(REFERENCE, prose, recipe(100))
    rng = random.Random(0)
    starts = {tuple(rows.make(rng, 100).tokens[:20].tolist()) for _ in range(40)}
    assert len(starts) == 40


@pytest.mark.parametrize("name", sorted(TASKS))
def test_answers_stand_where_the_benchmark_asks_for_them(
    name: str, prose: TokenText, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longspan.training.rows.TASKS", {name: TASKS[name]})
    rows = TaskRows(REFERENCE, prose, recipe(1024, task_share=1.0))
    for seed in range(4):
        row = rows.make(random.Random(seed), 1024)
        assert len(row.tokens) == len(row.weights) == 1024
        (answer,) = row.answers
        assert answer.kind == name
        assert (row.weights[answer.start : answer.end] == 40).all()
        assert row.weights.sum() == 40 * (answer.end - answer.start)
        assert row.tokens[0] == REFERENCE.bos_token_id
        assert row.tokens[answer.end - 1] == REFERENCE.eos_token_id
        text = REFERENCE.decode(row.tokens[: answer.start].tolist(), skip_special_tokens=True)
        reply = REFERENCE.decode(row.tokens[answer.start : answer.end - 1].tolist())
        assert "\nAnswer:" in text[-200:]
        assert reply[0] == " "
        values = reply.strip(" .").replace(" and ", ", ").split(", ")
        assert all(value.split()[-1].lower() in text.lower() for value in values), reply


def test_a_model_without_a_chat_template_is_asked_as_the_benchmark_asks_it(prose: TokenText) -> None:
    plain = load_tokenizer(ASSETS)
    plain.chat_template = None
    row = TaskRows(plain, prose, recipe(1024, task_share=1.0)).make(random.Random(3), 1024)
    text = plain.decode(row.tokens[: row.answers[0].start].tolist())
    assert "\n\n" in text[-250:]
    assert "Answer:" not in text[-250:]


def test_one_seed_gives_one_row_and_shares_are_kept(prose: TokenText) -> None:
    rows = TaskRows(REFERENCE, prose, recipe(512, task_share=0.5))
    made = [rows.make(random.Random(seed), 512) for seed in range(60)]
    again = rows.make(random.Random(7), 512)
    assert (made[7].tokens == again.tokens).all() and made[7].answers == again.answers
    assert 15 < sum(bool(row.answers) for row in made) < 45


def test_a_run_goes_on_from_the_tokens_that_it_kept(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "text")
    first = make_rows(word_tokenizer(), [folder], tmp_path, recipe(200), resume=False, smoke=False)
    (folder / "0.txt").write_text("w7 w7")
    kept = make_rows(word_tokenizer(), [], tmp_path, recipe(200), resume=True, smoke=False)
    assert (first.make(random.Random(0), 200).tokens == kept.make(random.Random(0), 200).tokens).all()
    changed = make_rows(word_tokenizer(), [folder], tmp_path, recipe(200), resume=False, smoke=False)
    assert count_text(changed) < count_text(kept)


def test_the_reference_tokenizer_brings_its_recipe(tmp_path: Path) -> None:
    assert is_reference(load_tokenizer(ASSETS))
    assert not is_reference(word_tokenizer())
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shard(shards / "book-00.xz", [encode_document(REFERENCE, PROSE)], bos=REFERENCE.bos_token_id)
    rows = make_rows(REFERENCE, [shards], tmp_path / "run", recipe(1024), resume=False, smoke=False)
    assert isinstance(rows, RowMaker)
    assert count_text(rows) == 1 + len(encode_document(REFERENCE, PROSE))
    assert len(rows.make(random.Random(0), 1024).tokens) == 1024
    with pytest.raises(UserInputError, match="has folders of shards .* and of text"):
        make_rows(
            REFERENCE,
            [shards, text_folder(tmp_path / "text")],
            tmp_path / "run",
            recipe(64),
            resume=False,
            smoke=False,
        )


def test_books_are_cleaned_cut_and_kept_as_shards(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    story = "It was the evening of the last day, and he walked with the others to the house in the valley. "
    (folder / "Some Author - A Story.md").write_text("# Title: A Story\n\n" + story * 200)
    rows = make_rows(REFERENCE, [folder], tmp_path / "run", recipe(256), resume=False, smoke=False)
    kept = make_rows(REFERENCE, [], tmp_path / "run", recipe(256), resume=True, smoke=False)
    assert count_text(rows) == count_text(kept) > 4000
    assert (rows.make(random.Random(1), 256).tokens == kept.make(random.Random(1), 256).tokens).all()


def test_held_out_books_alone_are_no_text(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    story = "It was the evening of the last day, and he walked with the others to the house in the valley. "
    (folder / "War and Peace.md").write_text(story * 200)
    with pytest.raises(UserInputError, match="all books in the text folders are among the titles"):
        make_rows(REFERENCE, [folder], tmp_path / "run", recipe(256), resume=False, smoke=False)


def test_smoke_needs_no_folder(tmp_path: Path) -> None:
    for tokenizer in (REFERENCE, word_tokenizer()):
        rows = make_rows(tokenizer, [], tmp_path, recipe(256), resume=False, smoke=True)
        assert count_text(rows) > 10_000


def test_missing_folders_and_too_little_text(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="text folder '.*absent' does not exist"):
        check_folders([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserInputError, match="no text found; give --text FOLDER"):
        make_rows(word_tokenizer(), [tmp_path / "empty"], tmp_path, recipe(9), resume=False, smoke=False)
    folder = text_folder(tmp_path / "text", documents=1, words=50)
    with pytest.raises(UserInputError, match="the text has 51 tokens, and one row 60"):
        make_rows(word_tokenizer(), [folder], tmp_path, recipe(60), resume=False, smoke=False)


def test_files_are_read_in_a_fixed_order_and_empty_ones_left_out(tmp_path: Path) -> None:
    for name, text in (("b.txt", "two"), ("a.md", "one"), ("c.py", " \n"), ("d.json", "no")):
        (tmp_path / name).write_text(text)
    assert list(read_documents([tmp_path])) == ["one", "two"]
