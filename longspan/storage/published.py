"""A cache published in a folder, a file for each level, and fetched from there chunk by chunk as the controller chooses.

    publish(folder, encoded, texts, num_tokens)          # encoded[level][chunk], finest level first
    with serve(folder) as server, RangeClient(server.url) as client:
        fetched = fetch(client, deadline_seconds=2.0, costs=costs, recompute=read_text)

Any server of files that answers byte ranges will do. Nothing in a manifest is ever executed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from longspan._files import write_json_whole
from longspan.storage.cachegen import decode_chunk
from longspan.storage.range_server import RangeClient
from longspan.storage.streaming import Choice, Chunk, Costs, Decision, Outcome, check_chunks, choose

MANIFEST = "manifest.json"
_FORMAT = 1
Spans = tuple[str, tuple[tuple[int, int], ...]]  # a file, and each chunk's first byte and length in it


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What came of each chunk, in order, and the decisions behind it."""

    parts: tuple[Any, ...]
    outcome: Outcome


def publish(
    folder: str | Path,
    encoded: Sequence[Sequence[bytes]],
    texts: Sequence[bytes],
    num_tokens: Sequence[int],
) -> None:
    """Write chunks for `fetch`: a file for each level, one of the text, and a manifest of where each chunk lies.

    Args:
        encoded: for each level, finest first, each chunk's bytes.
        texts: each chunk's text, or whatever `fetch`'s `recompute` reads.
        num_tokens: of each chunk.
    """
    lengths = {len(part) for part in (*encoded, texts, num_tokens)}
    if len(lengths) != 1 or not encoded or not num_tokens:
        raise ValueError(
            f"got {sorted(lengths)} chunks in {len(encoded)} levels, texts and counts; give equally many"
        )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    names = [f"level{i}.bin" for i in range(len(encoded))]
    files = []
    for name, parts in zip([*names, "text.bin"], [*encoded, texts], strict=True):
        (target / name).write_bytes(b"".join(parts))
        firsts = accumulate((len(part) for part in parts[:-1]), initial=0)
        spans = [[first, len(part)] for first, part in zip(firsts, parts, strict=True)]
        files.append({"file": name, "spans": spans})
    facts = {"format": _FORMAT, "num_tokens": list(num_tokens), "levels": files[:-1], "text": files[-1]}
    write_json_whole(target / MANIFEST, facts)


@dataclass(frozen=True)
class Manifest:
    """Where the chunks of a published cache lie."""

    chunks: tuple[Chunk, ...]
    levels: tuple[Spans, ...]
    text: Spans

    @classmethod
    def of(cls, data: bytes) -> Manifest:
        """Read and check what `publish` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            facts = json.loads(data)
            if facts["format"] != _FORMAT:
                raise ValueError(f"format {facts['format']!r}")
            tokens = [_count(n) for n in facts["num_tokens"]]
            text, *levels = (_spans(entry, len(tokens)) for entry in (facts["text"], *facts["levels"]))
            chunks = tuple(
                Chunk(
                    num_tokens=n,
                    level_bytes=tuple(spans[i][1] for _, spans in levels),
                    text_bytes=text[1][i][1],
                )
                for i, n in enumerate(tokens)
            )
            check_chunks(chunks)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"the manifest cannot be read ({error!r}); publish the cache again") from error
        return cls(chunks, tuple(levels), text)


def fetch(
    client: RangeClient,
    *,
    deadline_seconds: float,
    costs: Costs,
    recompute: Callable[[bytes, Sequence[Any]], Any],
    decode: Callable[[bytes], Any] = decode_chunk,
    first_bytes_per_second: float | None = None,
) -> Fetched:
    """Fetch a published cache by the controller's choices; a chunk is decoded while the next one is on its way.

    Args:
        client: of the folder that `publish` wrote to.
        recompute: what to make of a chunk's text and of the parts before it, which are all there by then.
        decode: what to make of a chunk's bytes.

    Raises:
        ValueError: what was fetched is damaged.
        ConnectionError: the server cannot be reached.
    """
    start = time.perf_counter()

    def clock() -> float:
        return time.perf_counter() - start

    parts: list[Any] = []

    def add(choice: Choice, data: bytes) -> float:
        parts.append(recompute(data, tuple(parts)) if choice == "text" else decode(data))
        return clock()

    manifest = Manifest.of(client.get(MANIFEST))
    rate, busy = first_bytes_per_second, 0.0
    asked: list[tuple[Choice, int, float, float]] = []
    results: list[Future[float]] = []
    with ThreadPoolExecutor(max_workers=1) as worker:
        for i, chunk in enumerate(manifest.chunks):
            now = clock()
            choice = choose(
                manifest.chunks[i:],
                now_seconds=now,
                busy_until_seconds=busy,
                bytes_per_second=rate,
                deadline_seconds=deadline_seconds,
                costs=costs,
            )
            name, spans = manifest.text if choice == "text" else manifest.levels[choice]
            data = client.get(name, first=spans[i][0], num_bytes=spans[i][1])
            arrived = clock()
            results.append(worker.submit(add, choice, data))
            asked.append((choice, len(data), now, arrived))
            rate, busy = (
                len(data) / max(arrived - now, 1e-9),
                max(arrived, busy) + costs.seconds(chunk, choice),
            )
    decisions = tuple(
        Decision(
            choice=choice,
            num_bytes=size,
            asked_seconds=now,
            arrived_seconds=arrived,
            ready_seconds=result.result(),
        )
        for (choice, size, now, arrived), result in zip(asked, results, strict=True)
    )
    return Fetched(
        parts=tuple(parts), outcome=Outcome(decisions=decisions, deadline_seconds=deadline_seconds)
    )


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _spans(entry: Any, num_chunks: int) -> Spans:
    name, spans = entry["file"], tuple((_count(first), _count(size)) for first, size in entry["spans"])
    if not isinstance(name, str) or len(spans) != num_chunks:
        raise ValueError(f"{name!r} has {len(spans)} of {num_chunks} chunks")
    return name, spans
