"""Ada-LEval's TSort: four consecutive segments of a book, shuffled; which is their order?

The text just before and just after the four is given, so that the first and the last can be told. Nothing is hidden: what
joins two segments stands at their ends, far apart.

Paper: Ada-LEval: Evaluating long-context LLMs with length-adaptable benchmarks (Wang et al., 2024)
Scored by exact match of the whole order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from longspan.evaluation.haystacks import split_sentences
from longspan.evaluation.metrics.ordering import order_exact_match_fixed
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "adaleval",
    "title": "Ada-LEval: Evaluating long-context LLMs with length-adaptable benchmarks",
    "year": 2024,
    "version": 1,
    "metric": "exact match of the order of all four segments",
    "differs": [
        "segments are cut at sentence ends from the user's prose, not at paragraphs of BookSum's books",
        "prose shorter than the length asked for goes round at its end: give a book that is longer",
        "the prompt states the same task in our own words, without the worked example of the format",
        "orders are compared whole; the official scorer also takes a list that only begins right",
        "BestAnswer is not here: it needs the answers of Stack Overflow",
    ],
    "paper_id": 159,
    "lengths": "any that the prose has",
    "needs": "prose: the user's haystack",
    "licence": "generated here, from the user's text",
}

NUM_SEGMENTS = 4
MARGIN_SHARE = 0.05
MOST_MARGIN_TOKENS = 400
ANSWER_TOKENS = 24
MAX_FITS = 4
QUESTION = (
    "The four segments above were shuffled. In the right order, they follow one another without a gap between the text before and the "
    "text after them. Give their numbers in the right order, as a list like [1, 2, 3, 4], and nothing else."
)


def tsort(rng: random.Random, room: Room) -> Puzzle:
    """Put four segments in order."""
    order = rng.sample(range(1, NUM_SEGMENTS + 1), NUM_SEGMENTS)
    left = room.left(QUESTION, "Answer:", max_new_tokens=ANSWER_TOKENS)
    budget, state, best = left - 40, rng.getstate(), ""
    for _ in range(MAX_FITS):
        rng.setstate(state)
        made = _context(room.prose(budget, rng), budget, order)
        spare = left - room.count(made)
        if spare >= 0:
            best = made
        if 0 <= spare <= left // 200:
            break
        budget += spare - 2
    answer = str(order)
    return Puzzle(
        needles=(),
        context=best or made,
        evidence=(),  # any sentence may tell which segment goes before another
        question=QUESTION,
        answer_prefix="Answer:",
        references=(answer,),
        answer=answer,
        max_new_tokens=ANSWER_TOKENS,
    )


def _context(prose: str, num_tokens: int, order: Sequence[int]) -> str:
    """The prose cut in six, segments shown under the numbers that `order` gives the first, second, ... of them."""
    margin = min(MARGIN_SHARE, MOST_MARGIN_TOKENS / num_tokens)
    size = (1 - 2 * margin) / NUM_SEGMENTS
    before, *segments, after = _pieces(prose, [margin + place * size for place in range(NUM_SEGMENTS + 1)])
    shown = dict(zip(order, segments, strict=True))
    listed = [f"[Segment {number}]\n{shown[number]}" for number in sorted(shown)]
    return "\n\n".join((f"[Before]\n{before}", *listed, f"[After]\n{after}"))


def _pieces(prose: str, shares: Sequence[float]) -> list[str]:
    """The prose in consecutive pieces of whole sentences, cut nearest after each share of its characters; none is empty."""
    sentences = split_sentences(prose)
    if len(sentences) <= len(shares):
        raise ValueError(
            f"tsort needs more than {len(shares)} sentences, the prose has {len(sentences)} in this length; "
            "ask for 1024 or more"
        )
    cuts, place, size = [0], 0, 0
    for number, share in enumerate(shares):
        last = len(sentences) - len(shares) + number  # one sentence at least is left for each later piece
        while place < last and (size < share * len(prose) or place == cuts[-1]):
            size += len(sentences[place])
            place += 1
        cuts.append(place)
    cuts.append(len(sentences))
    return ["".join(sentences[start:end]).strip() for start, end in zip(cuts, cuts[1:], strict=False)]


TASKS: dict[str, Task] = {
    "tsort": Task(
        make=tsort,
        ability="ordering",
        diffusion="high",
        scope="high",
        metric=order_exact_match_fixed,
        chance=1 / 24,
        answers="derived",
    ),
}
