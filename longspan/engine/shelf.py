"""A folder of saved contexts from which a text that was read before, or that begins like one, is read no second time.

    store = longspan.ContextStore("contexts", max_bytes=20_000_000_000)
    context = store.read(model, text)              # reads what no saved context covers, and saves the result
    store.save(context, "the book")
    store.open(model, "the book").ask("Who keeps the lantern?")

A saved context serves a text if reading the text from its first token on would give the same. One whose text the new one
begins with is read on from its end; one that is longer is cropped to what both begin with, where methods remember nothing;
where a method decides by the tokens of a step together, only whole chunks serve; where something was dropped at the end
of the text, or read in an order of its own, only the same text does.

Processes may share a folder: see `shelf_index`. A file that is removed while it is read stays readable to the end.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longspan.engine.context import Context
from longspan.engine.model import SpanModel
from longspan.engine.prefix import (
    BLOCK_TOKENS,
    Trail,
    common_tokens,
    space_of,
    text_ids,
    usable_tokens,
)
from longspan.engine.progress import Progress
from longspan.engine.prompt import text_chunks
from longspan.engine.save import context_of, dtype_name, pack_context, saved_beside, tokenizer_hash
from longspan.engine.shelf_folder import ENDING, StoreFolder
from longspan.engine.shelf_index import Rows, Saved
from longspan.engine.span_file import DamagedFileError, SpanFile
from longspan.engine.store import SPARE_TOKENS
from longspan.engine.usage import Clock
from longspan.errors import UserInputError, did_you_mean

__all__ = ["ContextStore", "Problem", "Saved"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What `verify` found: a file of the folder, and one sentence about it."""

    file: str
    sentence: str


class ContextStore:
    """Saved contexts in a folder.

    Args:
        folder: made where there is none.
        max_bytes: of all files together; beyond it those go that were not used for longest. None for any number.

    Raises:
        UserInputError: the folder is a file or cannot be written, or `max_bytes` is no number of bytes.
    """

    def __init__(self, folder: str | Path, max_bytes: int | None = None) -> None:
        if max_bytes is not None and (
            isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1
        ):
            raise UserInputError(f"got max_bytes={max_bytes!r}; allowed is 1 or more, or None for no limit")
        self.folder = Path(folder)
        self._files = StoreFolder(self.folder, max_bytes)

    def read(
        self,
        model: SpanModel,
        text: str | Tensor | Iterable[str] | Iterable[int],
        *,
        progress: bool | Callable[[int], None] | None = None,
    ) -> Context:
        """The context of a text as `model.read` gives it, of which no more is read than no saved context covers; it is saved.

        Args:
            model: the model under its spec.
            text, progress: as for `SpanModel.read`; `context.usage.cached_tokens` says how much came from the store.

        Warns:
            UserWarning: the result cannot be saved; it is returned all the same.
        """
        vocabulary = model.hf_model.get_input_embeddings().num_embeddings
        ids = torch.cat(list(text_chunks(model.tokenizer, text, vocabulary)[0]))
        trail = Trail(space_of(_facts_of(model)), ids)
        context = self._begun(model, trail, ids)
        if context is None:
            context = model.read(ids, progress=progress)
        elif context.cached_tokens < len(ids):
            _read_on(context, ids[context.cached_tokens :], progress)
        if context.cached_tokens < len(ids):
            try:
                self._save(context, trail=trail)
            except UserInputError as error:
                warnings.warn(f"read, but not saved: {error}", stacklevel=2)
        return context

    def save(self, context: Context, name: str | None = None) -> str:
        """Save a context; its key. A name is that of one context: the last that was saved under it.

        Raises:
            UserInputError: it is larger than the whole store may be, or the disk does not take it.
        """
        if name is not None and (not isinstance(name, str) or not name.strip()):
            raise UserInputError(f"got name={name!r}; give a name with at least one letter, or none")
        return self._save(context, name)

    def open(self, model: SpanModel, key_or_name: str, *, lazy: bool = False) -> Context:
        """A saved context by its key or name; `lazy` as for `longspan.open_context`.

        Raises:
            UserInputError: there is none, it was made otherwise than `model` is, or it is damaged.
        """
        with self._files.change() as rows:
            saved = self._get(rows, key_or_name)
            rows.touch(saved.key)
            file = SpanFile(self.folder / saved.file)  # open before anybody can remove it
        context = context_of(file, model, lazy=lazy)
        context.cached_tokens = context.num_tokens
        return context

    def list(self) -> Sequence[Saved]:
        """What is there, most recently used first."""
        with self._files.change() as rows:
            return [saved for saved in rows.all() if self._files.present(rows, saved)]

    def remove(self, key_or_name: str) -> None:
        """Remove a context. Raises UserInputError where there is none."""
        with self._files.change() as rows:
            self._files.drop(rows, self._get(rows, key_or_name))

    def verify(self) -> Sequence[Problem]:
        """Read every file and check every byte; what is wrong, nothing where all is right. Changes nothing."""
        found = []
        for path in sorted(self.folder.glob(f"*{ENDING}")):
            try:
                SpanFile(path).verify()
            except UserInputError as error:
                if path.exists():  # else removed meanwhile
                    found.append(Problem(file=path.name, sentence=str(error)))
        return found

    def rebuild(self) -> int:
        """Make the index anew from the files' headers; how many contexts it then has. Files that are no context stay, unlisted."""
        self._files.rebuild()
        return len(self.list())

    def _save(self, context: Context, name: str | None = None, trail: Trail | None = None) -> str:
        """Save the context of the text that `trail` is of; None for what the context itself tells of its text."""
        header, tensors = pack_context(context)
        if trail is None:
            trail = Trail(space_of(header), text_ids(context.run))
        key = trail.key(trail.num_tokens)
        if name is None:
            with self._files.change() as rows:
                known = rows.get(key)
            name = None if known is None else known.name
        target = self.folder / f"{key}{ENDING}"
        self._files.refuse_larger(sum(x.numel() * x.element_size() for x in tensors.values()))
        store = {"key": key, "num_tokens": trail.num_tokens, "name": name, "saved_at": time.time()}
        with saved_beside(target, header | {"store": store}, tensors) as partial:
            self._files.refuse_larger(partial.stat().st_size)
            with self._files.change() as rows:
                self._files.put(rows, partial, target.name)
        return key

    # finding

    def _begun(self, model: SpanModel, trail: Trail, ids: Tensor) -> Context | None:
        """The context that covers most of a text, cropped to what it covers; None where none does."""
        while True:
            with self._files.change() as rows:
                saved = self._best(rows, model, trail)
                if saved is None:
                    return None
                rows.touch(saved.key)
                try:
                    file = SpanFile(self.folder / saved.file)
                except UserInputError as error:
                    self._files.discard(rows, saved, error)
                    continue
            clock = Clock()
            try:
                with clock.measure("open"):
                    context = context_of(file, model)
            except DamagedFileError as error:
                with self._files.change() as rows:
                    if file.is_in_place:  # else another process has replaced it meanwhile
                        self._files.discard(rows, saved, error)
                continue
            held = text_ids(context.run)
            # where a method left tokens out, only the key tells of which text
            partly = len(held) != saved.num_tokens or bool((held < 0).any())
            common = saved.num_tokens if partly else common_tokens(held, ids)
            usable = _usable(model, saved, common, len(ids))
            if usable == 0:  # not the text that its hashes say
                return None
            if usable < saved.num_tokens:
                context.run.crop(saved.num_tokens - usable)
                context.run.phase = "prefill"
                context.run.finish_reading()
            context.cached_tokens, context.read_seconds = usable, clock.seconds
            return context

    def _best(self, rows: Rows, model: SpanModel, trail: Trail) -> Saved | None:
        """The context that is worth opening: the one that serves most tokens, as far as hashes tell, that is but for the tokens of
        a block that is common in part."""
        best: Saved | None = None
        most = 0
        for saved in rows.in_space(trail.space, trail.num_tokens):
            if trail.key(saved.num_tokens) == saved.key and self._files.present(rows, saved):
                usable = _usable(model, saved, saved.num_tokens, trail.num_tokens)
                if usable > most:
                    best, most = saved, usable
        while most < trail.num_tokens and (found := rows.longest_common(trail.hashes)) is not None:
            saved, blocks = found
            if self._files.present(rows, saved):
                usable = _usable(model, saved, blocks * BLOCK_TOKENS, trail.num_tokens)
                return saved if usable > most else best
        return best

    def _get(self, rows: Rows, key_or_name: str) -> Saved:
        saved = rows.get(key_or_name)
        if saved is None or not (self.folder / saved.file).is_file():
            known = [name for row in rows.all() for name in (row.key, row.name) if name is not None]
            raise UserInputError(
                f"there is no context {key_or_name!r} in {self.folder}; {did_you_mean(str(key_or_name), known)}"
            )
        return saved


def _usable(model: SpanModel, saved: Saved, common: int, wanted: int) -> int:
    chunk_tokens = model.reader().chunk_tokens
    return usable_tokens(
        model.plan, chunk_tokens, common, saved.num_tokens, wanted, croppable=saved.croppable
    )


def _facts_of(model: SpanModel) -> dict[str, Any]:
    """What a context of this model would have in its header; see `space_of`."""
    return {
        "fingerprint": model.info.fingerprint,
        "dtype": dtype_name(model.info.dtype),
        "tokenizer": tokenizer_hash(model.tokenizer),
        "spec": model.spec,
        "chunk_tokens": model.reader().chunk_tokens,
        "whole": True,
    }


def _read_on(context: Context, rest: Tensor, progress: bool | Callable[[int], None] | None) -> None:
    """Read the rest of a text into a context as if its beginning had just been read."""
    model, run, clock = context.model, context.run, Clock()
    show = False if callable(progress) else progress
    total = run.seen + len(rest)
    with Progress(total, label=model.spec, show=show) as bar, clock.measure("read"):
        reader = model.reader(progress if callable(progress) else bar.update)
        run.reserve_tokens = total + SPARE_TOKENS
        reader.prefill(run, [rest])
    context.read_seconds |= clock.seconds
