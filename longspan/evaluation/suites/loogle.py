"""LooGLE: questions, clozes and summaries over texts of 2022 and later, of 24K tokens and more.

Short-dependency questions are answered from one place; long-dependency ones need several, or an order, or a sum.

Paper: LooGLE: Can Long-Context Language Models Understand Long Contexts? (Li et al., 2023)

Scored by recall of Rouge-L with Rouge-1, Rouge-2 and BLEU as parts; clozes by the masks that are filled right.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from longspan.evaluation.metrics import Metric
from longspan.evaluation.metrics.loogle_rules import cloze, cloze_partial, overlaps
from longspan.evaluation.published import DataTask, Question, Source
from longspan.evaluation.suites._templates import posed, published_templates
from longspan.evaluation.task import Level

CARD: dict[str, Any] = {
    "name": "loogle",
    "title": "LooGLE: Can Long-Context Language Models Understand Long Contexts?",
    "year": 2023,
    "version": 1,
    "metric": "recall of Rouge-L, with Rouge-1, Rouge-2, BLEU-1 and BLEU-4 as parts; clozes: part of the masks filled right",
    "differs": [
        "without task2prompt.json the instructions are worded anew; with it in the folder they are the published ones",
        "METEOR, BERTScore and GPT-4's verdict are not computed; `bench score --judge` puts a judge in their place",
        "a cloze's score is the mean over questions; the original divides all matched masks by all masks, which is the ratio "
        "of the parts `matched` and `masks`",
        "answered greedily without the repetition penalty of 2 that the original sets for open models",
        "the middle of the text is cut, not of the whole prompt, so that the question always stays",
        "one task for each of the four kinds of long-dependency questions, beside all of them",
    ],
    "paper_id": 18,
    "lengths": "any; texts of 10K to 200K tokens as published, their middle cut where they are longer than asked for",
    "needs": "<task>.jsonl of the repository's test data or of the hub's data set, in either layout",
    "licence": "CC BY-SA 4.0 for the data set, MIT for its code",
    "citation": "Li et al., LooGLE: Can Long-Context Language Models Understand Long Contexts?, ACL 2024",
}

SOURCE = Source(
    hub="bigai-nlco/LooGLE",
    licence=CARD["licence"],
    citation=CARD["citation"],
    url="https://github.com/bigai-nlco/LooGLE",
)

QUESTION = "Read this text for a question about it.\n\n{input}\n\nAnswer the question from the text.\n\nQuestion: {Q}"
PROMPTS: Mapping[str, str] = {
    "shortdep_qa": QUESTION,
    "longdep_qa": QUESTION,
    "shortdep_cloze": "Read this text, to fill the gaps of another.\n\n{input}\n\nIn what follows, names of people, places and "
    "organisations are replaced by <mask-0>, <mask-1> and so on; the same mask stands for the same name everywhere.\n\n{Q}\n\n"
    "Which names are they? Answer with a JSON object and nothing else, in the form "
    '{"<mask-0>": "Bob", "<mask-1>": "Bethel"}',
    "longdep_summarization": "Read this paper, to sum it up.\n\n{input}\n\nWrite a summary of the paper above.",
}
"""Own wording of the published instructions, with the fields of the published file."""

PREFIXES = {"shortdep_qa": "Answer:", "longdep_qa": "Answer:", "longdep_summarization": "Summary:"}


def _literal(value: Any) -> Any:
    """The published files hold lists and dictionaries as Python writes them; nothing is run."""
    if not isinstance(value, str):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError):
            continue
    raise ValueError(f"{value[:60]!r} is neither JSON nor a Python literal")


def _flat(row: Mapping[str, Any]) -> Iterable[tuple[str, Any, Any, str | None]]:
    """(question, answer, evidence, kind) of a row of either layout; without a question for a summary."""
    if "context" in row:
        yield (
            row.get("question") or "",
            row["answer"],
            row.get("evidence"),
            row.get("type") or row.get("task"),
        )
    elif row["qa_pairs"] == "none":
        yield "", row["output"], (), None
    else:
        for pair in _literal(row["qa_pairs"]):
            yield pair["Q"], pair["A"], pair.get("S"), pair.get("type")


def _pieces(evidence: Any, text: str) -> tuple[str, ...]:
    """The pieces of evidence that stand in the text; some were shortened or joined by those who wrote them down."""
    found = _literal(evidence) if isinstance(evidence, str) and evidence.startswith("[") else evidence
    pieces: Sequence[Any] = [found] if isinstance(found, str) else found or ()
    return tuple(piece for piece in pieces if isinstance(piece, str) and piece.strip() and piece in text)


def parse(name: str, kind: str | None, row: Mapping[str, Any]) -> Iterable[Question]:
    """The questions of a row: input, title, qa_pairs and output; or context, question, answer, evidence, title, as on the hub.

    Args:
        name: of the published file.
        kind: of long-dependency question; None takes all.
        row: as published.
    """
    published = published_templates("loogle", "task2prompt.json", SOURCE).get(name)
    template = (published or PROMPTS[name]).replace("{{", "{").replace("}}", "}")
    text = row["context"] if "context" in row else row["input"]
    for asked, answer, evidence, found_kind in _flat(row):
        if kind is not None and found_kind != kind:
            continue
        context, question = posed(template.replace("{input}", "{context}"), text, Q=asked)
        gold = _literal(answer) if name == "shortdep_cloze" else answer
        reference = json.dumps(gold, ensure_ascii=False) if isinstance(gold, dict) else str(gold)
        if not reference.strip():
            raise ValueError(f"the question {asked[:60]!r} has an empty answer")
        yield Question(
            context=context,
            question=question,
            answer_prefix="" if published else PREFIXES.get(name, ""),
            references=(reference,),
            evidence=_pieces(evidence, text),
            details={
                "title": row.get("title"),
                "type": found_kind,
                "prompt": "published" if published else "own wording",
            },
        )


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a task measures, in words of `Labels`."""

    file: str
    ability: str
    max_new_tokens: int
    diffusion: Level = "high"
    scope: Level = "low"
    metric: Metric = overlaps
    kind: str | None = None


def _long(ability: str, kind: str | None, scope: Level = "low") -> Kind:
    return Kind(file="longdep_qa", ability=ability, max_new_tokens=500, scope=scope, kind=kind)


KINDS: Mapping[str, Kind] = {
    "shortdep_qa": Kind(
        file="shortdep_qa", ability="question answering", max_new_tokens=300, diffusion="low"
    ),
    "longdep_qa": _long("multi-hop", None),
    "longdep_qa_comprehension": _long("multi-hop", "comprehension_and_reasoning"),
    "longdep_qa_retrieval": _long("multi-hop", "multiple_information_retrieval"),
    "longdep_qa_computation": _long("arithmetic", "computation"),
    "longdep_qa_reorder": _long("ordering", "timeline_reorder", scope="high"),
    "longdep_summarization": Kind(
        file="longdep_summarization", ability="summarisation", max_new_tokens=500, scope="high"
    ),
    "shortdep_cloze": Kind(
        file="shortdep_cloze", ability="question answering", max_new_tokens=50, metric=cloze
    ),
    "shortdep_cloze_partial": Kind(
        file="shortdep_cloze", ability="question answering", max_new_tokens=50, metric=cloze_partial
    ),
}


def _task(kind: Kind) -> DataTask:
    return DataTask(
        suite="loogle",
        source=SOURCE,
        file=f"{kind.file}.jsonl",
        subset="summarization" if kind.file == "longdep_summarization" else kind.file,
        parse=partial(parse, kind.file, kind.kind),
        max_new_tokens=kind.max_new_tokens,
        ability=kind.ability,
        diffusion=kind.diffusion,
        scope=kind.scope,
        metric=kind.metric,
        answers="derived",
    )


TASKS: dict[str, DataTask] = {name: _task(kind) for name, kind in KINDS.items()}
