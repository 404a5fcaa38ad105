"""RuleArena's accuracy: the amount or the verdict with which an answer ends.

Paper: Zhou et al., *RuleArena: A Benchmark for Rule-Guided Reasoning with LLMs in Real-World Scenarios*, 2024.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import need_references

__all__ = ["transaction", "total_cost"]

CONCLUSION = "The total cost is"


def total_cost(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """1.0 if the amount after the first "The total cost is" is the reference, a whole number of dollars.

    Official scorer: RuleArena airline. Its faults: all points are dropped, so "$1,198.00" is read as 119800; and where text
    follows the amount, the reference's digits may stand anywhere in it. "exact" has neither: the last such amount must equal.
    """
    need_references(references)
    text, wanted = prediction.replace("**", ""), references[0]
    place = text.find(CONCLUSION)
    dollar = -1 if place == -1 else text.find("$", place)
    rest = text[dollar + 1 :].replace(",", "").replace(".", "") if dollar != -1 else ""
    right = int(rest) == int(wanted) if rest.isdecimal() else wanted in rest
    amounts = re.findall(rf"{CONCLUSION} \$?(\d[\d,]*(?:\.\d+)?)", text)
    exact = bool(amounts) and float(amounts[-1].replace(",", "")) == float(wanted)
    return {"score": float(right), "exact": float(exact)}


def transaction(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """1.0 if the answer says what the reference says: no violation, or which operation and which team.

    Official scorer: RuleArena nba, which looks for the whole phrase. Its fault: an answer that names two conclusions is right
    when either is. "violation": whether the last conclusion rightly says that there is one, or none.

    Args:
        references: "Answer: False", or "Answer: True. Illegal Operation: A. Problematic Team: B".
    """
    need_references(references)
    text = prediction.replace("**", "")
    said = re.findall(r"Answer: (True|False)", text)
    return {
        "score": float(references[0] in text),
        "violation": float(bool(said) and references[0].startswith(f"Answer: {said[-1]}")),
    }
