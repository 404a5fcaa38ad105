"""LongReason: short reasoning questions whose premises lie as separate passages in long irrelevant text, multiple choice.

Every premise is expanded into a passage of its own; the passages are scattered, and the last part of the prompt asks over
all of them. Without the long text the questions are easy, so what is lost is lost to length.

Paper: LongReason: A Synthetic Long-Context Reasoning Benchmark via Context Expansion (Ling et al., 2025)
Scored by accuracy of the letter: of four options, the one that the answer settles on. The tasks `*_steps` let the model
reason in writing first, as in the paper, and read the letter of the last "the answer is (X)".
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.choice import option_letter
from longspan.evaluation.metrics.text import best_of
from longspan.evaluation.suites.longreason.inference import LOGIC
from longspan.evaluation.suites.longreason.passages import Maker, passages_of
from longspan.evaluation.suites.longreason.reading import READING
from longspan.evaluation.suites.longreason.sums import SUMS
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "longreason",
    "title": "LongReason: A Synthetic Long-Context Reasoning Benchmark via Context Expansion",
    "year": 2025,
    "version": 1,
    "metric": "accuracy of the option's letter",
    "differs": [
        "the questions are generated from templates; the original's 794 were taken from published short questions and "
        "rewritten by a language model",
        "a premise becomes a passage by sentences from a list around it, not by a language model's rewriting",
        "the irrelevant text is the caller's, not documents of a web corpus",
        "the tasks without `_steps` ask for the letter at once; the original always lets the model reason first",
        "reasoning in writing has 384 tokens",
    ],
    "paper_id": 245,
    "lengths": "from 1K tokens; with written steps from 2K",
    "needs": "nothing",
    "licence": "generated here; the original's data are CC BY 4.0",
}

LETTERS = "ABCD"
ASK = "Some passages of the text above are about one matter. Answer a question about it from what all of them say together."
ASK_AT_ONCE = "Give the letter of the right option."
ASK_STEPS = 'Reason step by step, then end with the sentence "The answer is (X).", where X is the letter of the right option.'
SETTLED = re.compile(r"answer is:?\s*[*(\"]*([A-D])\b(?!')")


def last_letter(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the last "answer is (X)" of a text, brackets optional, gives a reference; 0.0 where there is none."""
    settled = SETTLED.findall(prediction)
    return best_of(lambda reference: float(bool(settled) and settled[-1] == reference), references)


def reasoning(kinds: Sequence[Maker], *, steps: bool) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of puzzles of the kinds given; with `steps` the model reasons in writing before it settles on a letter."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        problem = rng.choice(kinds)(rng)
        options = [problem.right, *problem.wrong]
        rng.shuffle(options)
        letter = LETTERS[options.index(problem.right)]
        listed = "\n".join(f"({mark}) {option}" for mark, option in zip(LETTERS, options, strict=True))
        passages, needed = passages_of(problem, rng)
        return Puzzle(
            needles=passages,
            evidence=needed,
            style="line",
            question=f"{ASK}\n\nQuestion: {problem.question}\n{listed}\n\n{ASK_STEPS if steps else ASK_AT_ONCE}",
            answer_prefix="" if steps else "The answer is",
            references=(letter,),
            answer=f"{problem.working} The answer is ({letter})." if steps else f"({letter}).",
            max_new_tokens=384 if steps else 12,
        )

    return make


def _task(kinds: Sequence[Maker], ability: str, *, steps: bool) -> Task:
    return Task(
        make=reasoning(kinds, steps=steps),
        ability=ability,
        diffusion="high",
        scope="low",
        metric=last_letter if steps else option_letter,
        chance=1 / len(LETTERS),
        answers="derived",
    )


KINDS: dict[str, tuple[Sequence[Maker], str]] = {
    "reading": (READING, "multi-hop"),
    "logic": (LOGIC, "reasoning"),
    "math": (SUMS, "calculation"),
}

TASKS: dict[str, Task] = {
    name + ("_steps" if steps else ""): _task(kinds, ability, steps=steps)
    for steps in (False, True)
    for name, (kinds, ability) in KINDS.items()
}
