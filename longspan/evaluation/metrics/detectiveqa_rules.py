"""DetectiveQA: the option chosen, and how many of the annotated steps of reasoning the answer gives.

Paper: Xu et al., *DetectiveQA: Evaluating Long-Context Reasoning on Detective Novels*, 2024.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.judging.fallbacks import keywords_of

__all__ = ["chosen_letter", "detective", "step_recall"]

WORDS_OF_A_STEP = 0.5


def detective(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """1.0 if the option is right; "steps": `step_recall` of the annotated steps, where the details name some.

    Officially GPT-4 counts the steps; words are a stand-in for it, which knows no paraphrase.

    Args:
        references: the right letter. details: "reasoning", the steps in words.
    """
    if not references:
        raise ValueError("got no references; a metric needs at least one to compare with")
    score = float(chosen_letter(prediction) == references[0].strip())
    steps = details.get("reasoning")
    return {"score": score, **({"steps": step_recall(prediction, steps)} if steps else {})}


def chosen_letter(prediction: str) -> str | None:
    """The letter of {"answer": "A"}, else of "answer: A" or "answer is A", else the first lone A to D; None without one."""
    for pattern in (
        r'"answer"\s*:\s*"\(?([A-D])\b',
        r"(?i:answer(?: is)?|答案(?:是|为)?)\s*[:：]?\s*\(?([A-D])(?![A-Za-z])",
        r"(?<![\w'])([A-D])(?![\w'])",
    ):
        if found := re.search(pattern, prediction):
            return found[1]
    return None


def step_recall(prediction: str, steps: Sequence[str]) -> float:
    """Part of the steps of which at least half the different words that matter stand in a text.

    Args:
        steps: sentences; in Chinese each character counts as a word.
    """
    words = set(keywords_of(prediction))
    wanted = [set(keywords_of(step)) for step in steps]
    return sum(bool(one) and len(one & words) >= WORDS_OF_A_STEP * len(one) for one in wanted) / len(wanted)
