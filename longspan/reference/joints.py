"""Where sentences join in token space: which tokens end a sentence, open one, or carry the space before a word."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

_CLOSING = "\"')]\u201d\u2019"
_OPENING = "\"'(\u201c\u2018"


@dataclass(frozen=True, kw_only=True)
class Prose:
    """Token ids uint16 `[N]`; `breaks[i]` says that a sentence starts at token i, where a needle may go."""

    tokens: np.ndarray
    breaks: np.ndarray


class Joints:
    """What a tokenizer's tokens look like at their ends.

    newline: bool `[vocabulary]`, tokens of line ends only. stripped: the token without the space before it, -1 where
    there is no such token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        words = [tokenizer.decode([index]) for index in range(len(tokenizer))]
        index_of = {word: index for index, word in reversed(list(enumerate(words)))}
        spaced = [word.startswith(" ") and len(word) > 1 and not word[1].isspace() for word in words]
        self.newline = np.array([word.startswith("\n") and word.strip() == "" for word in words])
        self.stripped = np.array(
            [index_of.get(word[1:], -1) if good else -1 for good, word in zip(spaced, words, strict=True)]
        )
        self._ends = np.array(
            [word.rstrip(_CLOSING)[-1:] in (".", "!", "?") and word.strip() != "" for word in words]
        )
        capital = [
            good and (word[1].isupper() or word[1] in _OPENING)
            for good, word in zip(spaced, words, strict=True)
        ]
        self._opens = (np.array(capital) & (self.stripped >= 0)) | self.newline

    def prose(self, tokens: np.ndarray) -> Prose:
        """Tokens `[N]` with the places where their sentences start."""
        breaks = np.zeros(len(tokens), dtype=bool)
        breaks[1:] = self._ends[tokens[:-1]] & self._opens[tokens[1:]]
        return Prose(tokens=tokens, breaks=breaks)

    def without_lead(self, part: np.ndarray) -> np.ndarray:
        """A sentence's tokens without the space or line end before it."""
        if self.newline[part[0]]:
            return part[1:]
        if self.stripped[part[0]] < 0:
            return part
        return np.concatenate([self.stripped[part[:1]].astype(np.uint16), part[1:]])
