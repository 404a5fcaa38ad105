"""RULER's counting: common words in a numbered list, frequent words in a coded text."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from functools import lru_cache

from longspan.evaluation.suites._words import word_list
from longspan.evaluation.suites.ruler.needles import distinct
from longspan.evaluation.task import Puzzle, Room

__all__ = ["common_words", "common_words_with_example", "frequent_words"]

EXACT_CHARACTERS = 48_000
PIECES = 24
PIECE_CHARACTERS = 2_000
FITS = 12
ZETA_OF_TWO = 1.6449340668482264

COMMON_TOKENS = 120
COMMON_HEAD = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
COMMON_QUESTION = "Question: What are the 10 most common words in the above list?"
COMMON_PREFIX = "The top 10 words that appear most often in the list are:"

FREQUENT_TOKENS = 50
FREQUENT_HEAD = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. "
)
FREQUENT_QUESTION = (
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
FREQUENT_PREFIX = "According to the coded text above, the three most frequently appeared words are:"


def _tokens(text: str, count: Callable[[str], int]) -> int:
    """Tokens of a text whose parts are alike: of a long one, pieces are counted."""
    if len(text) <= EXACT_CHARACTERS:
        return count(text)
    step = (len(text) - PIECE_CHARACTERS) // (PIECES - 1)
    pieces = [text[start * step : start * step + PIECE_CHARACTERS] for start in range(PIECES)]
    return round(sum(map(count, pieces)) * len(text) / sum(map(len, pieces)))


def _fitted(
    make: Callable[[int], str], first: int, limit: int, count: Callable[[str], int]
) -> tuple[str, int]:
    """The longest text found that `make` gives within `limit` tokens, and its size; sizes are tried by proportion.

    Raises:
        ValueError: not even a size of 0 fits.
    """
    text = make(0)
    base = _tokens(text, count)
    if base > limit:
        raise ValueError(f"a word list needs {base} tokens, there is room for {limit}; ask for more")
    best, size, lowest, highest = (text, 0), max(1, first), 0, 0
    for _ in range(FITS):
        text = make(size)
        made = _tokens(text, count)
        if made <= limit:
            lowest, best = size, (text, size)
            if made >= 0.993 * limit:
                break
        else:
            highest = size
        size = max(1, int(size * (0.998 * limit - base) / max(1, made - base)))
        if highest and not lowest < size < highest:
            size = (lowest + highest) // 2
            if size == lowest:
                break
    return best


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))


@lru_cache(maxsize=1)
def _english() -> tuple[str, ...]:
    return tuple(dict.fromkeys((*word_list("noun"), *word_list("adjective"), *word_list("verb"))))


@lru_cache(maxsize=1)
def _derived() -> tuple[str, ...]:
    """Regular forms of the words that are no words of the list themselves: plurals, adverbs, agents, ..."""
    known, forms = set(_english()), dict[str, None]()
    endings = {"noun": ("s", "less", "like"), "adjective": ("ly", "ness"), "verb": ("s", "ing", "er")}
    for kind, suffixes in endings.items():
        forms.update(dict.fromkeys(_form(word, suffix) for word in word_list(kind) for suffix in suffixes))
    return tuple(form for form in forms if form not in known)


def _form(word: str, suffix: str) -> str:
    """A word with a suffix, by the rules of English spelling: ladies, boxes, making, happily."""
    if word.endswith("y") and word[-2:-1] not in "aeiou" and suffix not in ("ing", "like"):
        return word[:-1] + ("ies" if suffix == "s" else f"i{suffix}")
    if suffix == "s" and word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    return (word.removesuffix("e") if suffix in ("ing", "er") else word) + suffix


def _words(rng: random.Random, enough: int) -> list[str]:
    """Words in a random order; beyond the list's own ones, their derived forms follow."""
    words = list(_english())
    rng.shuffle(words)
    if enough > len(words):
        words += rng.sample(_derived(), min(len(_derived()), enough - len(words)))
    return words


def common_words(rng: random.Random, room: Room, *, example: bool = False) -> Puzzle:
    """Ten words occur 30 times in a numbered list, the others 3 times (6 and 1 under 4,096 tokens): name the ten.

    Args:
        rng: source of the words and their order.
        room: how long a list is wanted.
        example: a solved list of 40 words (20 under 4,096 tokens) stands before it.

    Raises:
        ValueError: the room is too small to repeat ten words.
    """
    long = room.tokens >= 4000
    often, seldom = (30, 3) if long else (6, 1)
    limit = room.left(COMMON_QUESTION, COMMON_PREFIX, max_new_tokens=COMMON_TOKENS)
    words = _words(rng, room.tokens // 8)
    head = COMMON_HEAD
    if example:
        solved, words = (words[:40], words[40:]) if long else (words[:20], words[20:])
        head = _solved_list(rng, solved, *((10, 3) if long else (3, 1))) + head
    common, rest = words[:10], words[10:]
    left = limit - (room.count(head) - room.count(COMMON_HEAD))
    costs = sum(room.count(" " + word) + 6 for word in common)
    often = min(often, left // (costs + costs // 3))
    if often <= seldom:
        raise ValueError(
            f"cwe needs more than {room.tokens} tokens to repeat ten words; ask for 1024 or more"
        )
    order = rng.getrandbits(32)

    def make(size: int) -> str:
        listed = common * often + [word for word in rest[:size] for _ in range(seldom)]
        random.Random(order).shuffle(listed)
        return head + _numbered(listed)

    first = max(0, left - often * costs) // (8 * seldom)
    context, size = _fitted(make, first, limit, room.count)
    if size > len(rest):
        raise ValueError(f"cwe has {len(rest)} words, too few for {room.tokens} tokens; ask for fewer")
    common.sort(key=context[len(head) :].split().index)
    return Puzzle(
        needles=(),
        context=context,
        question=COMMON_QUESTION,
        answer_prefix=COMMON_PREFIX,
        references=tuple(common),
        answer=_numbered(common),
        max_new_tokens=COMMON_TOKENS,
    )


def common_words_with_example(rng: random.Random, room: Room) -> Puzzle:
    """RULER's cwe: the solved example first."""
    return common_words(rng, room, example=True)


def _solved_list(rng: random.Random, words: Sequence[str], often: int, seldom: int) -> str:
    listed = list(words[:10]) * often + list(words[10:]) * seldom
    rng.shuffle(listed)
    answer = _numbered(words[:10])
    return f"{COMMON_HEAD}{_numbered(listed)}\n{COMMON_QUESTION} Answer: {COMMON_PREFIX} {answer}\n\n"


def frequent_words(rng: random.Random, room: Room) -> Puzzle:
    """Coded words with Zipf counts (exponent 2); the most frequent is written "...": name the next three.

    Raises:
        ValueError: the room is too small for words to repeat.
    """
    limit = room.left(FREQUENT_QUESTION, FREQUENT_PREFIX, max_new_tokens=FREQUENT_TOKENS)
    if limit < 100:
        raise ValueError(f"fwe needs more than {room.tokens} tokens; ask for 400 or more")
    vocabulary = distinct(
        lambda source: "".join(source.choices(string.ascii_lowercase, k=6)), max(8, room.tokens // 50), rng
    )
    order = rng.getrandbits(32)

    def make(size: int) -> str:
        counts = [int(size / (rank**2 * ZETA_OF_TWO)) for rank in range(1, len(vocabulary) + 2)]
        # In short texts rounding would make the fourth and the fifth equal, and the answer open.
        counts[4:] = [min(number, counts[3] - 1) for number in counts[4:]]
        listed = [
            word for word, number in zip(["...", *vocabulary], counts, strict=True) for _ in range(number)
        ]
        random.Random(order).shuffle(listed)
        return FREQUENT_HEAD + " ".join(listed)

    context, _ = _fitted(make, limit // 3, limit, room.count)
    top = vocabulary[:3]
    return Puzzle(
        needles=(),
        context=context,
        question=FREQUENT_QUESTION,
        answer_prefix=FREQUENT_PREFIX,
        references=tuple(top),
        answer=", ".join(top) + ".",
        max_new_tokens=FREQUENT_TOKENS,
    )
