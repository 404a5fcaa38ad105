"""RuleArena's accuracy: the amount or the verdict with which an answer ends.

Paper: Zhou et al., *RuleArena: A Benchmark for Rule-Guided Reasoning with LLMs in Real-World Scenarios*, 2024.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import need_references

__all__ = ["tax_owed", "total_cost", "transaction"]

CONCLUSION = "The total cost is"
AMOUNT = r"\$((?:\d{1,3}(?:,\d{3})*|\d+)(?:\.\d+)?)."
CLOSE = 1e-5


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


def tax_owed(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """1.0 if the amount after the first "The total tax owed is" (or "overpaid", then negative) is the reference, to 1e-5 of it.

    Official scorer: RuleArena tax. Its fault: of an amount of four and more digits without commas it reads the first three.
    "exact" reads the whole of the last such amount.
    """
    need_references(references)
    text, wanted = prediction.replace("**", ""), float(references[0])
    found = re.search(rf"The total tax (owed|overpaid) is {AMOUNT}", text)
    whole = re.findall(r"The total tax (owed|overpaid) is \$?(\d[\d,]*(?:\.\d+)?)", text)
    return {
        "score": float(found is not None and _close(found[1], found[2], wanted)),
        "exact": float(bool(whole) and _close(whole[-1][0], whole[-1][1], wanted)),
    }


def _close(kind: str, amount: str, wanted: float) -> bool:
    value = float(amount.replace(",", "")) * (-1 if kind == "overpaid" else 1)
    return math.isclose(value, wanted, rel_tol=0, abs_tol=1e-8 + CLOSE * abs(wanted))
