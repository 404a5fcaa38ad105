"""RULERv2: the same needles, numbered questions and documents in steps from copying to solving.

Three families of four tasks, each from retrieval alone (basic, easy) to retrieval and then reasoning (medium, hard): one
numbered item among many (mk_niah), four items of one number (mv_niah), and documents (qa). Scored by the better of "stands in
the answer" and 1 - word error rate, mean over the references; choices by the letter in the last \\boxed{}.

Paper: none; RULERv2 in NVIDIA NeMo Skills (2025), after RULER (Hsieh et al., 2024)
"""

from __future__ import annotations

from typing import Any

from longspan.evaluation.suites.needlebench import boxed_match
from longspan.evaluation.suites.rulerv2.documents import basic, easy, hard, medium
from longspan.evaluation.suites.rulerv2.items import copy_all, copy_nth, copy_one, solve
from longspan.evaluation.suites.rulerv2.scoring import copied, copied_last, copied_or_answered, random_letter
from longspan.evaluation.suites.rulerv2.values import many_values, one_value
from longspan.evaluation.task import Task

__all__ = ["CARD", "TASKS"]

CARD: dict[str, Any] = {
    "name": "rulerv2",
    "title": "RULERv2 (NeMo Skills): from basic retrieval to reasoning over retrieved items",
    "year": 2025,
    "version": 1,
    "metric": "better of substring and 1 - word error rate, after </think> and 'Answer:'; mk_niah_medium and _hard: boxed letter",
    "differs": [
        "MMLU's test questions are needles and haystack alike; officially the haystack is its auxiliary training set",
        "HotpotQA's dev file gives the other documents too; officially its training set does",
        "asked items are chosen short enough for the room, and the shots of mk_niah_medium and _hard too",
        "the last document or question is cut where that fills the room",
        "tokens are left for the answer, as in RULER; officially the text alone fills the length",
        "prompts are in our own words, the labels `Question 1234567:`, `Document 1234567:` and the parsed marks as published",
    ],
    "paper_id": None,
    "lengths": "from 1K tokens; mk_niah_medium, mk_niah_hard and mv_niah (but basic) from 2K",
    "needs": "wonderwords; MMLU's test csv files (mk_niah, mv_niah), the HotpotQA distractor dev file (qa)",
    "licence": "generated here; MMLU MIT, HotpotQA CC BY-SA 4.0; the official generator is Apache-2.0",
}

ITEMS: dict[str, Any] = {"haystack": "own", "answers": "derived", "scope": "low"}
# Word error rates of two questions on anything share the letters of the choices and some common words.
COPIED: dict[str, Any] = {**ITEMS, "ability": "retrieval", "diffusion": "low", "chance": 0.08}
SOLVED: dict[str, Any] = {
    **ITEMS,
    "ability": "retrieval and knowledge",
    "diffusion": "high",
    "metric": boxed_match,
    "chance": 0.25,
    "guess": random_letter,
    "places": True,
}
DOCUMENTS: dict[str, Any] = {"haystack": "own", "scope": "low", "metric": copied_or_answered}

TASKS: dict[str, Task] = {
    "mk_niah_basic": Task(
        make=one_value,
        haystack="own",
        ability="retrieval",
        diffusion="low",
        scope="low",
        metric=copied,
        places=True,
    ),
    "mk_niah_easy": Task(make=copy_one, metric=copied, places=True, **COPIED),
    "mk_niah_medium": Task(make=solve(copy_first=True), **SOLVED),
    "mk_niah_hard": Task(make=solve(copy_first=False), **SOLVED),
    "mv_niah_basic": Task(
        make=many_values, haystack="own", ability="retrieval", diffusion="low", scope="low", metric=copied
    ),
    "mv_niah_easy": Task(make=copy_all, metric=copied, **COPIED),
    "mv_niah_medium": Task(
        make=copy_nth(copy_first=True), metric=copied_last, **{**COPIED, "diffusion": "high"}
    ),
    "mv_niah_hard": Task(make=copy_nth(copy_first=False), metric=copied, **{**COPIED, "diffusion": "high"}),
    "qa_basic": Task(make=basic, ability="retrieval", diffusion="low", places=True, **DOCUMENTS),
    "qa_easy": Task(make=easy, ability="retrieval", diffusion="high", **DOCUMENTS),
    "qa_medium": Task(
        make=medium, ability="multi-hop", diffusion="high", answers="derived", chance=0.005, **DOCUMENTS
    ),
    "qa_hard": Task(
        make=hard, ability="multi-hop", diffusion="high", answers="derived", chance=0.005, **DOCUMENTS
    ),
}
