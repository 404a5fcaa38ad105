"""Which level to fetch each chunk at, so that a stored cache is there before its deadline: CacheGen's adaptation.

Before chunk i is asked for, the throughput that the chunk before it had is taken to last. For every level, and for the text
itself, the time is reckoned at which all chunks from i on would be ready: fetched one after another, each decoded (or
read by the model anew, from its text) while the next is on its way. Chosen is the finest level in time for the deadline; the
text instead, which is exact, where that is ready no later; with no level in time, whatever is ready first.

    outcome = simulate(chunks, trace, deadline_seconds=2.0, costs=Costs(recompute_seconds_per_token=1e-3))

Paper: "CacheGen: Fast Context Loading for Language Model Applications" (2023).
*Differs from the paper*: decoding and recomputing count as a second stage that overlaps with the link, and text is also taken
where it beats the level that was chosen.
*Fails when*: throughput swings within a chunk; the controller learns of it one chunk late.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Choice = int | Literal["text"]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some tokens, and their bytes at each level, finest first, and as text."""

    num_tokens: int
    level_bytes: tuple[int, ...]
    text_bytes: int

    def size(self, choice: Choice) -> int:
        return self.text_bytes if choice == "text" else self.level_bytes[choice]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What comes after fetching, measured on the machine that fetches."""

    recompute_seconds_per_token: float
    decode_seconds_per_token: float = 0.0

    def seconds(self, chunk: Chunk, choice: Choice) -> float:
        each = self.recompute_seconds_per_token if choice == "text" else self.decode_seconds_per_token
        return each * chunk.num_tokens


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A chunk's choice and how it went; seconds since the start. `note` says why it is another one than was wanted."""

    choice: Choice
    num_bytes: int
    asked_seconds: float
    arrived_seconds: float
    ready_seconds: float
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    decisions: tuple[Decision, ...]
    deadline_seconds: float

    @property
    def finish_seconds(self) -> float:
        return self.decisions[-1].ready_seconds

    @property
    def met(self) -> bool:
        """Everything was ready by the deadline."""
        return self.finish_seconds <= self.deadline_seconds


def choose(
    chunks: Sequence[Chunk],
    *,
    now_seconds: float,
    busy_until_seconds: float,
    bytes_per_second: float | None,
    deadline_seconds: float,
    costs: Costs,
) -> Choice:
    """The next chunk's level (0 is the finest), or "text".

    Args:
        chunks: those not fetched yet, the next one first.
        busy_until_seconds: when what has arrived so far will be ready.
        bytes_per_second: of the last chunk; None before the first, which then takes the middle level.
    """
    num_levels = len(chunks[0].level_bytes)
    if bytes_per_second is None:
        return num_levels // 2

    def ready(choice: Choice) -> float:
        arrived, done = now_seconds, busy_until_seconds
        for chunk in chunks:
            arrived += chunk.size(choice) / bytes_per_second if bytes_per_second else math.inf
            done = max(arrived, done) + costs.seconds(chunk, choice)
        return done

    as_text = ready("text")
    for level in range(num_levels):
        if (in_time := ready(level)) <= deadline_seconds:
            return "text" if as_text <= in_time else level
    # A tie, as on a link that stands still, goes to the fewest bytes.
    choices: tuple[Choice, ...] = ("text", *range(num_levels))
    return min(choices, key=lambda choice: (ready(choice), chunks[0].size(choice)))


def transfer_end(trace: Sequence[tuple[float, float]], start_seconds: float, num_bytes: int) -> float:
    """When bytes sent from `start_seconds` on have arrived; infinite where the link stands still for good.

    Args:
        trace: (second it begins, gigabits a second) pieces; the last one lasts.
    """
    left = 8e-9 * num_bytes
    for (begin, rate), (end, _) in pairwise([*trace, (math.inf, 0.0)]):
        at = max(begin, start_seconds)
        if end <= at:
            continue
        if rate > 0 and left <= rate * (end - at):
            return at + left / rate
        left -= rate * (end - at) if rate > 0 else 0.0
    return math.inf


def simulate(
    chunks: Sequence[Chunk],
    trace: Sequence[tuple[float, float]],
    *,
    deadline_seconds: float,
    costs: Costs,
    first_bytes_per_second: float | None = None,
    fixed: Choice | None = None,
) -> Outcome:
    """The controller over a link whose bandwidth is known to us, and not to it.

    Args:
        trace: (second it begins, gigabits a second) pieces, the first at 0; the last one lasts.
        first_bytes_per_second: what is known of the link before the first chunk.
        fixed: take this for every chunk instead, to compare.

    Raises:
        ValueError: no chunks, chunks of unequal levels, or a trace out of order.
    """
    check_chunks(chunks)
    if not trace or trace[0][0] != 0 or any(b[0] <= a[0] for a, b in pairwise(trace)):
        raise ValueError(f"got the trace {list(trace)[:4]}; it must begin at second 0 and go forward")
    now, busy, rate = 0.0, 0.0, first_bytes_per_second
    decisions = []
    for i, chunk in enumerate(chunks):
        choice = fixed
        if choice is None:
            choice = choose(
                chunks[i:],
                now_seconds=now,
                busy_until_seconds=busy,
                bytes_per_second=rate,
                deadline_seconds=deadline_seconds,
                costs=costs,
            )
        size = chunk.size(choice)
        arrived = transfer_end(trace, now, size)
        busy = max(arrived, busy) + costs.seconds(chunk, choice)
        decisions.append(
            Decision(
                choice=choice, num_bytes=size, asked_seconds=now, arrived_seconds=arrived, ready_seconds=busy
            )
        )
        rate, now = size / (arrived - now), arrived
        if arrived == math.inf:
            break
    return Outcome(decisions=tuple(decisions), deadline_seconds=deadline_seconds)


def check_chunks(chunks: Sequence[Chunk]) -> None:
    """Raise a ValueError for chunks that the controller cannot choose among."""
    if not chunks or len({len(chunk.level_bytes) for chunk in chunks}) > 1 or not chunks[0].level_bytes:
        raise ValueError(
            f"got {len(chunks)} chunks; at least one is wanted, all with the same levels, at least one"
        )
    if any(size < 1 for chunk in chunks for size in (*chunk.level_bytes, chunk.text_bytes)):
        raise ValueError("got a chunk of 0 bytes; each level and the text of a chunk hold at least one byte")
