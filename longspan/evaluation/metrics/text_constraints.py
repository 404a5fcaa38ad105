"""Long answers under constraints: numbered blocks that must all be there, lengths, and words that must or must not occur.

Paper: Wu et al., *LongGenBench: Benchmarking Long-Form Generation in Long Context LLMs*, 2024 (here SGT, after its title
*Spinning the Golden Thread*).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import normal_words

__all__ = ["constraints", "numbered_blocks", "sgt_completion"]

BLOCK_MARK = "#*#"
SMALL_WORDS = frozenset("of in on at to for and with by from is are be as it its this that or into".split())
MENTIONED = 0.5


def numbered_blocks(prediction: str, kind: str) -> dict[int, str]:
    """Blocks of a long answer by their number: block 3 is the first that says "Week 3" for the kind "Week".

    Args:
        prediction: the answer, its blocks apart by "#*#" or, where there is none of these, before each "Week 3".
        kind: what blocks are called, such as "Week", "Floor" or "Block".
    """
    apart = re.escape(BLOCK_MARK) if BLOCK_MARK in prediction else rf"(?={re.escape(kind)} \d)"
    found: dict[int, str] = {}
    for block in re.split(apart, prediction):
        if name := re.search(rf"{re.escape(kind)} (\d+)", block):
            found.setdefault(int(name[1]), block)
    return found


def sgt_completion(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> dict[str, float]:
    """Part of the blocks 1 to "number" that are there; "once", "range", "periodic": part of the checks that are mentioned.

    Official scorer: LongGenBench (SGT) `eval.py`; the completion rate, which is the score, is its own. Whether a block mentions
    an event it asks a language model; here at least half of the event's words, small ones apart, must stand in the block. As
    there, only checks of blocks that exist are counted, so an answer cut short is not punished twice.

    Args:
        details: "type" ("Week"), "number" (52), and "checks_once", "checks_range", "checks_periodic": block to event.
    """
    if "type" not in details or int(details.get("number", 0)) < 1:
        raise ValueError(
            f"details have the keys {sorted(details)}; SGT needs 'type' and 'number', which is 1 or more"
        )
    blocks = numbered_blocks(prediction, str(details["type"]))
    wanted = range(1, int(details["number"]) + 1)
    parts = {"score": sum(number in blocks for number in wanted) / len(wanted)}
    for name in ("once", "range", "periodic"):
        checks = {int(block): str(event) for block, event in details.get(f"checks_{name}", {}).items()}
        found = [_mentions(blocks[block], event) for block, event in checks.items() if block in blocks]
        if checks:
            parts[name] = sum(found) / len(found) if found else 0.0
    return parts


def _mentions(block: str, event: str) -> bool:
    words = set(normal_words(event)) - SMALL_WORDS
    return bool(words) and len(words & set(normal_words(block))) >= MENTIONED * len(words)


def constraints(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Part of the constraints that an answer meets; made here, to check what needs no judge.

    Args:
        references: not used.
        details: any of "min_words", "max_words", and "must_contain", "must_not_contain": lists of texts, case ignored, each
            of which is a constraint of its own.
    """
    length, text = len(prediction.split()), prediction.lower()
    met = list[bool]()
    if "min_words" in details:
        met.append(length >= int(details["min_words"]))
    if "max_words" in details:
        met.append(length <= int(details["max_words"]))
    met += [str(part).lower() in text for part in details.get("must_contain", ())]
    met += [str(part).lower() not in text for part in details.get("must_not_contain", ())]
    if not met:
        raise ValueError(
            f"details have the keys {sorted(details)}; name a constraint: min_words, max_words, must_contain, must_not_contain"
        )
    return sum(met) / len(met)
