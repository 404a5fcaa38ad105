"""Loong: questions for which every one of some eleven documents matters: financial reports, court rulings, papers.

Four tasks: find one fact (spotlight), compare several, sort all documents into groups, follow a chain through them. English and
Chinese. Officially GPT-4 marks the answer from 1 to 100; without a judge, the rules of `metrics.loong_rules` compare names,
numbers, groups and chains, which is another score. A judge is asked whether the answer is right.

Paper: Leave No Document Behind: Benchmarking Long-Context LLMs with Extended Multi-Doc QA (Wang et al., 2024)
"""

from __future__ import annotations

import glob
import json
import random
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from longspan.evaluation.metrics.loong_rules import loong
from longspan.evaluation.published import Question, Source
from longspan.evaluation.suites._files import GroupedTask, Row, find_files, find_text, missing

CARD: dict[str, Any] = {
    "name": "loong",
    "title": "Leave No Document Behind: Benchmarking Long-Context LLMs with Extended Multi-Doc QA",
    "year": 2024,
    "version": 1,
    "metric": "part of the answer that is right, by rules; perfect: all of it; a judge may grade instead",
    "differs": [
        "the default score needs no judge and is not the official mark of GPT-4",
        "a judge says right or wrong, which is nearest to the official perfect rate; the official one gives 1 to 100",
        "documents are shuffled where the question allows it, by its id instead of by chance",
        "a text longer than the length asked for loses its middle; the official script leaves whole documents out",
        "the prompts are those of the data",
        "113 questions of `chain` ask which result belongs to which court ruling, and the official script leaves the results in the "
        "rulings, as it looks for a mark in the wrong field; chain_fixed takes them out, as was meant",
    ],
    "paper_id": 207,
    "lengths": "10K to 250K tokens",
    "needs": "loong.jsonl and the unpacked doc.zip of the official repository: doc/financial, doc/paper, doc/legal/legal.json",
    "licence": "Apache-2.0",
    "citation": "Wang et al., 2024",
}

SOURCE = Source(
    hub=None,
    licence="Apache-2.0",
    citation="Wang et al., Leave No Document Behind: Benchmarking Long-Context LLMs with Extended Multi-Doc QA, EMNLP 2024",
    url="https://github.com/MozerWang/Loong",
)
RESULTS_ASKED = "阅读以上判决文书，我将给你若干份判决结果："
"""Questions of level 4 that begin so ask which result belongs to which ruling."""


@lru_cache(maxsize=1)
def _rulings(path: Path, changed: int) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _financial(row: Row, name: str) -> str:
    year = "" if str(row["level"]).strip() == "4" else "2024-"
    pattern = f"financial/*{year}{glob.escape(name)}*.txt"
    found = find_files("loong", pattern)
    title = found[0].stem.split("-")[-1] if found else ""
    return f"《{title}》\n{find_text('loong', pattern, SOURCE)}"


def _paper(name: str) -> str:
    text = find_text("loong", f"paper/{glob.escape(name)}", SOURCE)
    return f"{text.split(chr(10), 1)[0].strip('#').strip()}\n{text}"


def _legal(row: Row, name: str, number: int, *, fixed: bool) -> str:
    found = find_files("loong", "legal/legal.json")
    if not found:
        raise missing("loong", "legal/legal.json", SOURCE)
    ruling = _rulings(found[0], found[0].stat().st_mtime_ns)[name]
    # The official script looks for these words in the instruction, where they never stand, and so shows every result.
    hidden = fixed and RESULTS_ASKED in row["question"]
    return f"《判决文书{number}》\n{ruling['content']}{'' if hidden else ruling['result']}"


def _documents(row: Row, *, fixed: bool) -> list[str]:
    kind, names = row["type"], row["doc"]
    if kind == "financial":
        found = [_financial(row, name) for name in names]
    elif kind == "paper":
        found = [_paper(name) for name in names]
    elif kind == "legal":
        found = [_legal(row, name, number, fixed=fixed) for number, name in enumerate(names, start=1)]
    else:
        raise ValueError(f"the type of {row['id']} is {kind!r}; it must be financial, paper or legal")
    if row.get("shuffle_doc", True):
        random.Random(row["id"]).shuffle(found)
    return found


def _question(row: Row, fixed: bool = False) -> Iterable[Question]:
    before, _, after = str(row["prompt_template"]).partition("{docs}")

    def filled(text: str) -> str:
        return text.replace("{question}", row["question"]).replace("{instruction}", row["instruction"])

    answer = row["answer"]
    plain = isinstance(answer, str)
    wanted = answer if plain else json.dumps(answer, ensure_ascii=False)
    asked = filled(after).strip()
    yield Question(
        context=filled(before) + "\n\n".join(_documents(row, fixed=fixed)),
        question=asked or "#Answer:",  # chains of papers are asked for before the documents
        references=(wanted,),
        details={
            "id": row["id"],
            "type": row["type"],
            "language": row["language"],
            "set": row["set"],
            "answer_type": "text" if plain else type(answer).__name__,
            "question": f"{row['instruction']}\n{row['question']}".strip(),
        },
    )


def _of_level(rows: Iterable[Row], level: int) -> list[Row]:
    return [row for row in rows if row["level"] == level]


def _task(level: int, ability: str, *, fixed: bool = False) -> GroupedTask:
    return GroupedTask(
        suite="loong",
        source=SOURCE,
        file="loong.jsonl",
        parse=partial(_question, fixed=fixed),
        group=partial(_of_level, level=level),
        lazy=True,
        max_new_tokens=1024,
        ability=ability,
        diffusion="high",
        scope="low" if level == 1 else "high",
        metric=loong,
        answers="derived",
    )


TASKS: dict[str, GroupedTask] = {
    "spotlight": _task(1, "retrieval"),
    "comparison": _task(2, "aggregation"),
    "clustering": _task(3, "aggregation"),
    "chain": _task(4, "multi-hop"),
    "chain_fixed": _task(4, "multi-hop", fixed=True),
}
