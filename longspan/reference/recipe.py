"""From folders of text to a shipped model: tokenizer, shards, training in pieces, export."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from longspan.reference.config import RecipeConfig
from longspan.reference.corpus import Document, read_corpus
from longspan.reference.export import export, load_into
from longspan.reference.feed import Feed
from longspan.reference.rows import RowMaker
from longspan.reference.shards import read_shards, write_corpus
from longspan.reference.tokenizer import load_tokenizer, train_tokenizer
from longspan.reference.train import (
    Progress,
    Trainer,
    load_checkpoint,
    peek_step,
    pick_device,
    run,
    save_checkpoint,
)

TOKENIZER_SLICE_CHARACTERS = 20_000
TOKENIZER_STRIDE_CHARACTERS = 100_000
TOKENIZER_SLICES = 5


def prepare(text_folders: list[Path], work: Path, config: RecipeConfig) -> PreTrainedTokenizerFast:
    """Train the tokenizer and write token shards under `work`, unless they are there already."""
    if (work / "tokenizer").is_dir() and any((work / "shards").rglob("book-*.xz")):
        return load_tokenizer(work / "tokenizer")
    documents = list(read_corpus(text_folders))
    tokenizer = train_tokenizer(_tokenizer_sample(documents), vocabulary_size=config.shape.vocabulary)
    tokenizer.save_pretrained(work / "tokenizer")
    write_corpus(documents, tokenizer, work / "shards")
    return tokenizer


def _tokenizer_sample(documents: list[Document]) -> list[str]:
    """Parts of every training document: a fifth of its first half million characters."""
    return [
        document.text[start : start + TOKENIZER_SLICE_CHARACTERS]
        for document in documents
        if not document.held_out
        for start in range(0, len(document.text), TOKENIZER_STRIDE_CHARACTERS)[:TOKENIZER_SLICES]
    ]


def train_piece(
    *,
    config: RecipeConfig,
    tokenizer: PreTrainedTokenizerFast,
    shards: list[Path],
    out: Path,
    resume: bool,
    seconds: float | None,
    workers: int,
    start_from: Path | None = None,
    fit: bool = False,
    started: float | None = None,
    stream: bool = True,
) -> Progress:
    """Train one piece of at most `seconds`, counted from `started`; write checkpoint and exported model to `out`.

    Args:
        start_from: exported model to begin with instead of random weights. fit: learning rate to zero at `seconds`.
        workers: processes that make data.

    Raises:
        ValueError: shards are missing, or `resume` finds no fitting checkpoint.
    """
    started = time.monotonic() if started is None else started
    deadline = started + seconds if seconds is not None else float("inf")
    out.mkdir(parents=True, exist_ok=True)
    config = replace(config, shape=replace(config.shape, vocabulary=len(tokenizer)))
    bos = tokenizer.bos_token_id
    books = read_shards(shards, "book", bos=bos, processes=max(1, workers))
    has_python = any(path for folder in shards for path in folder.rglob("python-*.xz"))
    python = read_shards(shards, "python", bos=bos, processes=1) if has_python else books
    maker = RowMaker(tokenizer, books, python, config)
    feed = Feed(maker, first_step=peek_step(out) if resume else 0, workers=workers)
    trainer = Trainer(config, pick_device())
    if start_from is not None and not resume:
        load_into(trainer.network, start_from)
    start = Progress(step=0, tokens=0, seconds=0.0, finished=False, history=[])
    if resume:
        start = load_checkpoint(out, trainer.network, trainer.optimizer, config)

    def report(record: dict[str, Any]) -> None:
        if stream:
            print(json.dumps({"at": round(time.monotonic() - started, 1), **record}), flush=True)

    progress = run(trainer, feed, start, deadline=deadline, fit=fit and seconds is not None, report=report)
    feed.close()
    save_checkpoint(out, trainer.network, trainer.optimizer, progress, config)
    card = {
        "steps": progress.step,
        "planned_steps": config.total_steps,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds),
        "seed": config.seed,
        "peak": config.peak,
        "corpus_tokens": {
            "books": int(len(books.tokens)),
            "python": int(len(python.tokens)) if has_python else 0,
        },
        "history": progress.history,
    }
    export(trainer.network, tokenizer, out / "model", card=card)
    return progress
