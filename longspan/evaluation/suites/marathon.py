"""Marathon: 1,530 questions with choices over texts of LooGLE and LongBench, of up to 260K characters and more.

Comprehension and reasoning, retrieval of several pieces, timelines, computation, passages, and short-dependency questions.

Paper: Marathon: A Race Through the Realm of Long Context with Large Language Models (Zhang et al., 2023)

Scored by the option's letter. The benchmark keeps its answers on a server; questions are asked for which there is an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from longspan.evaluation.metrics.choice import option_letter
from longspan.evaluation.published import DataMissing, DataTask, Question, Source, data_file, read_rows
from longspan.evaluation.suites._templates import guess_letter
from longspan.evaluation.task import Level

CARD: dict[str, Any] = {
    "name": "marathon",
    "title": "Marathon: A Race Through the Realm of Long Context with Large Language Models",
    "year": 2023,
    "version": 1,
    "metric": 'accuracy of the option: the letter in {"option": "A"}, else the first capital letter that stands alone',
    "differs": [
        "the published rows have no answers, and the benchmark's server judges letters; here an answers.json in the form of its "
        "answer file is read, or a field `answer` of the rows",
        "how letters are read from an answer is not published; a JSON answer is asked for, as there, and a bare letter taken too",
        "the instruction is worded anew; the original asks `Based on the description above, ...?`",
        "answered greedily with 32 tokens; the original samples at temperature 0.7",
        "the middle of the text is cut, not of the whole prompt, so that question and options always stay",
        "one task for each of the six types beside all questions",
    ],
    "paper_id": 202,
    "lengths": "any; texts of 60K to 260K characters as published, their middle cut where they are longer than asked for",
    "needs": "marathon.json of the repository or the hub, and answers.json, a list of objects with `id` and `answer`",
    "licence": "MIT; its sources, LooGLE and LongBench, keep their own",
    "citation": "Zhang et al., Marathon: A Race Through the Realm of Long Context with Large Language Models, ACL 2024",
}

SOURCE = Source(
    hub="Lemoncoke/Marathon",
    licence=CARD["licence"],
    citation=CARD["citation"],
    url="https://github.com/Hambaobao/Marathon",
)

TYPES: Mapping[str, tuple[str, Level]] = {
    "comprehension_and_reasoning": ("multi-hop", "low"),
    "multiple_information_retrieval": ("multi-hop", "low"),
    "timeline_reorder": ("ordering", "high"),
    "computation": ("arithmetic", "low"),
    "passage_retrieval": ("retrieval", "low"),
    "shortdep_qa": ("question answering", "low"),
}
"""Type of question, as the data name it, to its ability and scope."""


def _answers() -> Mapping[str, str]:
    try:
        path = data_file("marathon", "answers.json", SOURCE)
    except DataMissing:
        return {}
    return _read_answers(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read_answers(path: Path, changed: int) -> Mapping[str, str]:
    return {str(row["id"]): str(row["answer"]) for row in read_rows(path)}


def parse(kind: str | None, row: Mapping[str, Any]) -> Iterable[Question]:
    """The question of a row: id, type, context, question, options by letter, length, and `answer` where it is given.

    Args:
        kind: as the data name it; None takes all.
        row: as published.
    """
    if kind is not None and row["type"] != kind:
        return
    answer = row.get("answer") or _answers().get(str(row["id"]))
    options = {letter: option for letter, option in row["options"].items() if option is not None}
    if answer is None:
        raise ValueError(
            f"question {row['id']} has no answer, the published rows have none; put answers.json beside them, a list of objects "
            "with `id` and `answer`"
        )
    if answer not in options:
        raise ValueError(f"the answer {answer!r} of question {row['id']} is not one of {', '.join(options)}")
    listed = "\n".join(f"{letter}. {option}" for letter, option in options.items())
    yield Question(
        context=f"Read this text for a question about it.\n\n{row['context'].strip()}",
        question=f"Question about the text above: {row['question'].strip()}\n\nOptions:\n{listed}\n\nWhich option is right? "
        'Answer in JSON, in the form {"option": "A"}.',
        references=(answer,),
        answer=f'{{"option": "{answer}"}}',
        details={"choices": list(options), "id": row["id"], "type": row["type"], "length": row["length"]},
    )


def _task(kind: str | None, ability: str, scope: Level) -> DataTask:
    return DataTask(
        suite="marathon",
        source=SOURCE,
        file="marathon.json",
        parse=partial(parse, kind),
        max_new_tokens=32,
        ability=ability,
        diffusion="high",
        scope=scope,
        metric=option_letter,
        chance=1 / 4,
        guess=guess_letter,
        answers="derived",
    )


TASKS: dict[str, DataTask] = {
    "all": _task(None, "question answering", "low"),
    **{kind: _task(kind, ability, scope) for kind, (ability, scope) in TYPES.items()},
}
