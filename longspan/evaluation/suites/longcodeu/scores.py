"""How answers of names, lines and sentences are scored."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import need_references, normal_words

__all__ = ["lines_f1", "names_f1", "sentence_match"]


def names_f1(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """F1 of the set of names given, one after each comma, semicolon or line end, with "precision" and "recall".

    Official scorer: LongCodeU's exact-match recall and precision of names.
    """
    need_references(references)
    items = re.split(r"[,;\n]|\band\b", re.sub(r"\([^()]*\)", "", prediction))
    names = [re.findall(r"[A-Za-z_][\w.]*", item) for item in items]
    given = {found[-1].strip(".").split(".")[-1] for found in names if found}
    return _f1(Counter(given), Counter(set(references)))


def lines_f1(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """F1 of the lines given, white space at their ends and marks of code blocks apart, with "precision" and "recall"."""
    need_references(references)
    given = [line.strip() for line in prediction.split("\n")]
    return _f1(
        Counter(line for line in given if line and not line.startswith("```")),
        Counter(line.strip() for line in references),
    )


def _f1(given: Counter[str], wanted: Counter[str]) -> dict[str, float]:
    same = (given & wanted).total()
    precision, recall = same / max(1, given.total()), same / wanted.total()
    f1 = 2 * precision * recall / (precision + recall) if same else 0.0
    return {"score": f1, "precision": precision, "recall": recall}


def sentence_match(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the answer, quotation marks, case, articles and punctuation apart, is the sentence."""
    need_references(references)
    return float(any(normal_words(prediction) == normal_words(reference) for reference in references))
