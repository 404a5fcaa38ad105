"""Scores without a judge, the same on every run: ROUGE, recall of keywords, and checks of what a text must look like.

They grade wording, not truth: a paraphrase loses and a wrong number hardly costs (`docs/judging.md` has the error rates).

Paper: Lin, *ROUGE: A Package for Automatic Evaluation of Summaries*, 2004.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from longspan.errors import UserInputError, did_you_mean
from longspan.evaluation.judging.evidence import content_words
from longspan.evaluation.metrics.overlap_rouge import rouge_scorer

__all__ = ["Constraints", "keyword_recall", "keywords_of", "rouge"]

ROUGE_VARIANTS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(prediction: str, references: Sequence[str], *, variant: str = "rougeL") -> float:
    """F-measure of the `rouge-score` package (with its stemmer), the best over the references, in [0, 1].

    The package drops all but Latin letters and digits, so texts in other scripts score 0. "rougeLsum" takes sentences
    from line breaks.

    Raises:
        ValueError: no reference, an unknown variant, or `rouge-score` is not installed.
    """
    if not references:
        raise UserInputError("there is no reference to compare with; give at least one")
    if variant not in ROUGE_VARIANTS:
        raise UserInputError(f"got variant={variant!r}; {did_you_mean(variant, ROUGE_VARIANTS)}")
    scorer = rouge_scorer((variant,), True)
    return max(float(scorer.score(reference, prediction)[variant].fmeasure) for reference in references)


def keywords_of(text: str) -> list[str]:
    """The different words of a text that carry meaning, in lower case and in order."""
    return content_words(text)


def keyword_recall(prediction: str, keywords: Sequence[str]) -> float:
    """Share of the keywords that stand in a text as whole words, letter case ignored, in [0, 1].

    Args:
        keywords: words or phrases; ValueError when there is none.
    """
    if not keywords:
        raise UserInputError("there is no keyword to look for; give at least one")
    return sum(_mentions(prediction, keyword) for keyword in keywords) / len(keywords)


def _mentions(text: str, phrase: str) -> bool:
    return _place(text, phrase) is not None


def _place(text: str, phrase: str, start: int = 0) -> int | None:
    """Where a phrase ends in a text, as whole words from `start` on; None where it is not."""
    spaced = r"\s+".join(map(re.escape, phrase.split()))
    found = re.compile(rf"(?<!\w){spaced}(?!\w)", re.IGNORECASE).search(text, start)
    return found.end() if found else None


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What a text must look like. Every setting that is given is one check, every phrase of a list one more.

    min_words, max_words: words are what white space separates. must_mention, must_not_mention: phrases, as whole words.
    num_sections: exactly so many lines match `section`. section: a regular expression for the line that opens a section;
    by default a Markdown heading. in_order: phrases that must all stand in the text, in this order.

    Raises:
        ValueError: nothing is asked for, bounds that nothing meets, an empty phrase, or a `section` that is no pattern.
    """

    min_words: int | None = None
    max_words: int | None = None
    must_mention: tuple[str, ...] = ()
    must_not_mention: tuple[str, ...] = ()
    num_sections: int | None = None
    section: str = r"#{1,6}\s+\S"
    in_order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        numbers = (self.min_words, self.max_words, self.num_sections)
        lists = (self.must_mention, self.must_not_mention, self.in_order)
        typed = all(number is None or type(number) is int for number in numbers)
        if not typed or not all(isinstance(phrases, tuple) for phrases in lists):
            raise UserInputError(
                f"got {self}; min_words, max_words and num_sections are whole numbers, the phrases are "
                "lists of text"
            )
        phrases = tuple(phrase for listed in lists for phrase in listed)
        if not phrases and numbers == (None, None, None):
            raise UserInputError(
                "these constraints ask for nothing; give at least one, such as min_words=100"
            )
        low, high = self.min_words or 0, self.max_words
        if any(number is not None and number < 0 for number in numbers) or (high is not None and high < low):
            raise UserInputError(
                f"got min_words={self.min_words}, max_words={self.max_words}, "
                f"num_sections={self.num_sections}; give numbers of 0 or more, the least not above the most"
            )
        if not all(isinstance(phrase, str) and phrase.strip() for phrase in phrases):
            raise UserInputError(f"got the phrases {phrases}; each must be text that is not empty")
        try:
            re.compile(self.section)
        except re.error as error:
            raise UserInputError(
                f"section={self.section!r} is not a regular expression ({error}); correct it"
            ) from error

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Constraints:
        """Constraints from a mapping, as it stands in JSON; ValueError for an unknown name."""
        known = [field.name for field in fields(cls)]
        unknown = next((name for name in settings if name not in known), None)
        if unknown is not None:
            raise UserInputError(f"there is no constraint {unknown!r}; {did_you_mean(unknown, known)}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
        }
        return cls(**values)

    def check(self, text: str) -> dict[str, bool]:
        """Every check by name, such as "min_words" or "must_mention: lantern", and whether the text meets it."""
        num_words = len(text.split())
        found: dict[str, bool] = {}
        if self.min_words is not None:
            found["min_words"] = num_words >= self.min_words
        if self.max_words is not None:
            found["max_words"] = num_words <= self.max_words
        if self.num_sections is not None:
            opens = re.compile(self.section)
            found["num_sections"] = (
                sum(opens.match(line) is not None for line in text.split("\n")) == self.num_sections
            )
        found |= {f"must_mention: {phrase}": _mentions(text, phrase) for phrase in self.must_mention}
        found |= {
            f"must_not_mention: {phrase}": not _mentions(text, phrase) for phrase in self.must_not_mention
        }
        if self.in_order:
            found["in_order"] = self._ordered(text)
        return found

    def score(self, text: str) -> float:
        """Share of the checks that a text meets, in [0, 1]."""
        met = self.check(text)
        return sum(met.values()) / len(met)

    def _ordered(self, text: str) -> bool:
        place = 0
        for phrase in self.in_order:
            end = _place(text, phrase, place)
            if end is None:
                return False
            place = end
        return True
