"""LIBRA: 21 tasks in Russian, from keys in a text to questions over several texts, counting and reckoning.

Paper: Long Input Benchmark for Russian Analysis (Churin et al., 2024)
Scored as published: a right answer contained (em), F1 of words, or the number counted; wrong answers named cost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from longspan.evaluation.metrics import Metric
from longspan.evaluation.metrics.libra_rules import libra_count, libra_em, libra_qa
from longspan.evaluation.published import DataTask, Question, Source
from longspan.evaluation.suites._files import GroupedTask, Row, find_files
from longspan.evaluation.task import Level

CARD: dict[str, Any] = {
    "name": "libra",
    "title": "Long Input Benchmark for Russian Analysis",
    "year": 2024,
    "version": 1,
    "metric": "right answer contained; ru_qasper: F1 of words; ru_sci_passage_count: share of right numbers; less wrong answers named",
    "differs": [
        "the official instructions are used where datasets_config.json of the official repository is in the folder; else the same is "
        "asked for in our own words, in Russian",
        "a task's score is the mean over all its questions; the official total is a mean of the means of each length, so give "
        "the lengths one by one: `length` is in the details",
        "a text longer than the length asked for loses its middle, not its end",
    ],
    "paper_id": 212,
    "lengths": "4K to 128K tokens",
    "needs": "test splits as <task>/test-00000-of-00001.parquet or <task>.parquet; datasets_config.json for the official instructions",
    "licence": "MIT",
    "citation": "Churin et al., 2024",
}

SOURCE = Source(
    hub="ai-forever/LIBRA",
    licence="MIT",
    citation="Churin et al., Long Input Benchmark for Russian Analysis, 2024",
    url="https://github.com/ai-forever/LIBRA",
)
CONFIG = "datasets_config.json"


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What one task asks. before, after: what stands before its text, and after it before the question."""

    ability: str
    diffusion: Level
    scope: Level
    max_new_tokens: int
    after: str
    before: str = "Прочти текст."
    metric: Metric = libra_em
    chance: float = 0.0


KEY = _Kind(
    ability="retrieval", diffusion="low", scope="low", max_new_tokens=16,
    before="В длинном тексте ниже спрятан ключ доступа. Запомни его.", after="Назови только ключ доступа.",
)  # fmt: skip
READING = _Kind(
    ability="question answering", diffusion="high", scope="low", max_new_tokens=32,
    after="Ответь на вопрос по этому тексту.",
)  # fmt: skip
HOPS = _Kind(
    ability="multi-hop", diffusion="high", scope="low", max_new_tokens=32,
    after="Ответь на вопрос по этому тексту.",
)  # fmt: skip
FACTS = _Kind(
    ability="multi-hop", diffusion="low", scope="low", max_new_tokens=16,
    before="В тексте ниже есть факты о том, где находятся люди и что они делают с предметами. Предмет, который человек взял, "
    "переходит вместе с ним, а оставленный остаётся на месте. Верно последнее, что сказано.",
    after="Ответь на вопрос только по этим фактам и как можно короче.",
)  # fmt: skip
KINDS: dict[str, _Kind] = {
    "passkey": KEY,
    "passkey_with_librusec": KEY,
    "matreshka_names": _Kind(
        ability="retrieval", diffusion="low", scope="low", max_new_tokens=16,
        before="Ниже несколько диалогов. Запомни, кто о чём говорил.", after="Назови только имя того, кто говорил на эту тему.",
    ),
    "matreshka_yes_no": _Kind(
        ability="verification", diffusion="low", scope="high", max_new_tokens=4, chance=0.5,
        before="Ниже несколько диалогов. Запомни их темы.", after="Была ли такая тема? Ответь только «Да» или «Нет».",
    ),
    "librusec_history": READING,
    "ru_trec": _Kind(
        ability="many-shot learning", diffusion="low", scope="high", max_new_tokens=32,
        before="Ниже вопросы и их типы.", after="Назови тип следующего вопроса.",
    ),
    "ru_sci_fi": _Kind(
        ability="question answering", diffusion="high", scope="low", max_new_tokens=32, chance=0.25,
        after="Верно ли это в тексте и в реальном мире? Ответь одним из вариантов: 'Ложь [в реальном мире: Ложь]', "
        "'Правда [в реальном мире: Ложь]', 'Правда [в реальном мире: Правда]', 'Ложь [в реальном мире: Правда]'.",
    ),
    "ru_sci_abstract_retrieval": _Kind(
        ability="retrieval", diffusion="high", scope="low", max_new_tokens=32,
        before="Ниже несколько параграфов.", after="Какой параграф пересказан? Назови его номер.",
    ),
    "ru_tpo": _Kind(
        ability="question answering", diffusion="high", scope="low", max_new_tokens=8, chance=0.25,
        after="Выбери единственный верный ответ из вариантов и назови его букву: А, Б, В или Г.",
    ),
    "ru_quality": _Kind(
        ability="question answering", diffusion="high", scope="low", max_new_tokens=128, chance=0.25,
        after="Выбери единственный верный ответ из вариантов.",
    ),
    "long_context_multiq": HOPS,
    "librusec_mhqa": HOPS,
    "ru_2wikimultihopqa": HOPS,
    **{f"ru_babilong_qa{number}": FACTS for number in range(1, 6)},
    "ru_sci_passage_count": _Kind(
        ability="aggregation", diffusion="low", scope="high", max_new_tokens=8, metric=libra_count,
        before="Ниже несколько параграфов, некоторые повторяются.", after="Сколько здесь разных параграфов? Ответь одним числом.",
    ),
    "ru_qasper": _Kind(
        ability="question answering", diffusion="high", scope="low", max_new_tokens=256, metric=libra_qa,
        before="Прочти научную статью.", after="Ответь на вопрос как можно короче, одной фразой, без объяснений.",
    ),
    "ru_gsm100": _Kind(
        ability="arithmetic", diffusion="low", scope="high", max_new_tokens=32,
        before="Ниже примеры решённых задач.", after="Реши следующую задачу, рассуждая по шагам.",
    ),
}  # fmt: skip


@lru_cache(maxsize=1)
def _official(path: Path, changed: int) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def _instruction(name: str) -> tuple[str, str, str]:
    """What stands before the text, before the question and before the answer."""
    found = find_files("libra", CONFIG)
    if not found:
        return KINDS[name].before + "\n", f"{KINDS[name].after}\nВопрос: ", "Ответ:"
    template = str(_official(found[0], found[0].stat().st_mtime_ns)[name]["instruction"])
    before, _, rest = template.partition("{context}")
    after, _, prefix = rest.partition("{input}")
    return before, after.lstrip("\n"), prefix.strip()


def _questions(row: Row, name: str) -> Iterable[Question]:
    before, after, prefix = _instruction(name)
    wanted = [str(answer) for answer in row["positive_outputs"]]
    yield Question(
        context=f"{before}{row['context']}",
        question=f"{after}{row['input']}",
        references=tuple(wanted),
        answer_prefix=prefix,
        details={
            "length": row["length"],
            "negative_outputs": [str(answer) for answer in row["negative_outputs"] or ()],
        },
    )


TASKS: dict[str, DataTask] = {
    name: GroupedTask(
        suite="libra",
        source=SOURCE,
        subset=name,
        file=f"{name}.parquet",
        pattern=f"{name}/test-*.*",
        parse=partial(_questions, name=name),
        max_new_tokens=kind.max_new_tokens,
        ability=kind.ability,
        diffusion=kind.diffusion,
        scope=kind.scope,
        metric=kind.metric,
        chance=kind.chance,
        answers="derived",
    )
    for name, kind in KINDS.items()
}
