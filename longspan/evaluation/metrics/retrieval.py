"""Retrieval: the number, key, name or passage that was to be found, and rankings of passages.

Papers: Bai et al., *LongBench*, 2023; Zhang et al., *InfiniteBench*, 2024; Yen et al., *HELMET*, 2024; Järvelin and
Kekäläinen, *Cumulated gain-based evaluation of IR techniques*, 2002 (NDCG).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import best_of, need_references

__all__ = [
    "count",
    "kv_retrieval",
    "longdialogue_qa",
    "ndcg",
    "parse_ranking",
    "rerank",
    "retrieval",
    "retrieval_zh",
]


def count(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Part of the numbers in the answer that are the right one; best of the references.

    Official scorer: LongBench `count_score`. Its fault: an answer that repeats the question's other numbers loses points.
    """
    numbers = re.findall(r"\d+", prediction)
    return best_of(
        lambda reference: numbers.count(str(reference)) / len(numbers) if numbers else 0.0, references
    )


def retrieval(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Part of the numbers in the answer that are the number of the reference "Paragraph 12".

    Official scorer: LongBench `retrieval_score`; fault as for `count`.
    """
    return _numbered(prediction, references, r"Paragraph (\d+)")


def retrieval_zh(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`retrieval` with references such as "段落12". Official scorer: LongBench `retrieval_zh_score`."""
    return _numbered(prediction, references, r"段落(\d+)")


def _numbered(prediction: str, references: Sequence[str], pattern: str) -> float:
    wanted = list[str]()
    for reference in references:
        found = re.search(pattern, reference)
        if not found:
            raise ValueError(f"the reference {reference!r} names no paragraph; it must match {pattern!r}")
        wanted.append(found[1])
    return count(prediction, wanted, {})


def kv_retrieval(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the first reference is a word of the answer, punctuation taken for white space.

    Official scorer: InfiniteBench `get_score_one_kv_retrieval`. Its fault: an answer that lists all values is right.
    """
    need_references(references)
    return float(references[0] in _words(prediction))


def longdialogue_qa(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the first reference, a name in capitals, is a word of the answer in any case.

    Official scorer: InfiniteBench `get_score_one_longdialogue_qa_eng`. Its faults: a name of two words is never found, and
    further names of the same person are not looked for.
    """
    need_references(references)
    return float(references[0] in [word.upper() for word in _words(prediction.strip())])


def _words(text: str) -> list[str]:
    return re.sub(r"[\n:\"'.,?!{}]", " ", text).split()


def parse_ranking(prediction: str) -> list[str]:
    """The ids of the longest chain "3 > 1 > 2" in the answer, best first, each once: HELMET's `parse_rankings`.

    Brackets, colons and "ID" are dropped; an answer without a number gives no id that a passage has.
    """
    text = re.sub(r"[\[\]:]", "", prediction).lower().replace("id", "")
    chains = [found[0] for found in re.finditer(r"(\d+)(?:\s*>\s*(\d+))*", text)]
    if not chains:
        return [text]
    longest = max(chains, key=len)
    return list(dict.fromkeys(part.strip() for part in longest.split(">") if part.strip().isdigit()))


def ndcg(ranking: Sequence[str], relevance: Mapping[str, int], cut: int = 10) -> float:
    """Normalised discounted cumulative gain of the first `cut` ids: gain is the relevance, discount log2(rank + 1).

    Equal to `ndcg_cut` of trec_eval, as pytrec_eval gives it.

    Args:
        ranking: ids, best first, each once.
        relevance: id to its grade; ids that are not named have 0, and negative grades count as 0.
        cut: how many ids count.

    Returns:
        0 to 1; 0.0 where nothing is relevant.
    """
    if cut < 1:
        raise ValueError(f"cut is {cut}, allowed is 1 or more ids")

    def gain(grades: Sequence[int]) -> float:
        return sum(max(0, grade) / math.log2(rank + 2) for rank, grade in enumerate(grades[:cut]))

    best = gain(sorted(relevance.values(), reverse=True))
    return gain([relevance.get(name, 0) for name in ranking]) / best if best else 0.0


def rerank(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """NDCG at 10 of the ids that the answer ranks, "3 > 1 > 2".

    Official scorer: HELMET's MS MARCO task. Its fault: ids of passages that the prompt never showed are neither refused nor
    counted against the answer beyond the rank they take.

    Args:
        references: ids of relevant passages, grade 1, where `details` has no grades.
        details: "relevance", id to grade; "cut", in place of 10.
    """
    grades = details.get("relevance") or dict.fromkeys(references, 1)
    return ndcg(
        parse_ranking(prediction),
        {str(name): int(grade) for name, grade in grades.items()},
        int(details.get("cut", 10)),
    )
