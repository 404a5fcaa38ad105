"""Matches of numbers: the first, the last, or a run of numbers in an answer.

Papers: Zhang et al., *InfiniteBench: Extending Long Context Evaluation Beyond 100K Tokens*, 2024; Moon and Lim,
*NeedleChain: Measuring Intact Long-Context Reasoning Capability of Large Language Models*, 2025; An et al., *L-Eval:
Instituting Standardized Evaluation for Long Context Language Models*, 2023.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import best_of, need_references

__all__ = [
    "code_run",
    "gsm",
    "judge_mark",
    "math_calc",
    "math_find",
    "needle_chain",
    "needle_chain_fixed",
    "number_string",
    "passkey",
]

DECIMAL = r"\d+\.\d+|\d+"


def passkey(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the first run of digits in the answer is the first reference.

    Official scorer: InfiniteBench `get_score_one_passkey`. Its fault: "1. The key is 71432" scores 0.
    """
    need_references(references)
    found = re.search(r"[0-9]+", prediction)
    return float((found[0] if found else "") == references[0])


def number_string(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """As `passkey`. Official scorer: InfiniteBench `get_score_one_number_string`."""
    return passkey(prediction, references, details)


def math_find(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the first number in the answer equals the first reference, as an integer or with decimals.

    Official scorer: InfiniteBench `get_score_one_math_find`. It knows no minus sign, and fails on "2.5" where an integer is
    wanted, which scores 0 here.
    """
    need_references(references)
    found = re.search(DECIMAL, prediction)
    return float(found is not None and float(found[0]) == _number(references[0]))


def math_calc(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Part of the running values, from the first, that the answer's numbers give before its first mistake.

    Official scorer: InfiniteBench `get_score_one_math_calc`. Its faults: a minus sign is not seen, numbers in a sentence
    before the list count as values, and for GPT-4 alone the first number is dropped.

    Args:
        references: the values in order.
        details: "drop_first_number", true for models that repeat the first operand, as the official scorer holds of GPT-4.
    """
    need_references(references)
    numbers = re.findall(r"[0-9]+", prediction)[1 if details.get("drop_first_number") else 0 :]
    right = 0
    for number, wanted in zip(numbers, references, strict=False):
        if int(number) != _number(wanted):
            break
        right += 1
    return right / len(references)


def code_run(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the answer's last word is an integer that equals the first reference.

    Official scorer: InfiniteBench `get_score_one_code_run`, which takes points, quotes and colons for white space.
    """
    need_references(references)
    words = re.sub(r"[\n.`'\":]", " ", prediction.strip()).split()
    try:
        return float(bool(words) and int(words[-1]) == _number(references[0]))
    except ValueError:
        return 0.0


def _number(reference: Any) -> float:
    try:
        return int(reference) if "." not in str(reference) else float(reference)
    except ValueError as error:
        raise ValueError(
            f"the reference {reference!r} is not a number; this metric compares numbers"
        ) from error


def needle_chain(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the first integer after the last "## Answer:" equals the reference without its decimals.

    Official scorer: NeedleChain `evaluate.py`. Its faults: it drops all white space first, so "1,600 dollars" holds no number
    that it sees; and 66 of the 600 salaries of its longest set have decimals, where any answer with the right whole part is
    taken. `needle_chain_fixed` has neither.
    """
    found = re.search(r"\b(?:\d{1,3}(?:,\d{3})+|\d+)\b", _chain_answer(prediction))
    if found is None:
        return 0.0
    number = int(found[0].replace(",", ""))
    return best_of(lambda reference: float(int(float(reference)) == number), references)


def needle_chain_fixed(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the first number after the last "## Answer:" equals the reference to half a hundredth."""
    found = re.search(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?", _chain_answer(prediction))
    if found is None:
        return 0.0
    number = float(found[0].replace(",", ""))
    return best_of(lambda reference: float(math.isclose(number, float(reference), abs_tol=0.005)), references)


def _chain_answer(prediction: str) -> str:
    return prediction.split("## Answer:")[-1].replace("\n", "").replace(" ", "")


def gsm(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the number after "The answer is", else the last one of the first paragraph, is the reference's.

    Official scorer: L-Eval `process_math`. Its faults: signs, and all from the decimal point on, are dropped on both sides.
    """
    number = _gsm_number(prediction)

    def score(reference: str) -> float:
        wanted = _gsm_number(reference)
        return float(number == wanted or (number != "" and wanted != "" and int(number) == int(wanted)))

    return best_of(score, references)


def _gsm_number(text: str) -> str:
    found = re.search(r"The answer is (\S+)", text)
    if found:
        word = found[1]
    else:
        words = text.split("\n\n")[0].split(" ")
        word = next((word for word in reversed(words) if any(letter.isdigit() for letter in word)), "")
    return "".join(letter for letter in word.split(".")[0] if letter.isdigit())


def judge_mark(judgement: str, highest: float = 100.0) -> float | None:
    """A judge's mark written "[[85]]" or "[85]", divided by the highest; None where there is none: Loong's `extract_number`.

    Raises:
        ValueError: the mark is above the highest.
    """
    found = re.search(r"\[\[([0-9]*\.?[0-9]+)\]\]", judgement) or re.search(
        r"\[([0-9]*\.?[0-9]+)\]", judgement
    )
    if found is None:
        return None
    if float(found[1]) > highest:
        raise ValueError(
            f"the judge's mark is {found[1]}, the highest is {highest:g}; state the scale in the judge's prompt"
        )
    return float(found[1]) / highest
