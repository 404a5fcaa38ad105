"""Long text to hide things in. `Haystack.slice` gives consecutive sentences that fill a number of tokens.

The text is tokenised once for each tokenizer; a slice then costs a look-up, whatever its length.
"""

import bisect
import random
import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

TokenizerLike = Any
"""A transformers tokenizer, fast (with offsets) or slow."""

_SENTENCE_END = re.compile(
    r"(?:(?<=[.!?:;])|(?<=[.!?][\"')\]\u201d\u2019]))(?=\s+[\"'(\[\u201c\u2018A-Z0-9])|(?=\n\s*\n)(?<=\S)"
)
_MAX_SENTENCE_CHARACTERS = 400


def count_tokens(tokenizer: TokenizerLike, text: str) -> int:
    """Tokens of `text` alone, without special tokens."""
    if not text:
        return 0
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return len(backend.encode(text, add_special_tokens=False).ids)
    return len(tokenizer.encode(text, add_special_tokens=False))


def split_sentences(text: str) -> list[str]:
    """Sentences of `text`, each with the white space before it, so that joined they give the text back.

    A piece with no sentence end within 400 characters (tables, code) is cut at its last line end or space.
    """
    cuts = [0, *(match.start() for match in _SENTENCE_END.finditer(text)), len(text)]
    pieces: list[str] = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        while end - start > _MAX_SENTENCE_CHARACTERS:
            window = text[start : start + _MAX_SENTENCE_CHARACTERS]
            cut = max(window.rfind("\n"), 0) or max(window.rfind(" "), 0) or _MAX_SENTENCE_CHARACTERS
            pieces.append(text[start : start + cut])
            start += cut
        if end > start:
            pieces.append(text[start:end])
    return pieces


def cut_at_word(text: str, num_tokens: int, tokenizer: TokenizerLike) -> str:
    """The first words of `text`, as many as fit."""
    words = re.findall(r"\s*\S+", text)
    while words and count_tokens(tokenizer, "".join(words)) > num_tokens:
        words.pop()
    return "".join(words)


class Haystack:
    """Consecutive sentences of one text, started anywhere, going round at its end when more is asked than there is."""

    def __init__(self, text: str) -> None:
        """Raises ValueError when the text has no sentence."""
        self.sentences: Sequence[str] = split_sentences(text.strip())
        if not self.sentences:
            raise ValueError("the haystack text is empty; give a text with at least one sentence")
        self._ends: WeakKeyDictionary[TokenizerLike, list[int]] = WeakKeyDictionary()

    def slice(self, num_tokens: int, tokenizer: TokenizerLike, rng: random.Random) -> list[str]:
        """Sentences, in order, from a random start, of at most `num_tokens` tokens together.

        The last is cut at a word if that is needed to come within 4 tokens of the wish.
        """
        ends = self._token_ends(tokenizer)
        total = ends[-1]
        start = rng.randrange(len(self.sentences))
        before = ends[start - 1] if start else 0
        rounds, rest = divmod(before + num_tokens, total)
        last = bisect.bisect_right(ends, rest)
        chosen = (
            [*self.sentences[start:], *(list(self.sentences) * (rounds - 1)), *self.sentences[:last]]
            if rounds
            else [*self.sentences[start:last]]
        )
        if rounds:
            self._separate_rounds(chosen, len(self.sentences) - start)
        gap = rest - (ends[last - 1] if last else 0)
        if not chosen or gap > 4:
            chosen.append(cut_at_word(self.sentences[last % len(self.sentences)], gap, tokenizer))
        return chosen

    def _separate_rounds(self, chosen: list[str], first_seam: int) -> None:
        for index in range(first_seam, len(chosen), len(self.sentences)):
            chosen[index] = "\n" + chosen[index]

    def _token_ends(self, tokenizer: TokenizerLike) -> list[int]:
        """Tokens up to the end of each sentence."""
        known = self._ends.get(tokenizer)
        if known is None:
            known = _cumulative_tokens(self.sentences, tokenizer)
            self._ends[tokenizer] = known
        return known


def _cumulative_tokens(sentences: Sequence[str], tokenizer: TokenizerLike) -> list[int]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    total, ends = 0, []
    for first in range(0, len(sentences), 4096):
        batch = list(sentences[first : first + 4096])
        if backend is not None:
            counts = [
                len(encoding.ids) for encoding in backend.encode_batch_fast(batch, add_special_tokens=False)
            ]
        else:
            counts = [count_tokens(tokenizer, sentence) for sentence in batch]
        for count in counts:
            total += count
            ends.append(total)
    return ends
