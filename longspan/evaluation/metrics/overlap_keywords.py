"""Overlap that looks for keywords or stems: LV-Eval's two-stage F1, LoCoMo's stemmed F1, recall of keywords.

Papers: Yuan et al., *LV-Eval: A Balanced Long-Context Benchmark with 5 Length Levels Up to 256K*, 2024; Maharana et al.,
*Evaluating Very Long-Term Conversational Memory of LLM Agents*, 2024 (LoCoMo).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from longspan.evaluation.metrics.overlap import chinese_words, normal_chinese, rouge_l_of_sets, token_f1
from longspan.evaluation.metrics.text import best_of, need_references, normal_words, optional_package

__all__ = [
    "abstains",
    "fact_recall",
    "fact_recall_zh",
    "keyword_f1",
    "keyword_f1_zh",
    "keyword_recall",
    "keyword_rouge_zh",
    "locomo",
    "locomo_fixed",
]

KEYWORDS_FOUND_EN = 0.2
KEYWORDS_FOUND_ZH = 0.4
LOCOMO_ABSTENTION = ("no information available", "not mentioned")
ABSTENTION = re.compile(
    r"\b(no information|not (?:been )?(?:mentioned|specified|stated|provided|given|discussed|available|known)"
    r"|(?:does|do|did)(?: not|n't) (?:mention|say|specify|state|provide|discuss)|unanswerable|unknown"
    r"|(?:can ?not|can't) (?:be )?(?:answer|determine|tell|say)\w*|(?:do not|don't) know|no (?:mention|answer|evidence))\b"
)


def keyword_f1(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Token F1 with the first reference, but 0 for an answer that has too few of the keywords.

    Official scorer: LV-Eval `qa_f1_score_with_gold_ans`. Of the keywords' words at least a fifth must be in the answer; those
    on the blacklist are not counted as found, yet still as wanted. Its fault: references after the first are ignored.

    Args:
        details: "keywords", a text (none: plain F1); "blacklist", words such as "of" that prove nothing.
    """
    need_references(references)
    words = normal_words(prediction)
    keywords = details.get("keywords")
    if (
        keywords
        and _recall(words, normal_words(str(keywords)), details.get("blacklist", ())) < KEYWORDS_FOUND_EN
    ):
        return 0.0
    return token_f1(words, normal_words(references[0]))


def keyword_f1_zh(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`keyword_f1` over words that jieba cuts; two fifths of the keywords, by default the reference itself, must be found.

    Official scorer: LV-Eval `qa_f1_zh_score_with_gold_ans`. Needs `jieba`.
    """
    need_references(references)
    words = _chinese(prediction)
    keywords = _chinese(str(details.get("keywords") or references[0]))
    if _recall(words, keywords, details.get("blacklist", ())) < KEYWORDS_FOUND_ZH:
        return 0.0
    return token_f1(words, _chinese(references[0]))


def keyword_rouge_zh(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Rouge-L over words that jieba cuts (twice, as the official scorer does), those of "blacklist" dropped.

    Official scorer: LV-Eval `rouge_zh_score_blacklist`. Needs `jieba`.
    """
    need_references(references)
    blacklist = details.get("blacklist", ())

    def words(text: str) -> str:
        cut = map(normal_chinese, chinese_words(" ".join(chinese_words(text))))
        return " ".join(word for word in cut if word not in blacklist)

    return rouge_l_of_sets(words(prediction), words(references[0]))


def fact_recall(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Part of the first reference's words in the answer. Official scorer: LV-Eval `qa_f1_score_factrecall`."""
    need_references(references)
    return _recall(normal_words(prediction), normal_words(references[0]), ())


def fact_recall_zh(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`fact_recall` over words that jieba cuts. Official scorer: LV-Eval `qa_f1_zh_score_factrecall`. Needs `jieba`."""
    need_references(references)
    return _recall(_chinese(prediction), _chinese(references[0]), ())


def _recall(words: Sequence[str], wanted: Sequence[str], blacklist: Collection[str]) -> float:
    common = Counter(words) & Counter(wanted)
    return (
        sum(times for word, times in common.items() if word not in blacklist) / len(wanted) if wanted else 0.0
    )


def _chinese(text: str) -> list[str]:
    return [word for word in map(normal_chinese, chinese_words(text)) if word]


def keyword_recall(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Part of the references that stand in the answer as whole words, case, punctuation and articles ignored."""
    need_references(references)
    words = f" {' '.join(normal_words(prediction))} "
    return sum(f" {' '.join(normal_words(reference))} " in words for reference in references) / len(
        references
    )


def locomo(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Token F1 of stems, by the question's category; best of the references.

    Official scorer: LoCoMo `eval_question_answering`. Category 1 (several hops) splits answer and reference at commas and
    averages the best match of each part; 2 and 4 compare whole; 3 compares what comes before the first ";"; 5 (a question
    without an answer) asks for one of two phrases. Its faults: commas inside a single answer ("May 7, 2023") make two parts
    of it, category 5 knows two wordings only and fails on 444 of its 446 questions for want of a field, and its "rouge-L" is
    Rouge-1. Needs `nltk`.

    Args:
        details: "category", 1 to 5.
    """
    if _category(details) == 5:
        return float(any(phrase in prediction.lower() for phrase in LOCOMO_ABSTENTION))
    return best_of(lambda reference: _locomo(prediction, str(reference), _category(details)), references)


def locomo_fixed(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`locomo` with a category 5 that takes any plain abstention, and none that gives the adversarial answer with it.

    Args:
        details: "category"; "adversarial_answer", the trap of a question of category 5.
    """
    if _category(details) != 5:
        return locomo(prediction, references, details)
    trap = normal_words(str(details.get("adversarial_answer", "")))
    trapped = bool(trap) and f" {' '.join(trap)} " in f" {' '.join(normal_words(prediction))} "
    return float(abstains(prediction) and not trapped)


def abstains(prediction: str) -> bool:
    """Whether an answer says, in one of the common wordings, that the text does not tell."""
    return bool(ABSTENTION.search(prediction.lower().replace("’", "'")))


def _category(details: Mapping[str, Any]) -> int:
    category = details.get("category")
    if category not in (1, 2, 3, 4, 5):
        raise ValueError(
            f"details['category'] is {category!r}, a question of LoCoMo is of category 1, 2, 3, 4 or 5"
        )
    return int(category)


def _locomo(prediction: str, reference: str, category: int) -> float:
    if category != 1:
        return token_f1(
            _stems(prediction), _stems(reference.split(";")[0].strip() if category == 3 else reference)
        )
    predicted = [_stems(part) for part in prediction.split(",")]
    wanted = [_stems(part) for part in reference.split(",")]
    return sum(max(token_f1(part, one) for part in predicted) for one in wanted) / len(wanted)


def _stems(text: str) -> list[str]:
    stem = _stemmer().stem
    return [stem(word) for word in normal_words(text, "a|an|the|and")]


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    return optional_package("nltk.stem", "nltk").PorterStemmer()
