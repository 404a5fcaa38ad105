"""Lines made on the spot: as many as fit a number of tokens, without counting every one of them at great lengths."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from longspan.evaluation.haystacks import TokenizerLike, count_tokens, cut_at_word

__all__ = ["Lines", "fill_lines", "fill_lines_exactly"]

BLOCK_LINES = 32
EXACT_TOKENS = 8192
CHECK_EVERY = 16
TAIL_LINES = 96
NEAR_TOKENS = 4
SPARE_LINES = 64


def fill_lines(
    lines: Iterable[str], num_tokens: int, count: Callable[[str], int], *, joiner: str = "\n"
) -> list[str]:
    """As many lines as fit: joined by `joiner` they have at most `num_tokens` tokens, and nearly as many.

    Up to 8,192 tokens are counted; beyond that, blocks of lines are judged by their characters, at a rate that every 16th
    block corrects, which is right to within 1% where lines are alike. At the end, lines too long for the rest are passed
    over and up to 96 more are tried.

    Args:
        lines: drawn from as far as needed; where they end early, what there was is returned.
        num_tokens: room for them.
        count: tokens of a text.
        joiner: between two lines.
    """
    source, chosen = iter(lines), list[str]()
    used, counted, characters = 0.0, 0, 0
    for number in itertools.count():
        block = list(itertools.islice(source, BLOCK_LINES))
        text = joiner + joiner.join(block)
        if not block:
            return chosen
        if counted < EXACT_TOKENS or number % CHECK_EVERY == 0:
            exact = count(text)
            counted, characters, cost = counted + exact, characters + len(text), float(exact)
        else:
            cost = len(text) * counted / characters
        if used + cost > num_tokens:
            tail = itertools.chain(block, itertools.islice(source, TAIL_LINES))
            return chosen + _that_fit(tail, num_tokens - used, count, joiner)
        chosen += block
        used += cost
    raise AssertionError("count never ends")


def _that_fit(lines: Iterator[str], room: float, count: Callable[[str], int], joiner: str) -> list[str]:
    chosen, near = list[str](), max(3.0, room / 200)
    for line in lines:
        cost = count(joiner + line)
        if cost <= room:
            chosen.append(line)
            room -= cost
        if room < near:
            break
    return chosen


def fill_lines_exactly(
    lines: Iterable[str], num_tokens: int, count: Callable[[str], int], *, joiner: str = "\n"
) -> list[str]:
    """As `fill_lines`, but the whole is counted once and corrected, where that alone is right to about 1%.

    What is then left is made small by one more line in place of the last. Counting 128K tokens takes about 0.3 s.

    Args:
        lines: drawn from as far as needed; some are passed over at the end.
        num_tokens: room for them.
        count: tokens of a text.
        joiner: between two lines.
    """
    source = iter(lines)
    chosen = fill_lines(source, num_tokens, count, joiner=joiner)
    rest = num_tokens - count(joiner.join(chosen))
    while rest < 0:
        rest += count(joiner + chosen.pop())
    more = fill_lines(source, rest, count, joiner=joiner)
    rest -= count(joiner + joiner.join(more)) if more else 0
    chosen += more
    if rest > NEAR_TOKENS and chosen:
        rest += count(joiner + chosen[-1])
        costs = {line: count(joiner + line) for line in (chosen[-1], *itertools.islice(source, SPARE_LINES))}
        chosen[-1] = max((line for line in costs if costs[line] <= rest), key=costs.__getitem__)
    return chosen


class Lines:
    """A haystack of lines that a function makes one by one, each different: key-value pairs, needles, table rows.

    The last line is cut at a word where that is needed to come within 4 tokens of the wish.
    """

    def __init__(self, make: Callable[[random.Random], str], *, joiner: str = "\n") -> None:
        """make: one line, drawn from the generator given. joiner: white space before each line."""
        self._make, self._joiner = make, joiner

    def slice(self, num_tokens: int, tokenizer: TokenizerLike, rng: random.Random) -> Sequence[str]:
        """Lines of at most `num_tokens` tokens together, each with the white space before it."""
        made = (self._make(rng) for _ in itertools.count())
        count = functools.partial(count_tokens, tokenizer)
        lines = [self._joiner + line for line in fill_lines(made, num_tokens, count, joiner=self._joiner)]
        if num_tokens > EXACT_TOKENS:
            return lines
        gap = num_tokens - count("".join(lines))
        return [*lines, cut_at_word(self._joiner + next(made), gap, tokenizer)] if gap > 4 else lines
