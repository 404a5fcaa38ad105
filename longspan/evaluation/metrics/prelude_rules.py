"""PRELUDE: does an answer say that a backstory is consistent with a book, or that it contradicts it.

Paper: Yu et al., *PRELUDE: A Benchmark Designed to Require Global Comprehension and Reasoning over Long Contexts*, 2025.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import best_of

__all__ = ["consistency", "verdict"]

WORDS = re.compile(r"\b(in|not |un)?(consisten(?:t|cy)|contradict\w*)", re.IGNORECASE)


def verdict(text: str) -> str | None:
    """ "consistent" or "contradict", the last that a text names; "inconsistent" contradicts, "not contradict" is consistent."""
    found = list(WORDS.finditer(text))
    if not found:
        return None
    denied, word = found[-1][1] is not None, found[-1][2].lower()
    return "consistent" if word.startswith("consisten") != denied else "contradict"


def consistency(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the answer's verdict is the reference's. Made here: the official scorer could not be read."""
    given = verdict(prediction)
    return best_of(lambda reference: float(given is not None and given == verdict(reference)), references)
