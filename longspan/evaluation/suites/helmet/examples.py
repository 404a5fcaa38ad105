"""Many examples: five sets of texts with labels, which are replaced by random numbers, the same within one context."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from longspan.evaluation.metrics.text import label_exact_match
from longspan.evaluation.published import DataTask, Question, read_rows
from longspan.evaluation.suites._files import Row, find_files, missing
from longspan.evaluation.suites.helmet.draws import LENGTHS, SEED, SOURCE, balanced, first_shuffled, seed_of
from longspan.evaluation.task import Sample

__all__ = ["ICL_TASKS"]

NUM_TESTS = 500
INSTRUCTION = 'The examples below show which label goes with which text. Label the last text: write "label: {label}" and nothing else.'


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """A set of labelled texts: the names of its label's field and how many labels there are."""

    fields: tuple[str, ...]
    num_labels: int


SETS = {
    "trec_coarse": LabelSet(fields=("coarse_label",), num_labels=6),
    "trec_fine": LabelSet(fields=("fine_label",), num_labels=50),
    "banking77": LabelSet(fields=("label", "category"), num_labels=77),
    "clinic150": LabelSet(fields=("intent",), num_labels=151),
    "nlu": LabelSet(fields=("label",), num_labels=68),
}
SHOTS = {
    "trec_coarse": (400, 800, 1600, 3300, 6600),
    "trec_fine": (400, 800, 1600, 3200, 6400),
    "banking77": (360, 720, 1450, 2900, 5900),
    "clinic150": (440, 880, 1750, 3525, 7050),
    "nlu": (510, 1020, 2040, 4080, 8296),
}


class _Items(Sequence[Question]):
    """Questions made when they are asked for: five hundred contexts of 128K tokens would fill the memory."""

    def __init__(self, tests: Sequence[Row], train: Sequence[Row], shots: int, num_labels: int) -> None:
        self.tests, self.train, self.shots, self.num_labels = tests, train, shots, num_labels

    def __len__(self) -> int:
        return len(self.tests)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return tuple(self[one] for one in range(*place.indices(len(self))))
        test = self.tests[place]
        seed = seed_of(test["text"], SEED)
        numbers = list(range(self.num_labels))
        random.Random(seed).shuffle(numbers)
        shown = [
            f"{one['text']}\nlabel: {numbers[one['label']]}"
            for one in balanced(self.train, "label", self.shots, seed)
        ]
        return Question(
            context="\n\n".join([INSTRUCTION, *shown]),
            question=test["text"],
            references=(str(numbers[test["label"]]),),
            answer_prefix="label:",
            details={"num_labels": self.num_labels},
        )


@dataclass(frozen=True, kw_only=True)
class IclTask(DataTask):
    """Examples from one file, questions from another.

    Attributes:
        set_name: of `SETS`. shots: examples in a context.
    """

    set_name: str
    shots: int

    def questions(self) -> Sequence[Question]:
        """500 questions with balanced labels, or all where there are fewer.

        Raises:
            DataMissing: a file is not there. ValueError: a row has no text or label.
        """
        paths = []
        for part in ("train", "test"):
            found = find_files(self.suite, f"icl/{self.set_name}/{part}.*")
            if not found:
                raise missing(
                    self.suite, f"icl/{self.set_name}/{part}.jsonl (or .csv, .parquet)", self.source
                )
            paths.append((found[0], found[0].stat().st_mtime_ns))
        train, tests = _labelled(self.set_name, *paths)
        return _Items(tests, train, self.shots, SETS[self.set_name].num_labels)


@lru_cache(maxsize=5)
def _labelled(
    name: str, train: tuple[Path, int], test: tuple[Path, int]
) -> tuple[Sequence[Row], Sequence[Row]]:
    kind, parts = SETS[name], [list(read_rows(path)) for path, _ in (train, test)]
    field = next((one for one in kind.fields if parts[0] and one in parts[0][0]), None)
    if field is None or "text" not in parts[0][0]:
        raise ValueError(
            f"{train[0]} has no columns 'text' and {' or '.join(kind.fields)}; export them from the hub"
        )
    names = sorted({str(row[field]) for part in parts for row in part})
    numbered = all(one.isdecimal() for one in names)
    ids = {one: int(one) if numbered else place for place, one in enumerate(names)}
    if max(ids.values()) >= kind.num_labels:
        raise ValueError(
            f"{train[0]} has the label number {max(ids.values())}; {name} has {kind.num_labels} labels"
        )
    clean: list[list[Row]] = [
        [{"text": str(row["text"]), "label": ids[str(row[field])]} for row in part] for part in parts
    ]
    tests = clean[1]
    if len(tests) > NUM_TESTS:
        tests = balanced(first_shuffled(tests, len(tests)), "label", NUM_TESTS, SEED)
    return clean[0], tests


def _never(row: Mapping[str, Any]) -> Iterable[Question]:
    raise AssertionError("these questions are made from two files at once")


def _guess(rng: random.Random, sample: Sample) -> str:
    return str(rng.randrange(sample.details["num_labels"]))


ICL_TASKS: dict[str, DataTask] = {
    f"{name}_{length}": IclTask(
        suite="helmet",
        source=SOURCE,
        file=f"icl/{name}/test.jsonl",
        parse=_never,
        set_name=name,
        shots=SHOTS[name][place],
        max_new_tokens=20,
        ability="many-shot learning",
        diffusion="low",
        scope="high",
        metric=label_exact_match,
        chance=1 / SETS[name].num_labels,
        guess=_guess,
        answers="derived",
    )
    for name in SETS
    for place, length in enumerate(LENGTHS)
}
