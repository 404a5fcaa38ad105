"""A published cache, and a fetch of it over the loopback interface: choices, measured speed, damage, a server that goes."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan.storage.cachegen import LEVELS, decode_chunk, encode_chunk
from longspan.storage.fetching import fetch
from longspan.storage.published import MANIFEST, Encoded, FolderSource, Manifest, publish
from longspan.storage.range_server import RangeClient, serve
from longspan.storage.streaming import Costs, Outcome

SLOW_MODEL = Costs(recompute_seconds_per_token=1.0)


def choices(outcome: Outcome) -> list[int | str]:
    return [decision.choice for decision in outcome.decisions]


def read(text: bytes, before: Sequence[Any]) -> str:
    return f"{text.decode()} behind {len(before)}"


def slowly(
    seconds: float, make: Callable[[bytes, Sequence[Any]], Any]
) -> Callable[[bytes, Sequence[Any]], Any]:
    def slow(text: bytes, before: Sequence[Any]) -> Any:
        time.sleep(seconds)
        return make(text, before)

    return slow


def publish_parts(
    folder: Path, levels: Sequence[Sequence[bytes]], texts: Sequence[bytes], tokens: int
) -> None:
    """`levels[level][chunk]`, each chunk of so many tokens."""
    chunks = zip(zip(*levels, strict=True), texts, strict=True)
    publish(folder, (Encoded(num_tokens=tokens, levels=made, text=text) for made, text in chunks))


def write_cache(folder: Path, num_chunks: int = 4) -> list[list[bytes]]:
    generator = torch.Generator().manual_seed(0)
    made = [[torch.randn(1, 2, 100, 16, generator=generator) for _ in range(2)] for _ in range(num_chunks)]
    encoded = [[encode_chunk(kv[:1], kv[1:], level=level) for kv in made] for level in LEVELS]
    publish_parts(folder, encoded, [f"text {i}".encode() for i in range(num_chunks)], 100)
    return encoded


def test_a_fetch_equals_decoding_here(tmp_path: Path) -> None:
    encoded = write_cache(tmp_path)
    with serve(tmp_path) as served, RangeClient(served.url) as client:
        fetched = fetch(client, deadline_seconds=60, costs=SLOW_MODEL, recompute=read)
        raw = fetch(client, costs=SLOW_MODEL, recompute=read, decode=bytes)
    local = fetch(FolderSource(tmp_path), costs=SLOW_MODEL, recompute=read, decode=bytes)
    assert choices(fetched.outcome) == [0, 0, 0, 0] and fetched.outcome.met
    assert raw.parts == local.parts == tuple(encoded[0])
    assert fetched.texts == (b"text 0", b"text 1", b"text 2", b"text 3")
    for i in range(4):
        for got, here in zip(fetched.parts[i], decode_chunk(encoded[0][i]), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, here, strict=True))
    ends = [d.ready_seconds for d in fetched.outcome.decisions]
    assert ends == sorted(ends)
    assert [d.num_bytes for d in fetched.outcome.decisions] == [len(part) + 6 for part in encoded[0]]


def test_a_slow_server_gives_coarser_levels_and_then_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = write_cache(tmp_path)
    finest = sum(len(part) for part in encoded[0])
    with serve(tmp_path, bytes_per_second=finest / 2) as served, RangeClient(served.url) as client:
        slow = fetch(client, deadline_seconds=1.6, costs=SLOW_MODEL, recompute=read)
        served.bytes_per_second = finest / 10
        costs = Costs(recompute_seconds_per_token=1e-5)
        slower = fetch(client, deadline_seconds=0.1, costs=costs, recompute=read)
        monkeypatch.setattr("longspan.storage.fetching._LOOK_SECONDS", 0.0)
        known = fetch(client, costs=costs, recompute=read, first_bytes_per_second=finest / 10)
    # All at the finest level would take 2 s.
    assert max(decision.choice for decision in slow.outcome.decisions) > 0
    assert sum(decision.num_bytes for decision in slow.outcome.decisions) < finest
    for fetched in (slower, known):
        assert choices(fetched.outcome) == ["text"] * 4
        assert fetched.parts == tuple(f"text {i} behind {i}" for i in range(4))
    assert sum(d.num_bytes for d in known.outcome.decisions) == 4 * 6  # nothing was fetched but the text


def test_decoding_goes_on_while_the_next_chunk_is_fetched(tmp_path: Path) -> None:
    publish_parts(tmp_path, [[b"a" * 1000] * 3], [b"text"] * 3, 1)

    def decode(data: bytes) -> int:
        time.sleep(0.2)
        return len(data)

    with serve(tmp_path, bytes_per_second=5000) as served, RangeClient(served.url) as client:
        fetched = fetch(client, deadline_seconds=9, costs=SLOW_MODEL, recompute=read, decode=decode)
    first, second, third = fetched.outcome.decisions
    assert fetched.parts == (1000, 1000, 1000)
    assert second.asked_seconds < first.ready_seconds and third.asked_seconds < second.ready_seconds


def test_a_wrong_estimate_is_mended_by_what_was_measured(tmp_path: Path) -> None:
    # 0.2 s a chunk over the link. Reading a chunk is thought to take 1 ms, and takes 0.5 s.
    publish_parts(tmp_path, [[b"a" * 2000] * 6], [b"text"] * 6, 10)
    with serve(tmp_path, bytes_per_second=10_000) as served, RangeClient(served.url) as client:
        costs = Costs(recompute_seconds_per_token=1e-4)
        fetched = fetch(
            client, costs=costs, recompute=slowly(0.5, read), decode=len, first_bytes_per_second=10_000
        )
    assert choices(fetched.outcome) == ["text", "text", 0, 0, 0, 0]


def test_bandwidth_that_comes_back_is_seen_while_the_model_reads(tmp_path: Path) -> None:
    publish_parts(tmp_path, [[b"a" * 100_000] * 6], [b"text"] * 6, 10)
    with serve(tmp_path) as served, RangeClient(served.url) as client:
        costs = Costs(recompute_seconds_per_token=0.03)
        fetched = fetch(
            client, costs=costs, recompute=slowly(0.3, read), decode=len, first_bytes_per_second=10_000
        )
    assert choices(fetched.outcome) == ["text", 0, 0, 0, 0, 0]


def test_an_altered_chunk_is_made_of_its_text(tmp_path: Path) -> None:
    write_cache(tmp_path)
    file = tmp_path / "level0.bin"
    manifest = Manifest.of((tmp_path / MANIFEST).read_bytes())
    data = bytearray(file.read_bytes())
    data[manifest.levels[0].spans[2].first + 40] ^= 1
    file.write_bytes(data)
    with serve(tmp_path) as served, RangeClient(served.url) as client:
        fetched = fetch(client, costs=SLOW_MODEL, recompute=slowly(0.3, read))
    assert choices(fetched.outcome) == [0, 0, "text", 0] and fetched.parts[2] == "text 2 behind 2"
    notes = [d.note for d in fetched.outcome.decisions]
    assert notes[2].startswith("chunk 2 of level0.bin was altered") and notes[:2] + notes[3:] == [""] * 3


def test_bytes_that_no_encoder_wrote_are_made_of_their_text(tmp_path: Path) -> None:
    publish_parts(tmp_path, [[b"nonsense" * 9] * 2], [b"one", b"two"], 3)
    with serve(tmp_path) as served, RangeClient(served.url) as client:
        fetched = fetch(client, costs=SLOW_MODEL, recompute=slowly(0.3, read))
    assert fetched.parts == ("one behind 0", "two behind 1")
    assert all("begin with" in d.note for d in fetched.outcome.decisions)


def test_files_that_are_gone_or_cut_are_made_of_their_text(tmp_path: Path) -> None:
    encoded = write_cache(tmp_path)
    file = tmp_path / "level0.bin"
    file.write_bytes(file.read_bytes()[: len(encoded[0][0]) + 10])
    for cut in (True, False):
        if not cut:
            file.unlink()
        with serve(tmp_path) as served, RangeClient(served.url) as client:
            over = fetch(client, costs=SLOW_MODEL, recompute=slowly(0.1, read))
        local = fetch(FolderSource(tmp_path), costs=SLOW_MODEL, recompute=slowly(0.1, read))
        for fetched in (over, local):
            assert choices(fetched.outcome)[1:] == ["text"] * 3
            assert (fetched.outcome.decisions[0].choice == 0) == cut
            assert all("publish" in d.note or "answered 404" in d.note for d in fetched.outcome.decisions[1:])


class Breaking:
    """A source that is gone after so many answers."""

    def __init__(self, folder: Path, answers: int) -> None:
        self.source, self.left = FolderSource(folder), answers

    def get(self, path: str, *, first: int = 0, num_bytes: int | None = None) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("it broke off")
        return self.source.get(path, first=first, num_bytes=num_bytes)


def test_a_source_that_goes_costs_time_alone(tmp_path: Path) -> None:
    write_cache(tmp_path)
    seen = set()
    for answers in range(2, 12):
        fetched = fetch(Breaking(tmp_path, answers), costs=SLOW_MODEL, recompute=read)
        made = choices(fetched.outcome)
        seen.add(made.count("text"))
        assert made == sorted(made, key=str) and len(fetched.parts) == 4
        assert all((d.note == "it broke off") == (d.choice == "text") for d in fetched.outcome.decisions)
    assert {0, 4} <= seen and len(seen) > 2
    for answers in range(2):
        with pytest.raises(ConnectionError, match="it broke off"):
            fetch(Breaking(tmp_path, answers), costs=SLOW_MODEL, recompute=read)


def test_what_recomputing_raises_is_raised(tmp_path: Path) -> None:
    write_cache(tmp_path)

    def fail(text: bytes, before: Sequence[Any]) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fetch(
            FolderSource(tmp_path),
            costs=Costs(recompute_seconds_per_token=0.0),
            recompute=fail,
            first_bytes_per_second=1,
        )


def test_damage_in_the_text_is_refused(tmp_path: Path) -> None:
    write_cache(tmp_path)
    (tmp_path / "text.bin").write_bytes(b"text 0text 1text 2text 4")
    with pytest.raises(ValueError, match="chunk 3 of text.bin was altered"):
        fetch(FolderSource(tmp_path), costs=SLOW_MODEL, recompute=read)


def test_a_manifest_says_where_chunks_lie_and_that_it_is_whole(tmp_path: Path) -> None:
    publish_parts(tmp_path, [[b"abc", b"de"]], [b"x", b"yz"], 3)
    data = (tmp_path / MANIFEST).read_bytes()
    manifest = Manifest.of(data)
    (level,) = manifest.levels
    assert (level.file, level.name) == ("level0.bin", "level0")
    assert [(span.first, span.num_bytes) for span in level.spans] == [(0, 3), (3, 2)]
    assert [chunk.text_bytes for chunk in manifest.chunks] == [1, 2]
    assert level.checked(1, b"de") == b"de"
    with pytest.raises(ValueError, match="chunk 1 of level0.bin was altered"):
        level.checked(1, b"df")
    for at in range(len(data)):
        altered = bytearray(data)
        altered[at] ^= 1
        try:
            assert Manifest.of(bytes(altered)) == manifest
        except ValueError as error:
            assert "publish the cache again" in str(error)
        else:
            assert data[at : at + 1].isspace()


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"num_tokens": [1, -1]},
        {"num_tokens": [True, 1]},
        {"num_tokens": [1]},
        {"levels": []},
        {"levels": [{"file": 3, "spans": [[0, 1, ""], [1, 1, ""]]}]},
        {"levels": [{"file": "../a", "spans": [[0, 1, ""], [1, 1, ""]]}]},
        {"levels": [{"file": "a", "spans": [[0, 0, ""], [1, 1, ""]]}]},
        {"levels": [{"file": "a", "spans": [[0, 1], [1, 1]]}]},
        {"text": None},
    ],
)
def test_manifests_are_checked(tmp_path: Path, change: dict[str, Any]) -> None:
    publish_parts(tmp_path, [[b"abc", b"de"]], [b"x", b"yz"], 3)
    facts = json.loads((tmp_path / MANIFEST).read_text()) | change
    facts.pop("crc32")
    crc = f"{zlib.crc32(json.dumps(facts, sort_keys=True).encode()):08x}"
    with pytest.raises(ValueError, match="publish the cache again") as caught:
        Manifest.of(json.dumps(facts | {"crc32": crc}).encode())
    assert "it was altered" not in str(caught.value)
    for data in (b"", b"[" * 10**5, b"\xff", b"[]"):
        with pytest.raises(ValueError, match="publish the cache again"):
            Manifest.of(data)


def test_what_cannot_be_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no chunk"):
        publish(tmp_path, [])
    unequal = [Encoded(num_tokens=1, levels=(b"a",) * n, text=b"t") for n in (1, 2)]
    with pytest.raises(ValueError, match="give as many"):
        publish(tmp_path, unequal)
    assert not (tmp_path / MANIFEST).exists()
