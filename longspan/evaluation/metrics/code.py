"""Code: how alike two lines are, what a program prints, which function is broken.

Papers: Bai et al., *LongBench*, 2023; Zhang et al., *InfiniteBench*, 2024; An et al., *L-Eval*, 2023 (CodeU).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from longspan.evaluation.metrics.text import best_of

__all__ = ["code_debug", "code_similarity", "code_u", "similarity_ratio"]

PHRASES_BEFORE_OUTPUT = (
    "will be",
    "of the code",
    "is",
    "would be",
    "the value of",
    "the result of",
    "printed",
)
EXTRA_WORDS = 3


def similarity_ratio(first: str, second: str) -> float:
    """`fuzzywuzzy.fuzz.ratio` / 100 without python-Levenshtein: difflib's ratio rounded to whole per cents, 0 if one is empty."""
    if first == second:
        return 1.0
    if not first or not second:
        return 0.0
    return round(100 * SequenceMatcher(None, first, second).ratio()) / 100


def code_similarity(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Likeness of the answer's first line that holds no backtick, "#" or "//"; best of the references.

    Official scorer: LongBench `code_sim_score`, published with difflib behind fuzzywuzzy. Its faults: with python-Levenshtein
    installed the same answers score about two points more; a first line with a comment or the operator "//" is passed over.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return best_of(lambda reference: similarity_ratio(line, reference), references)


def code_debug(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the answer begins with the right letter and "." or ":", or names the function or letter after "answer is:".

    Official scorer: InfiniteBench `get_score_one_code_debug`. Its fault: "C" alone, and "(C)", are wrong.

    Args:
        references: the broken function's name, then its letter.
    """
    if len(references) != 2:
        raise ValueError(
            f"got {len(references)} references; code_debug takes two, the function's name and its letter"
        )
    name, letter = references
    text = prediction.strip()
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    text = re.sub(r" {2,}", " ", re.sub(r"[\n`'\"\-*]|Option|option", " ", text))
    for prefix in ("answer is:", "is:", "answer:", "correct option is:"):
        if prefix in text:
            return float(text[text.find(prefix) + len(prefix) + 1 :].startswith((letter, name)))
    return 0.0


def code_u(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the reference stands in the last words of the answer, or in those after "the final output".

    Official scorer: L-Eval on CodeU: as many words as the reference has and three more, spaces, commas and quotes dropped.
    Its fault: it drops ".0" wherever it stands and "is" inside words.
    """

    def score(reference: str) -> float:
        return _contains_output(_last_words(prediction, len(reference.split())), _plain_output(reference))

    return best_of(score, references)


def _contains_output(found: str, wanted: str) -> float:
    try:
        return float(float(found) == float(wanted))
    except ValueError:
        return float(wanted.lower().replace(" ", "") in found.lower().replace(" ", ""))


def _plain_output(text: str) -> str:
    plain = re.sub(r"\s+", " ", text)
    for old, new in (
        (",", ""),
        ("'", ""),
        ("\\", ""),
        (".0", ""),
        ("] [", "]["),
        ("[ [", "[["),
        ("] ]", "]]"),
    ):
        plain = plain.replace(old, new)
    return plain


def _last_words(prediction: str, num_words: int) -> str:
    text = _plain_output(prediction)
    for phrase in PHRASES_BEFORE_OUTPUT:
        text = text.replace(phrase, "")
    if "the final output" in text:
        words = re.split(r"\s+", text.split("the final output")[-1])[: num_words + EXTRA_WORDS]
    else:
        words = re.split(r"\s+", text)[-(num_words + EXTRA_WORDS) :]
    return " ".join(words)
