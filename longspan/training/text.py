"""Folders of text as tokens of the model's own tokenizer, and what makes training rows of them.

A run keeps its tokens in its folder, so that it goes on without reading the texts again. The reference model's tokenizer
brings the reference recipe along: its cleaning, its held-out titles, its shards and its mix of tasks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from longspan.errors import UserInputError
from longspan.evaluation.haystacks.pydoc import pydoc_text
from longspan.reference import ASSETS
from longspan.reference.config import RecipeConfig
from longspan.reference.corpus import Document, read_corpus
from longspan.reference.rows import RowMaker
from longspan.reference.shards import TokenText, read_shards, write_corpus
from longspan.reference.tokenizer import load_tokenizer
from longspan.training.rows import TaskRows

TOKENS = "text.safetensors"
SHARDS = "shards"
SUFFIXES = (".md", ".txt", ".py")
PIECE_CHARACTERS = 50_000


def check_folders(folders: Sequence[Path]) -> None:
    """Raise UserInputError where a folder of text is missing."""
    for folder in folders:
        if not folder.is_dir():
            raise UserInputError(
                f"text folder {str(folder)!r} does not exist; give a folder of .md, .txt or .py files"
            )


def make_rows(
    tokenizer: Any, folders: Sequence[Path], out: Path, recipe: RecipeConfig, *, resume: bool, smoke: bool
) -> RowMaker | TaskRows:
    """What makes rows of the recipe's length from the folders' text, or from what `out` keeps of it where a run goes on.

    Args:
        smoke: without folders, take the topics of Python's own help.

    Raises:
        ValueError: no text, or less of it than one row holds.
    """
    if is_reference(tokenizer):
        return _reference_rows(tokenizer, folders, out, recipe, resume=resume, smoke=smoke)
    file = out / TOKENS
    if not (resume and file.is_file()):
        documents = [pydoc_text()] if smoke and not folders else list(read_documents(folders))
        _write_tokens(file, tokenizer, documents)
    kept = load_file(file)
    text = TokenText(tokens=kept["tokens"], starts=kept["starts"])
    _check_enough(text, recipe)
    return TaskRows(tokenizer, text, recipe)


def count_text(rows: RowMaker | TaskRows) -> int:
    """Tokens of the text that rows are made of."""
    if isinstance(rows, TaskRows):
        return len(rows.text.tokens)
    return len(rows.books.tokens) + (
        0 if rows.python.tokens is rows.books.tokens else len(rows.python.tokens)
    )


def is_reference(tokenizer: Any) -> bool:
    """True for the reference model's tokenizer, whatever model carries it."""
    return (
        len(tokenizer) == len(known := load_tokenizer(ASSETS)) and tokenizer.get_vocab() == known.get_vocab()
    )


def read_documents(folders: Sequence[Path]) -> Iterator[str]:
    """Texts under the folders as they are, in a fixed order; those without a word are left out."""
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES]
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if text:
            yield text


def _reference_rows(
    tokenizer: Any, folders: Sequence[Path], out: Path, recipe: RecipeConfig, *, resume: bool, smoke: bool
) -> RowMaker:
    shards = [folder for folder in folders if any(folder.rglob("book-*.xz"))]
    if shards and len(shards) < len(folders):
        raise UserInputError(
            f"--text has folders of shards ({shards[0]}) and of text; give either, or make shards of all with "
            "`longspan train reference`"
        )
    if not shards:
        shards = [out / SHARDS]
        if not (resume and any(shards[0].glob("book-*.xz"))):
            _write_shards(shards[0], tokenizer, _reference_documents(folders, smoke=smoke))
    bos = tokenizer.bos_token_id
    books = read_shards(shards, "book", bos=bos, processes=min(8, os.cpu_count() or 1))
    _check_enough(books, recipe)
    has_python = any(path for folder in shards for path in folder.rglob("python-*.xz"))
    python = read_shards(shards, "python", bos=bos, processes=1) if has_python else books
    return RowMaker(tokenizer, books, python, recipe)


def _reference_documents(folders: Sequence[Path], *, smoke: bool) -> Iterable[Document]:
    if smoke and not folders:
        return [Document(title="Python topics", text=pydoc_text(), kind="book", held_out=False)]
    return read_corpus(folders)


def _write_shards(folder: Path, tokenizer: Any, documents: Iterable[Document]) -> None:
    for old in folder.glob("*.xz"):
        old.unlink()
    write_corpus(documents, tokenizer, folder)
    if not any(folder.glob("book-*.xz")):
        raise UserInputError(
            "all books in the text folders are among the titles that the reference recipe keeps for tests; add others"
        )


def _write_tokens(file: Path, tokenizer: Any, documents: Sequence[str]) -> None:
    if not documents:
        raise UserInputError("no text found; give --text FOLDER with .md, .txt or .py files")
    mark = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    parts: list[np.ndarray] = []
    starts, size = [], 0
    for document in documents:
        ids = [] if mark is None else [mark]
        for piece in _pieces(document):
            ids += tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        starts.append(size)
        size += len(ids)
        parts.append(np.asarray(ids, dtype=np.int32))
    temporary = file.with_name(file.name + ".part")
    save_file({"tokens": np.concatenate(parts), "starts": np.asarray(starts, dtype=np.int64)}, temporary)
    os.replace(temporary, file)


def _pieces(text: str) -> Iterator[str]:
    """The text in parts that end with a line where they can, so that memory stays small."""
    place = 0
    while place < len(text):
        end = place + PIECE_CHARACTERS
        line = text.rfind("\n", place, end) if end < len(text) else -1
        end = line if line > place else end
        yield text[place:end]
        place = end


def _check_enough(text: TokenText, recipe: RecipeConfig) -> None:
    longest = max(length for length, _ in recipe.buckets)
    if len(text.tokens) < longest:
        raise UserInputError(
            f"the text has {len(text.tokens):,} tokens, and one row {longest:,}; give more text, or a smaller --length"
        )
