"""The official loader's draws: which questions, and which worked examples stand before each."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from longspan.evaluation.published import Source
from longspan.evaluation.suites._files import Row

__all__ = ["LENGTHS", "SEED", "SOURCE", "balanced", "examples_for", "first_shuffled", "seed_of", "with_keys"]

SOURCE = Source(
    hub=None,
    licence="MIT; the data sets keep theirs",
    citation="Yen et al., HELMET: How to Evaluate Long-Context Language Models Effectively and Thoroughly, ICLR 2025",
    url="https://huggingface.co/datasets/princeton-nlp/HELMET",
)
LENGTHS = ("8k", "16k", "32k", "64k", "128k")
SEED = 42
NUM_QUESTIONS = 100
NUM_EXAMPLES = 2


def seed_of(text: str, added: int = 0) -> int:
    """A seed made from a question's text, the same on every machine."""
    return (int(sha256(text.encode("utf-8")).hexdigest(), 16) + added) % 2**31


def _shuffled(number: int, seed: int) -> list[int]:
    """Places in the order in which `datasets` shuffles so many rows."""
    return [int(place) for place in np.random.default_rng(seed).permutation(number)]


def first_shuffled(rows: Iterable[Row], count: int = NUM_QUESTIONS) -> list[Row]:
    """The first `count` rows after the official shuffle."""
    found = list(rows)
    return [found[place] for place in _shuffled(len(found), SEED)[:count]]


def with_keys(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[Row]:
    """The rows of 100 questions, all places of the right passage, drawn from the sorted keys with the official seed."""
    found = list(rows)
    keys = sorted({key(row) for row in found})
    chosen = set(random.Random(SEED).sample(keys, min(NUM_QUESTIONS, len(keys))))
    return [row for row in found if key(row) in chosen]


def examples_for(question: str, pool: Sequence[Row], key: Callable[[Row], Any]) -> list[Row]:
    """Two worked examples with different keys, drawn with a seed of the question itself.

    Raises:
        ValueError: the pool holds fewer.
    """
    found: dict[Any, Row] = {}
    for place in _shuffled(len(pool), seed_of(question)):
        found.setdefault(key(pool[place]), pool[place])
        if len(found) == NUM_EXAMPLES:
            return list(found.values())
    raise ValueError(f"the worked examples have {len(found)} different questions; {NUM_EXAMPLES} are needed")


def balanced(rows: Sequence[Mapping[str, Any]], label: str, count: int, seed: int) -> list[Row]:
    """`count` rows in rounds of one row for each label, the labels of a round in random order.

    Args:
        rows: to draw from. label: name of the label's field. count: rows wanted. seed: of all draws.
    """
    rng = random.Random(seed)
    by_label: dict[Any, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row[label], []).append(row)
    num_rounds = math.ceil(count / len(by_label))
    rounds: list[list[Row]] = [[] for _ in range(num_rounds)]
    for same in by_label.values():
        places = rng.sample(range(len(same)), num_rounds % len(same))
        while len(places) < num_rounds:  # more rounds than rows of this label: all of them again
            places += rng.sample(range(len(same)), min(num_rounds - len(places), len(same)))
        for one, place in zip(rounds, places, strict=True):
            one.append(same[place])
    for one in rounds:
        rng.shuffle(one)
    return [row for one in rounds for row in one][:count]
