"""LooGLE's automatic scores: recall of Rouge, BLEU-1 and BLEU-4, and the masks of a cloze that are filled right.

Paper: Li et al., *LooGLE: Can Long-Context Language Models Understand Long Contexts?*, 2023.
"""

from __future__ import annotations

import ast
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.overlap import common_words
from longspan.evaluation.metrics.text import need_references

__all__ = ["bleu", "cloze", "cloze_partial", "overlaps"]


def overlaps(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """Recall of Rouge-L (the score), of rouge1 and rouge2, and bleu1 and bleu4; each the best of the references.

    Official scorer: LooGLE `get_rouge_score` and `get_bleu_score`, means of which it prints one by one; its METEOR, BERTScore and
    GPT-4's verdict are not computed here. Its faults: recall rewards long answers, an empty answer is scored as "None", and
    its "bleu4" is the precision of four words alone, not the mean of one to four.
    """
    need_references(references)
    text = prediction or "None"
    found = [
        {
            "score": _rouge_l_recall(text, reference),
            "rouge1": _recall(text, reference, 1),
            "rouge2": _recall(text, reference, 2),
            "bleu1": bleu(text, reference, 1),
            "bleu4": bleu(text, reference, 4),
        }
        for reference in references
    ]
    return {name: max(one[name] for one in found) for name in found[0]}


def bleu(prediction: str, reference: str, size: int) -> float:
    """Precision of runs of `size` words, each counted as often as in the reference, times BLEU's penalty for short answers."""
    words, wanted = prediction.split(), reference.split()
    if not set(words) & set(wanted):
        return 0.0
    runs, wanted_runs = _runs(words, size), _runs(wanted, size)
    precision = sum((Counter(runs) & Counter(wanted_runs)).values()) / max(1, len(runs))
    penalty = 1.0 if len(words) > len(wanted) else math.exp(1 - len(wanted) / len(words))
    return penalty * precision


def _runs(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


def _sentences(text: str) -> list[list[str]]:
    # As the package `rouge` splits: at every full stop, and then at single spaces.
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _recall(prediction: str, reference: str, size: int) -> float:
    words = [word for sentence in _sentences(prediction) for word in sentence]
    wanted = set(_runs([word for sentence in _sentences(reference) for word in sentence], size))
    return len(set(_runs(words, size)) & wanted) / len(wanted) if wanted else 0.0


def _rouge_l_recall(prediction: str, reference: str) -> float:
    wanted = _sentences(reference)
    common = {
        word
        for sentence in wanted
        for other in _sentences(prediction)
        for word in common_words(sentence, other)
    }
    words = {word for sentence in wanted for word in sentence}
    return len(common) / len(words) if words else 0.0


def cloze(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """Part of the masks whose entity is given letter for letter, with the counts "matched" and "masks".

    Official scorer: LooGLE `get_exact_match`, whose score of a file is all matched by all masks: the ratio of the two parts'
    means. It runs the answer as code; here it is read as a JSON or Python literal, and the same answers are refused.

    Args:
        references: one dictionary of masks, written as JSON or as Python writes it.
    """
    return _cloze(prediction, references, lambda given, wanted: given == wanted)


def cloze_partial(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """`cloze` where one word in common is enough. Official scorer: LooGLE `get_partial_match`."""
    return _cloze(
        prediction, references, lambda given, wanted: bool(set(given.split()) & set(wanted.split()))
    )


def _cloze(prediction: str, references: Sequence[str], same: Callable[[str, str], bool]) -> dict[str, float]:
    need_references(references)
    wanted = _dictionary(references[0])
    if not wanted:
        raise ValueError(f"the reference {references[0][:60]!r} is not a dictionary of masks")
    given = _dictionary(prediction) or {}
    matched = sum(name in given and same(str(given[name]), str(entity)) for name, entity in wanted.items())
    return {"score": matched / len(wanted), "matched": matched, "masks": len(wanted)}


def _dictionary(text: str) -> Mapping[str, Any] | None:
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        if isinstance(found, dict):
            return found
    return None
