"""LongMemEval: questions about earlier chats between a user and an assistant, some tens to hundreds of dated sessions.

Six types (what the user said, what the assistant said, what the user likes, several sessions, times, updates) and abstention:
questions about what was never said. Officially GPT-4o says yes or no, by five instructions. Without a judge the score here is
the part of the answer's words that matter that stand in the reply: it orders models, and is no accuracy. A judge
(`open_metric`, `longspan bench score --judge`) is given the official allowances, in our words.

Paper: LongMemEval: Benchmarking Chat Assistants on Long-Term Interactive Memory (Wu et al., 2024)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from longspan.evaluation.judging import open_metric
from longspan.evaluation.judging.fallbacks import keywords_of
from longspan.evaluation.metrics import Metric
from longspan.evaluation.metrics.overlap_keywords import abstains
from longspan.evaluation.published import DataTask, Question, Source
from longspan.evaluation.task import Level

CARD: dict[str, Any] = {
    "name": "longmemeval",
    "title": "LongMemEval: Benchmarking Chat Assistants on Long-Term Interactive Memory",
    "year": 2024,
    "version": 1,
    "metric": "part of the answer's words that matter found in the reply; abstention: a plain abstention; a judge may grade instead",
    "differs": [
        "the default score needs no judge and is not the official accuracy, which asks GPT-4o",
        "a judge gets the official allowances (one day off, older values beside the new one, preferences as a rubric) in our words",
        "sessions are written out as turns, the official `nl` history, in order of time; the reading is direct, without notes first",
        "instructions are in our own words",
        "the 30 abstention questions are a task of their own and not part of their types, as the paper's tables count them",
        "retrieval scores are not here; the sessions that hold the answer are given as evidence",
    ],
    "paper_id": None,
    "lengths": "115K tokens (S); an eighth of it with the oracle file",
    "needs": "longmemeval_s_cleaned.json; the oracle_ tasks: longmemeval_oracle.json",
    "licence": "MIT",
    "citation": "Wu et al., 2024",
}

SOURCE = Source(
    hub=None,
    licence="MIT",
    citation="Wu et al., LongMemEval: Benchmarking Chat Assistants on Long-Term Interactive Memory, ICLR 2025",
    url="https://huggingface.co/datasets/xiaowu0162/longmemeval-cleaned",
)
HEAD = "Below are earlier chats between you and a user, each with its date."
INSTRUCTION = "Answer the question from what these chats tell."
ALLOWANCES = {
    "temporal-reasoning": " (A number of days, weeks or months that is off by one counts as right.)",
    "knowledge-update": " (Older values may stand beside the new one, as long as the new one is given as the answer.)",
}


def abstention(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the answer plainly says that the chats do not tell; without a judge, where the official score asks one."""
    return float(abstains(prediction))


def _history(row: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The chats in order of time, and the turns that hold the answer."""
    sessions = sorted(
        zip(row["haystack_dates"], row["haystack_sessions"], strict=True), key=lambda session: session[0]
    )
    parts, evidence = [HEAD], []
    for number, (date, turns) in enumerate(sessions, start=1):
        said = []
        for turn in turns:
            said.append(f"{turn['role']}: {turn['content'].strip()}")
            if turn.get("has_answer"):
                evidence.append(said[-1])
        parts.append(f"### Session {number}\nDate: {date}\n\n" + "\n\n".join(said))
    return "\n\n".join(parts), tuple(dict.fromkeys(evidence))


def _questions(row: Mapping[str, Any], kind: str) -> Iterable[Question]:
    unanswerable = row["question_id"].endswith("_abs")
    if kind != ("abstention" if unanswerable else row["question_type"]):
        return
    context, evidence = _history(row)
    answer = str(row["answer"])
    yield Question(
        context=context,
        question=f"{INSTRUCTION}\n\nCurrent date: {row['question_date']}\nQuestion: {row['question']}",
        references=(answer,),
        answer="The chats do not mention it." if unanswerable else answer,
        answer_prefix="Answer:",
        evidence=() if unanswerable else evidence,
        details={
            "id": row["question_id"],
            "type": row["question_type"],
            "sessions": list(row["answer_session_ids"]),
            **_grading(kind, row["question"], answer),
        },
    )


def _grading(kind: str, question: str, answer: str) -> dict[str, Any]:
    """How a judge grades, and what is looked for without one."""
    if kind == "abstention":
        check = f"Does the response say that the question cannot be answered from what is known? ({answer})"
        return {"question": question, "grading": "rubric", "rubric": [check]}
    if kind == "single-session-preference":
        check = f"Does the response recall and use what the user told about themselves, as in: {answer}"
        return {
            "question": question,
            "grading": "rubric",
            "rubric": [check],
            "keywords": keywords_of(answer),
        }
    return {
        "question": question + ALLOWANCES.get(kind, ""),
        "grading": "answer",
        "keywords": keywords_of(answer),
    }


def _task(kind: str, file: str, ability: str, diffusion: Level, scope: Level) -> DataTask:
    metric: Metric = abstention if kind == "abstention" else open_metric
    return DataTask(
        suite="longmemeval",
        source=SOURCE,
        file=file,
        parse=partial(_questions, kind=kind),
        max_new_tokens=500,
        ability=ability,
        diffusion=diffusion,
        scope=scope,
        metric=metric,
        chance=1.0 if kind == "abstention" else 0.0,
        answers="derived",
    )


KINDS: dict[str, tuple[str, Level, Level]] = {
    "single-session-user": ("retrieval", "low", "low"),
    "single-session-assistant": ("retrieval", "low", "low"),
    "single-session-preference": ("inference", "high", "low"),
    "multi-session": ("aggregation", "low", "high"),
    "temporal-reasoning": ("time", "high", "low"),
    "knowledge-update": ("tracking", "low", "low"),
    "abstention": ("abstention", "high", "high"),
}
TASKS: dict[str, DataTask] = {
    prefix + kind.replace("-", "_"): _task(kind, file, *labels)
    for prefix, file in (("", "longmemeval_s_cleaned.json"), ("oracle_", "longmemeval_oracle.json"))
    for kind, labels in KINDS.items()
}
