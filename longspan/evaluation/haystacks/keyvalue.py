"""RULER's needle haystack: nothing but "One of the special magic numbers for <key> is: <value>." lines about other keys.

Every line looks like a needle, so that only its key tells the right one. 20,000 lines, the same ones always.
"""

import random

from longspan.evaluation.haystacks import Haystack
from longspan.evaluation.suites.ruler import magic_needle, random_number, random_word

NUM_LINES = 20_000


def keyvalue_haystack() -> Haystack:
    """The lines as a haystack: one a sentence, never cut but at the end.

    Raises:
        ValueError: `wonderwords` is not installed.
    """
    rng = random.Random(0)
    lines = [magic_needle("numbers", random_word(rng), random_number(rng)) for _ in range(NUM_LINES)]
    haystack = Haystack(lines[0])
    haystack.sentences = [lines[0], *(f"\n{line}" for line in lines[1:])]
    return haystack
