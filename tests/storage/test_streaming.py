"""The controller on traces computed by hand, and the range server."""

from __future__ import annotations

import http.client
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longspan.storage.range_server import RangeClient, Served, serve
from longspan.storage.streaming import Chunk, Costs, Outcome, choose, simulate, transfer_end

GIGABIT = 125e6  # bytes a second
# At 1 gigabit a second a chunk takes 1, 0.5 or 0.2 seconds; its text 32 microseconds.
CHUNKS = [Chunk(num_tokens=1000, level_bytes=(125_000_000, 62_500_000, 25_000_000), text_bytes=4000)] * 4
SLOW_MODEL = Costs(recompute_seconds_per_token=1.0)


def run(
    trace: list[tuple[float, float]], deadline: float, costs: Costs = SLOW_MODEL, **known: Any
) -> Outcome:
    return simulate(
        CHUNKS, trace, deadline_seconds=deadline, costs=costs, **({"first_bytes_per_second": GIGABIT} | known)
    )


def choices(outcome: Outcome) -> list[int | str]:
    return [decision.choice for decision in outcome.decisions]


def test_the_finest_level_where_there_is_time() -> None:
    outcome = run([(0, 1.0)], 4.01)
    assert choices(outcome) == [0, 0, 0, 0]
    assert outcome.finish_seconds == pytest.approx(4.0) and outcome.met
    assert [d.num_bytes for d in outcome.decisions] == [125_000_000] * 4


def test_time_saved_is_spent_on_the_last_chunks() -> None:
    # All four at level 1 take 2 s; behind two of them, 2.01 s are left for two at level 0.
    outcome = run([(0, 1.0)], 3.01)
    assert choices(outcome) == [1, 1, 0, 0]
    assert outcome.finish_seconds == pytest.approx(3.0) and outcome.met


def test_a_drop_of_bandwidth_is_answered_with_a_coarser_level() -> None:
    # Chunk 1 meets the drop and takes 4 s, until 5 s; level 2 takes 0.8 s now, and 2 x 0.8 s are left for.
    trace = [(0, 1.0), (1, 0.25)]
    outcome = run(trace, 7.0)
    assert choices(outcome) == [0, 0, 2, 2]
    assert outcome.finish_seconds == pytest.approx(6.6) and outcome.met
    assert [d.arrived_seconds for d in outcome.decisions] == pytest.approx([1.0, 5.0, 5.8, 6.6])
    constant = run(trace, 7.0, fixed=0)
    assert constant.finish_seconds == pytest.approx(13.0) and not constant.met


def test_bandwidth_that_comes_back_is_used() -> None:
    # Level 2 in 1.6 s over the slow piece; then 5.4 s are left, and each chunk takes 1 s at level 0 of what was measured
    # one chunk late: chunk 1 is still chosen at 0.125 gigabits.
    outcome = run([(0, 0.125), (1.6, 1.0)], 7.0, first_bytes_per_second=GIGABIT / 8)
    assert choices(outcome) == [2, 2, 0, 0]
    assert outcome.finish_seconds == pytest.approx(1.6 + 0.2 + 2.0) and outcome.met


def test_text_over_a_very_slow_link() -> None:
    costs = Costs(recompute_seconds_per_token=5e-4)
    outcome = run([(0, 0.001)], 3.0, costs, first_bytes_per_second=GIGABIT / 1000)
    assert choices(outcome) == ["text"] * 4
    assert outcome.finish_seconds == pytest.approx(0.032 + 4 * 0.5) and outcome.met


def test_text_where_the_model_is_faster_than_the_link() -> None:
    fast = Costs(recompute_seconds_per_token=1e-5)
    assert choices(run([(0, 1.0)], 100.0, fast)) == ["text"] * 4
    # 0.5 s a chunk: slower than any level that is in time but the finest, at 1 s.
    assert choices(run([(0, 1.0)], 2.0, Costs(recompute_seconds_per_token=6e-4)))[0] == 1


def test_with_nothing_in_time_whatever_is_ready_first() -> None:
    outcome = run([(0, 1.0)], 0.1)
    assert choices(outcome) == [2, 2, 2, 2] and not outcome.met
    assert choices(run([(0, 1.0)], 0.01, Costs(recompute_seconds_per_token=1e-5))) == ["text"] * 4


def test_the_middle_level_before_anything_was_measured() -> None:
    assert choices(run([(0, 1.0)], 100.0, first_bytes_per_second=None)) == [1, 0, 0, 0]


def test_decoding_overlaps_with_the_link() -> None:
    # A chunk at level 0 takes 1 s to arrive and 1 s to decode; only the last one is waited for.
    outcome = run([(0, 1.0)], 5.01, Costs(recompute_seconds_per_token=1.0, decode_seconds_per_token=1e-3))
    assert choices(outcome) == [0, 0, 0, 0]
    assert [d.ready_seconds for d in outcome.decisions] == pytest.approx([2.0, 3.0, 4.0, 5.0])


def test_a_link_that_stands_still() -> None:
    outcome = run([(0, 1.0), (0.5, 0.0)], 5.0)
    assert outcome.finish_seconds == math.inf and not outcome.met and len(outcome.decisions) == 1
    stood = choose(
        CHUNKS,
        now_seconds=0,
        busy_until_seconds=0,
        bytes_per_second=0.0,
        deadline_seconds=9,
        costs=SLOW_MODEL,
    )
    assert stood == "text"


@pytest.mark.parametrize(
    "start, num_bytes, end",
    [
        (0, 125_000_000, 1.0),
        (0.5, 125_000_000, 2.0),  # half a gigabit until 1 s, half a gigabit in the second after
        (0.5, 250_000_000, 7.0),  # and then nothing from 2 s to 6 s
        (3.0, 250_000_000, 8.0),
        (9.0, 125_000_000, 10.0),
    ],
)
def test_bytes_over_a_trace(start: float, num_bytes: int, end: float) -> None:
    assert transfer_end([(0, 1.0), (1, 0.5), (2, 0.0), (6, 1.0)], start, num_bytes) == pytest.approx(end)
    assert transfer_end([(0, 1.0), (1, 0.0)], 1.0, 1) == math.inf


@pytest.mark.parametrize("trace", [[], [(1.0, 1.0)], [(0.0, 1.0), (0.0, 2.0)]])
def test_traces_out_of_order_are_refused(trace: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="begin at second 0"):
        run(trace, 1.0)


def test_chunks_that_cannot_be_chosen_among_are_refused() -> None:
    for chunks in ([], [Chunk(num_tokens=1, level_bytes=(), text_bytes=1)]):
        with pytest.raises(ValueError, match="at least one"):
            simulate(chunks, [(0, 1.0)], deadline_seconds=1, costs=SLOW_MODEL)
    with pytest.raises(ValueError, match="0 bytes"):
        simulate(
            [Chunk(num_tokens=1, level_bytes=(1,), text_bytes=0)],
            [(0, 1.0)],
            deadline_seconds=1,
            costs=SLOW_MODEL,
        )


# the server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "secret.txt").write_bytes(b"not for you")
    folder = tmp_path / "open"
    folder.mkdir()
    (folder / "data.bin").write_bytes(bytes(range(100)))
    (folder / "empty.bin").write_bytes(b"")
    (folder / "out.bin").symlink_to(tmp_path / "secret.txt")
    (folder / "inner").mkdir()
    with serve(folder) as served:
        yield served


def ask(
    served: Served, path: str, wanted: str | None = None, method: str = "GET"
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=10)
    try:
        connection.putrequest(method, path, skip_host=False)  # as it stands, dots and all
        if wanted:
            connection.putheader("Range", wanted)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


@pytest.mark.parametrize(
    "wanted, first, end",
    [
        ("bytes=0-9", 0, 10),
        ("bytes=90-", 90, 100),
        ("bytes=-7", 93, 100),
        ("bytes=50-1000", 50, 100),
        ("bytes=-500", 0, 100),
    ],
)
def test_ranges(server: Served, wanted: str, first: int, end: int) -> None:
    status, body, headers = ask(server, "/data.bin", wanted)
    assert status == 206 and body == bytes(range(first, end))
    assert headers["Content-Range"] == f"bytes {first}-{end - 1}/100"


@pytest.mark.parametrize("wanted", ["bytes=100-", "bytes=100-120", "bytes=-0", f"bytes={'9' * 40}-"])
def test_ranges_beyond_the_file_are_answered_416(server: Served, wanted: str) -> None:
    status, body, headers = ask(server, "/data.bin", wanted)
    assert status == 416 and body == b"" and headers["Content-Range"] == "bytes */100"


@pytest.mark.parametrize("wanted", [None, "bytes=9-3", "bytes=1-2,5-6", "lines=1-2", "bytes=-", "nonsense"])
def test_the_whole_file_where_no_range_is_read(server: Served, wanted: str | None) -> None:
    assert ask(server, "/data.bin", wanted)[:2] == (200, bytes(range(100)))


def test_head_and_empty_files(server: Served) -> None:
    status, body, headers = ask(server, "/data.bin", method="HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", "100")
    assert ask(server, "/empty.bin")[:2] == (200, b"")
    assert ask(server, "/empty.bin", "bytes=0-0")[0] == 416
    assert ask(server, "/data.bin", method="PUT")[0] == 501


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/inner/../../secret.txt",
        "/..%2fsecret.txt",
        "//../secret.txt",
        "/out.bin",
        "/inner",
        "/",
        "/none.bin",
        "/data.bin%00",
        "/%ff",
        "/" + "x" * 5000,
    ],
)
def test_nothing_outside_the_folder(server: Served, path: str) -> None:
    assert ask(server, path)[:2] == (404, b"")


def test_the_client_keeps_its_connection_and_says_what_is_wrong(server: Served) -> None:
    with RangeClient(server.url) as client:
        assert client.get("data.bin") == bytes(range(100))
        assert client.get("data.bin", first=10, num_bytes=5) == bytes(range(10, 15))
        with pytest.raises(ValueError, match="has no byte 100"):
            client.get("data.bin", first=100, num_bytes=1)
        with pytest.raises(ValueError, match="the file has changed"):
            client.get("data.bin", first=99, num_bytes=5)
        with pytest.raises(ValueError, match="answered 404"):
            client.get("none.bin")
        with pytest.raises(ValueError, match="0 or more, and 1 or more"):
            client.get("data.bin", first=-1, num_bytes=1)
        assert client.get("data.bin", first=0, num_bytes=1) == b"\0"
    with pytest.raises(ValueError, match="allowed is http://"):
        RangeClient("ftp://example.org")


def test_small_answers_do_not_wait(server: Served) -> None:
    with RangeClient(server.url) as client:
        client.get("data.bin")
        begun = time.perf_counter()
        for first in range(50):
            client.get("data.bin", first=first, num_bytes=1)
        assert time.perf_counter() - begun < 50 * 0.03  # 40 ms each, were the body held back behind its head


def test_answers_that_are_too_long_are_refused(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longspan.storage.range_server._MOST_BYTES", 99)
    with RangeClient(server.url) as client:
        with pytest.raises(ValueError, match="more than 99 bytes"):
            client.get("data.bin")
        assert client.get("data.bin", first=0, num_bytes=100) == bytes(range(100))


def test_a_server_that_is_gone(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        url = served.url
    with RangeClient(url) as client, pytest.raises(ConnectionError, match="check that it is up"):
        client.get("data.bin")
    with pytest.raises(ValueError, match="make it first"), serve(tmp_path / "none"):
        pass
