"""HELMET's citation tasks (ALCE): are the answers there, and do the passages cited hold them.

Papers: Yen et al., *HELMET: How to Evaluate Long-Context Language Models Effectively and Thoroughly*, 2024; Gao et al.,
*Enabling Large Language Models to Generate Text with Citations*, 2023 (ALCE).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.citation import cited, without_citations
from longspan.evaluation.metrics.text import normal_words

__all__ = ["asqa", "qampari", "qampari_answers"]

MOST_ANSWERS = 5


def asqa(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """Part of the short answers that stand in the text, citations dropped; one wording of each suffices.

    Official scorer: ALCE `str_em`. Officially an entailment model checks the citations; knowing which passages hold which
    answer, "citation_precision" is the part of the passages cited that hold an answer, and "citation_recall" the part of the
    answers given that a cited passage holds. The score leaves them out, as the official table does.

    Args:
        details: "answers", wordings of each short answer; "holders", for each the numbers of the passages that hold it.
    """
    text = " ".join(normal_words(without_citations(_one_line(prediction))))
    given = [
        any(" ".join(normal_words(wording)) in text for wording in wordings) for wordings in _answers(details)
    ]
    return {"score": sum(given) / len(given), **_citations(prediction, given, details)}


def qampari(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """Answers of the comma-separated list that are right, of at most five wanted.

    Official scorer: ALCE `qampari_rec_top5`; also "precision" and "recall" over all answers. Its fault: an answer with a comma
    in it is never found. Citations as in `asqa`.

    Args:
        details: as in `asqa`.
    """
    answers = [{" ".join(normal_words(wording)) for wording in wordings} for wordings in _answers(details)]
    listed = qampari_answers(prediction)
    given = [bool(wordings & set(listed)) for wordings in answers]
    right = sum(any(item in wordings for wordings in answers) for item in listed)
    wanted = min(MOST_ANSWERS, len(answers))
    return {
        "score": min(MOST_ANSWERS, sum(given)) / wanted,
        "precision": right / len(listed) if listed else 0.0,
        "recall": sum(given) / len(answers),
        **_citations(prediction, given, details),
    }


def qampari_answers(prediction: str) -> list[str]:
    """The items of a comma-separated list, citations dropped, normalised as SQuAD does."""
    text = without_citations(_one_line(prediction)).rstrip().rstrip(".").rstrip(",")
    return [item for part in text.split(",") if (item := " ".join(normal_words(part)))]


def _one_line(prediction: str) -> str:
    return re.sub(r"\n+", " ", prediction)


def _answers(details: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    answers = details.get("answers")
    if not answers or not all(answers):
        raise ValueError(
            "the details name no 'answers'; list the accepted wordings of each answer, as in [['Rome', 'Roma'], ['Oslo']]"
        )
    return list(answers)


def _citations(prediction: str, given: Sequence[bool], details: Mapping[str, Any]) -> dict[str, float]:
    """Precision and recall against the passages that hold the answers; nothing where they are not named."""
    if "holders" not in details:
        return {}
    holders = [set(map(int, numbers)) for numbers in details["holders"]]
    marks = set(cited(prediction))
    held = [bool(marks & numbers) for numbers, said in zip(holders, given, strict=True) if said]
    return {
        "citation_precision": len(marks & set().union(*holders)) / len(marks) if marks else 0.0,
        "citation_recall": sum(held) / len(held) if held else 0.0,
    }
