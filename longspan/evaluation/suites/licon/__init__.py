"""LongICLBench (LICon): many labels, many shots; a new text is given the label of the examples that it is like.

The context is rounds of one example for each label, shuffled within a round, as many as fit. Labels are random integers, as
in HELMET, or random words: drawn anew for each sample, so that they are known from the examples only.

Papers: Long-context LLMs Struggle with Long In-context Learning (Li et al., 2024); HELMET: How to Evaluate Long-Context
Language Models Effectively and Thoroughly (Yen et al., 2024)
Scored by accuracy: the label on the answer's first line.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longspan.evaluation.metrics.text import label_exact_match
from longspan.evaluation.published import Source, data_file, read_rows
from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites.licon.utterances import INTENTS, endless
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "licon",
    "title": "Long-context LLMs Struggle with Long In-context Learning",
    "year": 2024,
    "version": 1,
    "metric": "accuracy of the label",
    "differs": [
        "`intents` and `intents_words` classify sentences of our own grammar, eighty intents; banking77 needs the published files",
        "labels are random integers (HELMET) or random words; `banking77_names` has the published names, as LongICLBench does",
        "as many examples as fit, the last round cut short; LongICLBench counts rounds",
        "a label whose examples are used up is left out of further rounds; HELMET repeats them, LongICLBench takes others",
        "prompts are our own, the form `label: ...` is HELMET's",
        "of LongICLBench's other sets none is here: TACRED's text is not free",
    ],
    "paper_id": 16,
    "lengths": "from 2K or 4K tokens, one round of all labels",
    "needs": "nothing; banking77-train.csv and banking77-test.csv for the tasks of that name",
    "licence": "generated here; BANKING77 CC BY 4.0",
}

BANKING = Source(
    hub=None,
    licence="CC BY 4.0",
    citation="Casanueva et al., Efficient Intent Detection with Dual Sentence Encoders, 2020",
    url="https://github.com/PolyAI-LDN/task-specific-datasets, banking_data/train.csv and test.csv",
)
INSTRUCTION = (
    "The texts above are examples, each with its label. Give the text below the label that examples like it have. "
    'Only write "label: " and the label, nothing else.'
)
MAX_NEW_TOKENS = 24
STEP_TOKENS = 512
SHORT_OF = 0.02
NUM_BANKING = 77

Examples = Callable[[random.Random], tuple[str, str, Mapping[str, Iterator[str]]]]
"""The text asked about, its class, and for each class example texts, none of them the text asked about."""
Naming = Callable[[Sequence[str], random.Random], Mapping[str, str]]
"""From class to label."""


def rounds(examples: Mapping[str, Iterator[str]], rng: random.Random) -> Iterator[tuple[str, str]]:
    """(class, text) of one example for each class, in random order, then of the next, until none is left."""
    left = dict(examples)
    while left:
        for name in rng.sample(sorted(left), len(left)):
            text = next(left[name], None)
            if text is None:
                del left[name]
            else:
                yield name, text


def integers(classes: Sequence[str], rng: random.Random) -> Mapping[str, str]:
    """The integers from 0, at random."""
    return dict(zip(classes, map(str, rng.sample(range(len(classes)), len(classes))), strict=True))


def words(classes: Sequence[str], rng: random.Random) -> Mapping[str, str]:
    """Pairs of words that have nothing to do with the classes."""
    pairs = [f"{adjective} {animal}" for adjective in lists.ADJECTIVES[:24] for animal in lists.ANIMALS[:24]]
    return dict(zip(classes, rng.sample(pairs, len(classes)), strict=True))


def names(classes: Sequence[str], rng: random.Random) -> Mapping[str, str]:
    """The classes' own names."""
    return {name: name for name in classes}


def many_shots(draw: Examples, naming: Naming) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of classification puzzles from examples and a way to label their classes."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        asked, wanted, examples = draw(rng)
        labels = naming(sorted(examples), rng)
        question = f"{INSTRUCTION}\n\n{asked}"
        left = room.left(question, "label:", max_new_tokens=MAX_NEW_TOKENS)
        shown = (f"{text}\nlabel: {labels[name]}" for name, text in rounds(examples, rng))
        first = list(itertools.islice(shown, len(labels)))
        needed = room.count("\n\n".join(first))
        if needed > left:
            least = -(-(room.tokens - left + needed) // STEP_TOKENS) * STEP_TOKENS
            raise ValueError(
                f"one round of {len(labels)} labels does not fit {room.tokens} tokens; ask for {least} or more"
            )
        lines = [*first, *room.fill_exactly(shown, left - needed - 2, joiner="\n\n")]
        context = "\n\n".join(lines)
        if left - room.count(context) > SHORT_OF * room.tokens:
            raise ValueError(
                f"the examples are used up before {room.tokens} tokens are full; ask for fewer tokens"
            )
        held = [
            line for line in lines if line.endswith(f"\nlabel: {labels[wanted]}") and context.count(line) == 1
        ]
        return Puzzle(
            needles=(),
            context=context,
            evidence=tuple(held),
            question=question,
            answer_prefix="label:",
            references=(labels[wanted],),
            answer=labels[wanted],
            max_new_tokens=MAX_NEW_TOKENS,
            details={"num_labels": len(labels)},
        )

    return make


def intents(rng: random.Random) -> tuple[str, str, Mapping[str, Iterator[str]]]:
    """Sentences that the grammar makes."""
    wanted, known = rng.choice(INTENTS), set[str]()
    asked = next(endless(wanted, rng, known))
    return asked, wanted, {intent: endless(intent, rng, known) for intent in INTENTS}


def banking77(rng: random.Random) -> tuple[str, str, Mapping[str, Iterator[str]]]:
    """BANKING77: examples from the training file, the text asked about from the test file."""
    train, test = (
        _by_class(data_file("licon", f"banking77-{part}.csv", BANKING)) for part in ("train", "test")
    )
    wanted = rng.choice(sorted(test))
    asked = rng.choice(test[wanted])
    examples = {
        name: iter([text for text in rng.sample(texts, len(texts)) if text.lower() != asked.lower()])
        for name, texts in train.items()
    }
    return asked, wanted, examples


@functools.lru_cache(maxsize=4)
def _by_class(path: Path) -> Mapping[str, Sequence[str]]:
    found: dict[str, dict[str, None]] = {}
    for number, row in enumerate(read_rows(path), start=1):
        text, name = row.get("text"), row.get("category")
        if not text or not name:
            raise ValueError(f"row {number} of {path} has no text or no category; give the published file")
        found.setdefault(name, {})[" ".join(text.split())] = None
    if len(found) != NUM_BANKING:
        raise ValueError(f"{path} has {len(found)} categories instead of {NUM_BANKING}; give the whole file")
    return {name: list(texts) for name, texts in found.items()}


def _task(draw: Examples, naming: Naming, num_labels: int) -> Task:
    return Task(
        make=many_shots(draw, naming),
        ability="in-context learning",
        diffusion="low",
        scope="high",
        metric=label_exact_match,
        chance=1 / num_labels,
        answers="derived",
    )


TASKS: dict[str, Task] = {
    "intents": _task(intents, integers, len(INTENTS)),
    "intents_words": _task(intents, words, len(INTENTS)),
    "banking77": _task(banking77, integers, NUM_BANKING),
    "banking77_names": _task(banking77, names, NUM_BANKING),
}
