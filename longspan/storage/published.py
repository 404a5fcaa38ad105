"""A cache published as a folder: a file for each level, one of the text, and a manifest of where each chunk lies.

    publish(folder, (Encoded(num_tokens=1500, levels=(fine, coarse), text=text) for fine, coarse, text in made))

Any server of files that answers byte ranges will do to hand it out. Every chunk stands under a checksum, and so does the manifest;
CRC-32 finds damage, not forgery, and nothing in a manifest is ever executed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from longspan._files import write_json_whole
from longspan.storage.streaming import Chunk, check_chunks

MANIFEST = "manifest.json"
_FORMAT = 2
_TEXT, _ENDING = "text", ".bin"


class Source(Protocol):
    """Where a published cache is fetched from: a `RangeClient`, or a folder."""

    def get(self, path: str, *, first: int = 0, num_bytes: int | None = None) -> bytes:
        """Bytes of a file: all of it, or `num_bytes` from `first` on. Raises ValueError, or ConnectionError."""
        ...


class FolderSource:
    """A folder on this machine as a source."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def get(self, path: str, *, first: int = 0, num_bytes: int | None = None) -> bytes:
        try:
            with (self.folder / path).open("rb") as file:
                file.seek(first)
                data = file.read(-1 if num_bytes is None else num_bytes)
        except OSError as error:
            raise ValueError(
                f"cannot read {self.folder / path} ({error.strerror}); publish the cache again"
            ) from error
        if num_bytes is not None and len(data) != num_bytes:
            raise ValueError(
                f"{self.folder / path} ends {num_bytes - len(data):,} bytes too soon; publish the cache again"
            )
        return data


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Some tokens as they are published: their bytes at each level, finest first, and their text, or whatever they are made of
    anew."""

    num_tokens: int
    levels: tuple[bytes, ...]
    text: bytes


@dataclass(frozen=True, kw_only=True)
class Span:
    """Where a chunk lies in a file, and the checksum of its bytes."""

    first: int
    num_bytes: int
    crc32: str


@dataclass(frozen=True, kw_only=True)
class ChunkFile:
    """A file of a published cache, chunk after chunk."""

    file: str
    spans: tuple[Span, ...]

    @property
    def name(self) -> str:
        """Its level's name, or "text"."""
        return self.file.removesuffix(_ENDING)

    def checked(self, number: int, data: bytes) -> bytes:
        """A chunk's bytes, if they are those that were published; else a ValueError."""
        if _crc(data) != self.spans[number].crc32:
            raise ValueError(f"chunk {number} of {self.file} was altered; fetch it again, or publish it anew")
        return data

    def texts(self, source: Source) -> tuple[bytes, ...]:
        """All chunks, fetched at once and checked."""
        first = self.spans[0].first
        data = source.get(
            self.file, first=first, num_bytes=self.spans[-1].first + self.spans[-1].num_bytes - first
        )
        cut = (data[span.first - first : span.first - first + span.num_bytes] for span in self.spans)
        return tuple(self.checked(number, part) for number, part in enumerate(cut))


def publish(
    folder: str | Path,
    chunks: Iterable[Encoded],
    *,
    names: Sequence[str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write chunks for `fetch`, one at a time. The manifest comes last: without it a folder is no published cache.

    Args:
        names: of the levels; default level0, level1, ...
        facts: what else whoever fetches it must know, for JSON.

    Raises:
        ValueError: no chunks, or chunks of unequal levels.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / MANIFEST).unlink(missing_ok=True)
    num_tokens: list[int] = []
    spans: dict[str, list[tuple[int, int, str]]] = {}
    with ExitStack() as stack:
        streams: dict[str, Any] = {}
        for chunk in chunks:
            if not streams:
                known = [f"level{i}" for i in range(len(chunk.levels))] if names is None else list(names)
                for name in [f"{name}{_ENDING}" for name in (*known, _TEXT)]:
                    streams[name] = stack.enter_context((target / name).open("wb"))
                    spans[name] = []
            parts = (*chunk.levels, chunk.text)
            if len(parts) != len(streams) or len(parts) < 2:
                raise ValueError(
                    f"got a chunk of {len(chunk.levels)} levels where {len(streams) - 1} are named; give as many, and at least one"
                )
            num_tokens.append(chunk.num_tokens)
            for (name, stream), data in zip(streams.items(), parts, strict=True):
                spans[name].append((stream.tell(), len(data), _crc(data)))
                stream.write(data)
    if not num_tokens:
        raise ValueError("got no chunk to publish; give at least one")
    files = [{"file": name, "spans": found} for name, found in spans.items()]
    manifest = {
        "format": _FORMAT,
        "facts": dict(facts or {}),
        "num_tokens": num_tokens,
        "levels": files[:-1],
        "text": files[-1],
    }
    write_json_whole(target / MANIFEST, manifest | {"crc32": _crc_of(manifest)})


@dataclass(frozen=True)
class Manifest:
    """Where the chunks of a published cache lie."""

    chunks: tuple[Chunk, ...]
    levels: tuple[ChunkFile, ...]
    text: ChunkFile
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, data: bytes) -> Manifest:
        """Read and check what `publish` wrote.

        Raises:
            ValueError: it is something else, or was altered.
        """
        try:
            found = json.loads(data)
            if found["format"] != _FORMAT:
                raise ValueError(f"format {found['format']!r}")
            if found.pop("crc32") != _crc_of(found):
                raise ValueError("it was altered")
            tokens = [_count(n) for n in found["num_tokens"]]
            text, *levels = (_file(entry, len(tokens)) for entry in (found["text"], *found["levels"]))
            chunks = tuple(
                Chunk(
                    num_tokens=n,
                    level_bytes=tuple(level.spans[i].num_bytes for level in levels),
                    text_bytes=text.spans[i].num_bytes,
                )
                for i, n in enumerate(tokens)
            )
            check_chunks(chunks)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"the manifest cannot be read ({error!r}); publish the cache again") from error
        return cls(chunks, tuple(levels), text, found["facts"])


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _file(entry: Any, num_chunks: int) -> ChunkFile:
    name = entry["file"]
    spans = tuple(
        Span(first=_count(first), num_bytes=_count(size), crc32=str(crc))
        for first, size, crc in entry["spans"]
    )
    if not isinstance(name, str) or "/" in name or name.startswith(".") or len(spans) != num_chunks:
        raise ValueError(f"{name!r} has {len(spans)} of {num_chunks} chunks")
    return ChunkFile(file=name, spans=spans)


def _crc(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}"


def _crc_of(manifest: Mapping[str, Any]) -> str:
    return _crc(json.dumps(manifest, sort_keys=True).encode())
