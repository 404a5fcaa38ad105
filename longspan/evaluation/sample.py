"""Puzzles hidden in long text: what a suite writes, how it becomes a sample, how an answer is scored.

A suite is one file in `longspan/evaluation/suites/` with a literal `CARD` and `TASKS: dict[str, Task]`; it adds no line
anywhere else. A task's `make(rng, room)` invents one `Puzzle`: needles to hide, a question, the reference answers.
`make_sample` draws a puzzle, hides it in a haystack and returns a `Sample` of the wished length.

Lengths follow RULER: context, question, answer prefix and the tokens to generate together stay within `length_tokens`.
A model sees `{context}\\n\\n{question}` as the user's turn and ` {answer_prefix}` as the start of its own.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from longspan.evaluation.haystacks import Haystack, TokenizerLike, count_tokens

TEMPLATE_TOKENS = 12
SEAM_TOKENS = 2
EXACT_TOKENS = 32_768
MAX_FITS = 8


@dataclass(frozen=True, kw_only=True)
class Puzzle:
    """One question and what must be hidden for it.

    needles: sentences or lines to hide. `ordered`: they must appear in this order.
    evidence: the needles that hold the answer (default: all). answer: the ideal full text after the prefix.
    style: "sentence" needles stand in the running text; "line" needles get a line of their own.
    preamble: text before the haystack. own_haystack: replaces the haystack given (distractor lines, say).
    context: a ready-made context, for tasks in which nothing is hidden; needles are then empty.
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
    own_haystack: Haystack | None = None
    context: str | None = None


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a task may need to know before it invents a puzzle.

    tokens: room for context, question, prefix and answer together. count: tokens of a text.
    """

    tokens: int
    count: Callable[[str], int]


@dataclass(frozen=True, kw_only=True)
class Task:
    """How a suite makes puzzles. haystack: "text" is the caller's choice of prose, "noise" RULER's five sentences."""

    make: Callable[[random.Random, Room], Puzzle]
    haystack: Literal["text", "noise", "own"] = "text"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One ready question over one long context. depths: part of the context before each evidence needle, 0 to 1."""

    task: str
    length_tokens: int
    seed: int
    context: str
    question: str
    answer_prefix: str
    references: tuple[str, ...]
    evidence: tuple[str, ...]
    depths: tuple[float, ...]
    max_new_tokens: int


def make_sample(
    task: Task,
    *,
    name: str,
    haystack: Haystack,
    length_tokens: int,
    tokenizer: TokenizerLike,
    seed: int,
    depth: float | None = None,
) -> Sample:
    """Draw a puzzle of `task` with `seed` and hide it in `haystack`: the same arguments give the same sample."""
    rng = random.Random(f"{name}/{length_tokens}/{seed}")
    room = Room(tokens=length_tokens - TEMPLATE_TOKENS, count=lambda text: count_tokens(tokenizer, text))
    puzzle = task.make(rng, room)
    return assemble(puzzle, haystack, length_tokens, tokenizer, rng, depth, task=name, seed=seed)


def assemble(
    puzzle: Puzzle,
    haystack: Haystack,
    length_tokens: int,
    tokenizer: TokenizerLike,
    rng: random.Random,
    depth: float | None = None,
    *,
    task: str = "",
    seed: int = 0,
) -> Sample:
    """Hide a puzzle in a haystack, at sentence ends: the whole prompt has `length_tokens` within 2%, never more.

    Under 1,024 tokens a single long line can leave more unused.

    Args:
        depth: where the evidence goes, 0 (start) to 1 (end of the text); by default anywhere, evenly.

    Raises:
        ValueError: the puzzle alone is longer than `length_tokens`, or depth is outside 0 to 1.
    """
    if depth is not None and not 0.0 <= depth <= 1.0:
        raise ValueError(f"depth is {depth}; allowed is 0.0 (start of the text) to 1.0 (its end)")
    evidence = puzzle.needles if puzzle.evidence is None else puzzle.evidence
    if puzzle.context is not None:
        context: str = puzzle.context
        depths: tuple[float, ...] = ()
    else:
        context, depths = _hide(puzzle, evidence, haystack, length_tokens, tokenizer, rng, depth)
    return Sample(
        task=task,
        length_tokens=length_tokens,
        seed=seed,
        context=context,
        question=puzzle.question,
        answer_prefix=puzzle.answer_prefix,
        references=puzzle.references,
        evidence=evidence,
        depths=depths,
        max_new_tokens=puzzle.max_new_tokens,
    )


def _hide(
    puzzle: Puzzle,
    evidence: Sequence[str],
    haystack: Haystack,
    length_tokens: int,
    tokenizer: TokenizerLike,
    rng: random.Random,
    depth: float | None,
) -> tuple[str, tuple[float, ...]]:
    fixed = TEMPLATE_TOKENS + puzzle.max_new_tokens
    fixed += sum(count_tokens(tokenizer, part) + SEAM_TOKENS for part in (puzzle.preamble, *puzzle.needles))
    fixed += sum(
        count_tokens(tokenizer, part) for part in ("\n\n" + puzzle.question, " " + puzzle.answer_prefix)
    )
    source = puzzle.own_haystack or haystack
    if fixed >= length_tokens:
        raise ValueError(
            f"this puzzle needs {fixed} tokens without any text around it, but length_tokens is {length_tokens}; "
            f"ask for {fixed + 64} or more"
        )
    outside = TEMPLATE_TOKENS + puzzle.max_new_tokens
    outside += count_tokens(tokenizer, "\n\n" + puzzle.question)
    outside += count_tokens(tokenizer, " " + puzzle.answer_prefix)
    budget, state = length_tokens - fixed, rng.getstate()
    best: tuple[int, str, dict[str, int]] | None = None
    for _ in range(MAX_FITS):
        rng.setstate(state)
        sentences = source.slice(max(1, budget), tokenizer, rng)
        places = _places(puzzle, evidence, len(sentences), rng, depth)
        context, starts = _join(puzzle, sentences, places)
        if length_tokens > EXACT_TOKENS:  # seams are under 1% there, and counting costs seconds
            best = (0, context, starts)
            break
        spare = length_tokens - outside - count_tokens(tokenizer, context)
        if spare >= 0 and (best is None or spare < best[0]):
            best = (spare, context, starts)
        if 0 <= spare <= max(6, length_tokens // 200):
            break
        budget += spare - 3
    assert best is not None, "a smaller budget gives a shorter context"
    _, context, starts = best
    return context, tuple(round(starts[needle] / max(1, len(context)), 4) for needle in evidence)


def _join(puzzle: Puzzle, sentences: list[str], places: list[int]) -> tuple[str, dict[str, int]]:
    """The context, and the character at which each needle starts."""
    by_place: dict[int, list[str]] = {}
    for needle, place in zip(puzzle.needles, places, strict=True):
        by_place.setdefault(place, []).append(needle)
    parts = [puzzle.preamble + "\n"] if puzzle.preamble else []
    starts: dict[str, int] = {}
    size, fresh_line = sum(map(len, parts)), True
    for index in range(len(sentences) + 1):
        for needle in by_place.get(index, ()):
            lead = "" if fresh_line else ("\n" if puzzle.style == "line" else " ")
            tail = "\n" if puzzle.style == "line" else ""
            starts[needle] = size
            parts.append(lead + needle + tail)
            size += len(parts[-1])
            fresh_line = puzzle.style == "line"
        if index < len(sentences):
            parts.append(sentences[index].lstrip() if fresh_line else sentences[index])
            size += len(parts[-1])
            fresh_line = False
    return "".join(parts).rstrip(), starts


def _places(
    puzzle: Puzzle, evidence: Sequence[str], num_sentences: int, rng: random.Random, depth: float | None
) -> list[int]:
    """For each needle, the number of sentences before it."""
    places = [rng.randint(0, num_sentences) for _ in puzzle.needles]
    if depth is not None:
        places = [
            round(depth * num_sentences) if needle in evidence else place
            for needle, place in zip(puzzle.needles, places, strict=True)
        ]
    return sorted(places) if puzzle.ordered else places


def score(prediction: str, sample: Sample) -> float:
    """RULER's metric: the share of the reference strings found in the prediction, letter case ignored. 0 to 1."""
    found = prediction.lower()
    return sum(reference.lower() in found for reference in sample.references) / len(sample.references)
