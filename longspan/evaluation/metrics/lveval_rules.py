"""LV-Eval's scores with the words that it counts as proof of nothing.

The lists of these words belong to the benchmark and are read from its own `metrics.py`, where that file stands in
`$LONGSPAN_DATA/lveval/` (read as text for two literal lists, never run). Without it no word is ignored: of F1 scores only
those of answers change whose sole keywords are such words; Chinese Rouge-L then counts them too.

Paper: Yuan et al., *LV-Eval: A Balanced Long-Context Benchmark with 5 Length Levels Up to 256K*, 2024
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from longspan.evaluation.metrics.overlap import qa_f1, qa_f1_zh
from longspan.evaluation.metrics.overlap_keywords import keyword_f1, keyword_f1_zh, keyword_rouge_zh

__all__ = [
    "ignored_words",
    "lveval_f1",
    "lveval_f1_zh",
    "lveval_plain_f1",
    "lveval_plain_f1_zh",
    "lveval_rouge_zh",
]

ENGLISH, CHINESE = "ABANDON_WORDS_EN", "ABANDON_WORDS_ZH"


def ignored_words(name: str) -> frozenset[str]:
    """A list of words in the benchmark's own `metrics.py`; empty where the file is not there.

    Raises:
        ValueError: the file holds no such list.
    """
    root = os.environ.get("LONGSPAN_DATA")
    file = Path(root) / "lveval" / "metrics.py" if root else None
    return (
        frozenset() if file is None or not file.is_file() else _list_in(file, name, file.stat().st_mtime_ns)
    )


@lru_cache(maxsize=4)
def _list_in(file: Path, name: str, changed: int) -> frozenset[str]:
    try:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and any(
                isinstance(t, ast.Name) and t.id == name for t in node.targets
            ):
                return frozenset(map(str, ast.literal_eval(node.value)))
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(
            f"{file} is not LV-Eval's scorer ({error}); give its metrics.py, or remove it"
        ) from error
    raise ValueError(f"{file} holds no list {name}; give LV-Eval's own metrics.py, or remove it")


def _keywords(details: Mapping[str, Any], ignored: frozenset[str]) -> dict[str, Any]:
    # The data call them "answer_keywords", the files of predictions "gold_ans".
    return {"keywords": details.get("answer_keywords") or details.get("gold_ans"), "blacklist": ignored}


def lveval_f1(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`keyword_f1` with the benchmark's list of words to ignore. Official scorer: LV-Eval `qa_f1_score_with_gold_ans`.

    Args:
        details: "answer_keywords", or "gold_ans" as in files of predictions.
    """
    return keyword_f1(prediction, references, _keywords(details, ignored_words(ENGLISH)))


def lveval_f1_zh(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`keyword_f1_zh` with the benchmark's list of words to ignore. Official scorer: LV-Eval `qa_f1_zh_score_with_gold_ans`. Needs `jieba`.

    Args:
        details: as for `lveval_f1`.
    """
    return keyword_f1_zh(prediction, references, _keywords(details, ignored_words(CHINESE)))


def lveval_rouge_zh(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`keyword_rouge_zh` with the benchmark's list of words to ignore.

    Official scorer: LV-Eval `rouge_zh_score_blacklist`. Needs `jieba`.
    """
    return keyword_rouge_zh(prediction, references, {"blacklist": ignored_words(CHINESE)})


def lveval_plain_f1(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`qa_f1` with the first reference alone: LV-Eval `qa_f1_score`, whose scorer looks at no other."""
    return qa_f1(prediction, references[:1], details)


def lveval_plain_f1_zh(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`qa_f1_zh` with the first reference alone: LV-Eval `qa_f1_zh_score`. Needs `jieba`."""
    return qa_f1_zh(prediction, references[:1], details)
