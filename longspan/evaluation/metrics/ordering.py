"""Ordering: which of several passages comes first, and the best of several answers.

Papers: Wang et al., *Ada-LEval: Evaluating long-context LLMs with length-adaptable benchmarks*, 2024; Li et al., *LooGLE: Can
Long-Context Language Models Understand Long Contexts?*, 2023.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

from longspan.evaluation.metrics.text import best_of, need_references

__all__ = [
    "best_answer",
    "cloze",
    "order_deviation",
    "order_exact_match",
    "order_exact_match_fixed",
    "parse_order",
]


def parse_order(prediction: str, num_items: int = 4) -> list[int] | None:
    """The order in an answer: the JSON list after "Answer:", else the only order whose digits run through the answer.

    Args:
        prediction: the answer.
        num_items: how many items were to be ordered, at most 9.

    Returns:
        Numbers from 1, or None where no single order can be read.
    """
    text = prediction.split("Answer:")[1].strip() if "Answer:" in prediction else prediction
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        orders = [order for order in permutations(range(1, num_items + 1)) if _runs_through(order, text)]
        return list(orders[0]) if len(orders) == 1 else None
    return found if isinstance(found, list) and all(isinstance(one, int) for one in found) else None


def _runs_through(order: Sequence[int], text: str) -> bool:
    place = 0
    for number in order:
        place = text.find(str(number), place) + 1
        if place == 0:
            return False
    return True


def order_exact_match(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the order in the answer is the reference "[2, 4, 1, 3]".

    Official scorer: Ada-LEval `TextSort.evaluate`. Its faults: a list that only begins right, "[]" too, is right; and it fails
    on an answer that is JSON but no list. `order_exact_match_fixed` compares whole lists.
    """
    return _order(prediction, references, whole=False)


def order_exact_match_fixed(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`order_exact_match` of whole lists, the first list of numbers anywhere in the answer being read before digits are."""
    return _order(prediction, references, whole=True)


def _order(prediction: str, references: Sequence[str], *, whole: bool) -> float:
    def score(reference: str) -> float:
        wanted = json.loads(reference)
        listed = re.findall(r"\[\s*\d+(?:\s*,\s*\d+)*\s*\]", prediction.split("Answer:")[-1]) if whole else []
        found = json.loads(listed[0]) if listed else parse_order(prediction, len(wanted))
        if found is None:
            return 0.0
        return float(found == wanted if whole else all(a == b for a, b in zip(wanted, found, strict=False)))

    return best_of(score, references)


def order_deviation(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> dict[str, float]:
    """How far the answer's order is from the reference, by LooGLE's deviations; the score is 1 - location mean / its maximum.

    Official scorer: LooGLE `get_reorder_deviation`: "location_square" and "location_mean" are the mean squared and absolute
    distance of each item from its place, "swap" the least exchanges of two items. Its faults: a wrong number of items keeps
    the deviation of the reference from sorted order, and orders count from 0 and from 1 at once; here an order that is none of
    all items has the largest deviation. LooGLE publishes deviations only; the score is made here.
    """
    need_references(references)
    wanted = json.loads(references[0])
    size = len(wanted)
    found = parse_order(prediction, size)
    largest = size * size // 2 / size
    if found is None or sorted(found) != sorted(wanted):
        square = sum((size - 1 - 2 * place) ** 2 for place in range(size)) / size
        return {"score": 0.0, "location_square": square, "location_mean": largest, "swap": float(size - 1)}
    places = [wanted.index(item) for item in found]
    mean = sum(abs(place - index) for index, place in enumerate(places)) / size
    return {
        "score": 1 - mean / largest if largest else 1.0,
        "location_square": sum((place - index) ** 2 for index, place in enumerate(places)) / size,
        "location_mean": mean,
        "swap": float(size - _cycles(places)),
    }


def _cycles(places: Sequence[int]) -> int:
    seen, cycles = set[int](), 0
    for start in range(len(places)):
        cycles += start not in seen
        while start not in seen:
            seen.add(start)
            start = places[start]
    return cycles


def best_answer(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the highest "A7" in the answer, else the highest number that fits, is the reference "A7".

    Official scorer: Ada-LEval `StackSelect.evaluate`. Its fault: of several named answers the one of the highest number counts.

    Args:
        details: "num_choice", how many answers there were.
    """
    if "num_choice" not in details:
        raise ValueError("the details name no 'num_choice'; give the number of answers to choose from")
    names = [f"A{number}" for number in range(int(details["num_choice"]), 0, -1)]
    found = next((name for name in names if name in prediction), None)
    found = found or next((name for name in names if name[1:] in prediction), None)
    return best_of(lambda reference: float(found == reference), references)


def cloze(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """Part of the blanks "<mask-0>" that are filled exactly (the score), and "partial": with a word in common.

    Official scorer: LooGLE `get_exact_match` and `get_partial_match`, which evaluate the answer as Python; here it is JSON.

    Args:
        references: a JSON object, blank to filling.
    """
    need_references(references)
    wanted: dict[str, str] = json.loads(references[0])
    found = _json_object(prediction)
    exact = sum(found.get(name) == filling for name, filling in wanted.items())
    partial = sum(
        bool(set(filling.split()) & set(str(found.get(name, "")).split())) for name, filling in wanted.items()
    )
    return {"score": exact / len(wanted), "partial": partial / len(wanted)}


def _json_object(text: str) -> dict[str, Any]:
    start, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
