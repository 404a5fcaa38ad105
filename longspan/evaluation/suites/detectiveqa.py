"""DetectiveQA: multiple choice over detective novels, up to the page where the answer is told, with the steps of reasoning.

The names of files and fields come from programs that read the published data, not from the official repository, which was
not at hand. Scored by the option; "steps" is the part of the annotated steps found in the reply by their words, in place of
the official count by GPT-4.

Paper: DetectiveQA: Evaluating Long-Context Reasoning on Detective Novels (Xu et al., 2024)
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any

from longspan.evaluation.metrics.detectiveqa_rules import detective
from longspan.evaluation.published import Question, Source
from longspan.evaluation.suites._files import GroupedTask, Row, find_text
from longspan.evaluation.task import Sample

CARD: dict[str, Any] = {
    "name": "detectiveqa",
    "title": "DetectiveQA: Evaluating Long-Context Reasoning on Detective Novels",
    "year": 2024,
    "version": 1,
    "metric": "option right; steps: part of the annotated reasoning found by its words",
    "differs": [
        "names of files and fields could not be checked against the official repository",
        "officially GPT-4 counts the steps of reasoning in the reply; here words are compared, a stand-in that knows no paraphrase",
        "instructions are in our own words, in English and Chinese",
        "a novel is given up to the paragraph before the one that tells the answer, its paragraphs numbered as published",
    ],
    "paper_id": 25,
    "lengths": "4K to 250K tokens, 100K on average",
    "needs": "anno_data_en and anno_data_zh (folders human_anno and AIsup_anno), novel_data_en and novel_data_zh of the hub data set",
    "licence": "Apache-2.0",
    "citation": "Xu et al., 2024",
}

SOURCE = Source(
    hub=None,
    licence="Apache-2.0",
    citation="Xu et al., DetectiveQA: Evaluating Long-Context Reasoning on Detective Novels, 2024",
    url="https://huggingface.co/datasets/Phospheneser/DetectiveQA",
)
LETTERS = "ABCD"
PARAGRAPH = re.compile(r"(?ms)^\[(\d+)\][ \t]*(.*?)(?=^\[\d+\]|\Z)")
ASK = {
    "en": "Answer the question about the novel above, of which the end is left out. Reason from its clues step by step, and reply with "
    'JSON alone: {{"reasoning": "your steps, with the clues", "answer": "A"}}\n\nQuestion: {question}\nOptions:\n{options}',
    "zh": "请回答关于上面这部小说的问题，小说的结尾已略去。请根据线索一步步推理，只用 JSON 作答："
    '{{"reasoning": "推理步骤和线索", "answer": "A"}}\n\n问题：{question}\n选项：\n{options}',
}


@lru_cache(maxsize=4)
def _paragraphs(text: str) -> tuple[tuple[int, str], ...]:
    found = tuple((int(number), body.strip()) for number, body in PARAGRAPH.findall(text))
    if not found:
        raise ValueError("the novel has no paragraphs numbered [1], [2], ... at the start of a line")
    return found


def _novel(row: Row, language: str) -> tuple[tuple[int, str], ...]:
    return _paragraphs(find_text("detectiveqa", f"novel_data_{language}/{row['novel_id']}-*.txt", SOURCE))


def _by_question(rows: Iterable[Row]) -> Iterable[Row]:
    for row in rows:
        for number, question in enumerate(row["questions"]):
            yield {**question, "novel_id": row["novel_id"], "number": number}


def _question(row: Row, language: str) -> Iterable[Question]:
    answer, told = str(row["answer"]).strip(), int(row["answer_position"])
    options = {letter: row["options"][letter] for letter in LETTERS if row["options"].get(letter)}
    if answer not in options:
        raise ValueError(
            f"question {row['number']} of novel {row['novel_id']} has the answer {answer!r}; it must be one of {', '.join(options)}"
        )
    shown = [(number, text) for number, text in _novel(row, language) if told < 0 or number < told]
    lines = {number: f"[{number}] {text}" for number, text in shown}
    steps: Sequence[str] = row["reasoning"]
    yield Question(
        context="\n".join(lines.values()),
        question=ASK[language].format(
            question=row["question"],
            options="\n".join(f"{letter}. {text}" for letter, text in options.items()),
        ),
        references=(answer,),
        answer=json.dumps({"reasoning": " ".join(steps), "answer": answer}, ensure_ascii=False),
        evidence=tuple(
            dict.fromkeys(
                lines[int(place)] for place in row.get("clue_position") or () if int(place) in lines
            )
        ),
        details={
            "id": f"{row['novel_id']}/{row['number']}",
            "language": language,
            "reasoning": list(steps),
            "question": row["question"],
        },
    )


def _guess(rng: random.Random, sample: Sample) -> str:
    return json.dumps({"answer": rng.choice(LETTERS)})


TASKS: dict[str, GroupedTask] = {
    f"{short}_{language}": GroupedTask(
        suite="detectiveqa",
        source=SOURCE,
        file=f"anno_data_{language}/{folder}/*.json",
        parse=partial(_question, language=language),
        group=_by_question,
        lazy=True,
        max_new_tokens=1024,
        ability="multi-hop",
        diffusion="high",
        scope="high",
        metric=detective,
        chance=0.25,
        guess=_guess,
        answers="derived",
    )
    for language in ("en", "zh")
    for short, folder in (("human", "human_anno"), ("assisted", "AIsup_anno"))
}
