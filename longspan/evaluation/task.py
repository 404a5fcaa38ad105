"""What a suite writes: tasks that invent puzzles, and the room they have for them.

A suite is one file (or folder) in `longspan/evaluation/suites/` with a literal `CARD` and `TASKS: dict[str, Task]`; it adds
no line anywhere else. `Task.make(rng, room)` invents one `Puzzle`; `longspan.evaluation.sample.make_sample` makes of it a
`Sample` of the wished length. Two sorts of puzzle:

* needles in a haystack: `needles` are hidden in prose (the caller's haystack, noise, or `own_haystack`);
* a ready-made context (`context`): tables, lists of documents, source files. `Room.fill` takes as many lines as fit,
  `Room.scatter` puts what matters among them, at the depth that the user asked for.

Lengths follow RULER: context, question, answer prefix and the tokens to generate together stay within `length_tokens`.
A model sees `{context}\\n\\n{question}` as the user's turn and ` {answer_prefix}` as the start of its own.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from longspan.evaluation.haystacks import Haystack, TokenizerLike
from longspan.evaluation.haystacks.lines import Lines, fill_lines, fill_lines_exactly
from longspan.evaluation.metrics import Metric
from longspan.evaluation.metrics.text import string_match_all

__all__ = ["Labels", "Level", "Puzzle", "Room", "Sample", "Task", "metric_name", "place_at"]

Level = Literal["low", "high"]

SEAM_TOKENS = 2


@dataclass(frozen=True, kw_only=True)
class Puzzle:
    """One question and what must be hidden for it.

    Attributes:
        needles: sentences or lines to hide. `ordered`: they must appear in this order.
        question: asked after the context.
        references: accepted answers, or the parts of one answer: the task's metric says which.
        answer: the ideal full text after the prefix; it must score 1.
        max_new_tokens: tokens to generate.
        answer_prefix: start of the answer, given to the model.
        evidence: the pieces of text that hold the answer, word for word as they stand in the context. Default: all needles.
            Empty: the answer is spread over the whole text.
        style: "sentence" needles stand in the running text; "line" needles get a line of their own.
        preamble: text before the haystack.
        own_haystack: replaces the haystack given (distractor lines, say).
        context: a ready-made context; needles are then empty.
        details: what else the metric needs, as JSON values (classes to choose from, numbers of a countdown, ...).
    """

    needles: tuple[str, ...]
    question: str
    references: tuple[str, ...]
    answer: str
    max_new_tokens: int
    answer_prefix: str = ""
    ordered: bool = False
    evidence: tuple[str, ...] | None = None
    style: Literal["sentence", "line"] = "sentence"
    preamble: str = ""
    own_haystack: Haystack | Lines | None = None
    context: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def place_at(depth: float, pieces: Sequence[str]) -> int:
    """How many of the pieces stand before this part of their characters, 0 to 1; to the nearest end of a piece."""
    ends = list(itertools.accumulate(map(len, pieces), initial=0))
    wished = depth * ends[-1]
    after = bisect.bisect_left(ends, wished)
    return after if after == 0 or ends[after] - wished <= wished - ends[after - 1] else after - 1


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a task may need to know before it invents a puzzle.

    Attributes:
        tokens: room for context, question, prefix and answer together.
        count: tokens of a text.
        depth: where the user wants the evidence, 0 (start) to 1 (end); None: anywhere.
        haystack: the user's prose; None where a puzzle is made for its own sake.
        tokenizer: of the model, for `prose`.
    """

    tokens: int
    count: Callable[[str], int]
    depth: float | None = None
    haystack: Haystack | None = None
    tokenizer: TokenizerLike = None

    def left(self, *parts: str, max_new_tokens: int) -> int:
        """Tokens that remain for the context beside these parts (question, prefix, heading, ...) and the answer."""
        return self.tokens - max_new_tokens - sum(self.count(part) + SEAM_TOKENS for part in parts if part)

    def prose(self, num_tokens: int, rng: random.Random) -> str:
        """Consecutive sentences of the user's haystack, at most `num_tokens` tokens, from a random start."""
        if self.haystack is None:
            raise ValueError("this task needs prose; give a haystack")
        return "".join(self.haystack.slice(num_tokens, self.tokenizer, rng)).strip()

    def fill(self, lines: Iterable[str], num_tokens: int, *, joiner: str = "\n") -> list[str]:
        """As many lines as fit `num_tokens` when joined by `joiner`; see `haystacks.lines.fill_lines`."""
        return fill_lines(lines, num_tokens, self.count, joiner=joiner)

    def fill_exactly(self, lines: Iterable[str], num_tokens: int, *, joiner: str = "\n") -> list[str]:
        """`fill` for lines that vary in length, which counts the whole once; see `haystacks.lines.fill_lines_exactly`."""
        return fill_lines_exactly(lines, num_tokens, self.count, joiner=joiner)

    def scatter(
        self, wanted: Sequence[str], fillers: Sequence[str], rng: random.Random, *, ordered: bool = False
    ) -> list[str]:
        """`wanted` put among `fillers`, each at a random place, or all at the depth asked for.

        Args:
            wanted: pieces that matter.
            fillers: the others, which keep their order.
            rng: source of the places.
            ordered: `wanted` keep their order too.
        """
        places = [rng.randint(0, len(fillers)) for _ in wanted]
        if self.depth is not None:
            places = [place_at(self.depth, fillers)] * len(wanted)
        order = list(wanted)
        if ordered:
            places.sort()
        else:
            rng.shuffle(order)
        by_place: dict[int, list[str]] = {}
        for piece, place in zip(order, places, strict=True):
            by_place.setdefault(place, []).append(piece)
        mixed = list[str]()
        for index in range(len(fillers) + 1):
            mixed += by_place.get(index, [])
            mixed += fillers[index : index + 1]
        return mixed


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One ready question over one long context.

    depths: part of the context before each evidence piece, 0 to 1. truncated: published text lost its middle to fit.
    """

    task: str
    length_tokens: int
    seed: int
    context: str
    question: str
    answer_prefix: str
    references: tuple[str, ...]
    answer: str
    evidence: tuple[str, ...]
    depths: tuple[float, ...]
    max_new_tokens: int
    details: Mapping[str, Any] = field(default_factory=dict)
    truncated: bool = False


def metric_name(metric: Metric) -> str:
    """Name of a metric's function, also where arguments are bound to it."""
    function: Any = metric
    while isinstance(function, functools.partial):
        function = function.func
    return str(function.__name__)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a task measures, and how its answers are judged.

    Attributes:
        ability: what the task asks of a model, in one or two words of the field ("retrieval", "multi-hop", "aggregation").
        diffusion: how hard the needed information is to find (Goldman et al., 2024).
        scope: how much of the text is needed.
        metric: (prediction, references, details) to 0..1; see `longspan.evaluation.metrics`.
        chance: expected score of an answerer who knows the question and the kind of answer, but not the text.
        guess: such an answerer's answer; by default the ideal answer to another sample of the task.
        answers: "verbatim" answers stand in the evidence and nowhere else in the text; "derived" ones are worked out from
            it (counts, choices, orders), or may stand elsewhere too.
    """

    ability: str
    diffusion: Level
    scope: Level
    metric: Metric = string_match_all
    chance: float = 0.0
    guess: Callable[[random.Random, Sample], str] | None = None
    answers: Literal["verbatim", "derived"] = "verbatim"

    @property
    def metric_name(self) -> str:
        """Name of the metric's function."""
        return metric_name(self.metric)


@dataclass(frozen=True, kw_only=True)
class Task(Labels):
    """A generator of puzzles.

    Attributes:
        make: invents one puzzle; everything random comes from the generator it is given.
        haystack: "text" is the caller's choice of prose, "noise" RULER's five sentences, "own" the puzzle's.
        places: the user's depth decides where the evidence of a ready-made context stands (`Room.scatter`).
    """

    make: Callable[[random.Random, Room], Puzzle]
    haystack: Literal["text", "noise", "own"] = "text"
    places: bool = False
