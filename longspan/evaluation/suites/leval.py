"""L-Eval: 20 tasks over real texts of 3K to 200K tokens, 7 with exact answers and 13 with free ones.

Lectures, exams, sums with many examples, stories, calls of functions, contracts, meetings, papers, reviews and series. Each
text comes with several questions.

Paper: L-Eval: Instituting Standardized Evaluation for Long Context Language Models (An et al., 2023)

Scored by exact rules of each closed task, token F1 for free answers, and rougeL for summaries; a judge can score the free ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from longspan.evaluation.metrics import Metric
from longspan.evaluation.metrics.choice import exam_letter, exam_letters, sci_fi, topic_retrieval
from longspan.evaluation.metrics.code import code_u
from longspan.evaluation.metrics.overlap import qa_f1
from longspan.evaluation.metrics.overlap_rouge import rouge_parts
from longspan.evaluation.metrics.text_numbers import gsm
from longspan.evaluation.published import DataTask, Question, Source
from longspan.evaluation.suites._templates import guess_letter
from longspan.evaluation.task import Level, Sample

CARD: dict[str, Any] = {
    "name": "leval",
    "title": "L-Eval: Instituting Standardized Evaluation for Long Context Language Models",
    "year": 2023,
    "version": 1,
    "metric": "closed tasks: letters, numbers, outputs, topics; free answers: token F1; summaries: rougeL, with rouge1 and rouge2",
    "differs": [
        "the instructions are worded anew; a free answer is asked for in about as many words as the reference has, as there",
        "texts that are too long lose their middle; the original cuts the end, and of code the start",
        "sci_fi asks for both verdicts in one answer; the original asks for the second in a further turn",
        "free tasks hold the questions that the original scores by F1 or Rouge; those it gives to GPT-4 or to people "
        "(`evaluation` is LLM or human) are left out, and so is its win rate against one model",
        "the original's Rouge headline is a geometric mean over the whole file; the score here is rougeL, the others its parts",
    ],
    "paper_id": 42,
    "lengths": "any; texts of 3K to 200K tokens as published, their middle cut where they are longer than asked for",
    "needs": "LEval-data/*/<task>.jsonl of the repository; summaries need rouge-score",
    "licence": "GPL-3.0 for the repository; its sources keep their own",
    "citation": "An et al., L-Eval: Instituting Standardized Evaluation for Long Context Language Models, ACL 2024",
}

SOURCE = Source(
    hub="L4NLP/LEval",
    licence=CARD["licence"],
    citation=CARD["citation"],
    url="https://github.com/OpenLMLab/LEval",
)

SCORED_BY_RULE = ("exam", "f1", "rouge")
LETTERS = "ABCD"

DOCUMENT = "Read this document for a task about it.\n\n"
ONE_LETTER = "\nOne option is right. Answer with its letter alone, such as B."
LETTER_SET = "\nOne or more options are right. Answer with their letters alone, such as B or ABD."
VERDICTS = (
    "\nAnswer True or False by the story alone. Then say in brackets whether it is true in the real world. The form is: "
    "True [fact: False]"
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a task measures, in words of `Labels`; before and after: the instruction around text and question."""

    metric: Metric
    ability: str
    diffusion: Level = "low"
    scope: Level = "low"
    before: str = DOCUMENT
    after: str = ""
    chance: float = 0.0
    choices: str = ""
    free: bool = False


def _free(ability: str, metric: Metric, diffusion: Level, scope: Level) -> Kind:
    return Kind(metric=metric, ability=ability, diffusion=diffusion, scope=scope, free=True)


ANSWER = _free("question answering", qa_f1, "low", "low")
SUMMARY = _free("summarisation", rouge_parts, "high", "high")
KINDS: Mapping[str, Kind] = {
    "coursera": Kind(
        metric=exam_letters,
        ability="question answering",
        after=LETTER_SET,
        chance=0.209,
        choices=LETTERS,
    ),
    "quality": Kind(
        metric=exam_letter,
        ability="question answering",
        diffusion="high",
        after=ONE_LETTER,
        chance=1 / 4,
        choices=LETTERS,
    ),
    "tpo": Kind(
        metric=exam_letter,
        ability="question answering",
        after=ONE_LETTER,
        chance=1 / 4,
        choices=LETTERS,
    ),
    "gsm100": Kind(
        metric=gsm,
        ability="many-shot learning",
        diffusion="high",
        before="Here are solved questions. Answer the one after them in the same way, and end with `The answer is` and the "
        "number.\n\n",
    ),
    "codeU": Kind(
        metric=code_u,
        ability="code execution",
        diffusion="high",
        before="Here are many functions with comments, some of which are called in the end.\n\n",
    ),
    "sci_fi": Kind(metric=sci_fi, ability="question answering", after=VERDICTS, chance=1 / 2),
    "topic_retrieval_longchat": Kind(
        metric=topic_retrieval,
        ability="retrieval",
        before="Here is the record of our talk on several topics. Remember the topic that I start each part with.\n\n",
    ),
    **dict.fromkeys(
        ("financial_qa", "legal_contract_qa", "multidoc_qa", "narrative_qa", "natural_question", "scientific_qa"), ANSWER
    ),
    **dict.fromkeys(
        (
            "gov_report_summ",
            "meeting_summ",
            "news_summ",
            "paper_assistant",
            "patent_summ",
            "review_summ",
            "tv_show_summ",
        ),
        SUMMARY,
    ),
}  # fmt: skip


def parse(kind: Kind, row: Mapping[str, Any]) -> Iterable[Question]:
    """The questions of a row: input, instructions, outputs, evaluation, and a source in most files.

    Args:
        kind: of the task.
        row: as published; one that is scored by a judge or by people has no question.
    """
    if row["evaluation"] not in SCORED_BY_RULE:
        return
    if len(row["instructions"]) != len(row["outputs"]):
        raise ValueError(f"{len(row['instructions'])} instructions have {len(row['outputs'])} outputs")
    for instruction, output in zip(row["instructions"], row["outputs"], strict=True):
        asked = instruction.strip() + kind.after
        if kind.free:
            asked += f"\nUse about {len(output.split())} words."
        yield Question(
            context=f"{kind.before}{row['input'].strip()}",
            question=asked,
            references=(output,),
            details={
                "evaluation": row["evaluation"],
                "source": row.get("source"),
                **({"choices": list(kind.choices)} if kind.choices else {}),
            },
        )


def _verdicts(rng: Random, sample: Sample) -> str:
    return f"{rng.choice(('True', 'False'))} [fact: {rng.choice(('True', 'False'))}]"


def _task(name: str, kind: Kind) -> DataTask:
    folder = "Open-ended-tasks" if kind.free else "Closed-ended-tasks"
    return DataTask(
        suite="leval",
        source=SOURCE,
        file=f"LEval-data/{folder}/{name}.jsonl",
        subset=name,
        parse=partial(parse, kind),
        max_new_tokens=512,
        ability=kind.ability,
        diffusion=kind.diffusion,
        scope=kind.scope,
        metric=kind.metric,
        chance=kind.chance,
        guess=_verdicts if kind.metric is sci_fi else guess_letter if kind.choices else None,
        answers="derived",
    )


TASKS: dict[str, DataTask] = {name: _task(name, kind) for name, kind in KINDS.items()}
