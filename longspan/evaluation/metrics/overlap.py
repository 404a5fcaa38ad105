"""Overlap of words: token F1 and Rouge-L, as LongBench computes them.

Papers: Rajpurkar et al., *SQuAD: 100,000+ Questions for Machine Comprehension of Text*, 2016 (token F1); Lin, *ROUGE: A
Package for Automatic Evaluation of Summaries*, 2004; Bai et al., *LongBench*, 2023.
"""

from __future__ import annotations

import logging
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from longspan.evaluation.metrics.text import best_of, first_line, normal_words, optional_package

__all__ = [
    "chinese_words",
    "f1_parts",
    "normal_chinese",
    "qa_f1",
    "qa_f1_first_line",
    "qa_f1_zh",
    "rouge",
    "rouge_first_line",
    "rouge_zh",
    "token_f1",
]

CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》"
    "「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)


def normal_chinese(text: str) -> str:
    """A Chinese text in lower case without white space and punctuation, by LongBench's list, which lacks the mark "《"."""
    dropped = set(string.punctuation + CHINESE_PUNCTUATION)
    return "".join("".join(letter for letter in text.lower() if letter not in dropped).split())


def chinese_words(text: str) -> list[str]:
    """Words of a Chinese text, cut by `jieba` as the official scorers cut them.

    Raises:
        ValueError: jieba is not installed.
    """
    jieba = optional_package("jieba", "jieba")
    jieba.setLogLevel(logging.WARNING)  # it reports on stderr how long its dictionary took
    return list(jieba.cut(text, cut_all=False))


def f1_parts(predicted: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """ "score" (F1), "precision" and "recall" of two lists of tokens, each token counted as often as it occurs in both."""
    same = sum((Counter(predicted) & Counter(wanted)).values())
    if same == 0:
        return {"score": 0.0, "precision": 0.0, "recall": 0.0}
    precision, recall = same / len(predicted), same / len(wanted)
    return {"score": 2 * precision * recall / (precision + recall), "precision": precision, "recall": recall}


def token_f1(predicted: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of two lists of tokens; see `f1_parts`."""
    return f1_parts(predicted, wanted)["score"]


def qa_f1(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Token F1 after SQuAD's normalisation, best of the references.

    Official scorer: LongBench `qa_f1_score`. Its fault: an answer of only articles and punctuation always scores 0.
    """
    words = normal_words(prediction)
    return best_of(lambda reference: token_f1(words, normal_words(reference)), references)


def qa_f1_first_line(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`qa_f1` of the answer's first line: LongBench triviaqa."""
    return qa_f1(first_line(prediction), references, details)


def qa_f1_zh(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Token F1 over words that jieba cuts, punctuation dropped, best of the references.

    Official scorer: LongBench `qa_f1_zh_score`. Needs `jieba`.
    """

    def words(text: str) -> list[str]:
        return [word for word in map(normal_chinese, chinese_words(text)) if word]

    predicted = words(prediction)
    return best_of(lambda reference: token_f1(predicted, words(reference)), references)


def rouge(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Rouge-L F of the package `rouge` 1.0.1, summary level, best of the references.

    Official scorer: LongBench `rouge_score`. What that package does differently from Rouge-L as published: a sentence ends
    at every full stop (so at "3.5"), case and punctuation count, no stemming, and the union of the common subsequences, the
    text and the reference are sets of words, so a repeated word counts once. The package is recursive and fails on a
    sentence of some thousand words, which LongBench turns into 0; here such a sentence is scored.
    """
    return best_of(lambda reference: rouge_l_of_sets(prediction, reference), references)


def rouge_first_line(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`rouge` of the answer's first line: LongBench samsum."""
    return rouge(first_line(prediction), references, details)


def rouge_zh(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`rouge` over words that jieba cuts, best of the references.

    Official scorer: LongBench `rouge_zh_score`. Its fault: a Chinese full stop ends no sentence. Needs `jieba`.
    """
    words = " ".join(chinese_words(prediction))
    return best_of(lambda reference: rouge_l_of_sets(words, " ".join(chinese_words(reference))), references)


def rouge_l_of_sets(prediction: str, reference: str) -> float:
    """Rouge-L F over sets of words; see `rouge`."""
    predicted, wanted = _sentences(prediction), _sentences(reference)
    if not predicted or not wanted:
        return 0.0
    common = set[str]()
    for reference_words in wanted:
        for words in predicted:
            common |= common_words(reference_words, words)
    recall = len(common) / len({word for words in wanted for word in words})
    precision = len(common) / len({word for words in predicted for word in words})
    return 2.0 * precision * recall / (precision + recall + 1e-8)


def _sentences(text: str) -> list[list[str]]:
    # The package splits at single spaces: a sentence of nothing but white space holds one empty word.
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def common_words(first: Sequence[str], second: Sequence[str]) -> set[str]:
    """Words of one longest common subsequence; of several, the one that steps back in `second` while that loses nothing."""
    ids = {word: index for index, word in enumerate(second)}
    columns = np.array([ids[word] for word in second])
    table = np.zeros((len(first) + 1, len(second) + 1), dtype=np.int32)
    for row, word in enumerate(first):
        match = columns == ids.get(word, -1)
        np.maximum.accumulate(np.maximum(table[row, 1:], table[row, :-1] + match), out=table[row + 1, 1:])
    found, i, j = set[str](), len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            found.add(first[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1, j] > table[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return found
