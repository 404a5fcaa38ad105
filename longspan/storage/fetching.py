"""A published cache fetched chunk by chunk as the controller chooses, each decoded, or made anew of its text, behind those before.

    with serve(folder) as server, RangeClient(server.url) as client:
        fetched = fetch(client, recompute=read_text, costs=Costs(recompute_seconds_per_token=1e-3))

The text comes first and whole, about a thousandth of the bytes: a chunk that is altered on its way, or that a source does not
hand out any more, is then made of its text instead. What the link and the machine can do is measured while it goes on.

*Fails when*: the estimate of `costs` is far too slow and the link brings every chunk, so that it is never mended; or the way to the
source and back is long, and a first look at the link makes it out to be slower than it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from longspan.storage.cachegen import decode_chunk
from longspan.storage.published import MANIFEST, ChunkFile, Manifest, Source
from longspan.storage.streaming import Choice, Chunk, Costs, Decision, Outcome, choose

_PIECE_BYTES = 1024  # of the first piece of a look at the link
_PIECES_GROW = 4
_PIECE_SECONDS = 0.02  # a piece that takes less says little of the link
_LOOK_SECONDS = 0.25  # after which the link is taken to be known
_WAITING = 2  # chunks that have arrived and are not made yet; beyond, the next one is not chosen


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What came of each chunk, in order, the chunks' texts, and the decisions behind it."""

    parts: tuple[Any, ...]
    texts: tuple[bytes, ...]
    outcome: Outcome


def fetch(
    source: Source,
    *,
    costs: Costs,
    recompute: Callable[[bytes, Sequence[Any]], Any],
    decode: Callable[[bytes], Any] = decode_chunk,
    deadline_seconds: float = math.inf,
    first_bytes_per_second: float | None = None,
    manifest: Manifest | None = None,
) -> Fetched:
    """Fetch a published cache by the controller's choices; a chunk is decoded while the next one is on its way.

    Args:
        source: of what `publish` wrote.
        costs: an estimate, until chunks have been decoded and recomputed.
        recompute: what to make of a chunk's text and of the parts before it, which are all there by then.
        decode: what to make of a chunk's bytes; where it raises a ValueError, the chunk is recomputed.
        deadline_seconds: without one, each chunk comes at the finest level or as text, whichever is ready first.
        first_bytes_per_second: of the link, where that is known; else the first chunk begins to come at the finest level, and
            it is chosen when that has shown it.
        manifest: where it was read already.

    Raises:
        ValueError: the manifest or the text is damaged.
        ConnectionError: the source cannot be reached; once the text is there, it may go.
    """
    start = time.perf_counter()
    work = _Work(costs, recompute, decode, start)
    manifest = manifest or Manifest.of(source.get(MANIFEST))
    work.texts = manifest.text.texts(source)
    link = _Link(source, manifest.levels, first_bytes_per_second)
    asked: list[_Asked] = []
    results: list[Future[tuple[Choice, str, float]]] = []
    with ThreadPoolExecutor(max_workers=1) as worker:
        try:
            for i, chunk in enumerate(manifest.chunks):
                if i >= _WAITING:
                    results[i - _WAITING].result()
                now = time.perf_counter() - start
                link.begin(i, work.busy_until(manifest.chunks, asked, results) - now)
                choice = link.choice_if_done(i)
                if choice is None:
                    choice = choose(
                        manifest.chunks[i:],
                        now_seconds=time.perf_counter() - start,
                        busy_until_seconds=work.busy_until(manifest.chunks, asked, results),
                        bytes_per_second=link.bytes_per_second,
                        deadline_seconds=deadline_seconds,
                        costs=work.costs,
                    )
                data, note = link.finish(i, choice)
                if data is None:
                    choice = "text"
                arrived = time.perf_counter() - start
                asked.append(_Asked(choice, now, arrived, link.num_bytes + len(work.texts[i])))
                results.append(worker.submit(work.add, i, chunk, choice, data, note))
            made = [result.result() for result in results]
        except BaseException:
            worker.shutdown(wait=True, cancel_futures=True)
            raise
    decisions = tuple(
        Decision(
            choice=choice,
            num_bytes=of.num_bytes,
            asked_seconds=of.asked_seconds,
            arrived_seconds=of.arrived_seconds,
            ready_seconds=ready,
            note=note,
        )
        for (choice, note, ready), of in zip(made, asked, strict=True)
    )
    return Fetched(
        parts=tuple(work.parts),
        texts=work.texts,
        outcome=Outcome(decisions=decisions, deadline_seconds=deadline_seconds),
    )


@dataclass(frozen=True)
class _Asked:
    """A chunk that has arrived, and how."""

    choice: Choice
    asked_seconds: float
    arrived_seconds: float
    num_bytes: int


class _Work:
    """Makes parts of what has arrived, in order, in a thread of its own, and measures how long that takes."""

    def __init__(
        self,
        costs: Costs,
        recompute: Callable[[bytes, Sequence[Any]], Any],
        decode: Callable[[bytes], Any],
        start: float,
    ) -> None:
        self.costs, self.recompute, self.decode, self.start = costs, recompute, decode, start
        self.parts: list[Any] = []
        self.texts: tuple[bytes, ...] = ()

    def add(
        self, number: int, chunk: Chunk, choice: Choice, data: bytes | None, note: str
    ) -> tuple[Choice, str, float]:
        """How it came in the end, why not as chosen, and when it was ready."""
        begun = time.perf_counter()
        if data is not None:
            try:
                self.parts.append(self.decode(data))
            except ValueError as error:
                choice, note, begun = "text", str(error), time.perf_counter()
        if choice == "text":
            self.parts.append(self.recompute(self.texts[number], tuple(self.parts)))
        now = time.perf_counter()
        each = (now - begun) / max(1, chunk.num_tokens)
        kind = "recompute_seconds_per_token" if choice == "text" else "decode_seconds_per_token"
        self.costs = replace(self.costs, **{kind: each})
        return choice, note, now - self.start

    def busy_until(
        self,
        chunks: Sequence[Chunk],
        asked: Sequence[_Asked],
        results: Sequence[Future[tuple[Choice, str, float]]],
    ) -> float:
        """When all that has arrived will be ready, in seconds since the start: known of what is, and reckoned of the rest."""
        busy = 0.0
        for chunk, of, result in zip(chunks, asked, results, strict=False):
            reckoned = max(of.arrived_seconds, busy) + self.costs.seconds(chunk, of.choice)
            busy = result.result()[2] if result.done() else reckoned
        return busy


class _Link:
    """Fetches chunks, and knows how fast they came last.

    Where that is not known, a chunk begins to come at the finest level, in pieces that grow until they take longer than the way
    to the source and back. The same while a chunk is made of its text, which says nothing of the link: it may have changed.
    """

    def __init__(
        self, source: Source, levels: Sequence[ChunkFile], first_bytes_per_second: float | None
    ) -> None:
        self.source, self.levels = source, levels
        self.bytes_per_second = first_bytes_per_second
        self.num_bytes = 0  # of this chunk so far
        self._known = first_bytes_per_second is not None
        self._begun = b""
        self._gone = ""

    def begin(self, number: int, idle_seconds: float) -> None:
        """Look how fast the link is, unless the last chunk has shown it; once that was seen, for no longer than there is nothing
        better to do."""
        self.num_bytes, self._begun = 0, b""
        size, most_seconds = _PIECE_BYTES, _LOOK_SECONDS
        if self.bytes_per_second is not None:
            most_seconds = min(most_seconds, idle_seconds / 2)
            size = max(1, min(size, int(self.bytes_per_second * most_seconds / 2)))
        if self._known or self._gone or most_seconds < _PIECE_SECONDS:
            return
        span, first_took, begun = self.levels[0].spans[number], 0.0, time.perf_counter()
        try:
            while len(self._begun) < span.num_bytes:
                wanted = min(size, span.num_bytes - len(self._begun))
                asked = time.perf_counter()
                self._begun += self._get(0, span.first + len(self._begun), wanted)
                took = max(time.perf_counter() - asked, 1e-9)
                self.bytes_per_second = wanted / took
                first_took, size = first_took or took, size * _PIECES_GROW
                if took > max(2 * first_took, _PIECE_SECONDS) or asked + took - begun > most_seconds:
                    break
        except ValueError:  # said again by `finish`, if that level is chosen
            self._begun = b""

    def choice_if_done(self, number: int) -> Choice | None:
        """The finest level where the look at the link has brought all of the chunk; text where there is no link; else None."""
        if self._gone:
            return "text"
        return 0 if len(self._begun) == self.levels[0].spans[number].num_bytes else None

    def finish(self, number: int, choice: Choice) -> tuple[bytes | None, str]:
        """A chunk's bytes, None for its text, and why they are not those that were chosen."""
        self._known = choice != "text"
        if choice == "text":
            return None, self._gone
        span, begun = self.levels[choice].spans[number], self._begun if choice == 0 else b""
        asked, left = time.perf_counter(), span.num_bytes - len(begun)
        try:
            if left:
                begun += self._get(choice, span.first + len(begun), left)
                self.bytes_per_second = left / max(time.perf_counter() - asked, 1e-9)
            return self.levels[choice].checked(number, begun), ""
        except ValueError as error:
            return None, str(error)

    def _get(self, level: int, first: int, num_bytes: int) -> bytes:
        """Raises ValueError, also where the source is gone: what follows is then made of its text."""
        try:
            data = self.source.get(self.levels[level].file, first=first, num_bytes=num_bytes)
        except ConnectionError as error:
            self._gone = str(error) or type(error).__name__
            raise ValueError(self._gone) from error
        self.num_bytes += len(data)
        return data
