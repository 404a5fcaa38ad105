"""BABILong's labels: the answer must name the right one and, of those that the question does not name, no other.

Paper: Kuratov et al., *BABILong: Testing the Limits of LLMs with Long Context Reasoning-in-a-Haystack*, 2024.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import best_of

__all__ = ["BABI_LABELS", "babilong", "babilong_fixed"]

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
YES_NO = ("no", "yes")
BABI_LABELS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4", "qa11", "qa12", "qa13"), PLACES),
    **dict.fromkeys(("qa6", "qa9", "qa17", "qa18"), YES_NO),
    "qa5": ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"),
    "qa7": ("none", "one", "three", "two"),
    "qa8": ("apple", "football", "milk", "nothing"),
    "qa10": ("maybe", *YES_NO),
    "qa14": ("bedroom", "cinema", "kitchen", "office", "park", "school"),
    "qa15": ("cat", "mouse", "sheep", "wolf"),
    "qa16": ("gray", "green", "white", "yellow"),
    "qa19": ("e,e", "e,n", "e,s", "n,e", "n,n", "n,w", "s,e", "s,s", "s,w", "w,n", "w,s", "w,w"),
    "qa20": ("bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"),
}
"""The labels of each bAbI task, as its answers use them."""


def babilong(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the labels in the answer's first sentence, without those of the question, are just the reference's.

    Official scorer: BABILong `compare_answers`. Its faults: a label counts inside other words, so "not" and "know" say "no";
    and it means to cut at "Question" but looks for the capital in text in lower case. `babilong_fixed` does neither.

    Args:
        references: the target; several objects of qa8 are joined by commas.
        details: "question"; "labels", or "task" such as "qa1".
    """
    sentence = re.split(r"\.|<context>|<example>", prediction.lower())[0]
    return _score(sentence, references, details, lambda label, text: label in text)


def babilong_fixed(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`babilong` with labels as whole words and the answer cut where the model asks itself a further question."""
    sentence = re.split(r"\.|<context>|<example>|question", prediction.lower())[0]
    return _score(
        sentence,
        references,
        details,
        lambda label, text: bool(re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text)),
    )


def _score(
    sentence: str, references: Sequence[str], details: Mapping[str, Any], names: Callable[[str, str], bool]
) -> float:
    labels = {
        str(label).lower() for label in details.get("labels") or BABI_LABELS.get(str(details.get("task")), ())
    }
    if not labels or "question" not in details:
        raise ValueError(
            f"details have the keys {sorted(details)}; BABILong's score needs 'question', and 'labels' or a 'task' qa1 to qa20"
        )
    asked = str(details["question"]).lower()
    found = {label for label in labels if names(label, sentence) and not names(label, asked)}

    def score(reference: str) -> float:
        target = reference.lower()
        parts = target.split(",") if "," in target and len(target) > 3 else [target]
        return float(set(parts) <= found and len(found) == len(parts))

    return best_of(score, references)
