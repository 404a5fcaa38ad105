"""Tokenised text in compressed shards: uint16 ids, one bos before each document, xz.

A folder of shards is what travels to the machine that trains. Names say what is inside: `book-*.xz`, `python-*.xz` for
training and `heldout-*.xz` for measuring.
"""

import lzma
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from longspan.reference.corpus import Document

PIECE_CHARACTERS = 50_000


@dataclass(frozen=True, kw_only=True)
class TokenText:
    """Token ids of many documents, end to end.

    tokens: uint16 [N], each document led by bos. starts: int64 [documents], where each begins.
    """

    tokens: np.ndarray
    starts: np.ndarray


def encode_document(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    """uint16 ids of `text`, encoded in pieces that end with a paragraph so that memory stays small."""
    pieces, position = [], 0
    while position < len(text):
        end = min(len(text), position + PIECE_CHARACTERS)
        if end < len(text):
            paragraph = text.rfind("\n\n", position, end)
            end = paragraph if paragraph > position else end
        pieces.append(text[position:end])
        position = end
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
    return np.concatenate([np.asarray(encoding.ids, dtype=np.uint16) for encoding in encodings])


def write_shard(path: Path, documents: Sequence[np.ndarray], *, bos: int) -> None:
    """Write documents' ids to one xz file, bos before each; the file appears whole or not at all."""
    lead = np.asarray([bos], dtype=np.uint16)
    joined = np.concatenate([part for ids in documents for part in (lead, ids)])
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(lzma.compress(joined.astype("<u2").tobytes(), preset=6))
    os.replace(temporary, path)


def write_corpus(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    shard_tokens: int = 5_000_000,
) -> int:
    """Tokenise `documents` into shards under `folder`; returns the number of tokens written."""
    folder.mkdir(parents=True, exist_ok=True)
    pending: dict[str, list[np.ndarray]] = {}
    counts: dict[str, int] = {}
    total = 0

    def flush(kind: str) -> None:
        if pending.get(kind):
            write_shard(
                folder / f"{kind}-{counts.get(kind, 0):02d}.xz", pending[kind], bos=tokenizer.bos_token_id
            )
            counts[kind] = counts.get(kind, 0) + 1
            pending[kind] = []

    for document in documents:
        kind = "heldout" if document.held_out else document.kind
        ids = encode_document(tokenizer, document.text)
        total += len(ids)
        pending.setdefault(kind, []).append(ids)
        if sum(map(len, pending[kind])) >= shard_tokens:
            flush(kind)
    for kind in list(pending):
        flush(kind)
    return total


def _read_shard(path: Path) -> np.ndarray:
    return np.frombuffer(lzma.decompress(path.read_bytes()), dtype="<u2").astype(np.uint16)


def read_shards(folders: Iterable[Path], kind: str, *, bos: int, processes: int = 8) -> TokenText:
    """All shards of one kind under `folders`, unpacked in parallel.

    Raises:
        ValueError: no shard of that kind is there.
    """
    paths = sorted(path for folder in folders for path in folder.rglob(f"{kind}-*.xz"))
    if not paths:
        raise ValueError(
            f"no {kind!r} shards found; make them first with `longspan train reference --text DIR`"
        )
    if len(paths) == 1 or processes == 1:
        parts = [_read_shard(path) for path in paths]
    else:
        with ProcessPoolExecutor(min(processes, len(paths))) as pool:
            parts = list(pool.map(_read_shard, paths))
    tokens = np.concatenate(parts)
    return TokenText(tokens=tokens, starts=np.flatnonzero(tokens == bos))
