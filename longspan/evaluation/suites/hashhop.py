"""HashHop: follow an assignment from hash to hash through shuffled lines of random strings.

The text is nothing but lines "hash = hash", several chains of `h` lines each, all mixed; the last line of a chain has its
value in quotes. A first hash is asked: the value at the end of its chain, or with `_chain` every hash on the way. Nothing in
the text can be compressed or guessed, and every line looks alike. Scored right when the answer's hashes are exactly the
wanted ones; the part `final` says whether the last of them is right.

Paper: none; HashHop (Magic, 2024), https://github.com/magicproduct/hash-hop
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import need_references
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "hashhop",
    "title": "HashHop: Long Context Evaluation",
    "year": 2024,
    "version": 1,
    "metric": "whether the answer's hashes are exactly the wanted ones, in order; part `final`: whether the last is right",
    "differs": [
        "one query a sample; the official completion lists several, drawn from all chains",
        "the question is put in a sentence; the official prompt is the lines alone, for a model trained on them",
        "the length is in tokens of the model, not in characters",
        "one chain may miss its last lines where they do not fit",
        "quotes and words around the hashes are let pass",
    ],
    "paper_id": None,
    "lengths": "any; hops_6 from 1K tokens",
    "needs": "nothing",
    "licence": "generated here; the official generator is MIT",
}

LETTERS = 16
HASH_TOKENS = 24
EXACT_TOKENS = 8192


def hashes_match(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """1.0 if the hashes of the answer's first line with any are the reference's, no more and no fewer.

    Official scorer: HashHop compares strings; here words that are not hashes do not count.
    """
    need_references(references)
    wanted = _hashes(references[0])
    found = next((hashes for line in prediction.splitlines() if (hashes := _hashes(line))), [])
    return {"score": float(found == wanted), "final": float(found[-1:] == wanted[-1:])}


def _hashes(text: str) -> list[str]:
    return re.findall(rf"\b[A-Za-z]{{{LETTERS}}}\b", text)


def _hash(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_letters, k=LETTERS))


def _chain(rng: random.Random, hops: int) -> tuple[list[str], list[str]]:
    """The hashes of one chain, and its lines."""
    hashes = [_hash(rng) for _ in range(hops + 1)]
    lines = [f"{left} = {right}" for left, right in zip(hashes, hashes[1:], strict=False)]
    lines[-1] = f"{hashes[-2]} = '{hashes[-1]}'"
    return hashes, lines


def hops(num_hops: int, *, whole_chain: bool = False) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of puzzles with chains of `num_hops` lines; with `whole_chain` the answer names every hash on the way."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        hashes, lines = _chain(rng, num_hops)
        if whole_chain:
            asked = (
                f"Start at {hashes[0]} and follow the assignments until the value in quotes. "
                "Write every hash on the way, the quoted one included, joined by ` = `. Write nothing else."
            )
            wanted = " = ".join(hashes[1:])
        else:
            asked = (
                f"Start at {hashes[0]} and follow the assignments until the value in quotes. "
                "Write that value only."
            )
            wanted = hashes[-1]
        max_new_tokens = HASH_TOKENS * (num_hops if whole_chain else 1) + 8
        prefix = f"{hashes[0]} ="
        left = room.left(asked, prefix, *lines, max_new_tokens=max_new_tokens)
        if left < room.count("\n".join(lines)):
            raise ValueError(
                f"chains of {num_hops} lines need more than {room.tokens} tokens; ask for {room.tokens * 2} or more"
            )

        def others() -> Iterator[str]:
            while True:
                yield from _chain(rng, num_hops)[1]

        # Past 8K tokens, filling is right to half a percent either way.
        left -= left // 200 if left > EXACT_TOKENS else 0
        fillers = room.fill(others(), left)
        rng.shuffle(fillers)
        return Puzzle(
            needles=(),
            context="\n".join(room.scatter(lines, fillers, rng)),
            question=asked,
            answer_prefix=prefix,
            references=(wanted,),
            answer=wanted,
            evidence=tuple(lines),
            max_new_tokens=max_new_tokens,
        )

    return make


TRACING: dict[str, Any] = {
    "ability": "tracing",
    "diffusion": "high",
    "scope": "low",
    "metric": hashes_match,
    "haystack": "own",
}

TASKS: dict[str, Task] = {
    "hops_1": Task(make=hops(1), places=True, **{**TRACING, "ability": "retrieval", "diffusion": "low"}),
    "hops_2": Task(make=hops(2), **TRACING),
    "hops_3": Task(make=hops(3), **TRACING),
    "hops_6": Task(make=hops(6), **TRACING),
    "hops_2_chain": Task(make=hops(2, whole_chain=True), answers="derived", **TRACING),
    "hops_3_chain": Task(make=hops(3, whole_chain=True), answers="derived", **TRACING),
    "hops_6_chain": Task(make=hops(6, whole_chain=True), answers="derived", **TRACING),
}
