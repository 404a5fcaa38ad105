"""From a puzzle to a sample: needles hidden in a haystack, exact in length."""

from __future__ import annotations

import random
from collections.abc import Sequence

from longspan.evaluation.haystacks import Haystack, TokenizerLike, count_tokens
from longspan.evaluation.haystacks.lines import Lines
from longspan.evaluation.metrics import Metric, grade
from longspan.evaluation.metrics.text import string_match_all
from longspan.evaluation.task import SEAM_TOKENS, Puzzle, Room, Sample, Task, place_at

__all__ = ["TEMPLATE_TOKENS", "assemble", "make_sample", "score"]

TEMPLATE_TOKENS = 12
EXACT_TOKENS = 32_768
MAX_FITS = 8


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
    room = Room(
        tokens=length_tokens - TEMPLATE_TOKENS,
        count=lambda text: count_tokens(tokenizer, text),
        depth=depth,
        haystack=haystack,
        tokenizer=tokenizer,
    )
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
        depths = _depths(puzzle, evidence)
        if length_tokens <= EXACT_TOKENS:
            _check_length(puzzle, length_tokens, tokenizer)
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
        answer=puzzle.answer,
        evidence=evidence,
        depths=depths,
        max_new_tokens=puzzle.max_new_tokens,
        details=puzzle.details,
    )


def _depths(puzzle: Puzzle, evidence: Sequence[str]) -> tuple[float, ...]:
    """Where each piece of evidence starts in a ready-made context."""
    assert puzzle.context is not None
    starts = [puzzle.context.find(piece) for piece in evidence]
    assert min(starts, default=0) >= 0, f"evidence {evidence[starts.index(-1)]!r} is not in the context"
    return tuple(round(start / max(1, len(puzzle.context)), 4) for start in starts)


def _check_length(puzzle: Puzzle, length_tokens: int, tokenizer: TokenizerLike) -> None:
    parts = (puzzle.context or "", "\n\n" + puzzle.question, " " + puzzle.answer_prefix)
    needed = (
        TEMPLATE_TOKENS + puzzle.max_new_tokens + sum(count_tokens(tokenizer, part) for part in parts if part)
    )
    if needed > length_tokens + SEAM_TOKENS:
        raise ValueError(
            f"this puzzle has {needed} tokens and cannot be made shorter, but length_tokens is {length_tokens}; "
            f"ask for {needed} or more"
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
    source: Haystack | Lines = puzzle.own_haystack or haystack
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
        places = _places(puzzle, evidence, sentences, rng, depth)
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


def _join(puzzle: Puzzle, sentences: Sequence[str], places: list[int]) -> tuple[str, dict[str, int]]:
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
    puzzle: Puzzle, evidence: Sequence[str], sentences: Sequence[str], rng: random.Random, depth: float | None
) -> list[int]:
    """For each needle, the number of sentences before it."""
    places = [rng.randint(0, len(sentences)) for _ in puzzle.needles]
    if puzzle.ordered:
        places.sort()
    if depth is None:
        return places
    wished = place_at(depth, sentences)
    held = [number for number, needle in enumerate(puzzle.needles) if needle in evidence]
    if not puzzle.ordered or not held:
        return [wished if number in held else place for number, place in enumerate(places)]
    # Needles before the evidence stay before it, those after it behind.
    before, after = places[: held[0]], places[held[-1] + 1 :]
    among = [wished] * (held[-1] + 1 - held[0])
    return [*(min(place, wished) for place in before), *among, *(max(place, wished) for place in after)]


def score(prediction: str, sample: Sample, metric: Metric = string_match_all) -> float:
    """The score of one prediction by a metric, 0 to 1."""
    return grade(metric, prediction, sample.references, sample.details)["score"]
