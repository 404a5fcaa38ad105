"""The passages of a long text that speak of a claim, found by the words they share; rarer words count for more."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache
from itertools import islice

from longspan.evaluation.haystacks import split_sentences

__all__ = ["content_words", "evidence", "num_words", "words_of"]

PASSAGE_WORDS = 120
_GAP = "\n[...]\n"
# Scripts without spaces: each character counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['\u2019][^\W{_UNSPACED}]+)?")
_SIZED = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_COMMON = frozenset(
    "a about after all also am an and any are as at be because been before being but by can could did do "
    "does for from had has have he her here him his how i if in into is it its just may me might more most "
    "must my no not of on one only or our out over own shall she should so some such than that the their "
    "them then there these they this those through to too under up upon very was we were what when where "
    "which while who whom whose why will with would you your".split()
)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case and in order."""
    return _WORD.findall(text.lower())


def num_words(text: str) -> int:
    """What white space separates; of Chinese and Japanese, characters."""
    return sum(1 for _ in _SIZED.finditer(text))


def content_words(text: str) -> list[str]:
    """The different words of a text that carry meaning, in order; all its words when none does."""
    words = words_of(text)
    return list(dict.fromkeys([word for word in words if word not in _COMMON] or words))


def evidence(source: str, claim: str, room_words: int) -> str:
    """As much of `source` as fits into `room_words` words: all of it, or the passages nearest to the claim, in order.

    Passages are runs of sentences of about 120 words. Each is worth the sum, over the claim's words in it, of
    log(1 + passages / passages with that word).

    Args:
        source: the whole text.
        claim: what is to be checked.
        room_words: words that may be used, 1 or more; at least one passage is always given, cut where it is longer.
    """
    if num_words(source) <= room_words:
        return source.strip()
    passages, words_in = _indexed(source)
    asked = set(content_words(claim))
    held = [asked & words for words in words_in]
    spread = Counter(word for words in held for word in words)
    worth = [sum(math.log1p(len(passages) / spread[word]) for word in words) for words in held]
    best_first = sorted(range(len(passages)), key=lambda index: (-worth[index], index))
    chosen, used = [], 0
    for index in best_first:
        size = num_words(passages[index])
        if used + size <= room_words:
            chosen.append(index)
            used += size
        elif not chosen:
            end = list(islice(_SIZED.finditer(passages[index]), room_words))[-1].end()
            return passages[index][:end]
    return _joined(passages, sorted(chosen))


# A source is asked about claim by claim.
@lru_cache(maxsize=2)
def _indexed(source: str) -> tuple[list[str], list[frozenset[str]]]:
    passages = _passages(source)
    return passages, [frozenset(words_of(passage)) for passage in passages]


def _passages(source: str) -> list[str]:
    passages: list[str] = []
    held, size = "", 0
    for sentence in split_sentences(source.strip()):
        held += sentence
        size += num_words(sentence)
        if size >= PASSAGE_WORDS:
            passages.append(held.strip())
            held, size = "", 0
    return [*passages, held.strip()] if held.strip() else passages


def _joined(passages: list[str], indices: list[int]) -> str:
    """Passages with a mark where something was left out between them."""
    text = ""
    for before, index in zip([None, *indices], indices, strict=False):
        if before is None:
            text = passages[index]
        else:
            text += (" " if index == before + 1 else _GAP) + passages[index]
    return text
