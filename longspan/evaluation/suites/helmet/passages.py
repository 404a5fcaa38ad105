"""Tasks over one JSON object or a list of passages: json_kv, four sets of questions, msmarco, asqa and qampari."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from longspan.evaluation.metrics.helmet_rules import asqa, qampari
from longspan.evaluation.metrics.retrieval import rerank
from longspan.evaluation.metrics.text import normal_words, substring_exact_match
from longspan.evaluation.published import Question, read_rows
from longspan.evaluation.suites._files import GroupedTask, Row, find_files, missing
from longspan.evaluation.suites.helmet.draws import (
    LENGTHS,
    NUM_EXAMPLES,
    SOURCE,
    examples_for,
    first_shuffled,
    with_keys,
)

__all__ = ["PASSAGE_TASKS"]

QA = "Answer the question from the documents, as briefly as you can, in this form:\nAnswer: [answer]\n\nTwo examples come first."
RERANK = (
    "Each document below has an ID. Rank all of them by how well they answer the query, best first, in this form:\n"
    "Ranking: ID3 > ID1 > ID2\n\nTwo examples come first."
)
KEY_VALUE = "Give the value that belongs to the key in the JSON object above."
CITE = {
    "asqa": "Answer the question from the documents above only, in flowing text and without opinion. After every statement give the "
    "documents that bear it out, as in [2] or [1][3]: at least one a sentence, at most three, and no more than are needed.",
    "qampari": "List the answers to the question that the documents above give, separated by commas, each followed by the one document "
    "that bears it out, as in [2]. Where there are more than five answers, list at least five.",
}
POPULARITY = 10**3


def _key(row: Row) -> Any:
    """What makes rows one question: its id, or the question itself where there are no ids."""
    return row["id"] if "id" in row else row["question"]


@lru_cache(maxsize=4)
def _pool(path: Path, changed: int, popular: bool) -> tuple[Row, ...]:
    return tuple(row for row in read_rows(path) if not popular or row["s_pop"] < POPULARITY)


def _examples(file: str, *, popular: bool = False) -> Sequence[Row]:
    found = find_files("helmet", file)
    if not found:
        raise missing("helmet", file, SOURCE)
    return _pool(found[0], found[0].stat().st_mtime_ns, popular)


def _json_kv(row: Row) -> Iterable[Question]:
    shown = "\n\n".join(
        f"Key: {key}\nCorresponding value: {value}" for key, value in row["demos"][:NUM_EXAMPLES]
    )
    pair = f'"{row["question"]}": "{row["answer"]}"'
    yield Question(
        context=row["context"],
        question=f"{KEY_VALUE}\n\n{shown}\n\nKey: {row['question']}",
        references=(row["answer"],),
        answer_prefix="Corresponding value:",
        evidence=(pair,) if pair in row["context"] else (),
        details={"num_keys": row["num_kvs"]},
    )


def _passages(passages: Iterable[Mapping[str, Any]]) -> list[str]:
    return [f"Document (Title: {one['title']}): {one['text']}" for one in passages]


def _qa(row: Row, examples: str, popular: bool) -> Iterable[Question]:
    pool = _examples(examples, popular=popular)
    if popular:  # this set has one split, so the question itself is among the examples
        pool = [one for one in pool if _key(one) != _key(row)]
    shown = [
        "\n\n".join([*_passages(one["ctxs"]), f"Question: {one['question']}\nAnswer: {one['answers'][0]}"])
        for one in examples_for(str(_key(row)), pool, _key)
    ]
    passages = _passages(row["ctxs"])
    yield Question(
        context="\n\n".join([QA, *shown, *passages]),
        question=f"Question: {row['question']}",
        references=tuple(row["answers"]),
        answer_prefix="Answer:",
        evidence=tuple(
            text for text, one in zip(passages, row["ctxs"], strict=True) if one.get("has_answer")
        ),
        details={"id": _key(row)},
    )


def _qa_rows(rows: Iterable[Row], popular: bool) -> list[Row]:
    return with_keys((row for row in rows if not popular or row["s_pop"] < POPULARITY), _key)


def _ranked(passages: Iterable[Mapping[str, Any]]) -> str:
    """The ids, best grade first."""
    return " > ".join(str(one["id"]) for one in sorted(passages, key=lambda one: -int(one["label"])))


def _listed(passages: Sequence[Mapping[str, Any]]) -> list[str]:
    heads = [f" (Title: {one['title']})" if "title" in one else "" for one in passages]
    return [
        f"[ID: {one['id']}] Document{head}: {one['text']}" for head, one in zip(heads, passages, strict=True)
    ]


def _rerank(row: Row) -> Iterable[Question]:
    shown = [
        "\n\n".join([*_listed(one["ctxs"]), f"Query: {one['query']}\nRanking: {_ranked(one['ctxs'])}"])
        for one in examples_for(str(row["qid"]), row["examples"], lambda one: one["qid"])
    ]
    grades = {str(one["id"]): int(one["label"]) for one in row["ctxs"]}
    passages = _listed(row["ctxs"])
    best = max(grades.values())
    yield Question(
        context="\n\n".join([RERANK, *shown, *passages]),
        question=f"Query: {row['query']}",
        references=tuple(name for name, grade in grades.items() if grade > 0),
        answer=_ranked(row["ctxs"]),
        answer_prefix="Ranking:",
        evidence=tuple(
            text for text, one in zip(passages, row["ctxs"], strict=True) if int(one["label"]) == best > 0
        ),
        details={"id": str(row["qid"]), "relevance": grades},
    )


def _rerank_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows of 100 queries, each with the rows that its worked examples come from: none of its own query."""
    found = with_keys(rows, lambda row: row["qid"])
    pool, asked = _examples("msmarco/test_reranking_data_k10_dep3.jsonl"), {row["qid"] for row in found}
    if len(pool) > 2 * len(found):  # then there are enough of other queries altogether
        pool = [one for one in pool if one["qid"] not in asked]
    return [{**row, "examples": [one for one in pool if one["qid"] != row["qid"]]} for row in found]


def _cite(row: Row, kind: str, num_passages: int) -> Iterable[Question]:
    shown = row["docs"][:num_passages]
    passages = [
        f"Document [{number}](Title: {one['title']}): {one['text']}" for number, one in enumerate(shown, 1)
    ]
    texts = [f" {' '.join(normal_words(one['text']))} " for one in shown]
    answers = [pair["short_answers"] for pair in row["qa_pairs"]] if kind == "asqa" else row["answers"]
    holders = [
        [
            number
            for number, text in enumerate(texts, 1)
            if any(f" {' '.join(normal_words(wording))} " in text for wording in wordings)
        ]
        for wordings in answers
    ]
    firsts = [
        f"{one[0]} {''.join(f'[{number}]' for number in some[:1])}".strip()
        for one, some in zip(answers, holders, strict=True)
    ]
    yield Question(
        context="\n\n".join([*_cited_examples(kind), *passages]),
        question=f"{_instruction(kind)}\n\nQuestion: {row['question']}",
        references=tuple(wordings[0] for wordings in answers),
        answer=", ".join(firsts),
        answer_prefix="Answer:",
        evidence=tuple(passages[number - 1] for number in sorted({one for some in holders for one in some})),
        details={"answers": [list(wordings) for wordings in answers], "holders": holders},
    )


def _prompts(kind: str) -> Mapping[str, Any]:
    found = find_files("helmet", f"{kind}_revised.json")
    return json.loads(found[0].read_text(encoding="utf-8")) if found else {}


def _instruction(kind: str) -> str:
    return str(_prompts(kind).get("instruction", CITE[kind]))


def _cited_examples(kind: str) -> list[str]:
    """The first two worked examples of the official prompts; none where those are not in the folder."""
    return [
        "\n\n".join(
            [
                _instruction(kind),
                f"Question: {one['question']}",
                *(
                    f"Document [{number}](Title: {passage['title']}): {passage['text']}"
                    for number, passage in enumerate(one["docs"], 1)
                ),
                f"Answer: {one['answer']}",
            ]
        )
        for one in _prompts(kind).get("demos", ())[:NUM_EXAMPLES]
    ]


def _tasks() -> dict[str, GroupedTask]:
    tasks: dict[str, GroupedTask] = {}
    sizes = {
        "json_kv": (105, 220, 440, 900, 1800),
        "qa": (50, 105, 220, 440, 1000),
        "msmarco": (50, 130, 285, 600, 1000),
        "cite": (30, 75, 165, 345, 700),
    }
    for place, length in enumerate(LENGTHS):
        tasks[f"json_kv_{length}"] = GroupedTask(
            suite="helmet", lazy=True, source=SOURCE, file=f"json_kv/test_k{sizes['json_kv'][place]}_dep6.jsonl", parse=_json_kv,
            group=first_shuffled, max_new_tokens=100, ability="retrieval", diffusion="low", scope="low",
            metric=substring_exact_match,
        )  # fmt: skip
        for name, (start, examples, depths) in QA_FILES.items():
            tasks[f"{name}_{length}"] = GroupedTask(
                suite="helmet", lazy=True, source=SOURCE, file=f"kilt/{start}_1000_k{sizes['qa'][place]}_dep{depths}.jsonl",
                parse=partial(_qa, examples=f"kilt/{examples}_1000_k3_dep{depths}.jsonl", popular=name == "popqa"),
                group=partial(_qa_rows, popular=name == "popqa"), max_new_tokens=20,
                ability="multi-hop" if name == "hotpotqa" else "question answering", diffusion="low", scope="low",
                metric=substring_exact_match, answers="derived",
            )  # fmt: skip
        tasks[f"msmarco_{length}"] = GroupedTask(
            suite="helmet", lazy=True, source=SOURCE, file=f"msmarco/test_reranking_data_k{sizes['msmarco'][place]}_dep3.jsonl",
            parse=_rerank, group=_rerank_rows, max_new_tokens=200, ability="ranking", diffusion="low", scope="high",
            metric=rerank, answers="derived",
        )  # fmt: skip
        for kind, metric in (("asqa", asqa), ("qampari", qampari)):
            tasks[f"{kind}_{length}"] = GroupedTask(
                suite="helmet", lazy=True, source=SOURCE, file=f"alce/{kind}_eval_gtr_top2000.json",
                parse=partial(_cite, kind=kind, num_passages=sizes["cite"][place]), group=first_shuffled,
                max_new_tokens=300, ability="citation", diffusion="low", scope="high", metric=metric,
                answers="derived",
            )  # fmt: skip
    return tasks


QA_FILES = {
    "nq": ("nq-dev-multikilt", "nq-train-multikilt", 6),
    "triviaqa": ("triviaqa-dev-multikilt", "triviaqa-train-multikilt", 6),
    "hotpotqa": ("hotpotqa-dev-multikilt", "hotpotqa-train-multikilt", 3),
    "popqa": ("popqa_test", "popqa_test", 6),
}
PASSAGE_TASKS = _tasks()
