"""Rouge as the package `rouge-score` computes it, and token F1 of InfiniteBench, L-Eval and LIBRA.

Papers: Lin, *ROUGE*, 2004; Zhang et al., *InfiniteBench*, 2024; An et al., *L-Eval*, 2023; Churin et al., *Long Input
Benchmark for Russian Analysis*, 2024 (LIBRA).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from longspan.evaluation.metrics.overlap import normal_chinese, qa_f1, token_f1
from longspan.evaluation.metrics.text import best_of, need_references, normal_words, optional_package

__all__ = [
    "libra_f1",
    "longbook_qa_chn",
    "longbook_qa_eng",
    "longbook_sum",
    "rouge_parts",
    "rouge_scorer",
    "rouge_stemmed",
]


@lru_cache(maxsize=4)
def rouge_scorer(kinds: tuple[str, ...], stem: bool) -> Any:
    """The scorer of `rouge-score` for these kinds of Rouge; made once. ValueError where the package is absent."""
    return optional_package("rouge_score.rouge_scorer", "rouge-score").RougeScorer(
        list(kinds), use_stemmer=stem
    )


def longbook_qa_eng(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Token F1, best of the references. Official scorer: InfiniteBench `get_score_one_longbook_qa_eng`, and L-Eval `f1`."""
    return qa_f1(prediction, references, details)


def longbook_qa_chn(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """F1 of Chinese characters without punctuation, best of the references.

    Official scorer: InfiniteBench `qa_f1_score_zh`. Every Latin letter and digit counts as a token of its own.
    """
    letters = list(normal_chinese(prediction))
    return best_of(lambda reference: token_f1(letters, list(normal_chinese(reference))), references)


def longbook_sum(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """rougeLsum F without stemming, sentences being lines, best of the references.

    Official scorer: InfiniteBench `get_score_one_longbook_sum_eng`, through `evaluate`. Its fault: it ends sentences at line
    breaks only, so a summary of one paragraph is one sentence. Needs `rouge-score`.
    """
    scorer = rouge_scorer(("rougeLsum",), False)
    return best_of(
        lambda reference: float(scorer.score(reference, prediction)["rougeLsum"].fmeasure), references
    )


def rouge_parts(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """F of rouge1, rouge2 and rougeL without stemming, each the best of the references; the score is rougeL.

    Official scorer: L-Eval `compute_rouge`. Its headline is the geometric mean of the three means over all samples, which no
    single sample has. Needs `rouge-score`.
    """
    need_references(references)
    kinds = ("rouge1", "rouge2", "rougeL")
    found = [rouge_scorer(kinds, False).score(reference, prediction) for reference in references]
    parts = {kind: max(float(one[kind].fmeasure) for one in found) for kind in kinds}
    return {"score": parts["rougeL"], **parts}


def rouge_stemmed(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """rougeL F over stemmed words, best of the references: what HELMET reports beside its judge, and a fallback for one."""
    scorer = rouge_scorer(("rougeL",), True)
    return best_of(
        lambda reference: float(scorer.score(reference, prediction)["rougeL"].fmeasure), references
    )


def libra_f1(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Token F1 with articles kept, best of the references. Official scorer: LIBRA `qa_f1_score`."""
    words = normal_words(prediction, "")
    return best_of(lambda reference: token_f1(words, normal_words(reference, "")), references)
