"""Contexts that are published chunk by chunk, and opened from there: by bytes where the link is fast, by reading where it is not.

    publish_context(context, "book/")                             # or a saved file instead of the context
    with serve("book/") as server:
        streamed = stream_context(server.url, model, deadline_seconds=2.0)
    streamed.context.ask("Who keeps the lantern?")
    [(chunk.how, chunk.num_bytes, chunk.fetch_seconds) for chunk in streamed.chunks]

A chunk that comes as bytes is put behind what the run holds; one that comes as text is read by the model behind it, as `read`
would have. Without a deadline the context is that of `read`, bit for bit where the published chunks are cut where the model
cuts what it reads; with one, coarser levels of CacheGen's codec may be taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from longspan.errors import UserInputError
from longspan.storage.arriving import Arriving, exact_bytes, ids_bytes, ids_of, tried_costs
from longspan.storage.cachegen import CHUNK_TOKENS, LEVELS, chunk_spans, encode_chunk
from longspan.storage.fetching import fetch
from longspan.storage.published import MANIFEST, Encoded, FolderSource, Manifest, Source, publish
from longspan.storage.range_server import RangeClient

if TYPE_CHECKING:
    from longspan.engine.context import Context
    from longspan.engine.model import SpanModel

EXACT = "exact"
_KEPT = ("longspan", "model", "fingerprint", "dtype", "tokenizer", "spec", "seen", "chunk_tokens")


@dataclass(frozen=True, kw_only=True)
class ChunkReport:
    """How a chunk came.

    Args:
        how: "exact", "level0" to "level4", or "text" for one that the model read.
        num_bytes: fetched for it, its token ids and what showed the speed of the link included.
        fetch_seconds: spent on fetching it.
        ready_seconds: when it stood in the context, from the start.
        note: why it came as text where bytes were wanted; else empty.
    """

    num_tokens: int
    how: str
    num_bytes: int
    fetch_seconds: float
    ready_seconds: float
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """A context, and how it came."""

    context: Context
    chunks: tuple[ChunkReport, ...]
    seconds: float


def publish_context(
    context: Context | str | Path,
    folder: str | Path,
    *,
    levels: Sequence[int | None] = (None, *range(len(LEVELS))),
    chunk_tokens: int | None = None,
) -> None:
    """Write a context as `stream_context` takes it.

    Args:
        context: what `read` gave, or the file that it was saved in, exactly.
        folder: made where there is none.
        levels: finest first; None is every bit, 0 to 4 are CacheGen's (docs/storage.md).
        chunk_tokens: default the most that the model reads at once which are no more than the paper's 1500, or one such step.

    Raises:
        UserInputError: methods have dropped, coded or remembered something, or a setting is out of range.
    """
    from longspan.engine.save import pack_context
    from longspan.engine.span_file import SpanFile
    from longspan.engine.squeeze import check_level

    order = [-1 if level is None else level for level in levels]
    if not order or order != sorted(set(order)):
        raise UserInputError(
            f"got levels={list(levels)}; give at least one of None (exact) and 0 to {len(LEVELS) - 1}, finest first"
        )
    for level in levels:
        if level is not None:
            check_level(level)
    if isinstance(context, str | Path):
        file = SpanFile(context)
        header, tensors = file.header, {name: file.tensor(name) for name in file.names}  # maps of the file
    else:
        header, tensors = pack_context(context)
    _check_publishable(header)
    step = header["chunk_tokens"]
    cut = max(step, CHUNK_TOKENS // step * step) if chunk_tokens is None else chunk_tokens
    if isinstance(cut, bool) or not isinstance(cut, int) or cut < 1:
        raise UserInputError(f"got chunk_tokens={chunk_tokens!r}; allowed is 1 or more")
    held = [entry for entry in header["slabs"] if entry["facts"]["tokens"]]
    layers = [entry["layer"] for entry in held]
    keys, values = ([tensors[entry["tensors"][name]] for entry in held] for name in ("keys", "values"))
    ids, depth = tensors["token_ids"], 1 + max(entry["layer"] for entry in header["slabs"])

    def encoded() -> Iterator[Encoded]:
        for start, end in chunk_spans(len(ids), cut):
            k, v = ([x[:, :, start:end] for x in parts] for parts in (keys, values))
            made = tuple(
                exact_bytes(k, v)
                if level is None
                else encode_chunk(k, v, level=LEVELS[level], layers=layers, num_layers=depth)
                for level in levels
            )
            yield Encoded(num_tokens=end - start, levels=made, text=ids_bytes(ids[start:end]))

    names = [EXACT if level is None else f"level{level}" for level in levels]
    facts = {name: header[name] for name in _KEPT} | {"layers": layers, "cut_tokens": cut}
    publish(folder, encoded(), names=names, facts=facts)


def is_published(source: str | Path) -> bool:
    """Is it an address, or a folder that `publish_context` wrote?"""
    return _is_address(source) or (Path(source) / MANIFEST).is_file()


def stream_context(
    source: str | Path,
    model: SpanModel,
    *,
    deadline_seconds: float | None = None,
    first_bytes_per_second: float | None = None,
) -> Streamed:
    """Open a published context, each chunk by bytes or by reading its text; what the link and the model can do is measured
    meanwhile.

    Args:
        source: a folder that `publish_context` wrote, or the address that it is served at (http://host:port/path).
        model: the weights, tokenizer and spec that it was read with.
        deadline_seconds: take the finest level that is in time for this, and whatever comes first where none is. None: what is
            finest, or text where that comes no later.
        first_bytes_per_second: of the link, where that is known.

    Raises:
        UserInputError: nothing is published there, it was made with other weights or under another spec, or it is damaged.
        ConnectionError: the server cannot be reached. One that goes later costs only time.
    """
    from longspan.engine.context import Context
    from longspan.engine.save import check_made_by

    if deadline_seconds is not None and not deadline_seconds > 0:
        raise UserInputError(
            f"got deadline_seconds={deadline_seconds!r}; allowed is a number above 0, or None"
        )
    begun = time.perf_counter()
    reader = model.reader()
    with _opened(source) as opened:
        try:
            manifest = Manifest.of(opened.get(MANIFEST))
            check_made_by(model, str(source), manifest.facts)
            arriving = Arriving(reader, manifest)
            costs = tried_costs(reader, manifest.chunks[0].num_tokens)
            spent = time.perf_counter() - begun
            fetched = fetch(
                opened,
                manifest=manifest,
                costs=costs,
                recompute=arriving.read,
                decode=arriving.put,
                deadline_seconds=math.inf if deadline_seconds is None else deadline_seconds - spent,
                first_bytes_per_second=first_bytes_per_second,
            )
        except UserInputError:
            raise
        except (ValueError, LookupError, TypeError) as error:
            raise UserInputError(f"cannot open the context at {source}: {error}") from error
    run = arriving.run
    run.token_ids = [torch.cat([ids_of(text) for text in fetched.texts])]
    run.finish_reading()
    seconds = time.perf_counter() - begun
    decisions, counts = fetched.outcome.decisions, [chunk.num_tokens for chunk in manifest.chunks]
    reports = tuple(
        ChunkReport(
            num_tokens=tokens,
            how=d.choice if isinstance(d.choice, str) else manifest.levels[d.choice].name,
            num_bytes=d.num_bytes,
            fetch_seconds=d.arrived_seconds - d.asked_seconds,
            ready_seconds=spent + d.ready_seconds,
            note=d.note,
        )
        for tokens, d in zip(counts, decisions, strict=True)
    )
    context = Context(
        model,
        run,
        {"open": seconds},
        cached_tokens=sum(report.num_tokens for report in reports if report.how != "text"),
        whole=all(report.how in (EXACT, "text") for report in reports),
    )
    return Streamed(context=context, chunks=reports, seconds=seconds)


def _check_publishable(header: Mapping[str, Any]) -> None:
    """UserInputError for what cannot be taken apart token by token, or would not be what a reader makes of the text."""
    if not header["croppable"]:
        raise UserInputError(
            f"a context under {header['spec']!r} holds more, or less, than each token's own keys and values, and cannot be published "
            "in chunks; publish one that was read without methods that drop, code or remember, or save it in a file"
        )
    if not header["whole"] or any("chunks" in entry["facts"] for entry in header["slabs"]):
        raise UserInputError(
            "the context is not what reading its text in one go gives (more was read behind its end, or it was saved at a level); "
            "read the text anew and publish that"
        )


def _is_address(source: str | Path) -> bool:
    return isinstance(source, str) and "://" in source


@contextmanager
def _opened(source: str | Path) -> Iterator[Source]:
    if not _is_address(source):
        yield FolderSource(source)
        return
    try:
        client = RangeClient(str(source))
    except ValueError as error:
        raise UserInputError(str(error)) from error
    with client:
        yield client
