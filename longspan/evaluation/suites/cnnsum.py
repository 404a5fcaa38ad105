"""CNNSum: summaries of excerpts from Chinese novels, written by people, at four lengths.

Scored by Rouge-L over words that jieba cuts, as the official script does; it gives each model two prompts, with the
instruction after the text and before it, and averages. Both are tasks here: `<length>` and `<length>_begin`.

Paper: CNNSum: Exploring Long-Context Summarization with Large Language Models in Chinese Novels (Wei et al., 2024)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from typing import Any

from longspan.evaluation.metrics.overlap import rouge_zh
from longspan.evaluation.published import DataTask, Question, Source
from longspan.evaluation.suites._files import Row, find_files

CARD: dict[str, Any] = {
    "name": "cnnsum",
    "title": "CNNSum: Exploring Long-Context Summarization with Large Language Models in Chinese Novels",
    "year": 2024,
    "version": 1,
    "metric": "Rouge-L over jieba's words; the official number is the mean of <length> and <length>_begin",
    "differs": [
        "the official prompts are used where prompts.json of the official repository is in the folder; else the same is asked for in our "
        "own words, in Chinese",
        "generation may stop before 10 tokens; the official run forbids it",
    ],
    "paper_id": 49,
    "lengths": "16K, 32K, 64K and 128K tokens",
    "needs": "cnnsum_L_16k.jsonl, cnnsum_XL_32k.jsonl, cnnsum_XXL_64k.jsonl, cnnsum_XXXL_128k.jsonl",
    "licence": "CC BY 4.0 on the hub, CC0 1.0 in the repository",
    "citation": "Wei et al., 2024",
}

SOURCE = Source(
    hub=None,
    licence="CC BY 4.0 on the hub, CC0 1.0 in the repository",
    citation="Wei et al., CNNSum: Exploring Long-Context Summarization with Large Language Models in Chinese Novels, 2024",
    url="https://huggingface.co/datasets/CxsGHost/CNNSum",
)
END = ("以下是一部小说的节选：\n\n", "请为以上内容写一份摘要，除摘要外不要输出任何内容。", "摘要：")
BEGIN = ("请阅读下面的小说节选，为它写一份摘要，除摘要外不要输出任何内容。\n\n", "", "摘要：")


def _prompt(begin: bool) -> tuple[str, str, str]:
    """What stands before the text, after it, and before the answer."""
    found = find_files("cnnsum", "prompts.json")
    if not found:
        return BEGIN if begin else END
    template = json.loads(found[0].read_text(encoding="utf-8"))["Prompt-IB" if begin else "Prompt-IE"]
    before, _, rest = str(template).partition("{}")
    after, _, prefix = rest.strip("\n").rpartition("\n")
    return before, after.strip("\n"), prefix


def _questions(row: Row, begin: bool) -> Iterable[Question]:
    before, after, prefix = _prompt(begin)
    yield Question(
        context=f"{before}{row['context']}",
        question=after or prefix,
        references=(row["summary"],),
        # A question must stand after the text; where there is none, the word that begins the answer is it.
        answer_prefix=prefix if after else "",
        details={"grading": "coverage", "question": after or before.strip()},
    )


FILES = {
    "16k": ("cnnsum_L_16k.jsonl", 400),
    "32k": ("cnnsum_XL_32k.jsonl", 400),
    "64k": ("cnnsum_XXL_64k.jsonl", 500),
    "128k": ("cnnsum_XXXL_128k.jsonl", 500),
}
TASKS: dict[str, DataTask] = {
    name + ("_begin" if begin else ""): DataTask(
        suite="cnnsum",
        source=SOURCE,
        file=file,
        parse=partial(_questions, begin=begin),
        max_new_tokens=max_new_tokens,
        ability="summary",
        diffusion="high",
        scope="high",
        metric=rouge_zh,
        answers="derived",
    )
    for name, (file, max_new_tokens) in FILES.items()
    for begin in (False, True)
}
