"""LoCoMo: questions about a conversation of many sessions over months, each session with its date.

Categories: 1 several hops, 2 times, 3 open domain (needs knowledge of the world too), 4 one hop, 5 adversarial, which the
conversation does not answer. Scored by F1 of stemmed words, category 5 by two phrases; see `metrics.overlap_keywords`.

Paper: Evaluating Very Long-Term Conversational Memory of LLM Agents (Maharana et al., 2024)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from hashlib import sha256
from typing import Any

from longspan.evaluation.metrics import Metric
from longspan.evaluation.metrics.overlap_keywords import locomo, locomo_fixed
from longspan.evaluation.published import DataTask, Question, Source
from longspan.evaluation.task import Level

CARD: dict[str, Any] = {
    "name": "locomo",
    "title": "Evaluating Very Long-Term Conversational Memory of LLM Agents",
    "year": 2024,
    "version": 1,
    "metric": "F1 of stemmed words; adversarial: one of two phrases; adversarial_fixed: any plain abstention",
    "differs": [
        "each question stands alone after its whole conversation; the official script asks many in one prompt and cuts the oldest turns",
        "instructions are in our own words; what a picture shows is given by its caption, as in the official prompt",
        "sessions stand in order of time and turns in the order said, under their dates",
        "adversarial offers the two answers (a) and (b) as published, in an order fixed by the question instead of by chance; a lone "
        "letter is not turned back into its answer, so the answer must be written out",
        "adversarial_fixed asks openly: the official scorer fails for want of an answer on 444 of 446 questions, and knows two wordings",
    ],
    "paper_id": 40,
    "lengths": "12K to 26K tokens",
    "needs": "locomo10.json of the official repository",
    "licence": "CC BY-NC 4.0",
    "citation": "Maharana et al., 2024",
}

SOURCE = Source(
    hub=None,
    licence="CC BY-NC 4.0",
    citation="Maharana et al., Evaluating Very Long-Term Conversational Memory of LLM Agents, ACL 2024",
    url="https://github.com/snap-research/locomo",
)
NOT_MENTIONED = "Not mentioned in the conversation"
SHORT = (
    "Answer the question with a short phrase, in the very words of the conversation above wherever you can."
)
TIMES = " Work out the date, at least roughly, from the dates of the sessions."
OPEN = "Answer the question from the conversation above. If it does not tell, answer: Not mentioned."
TURN = re.compile(r"D(\d+):0*(\d+)")


def _conversation(row: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The whole text, and each turn as it stands there, by its id such as "D3:11"."""
    talk = row["conversation"]
    parts = [
        f"Below is a conversation between {talk['speaker_a']} and {talk['speaker_b']} over many days. "
        "Every session begins with its date."
    ]
    turns: dict[str, str] = {}
    numbers = sorted(int(name[8:]) for name in talk if re.fullmatch(r"session_\d+", name))
    for number in numbers:
        lines = [f"DATE: {talk[f'session_{number}_date_time']}", "CONVERSATION:"]
        for turn in talk[f"session_{number}"]:
            line = f'{turn["speaker"]} said, "{turn["text"]}"'
            if turn.get("blip_caption"):
                line += f" and shared {turn['blip_caption']}."
            turns[turn["dia_id"]] = line
            lines.append(line)
        parts.append("\n".join(lines))
    return "\n\n".join(parts), turns


def _evidence(named: Iterable[str], turns: Mapping[str, str]) -> tuple[str, ...]:
    # Several ids may stand in one string, and some have a leading zero.
    ids = [f"D{session}:{turn}" for entry in named for session, turn in TURN.findall(entry)]
    return tuple(dict.fromkeys(turns[name] for name in ids if name in turns))


def _questions(row: Mapping[str, Any], category: int, *, fixed: bool = False) -> Iterable[Question]:
    context, turns = _conversation(row)
    for number, entry in enumerate(row["qa"]):
        if entry["category"] != category:
            continue
        trap = str(entry.get("adversarial_answer", entry.get("answer", "")))
        unsaid = "Not mentioned." if fixed else NOT_MENTIONED
        answer = unsaid if category == 5 else str(entry["answer"])
        details = {
            "category": category,
            "question": entry["question"],
            "id": f"{row['sample_id']}/{number}",
            **({"adversarial_answer": trap} if category == 5 else {}),
        }
        yield Question(
            context=context,
            question=_asked(entry["question"], category, trap, fixed=fixed),
            references=(answer,),
            answer=answer.split(";")[0].strip() if category == 3 else answer,
            answer_prefix="Short answer:",
            evidence=() if category == 5 else _evidence(entry["evidence"], turns),
            details=details,
        )


def _asked(question: str, category: int, trap: str, *, fixed: bool) -> str:
    if category != 5:
        return f"{SHORT}{TIMES if category == 2 else ''}\n\nQuestion: {question}"
    if fixed:
        return f"{OPEN}\n\nQuestion: {question}"
    choices = [NOT_MENTIONED, trap]
    if sha256(question.encode()).digest()[0] % 2:
        choices.reverse()
    return (
        "Answer the question from the conversation above.\n\n"
        f"Question: {question} Write out the right answer: (a) {choices[0]} (b) {choices[1]}."
    )


def _task(
    category: int,
    ability: str,
    diffusion: Level,
    scope: Level,
    *,
    fixed: bool = False,
    metric: Metric = locomo,
) -> DataTask:
    return DataTask(
        suite="locomo",
        source=SOURCE,
        file="locomo10.json",
        parse=partial(_questions, category=category, fixed=fixed),
        max_new_tokens=32,
        ability=ability,
        diffusion=diffusion,
        scope=scope,
        metric=metric,
        # Anybody who always abstains is right on every adversarial question.
        chance=1.0 if category == 5 else 0.0,
        answers="derived",
    )


TASKS: dict[str, DataTask] = {
    "multi_hop": _task(1, "multi-hop", "low", "high"),
    "temporal": _task(2, "time", "high", "low"),
    "open_domain": _task(3, "inference", "high", "low"),
    "single_hop": _task(4, "retrieval", "low", "low"),
    "adversarial": _task(5, "abstention", "high", "high"),
    "adversarial_fixed": _task(5, "abstention", "high", "high", fixed=True, metric=locomo_fixed),
}
