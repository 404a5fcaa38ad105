"""LV-Eval: 11 tasks of questions in English and Chinese, each at 16K, 32K, 64K, 128K and 256K words over the same questions.

Supporting documents stand among others, some with invented facts that contradict them, and words are replaced throughout,
so that memory does not help.

Paper: LV-Eval: A Balanced Long-Context Benchmark with 5 Length Levels Up to 256K (Yuan et al., 2024)

Scored by F1 of answers that hold enough of the answer's keywords, and 0 for others; dureader_mixup by Rouge-L.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from longspan.evaluation.metrics import Metric
from longspan.evaluation.metrics.lveval_rules import (
    lveval_f1,
    lveval_f1_zh,
    lveval_plain_f1,
    lveval_plain_f1_zh,
    lveval_rouge_zh,
)
from longspan.evaluation.published import DataTask, Question, Source
from longspan.evaluation.suites._templates import posed
from longspan.evaluation.task import Level

CARD: dict[str, Any] = {
    "name": "lveval",
    "title": "LV-Eval: A Balanced Long-Context Benchmark with 5 Length Levels Up to 256K",
    "year": 2024,
    "version": 1,
    "metric": "token F1 with the first reference, 0 where too few keywords are named; dureader_mixup Rouge-L; mean over questions",
    "differs": [
        "the instructions are worded anew",
        "the words that prove nothing are read from the benchmark's own metrics.py in the local folder; without it none is ignored",
        "the middle of the text is cut, not of the whole prompt, so that the question always stays",
        "words are cut by jieba 0.42.1; one of the four metric cases that the benchmark prints comes out 41.38 instead of 48.28, "
        "with its own code as well",
    ],
    "paper_id": 168,
    "lengths": "any; texts of 12K to 390K words as published, their middle cut where they are longer than asked for",
    "needs": "<task>_<length>.jsonl, as in the hub's <task>.zip; for official scores also metrics.py; Chinese tasks need jieba",
    "licence": "CC BY-SA 4.0 for the data set, MIT for its code",
    "citation": "Yuan et al., LV-Eval: A Balanced Long-Context Benchmark with 5 Length Levels Up to 256K, arXiv 2402.05136, 2024",
}

SOURCE = Source(
    hub="Infinigence/LVEval",
    licence=CARD["licence"],
    citation=CARD["citation"],
    url="https://github.com/infinigence/LVEval",
)

LENGTHS = ("16k", "32k", "64k", "128k", "256k")
ALONE = "Write the answer alone, without reasons or evidence."
SEVERAL = (
    f"Several passages follow, some of which bear on the question.\n\n{{context}}\n\nAnswer from the passages above. {ALONE}"
    "\n\nQuestion: {input}"
)
ONE = (
    "Several passages follow, one of which bears on the question.\n\n{context}\n\nAnswer from the passages above. "
    f"{ALONE}\n\nQuestion: {{input}}"
)
PLAIN = "Read this text for a question about it.\n\n{context}\n\nAnswer the question from the text.\n\nQuestion: {input}"
ONE_ZH = "下面有多篇文章，问题只与其中一篇有关。\n\n{context}\n\n请根据上面的文章回答问题。\n\n问题：{input}"
ONE_ZH_ALONE = "下面有多篇文章，问题只与其中一篇有关。\n\n{context}\n\n请根据上面的文章，用中文直接写出答案，不要解释。\n\n问题：{input}"
PLAIN_ZH = "请先读完下面的文章。\n\n{context}\n\n请根据上面的文章回答问题。\n\n问题：{input}"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a task measures, in words of `Labels`, and its prompt in own words."""

    prompt: str
    metric: Metric
    ability: str = "question answering"
    diffusion: Level = "low"
    max_new_tokens: int = 64
    start: str = "Answer:"


def _chinese(prompt: str, metric: Metric, ability: str = "question answering") -> Kind:
    return Kind(prompt=prompt, metric=metric, ability=ability, start="回答：")


KINDS: Mapping[str, Kind] = {
    "hotpotwikiqa_mixup": Kind(prompt=SEVERAL, metric=lveval_f1, ability="multi-hop", diffusion="high"),
    "loogle_SD_mixup": Kind(prompt=ONE, metric=lveval_f1),
    "loogle_CR_mixup": Kind(prompt=ONE, metric=lveval_f1, ability="multi-hop", diffusion="high"),
    "loogle_MIR_mixup": Kind(prompt=ONE, metric=lveval_f1, ability="multi-hop", diffusion="high"),
    "multifieldqa_en_mixup": Kind(prompt=ONE, metric=lveval_f1),
    "multifieldqa_zh_mixup": _chinese(ONE_ZH_ALONE, lveval_f1_zh),
    "factrecall_en": Kind(prompt=PLAIN, metric=lveval_plain_f1, ability="retrieval", max_new_tokens=16),
    "factrecall_zh": Kind(
        prompt=PLAIN_ZH, metric=lveval_plain_f1_zh, ability="retrieval", max_new_tokens=16, start="回答："
    ),
    "cmrc_mixup": _chinese(ONE_ZH, lveval_f1_zh),
    "lic_mixup": _chinese(ONE_ZH, lveval_f1_zh, "multi-hop"),
    "dureader_mixup": _chinese(ONE_ZH, lveval_rouge_zh, "multi-hop"),
}


def parse(kind: Kind, row: Mapping[str, Any]) -> Iterable[Question]:
    """The question of a row: input, context, answers, length, dataset, language, answer_keywords, confusing_facts.

    Args:
        kind: of the task.
        row: as published; the last two fields are not in every file.
    """
    references = tuple(map(str, row["answers"]))
    if not references:
        raise ValueError("`answers` is empty")
    context, question = posed(kind.prompt, row["context"], input=row["input"].strip())
    yield Question(
        context=context,
        question=question,
        answer_prefix=kind.start,
        references=references,
        details={
            "answer_keywords": row.get("answer_keywords"),
            "confusing_facts": row.get("confusing_facts"),
            "length": row["length"],
            "language": row["language"],
            "dataset": row["dataset"],
        },
    )


def _task(name: str, kind: Kind, length: str) -> DataTask:
    return DataTask(
        suite="lveval",
        source=SOURCE,
        file=f"{name}/{name}_{length}.jsonl",
        subset=f"{name}_{length}",
        parse=partial(parse, kind),
        max_new_tokens=kind.max_new_tokens,
        ability=kind.ability,
        diffusion=kind.diffusion,
        scope="low",
        metric=kind.metric,
        answers="derived",
    )


TASKS: dict[str, DataTask] = {
    f"{name}_{length}": _task(name, kind, length) for name, kind in KINDS.items() for length in LENGTHS
}
