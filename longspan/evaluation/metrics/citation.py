"""Citations "[3]": are the passages cited those that hold the answer, and is the answer right.

Papers: Tang et al., *L-CiteEval: Do Long-Context Models Truly Leverage Context for Responding?*, 2024; Yang et al.,
*LongBioBench: A Controllable Examination for Long-Context Language Models*, 2025; Gao et al., *Enabling Large Language Models
to Generate Text with Citations*, 2023 (ALCE).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.overlap import f1_parts
from longspan.evaluation.metrics.text import need_references, normal_words

__all__ = [
    "cited",
    "citation_f1",
    "citation_needle",
    "cited_answer_f1",
    "long_bio",
    "long_bio_cite",
    "without_citations",
]

MOST_CITATIONS = 3


def cited(text: str) -> list[int]:
    """Numbers of the passages cited as "[3]", in order, repeated ones too."""
    return [int(number) for number in re.findall(r"\[(\d+)", text)]


def without_citations(text: str) -> str:
    """A text without its marks "[3]", as ALCE and L-CiteEval drop them before they compare answers."""
    return re.sub(r"\[\d+", "", re.sub(r" \[\d+", "", text)).replace(" |", "").replace("]", "")


def _gold(details: Mapping[str, Any]) -> set[int]:
    gold = {int(number) for number in details.get("citations", ())}
    if not gold:
        raise ValueError(
            "the details name no 'citations'; list the numbers of the passages that hold the answer"
        )
    return gold


def citation_f1(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """F1 of the set of passages cited against those that hold the answer, with "precision" and "recall".

    Official scorer: L-CiteEval's `compute_counting_stars_citation`, which reads the numbers from JSON. For other tasks it asks
    an entailment model whether each sentence follows from what it cites; knowing the passages, none is needed.

    Args:
        details: "citations", numbers of the right passages.
    """
    gold, found = _gold(details), set(cited(prediction))
    right = len(gold & found)
    if not right:
        return {"score": 0.0, "precision": 0.0, "recall": 0.0}
    precision, recall = right / len(found), right / len(gold)
    return {"score": 2 * precision * recall / (precision + recall), "precision": precision, "recall": recall}


def citation_needle(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> dict[str, float]:
    """`citation_f1` of one needle: the first three citations of the answer's first line, repeated ones each counted.

    Official scorer: L-CiteEval `compute_niah_citation`. Its faults: "[2][2]" has a precision of a half, and a needle's text
    that two passages hold counts for the first alone.
    """
    gold = _gold(details)
    found = cited(prediction.strip().split("\n")[0])[:MOST_CITATIONS]
    if not gold & set(found):
        return {"score": 0.0, "precision": 0.0, "recall": 0.0}
    precision = 1 / len(found)
    return {"score": 2 * precision / (1 + precision), "precision": precision, "recall": 1.0}


def cited_answer_f1(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> dict[str, float]:
    """Token F1 of the answer's first line without its citations; F1, precision and recall each the best of the references.

    Official scorer: L-CiteEval `eval_correct.py` on question answering. As precision and recall may come from different
    references, F1 need not be their mean.
    """
    need_references(references)
    words = normal_words(without_citations(prediction.strip().split("\n")[0]))
    found = [f1_parts(words, normal_words(str(reference))) for reference in references]
    return {name: max(parts[name] for parts in found) for name in ("score", "precision", "recall")}


def long_bio(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if all references occur in the answer, one after the other, case ignored.

    Official scorer: LongBio `GeneralEvaluator.cal_hit`. Its faults: an answer of a base model that does not go on with
    "Question: " loses its last letter, and a name counts inside a longer one.

    Args:
        details: "number", true where the reference is a number: then the answer's last one must equal it.
    """
    need_references(references)
    if details.get("number"):
        numbers = re.findall(r"\d+", prediction)
        return float(bool(numbers) and int(numbers[-1]) == int(references[0]))
    return float(_in_order(prediction, [references[0].strip()] if len(references) == 1 else references))


def _in_order(prediction: str, wanted: Sequence[str]) -> bool:
    text, place = prediction.lower(), 0
    for part in wanted:
        place = text.find(part.lower(), place)
        if place == -1:
            return False
        place += len(part)
    return True


def long_bio_cite(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """ "answer": `long_bio`; "citation": all of the marks "[3]" occur in order; the score: both.

    Official scorer: LongBio `CitationEvaluator`, which reports the two apart.

    Args:
        details: "citations", numbers of the right biographies, in the order of the references.
    """
    marks = [f"[{int(number)}]" for number in details.get("citations", ())]
    if not marks:
        raise ValueError(
            "the details name no 'citations'; list the numbers of the biographies that hold the answers"
        )
    answer = float(_in_order(prediction, [reference.strip() for reference in references]))
    citation = float(_in_order(prediction, marks))
    need_references(references)
    return {"score": min(answer, citation), "answer": answer, "citation": citation}
