"""Matches of whole strings: does the answer hold the reference, equal it, or come close to it.

Papers: Hsieh et al., *RULER: What's the Real Context Size of Your Long-Context Language Models?*, 2024; Yen et al., *HELMET:
How to Evaluate Long-Context Language Models Effectively and Thoroughly*, 2024; Vodrahalli et al., *Michelangelo: Long Context
Evaluations Beyond Haystacks via Latent Structure Queries*, 2024 (MRCR).
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from importlib import import_module
from typing import Any

__all__ = [
    "after_prefix",
    "best_of",
    "exact_match",
    "first_line",
    "label_exact_match",
    "mrcr",
    "mrcr_fixed",
    "need_references",
    "normal_words",
    "optional_package",
    "soft_match_all",
    "soft_match_part",
    "soft_match_two_steps",
    "string_match_all",
    "string_match_part",
    "substring",
    "substring_exact_match",
    "word_error_rate",
]

HASH_CHARACTERS = 12


def need_references(references: Sequence[str]) -> None:
    """Refuses an empty list of references with a ValueError."""
    if not references:
        raise ValueError("got no references; a metric needs at least one to compare with")


def optional_package(name: str, distribution: str) -> Any:
    """A package that only some metrics need.

    Args:
        name: to import.
        distribution: to install.

    Raises:
        ValueError: it is not installed; says how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f"this metric needs {distribution}; run `pip install {distribution}` or `pip install longspan[metrics]`"
        ) from error


def best_of(score: Callable[[str], float], references: Sequence[str]) -> float:
    """The highest score that any reference gives.

    Raises:
        ValueError: there are no references.
    """
    need_references(references)
    return max(score(reference) for reference in references)


def first_line(prediction: str) -> str:
    """The first line of an answer, blank lines before it dropped: LongBench's rule for trec, triviaqa, samsum and lsht."""
    return prediction.lstrip("\n").split("\n")[0]


def normal_words(text: str, articles: str = "a|an|the") -> list[str]:
    """Words of a text as SQuAD compares them: lower case, no ASCII punctuation, then no articles.

    Args:
        text: any text.
        articles: words to drop, joined by "|"; empty drops none.
    """
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return (re.sub(rf"\b({articles})\b", " ", bare) if articles else bare).split()


def string_match_all(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Part of the references that occur in the answer, case ignored.

    Official scorer: RULER `string_match_all`. Its fault: a reference counts inside a longer word or number too.
    """
    need_references(references)
    return sum(reference.lower() in prediction.lower() for reference in references) / len(references)


def string_match_part(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if any reference occurs in the answer, case ignored.

    Official scorer: RULER `string_match_part`, for its questions. lm-evaluation-harness averages over the references
    instead, which scores 71.3 where this scores 80.2.
    """
    return best_of(lambda reference: float(reference.lower() in prediction.lower()), references)


def substring(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if any reference stands in the answer letter for letter. Official scorer: LIBRA `exact_match_score`."""
    return best_of(lambda reference: float(reference in prediction), references)


def exact_match(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the answer is one of the references, white space at its ends apart: HashHop's rule."""
    return best_of(lambda reference: float(prediction.strip() == reference.strip()), references)


def word_error_rate(hypothesis: str, reference: str) -> float:
    """Least insertions, deletions and substitutions of words, per word of the reference; infinite for an empty one."""
    heard, wanted = hypothesis.split(), reference.split()
    if not wanted:
        return float("inf")
    row = list(range(len(wanted) + 1))
    for number, word in enumerate(heard, start=1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(wanted, start=1):
            diagonal, row[place] = (
                row[place],
                min(row[place] + 1, row[place - 1] + 1, diagonal + (word != other)),
            )
    return row[-1] / len(wanted)


def _soft(prediction: str, reference: str) -> float:
    heard, wanted = prediction.lower(), reference.lower()
    return 1.0 if wanted in heard else max(0.0, 1.0 - word_error_rate(heard, wanted))


def soft_match_all(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Mean over the references of: 1 where it occurs in the answer, else 1 - word error rate, at least 0.

    Official scorer: RULERv2 match type "all". A word error rate is infinite for an empty reference, which always occurs.
    """
    need_references(references)
    return sum(_soft(prediction, reference) for reference in references) / len(references)


def soft_match_two_steps(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`soft_match_all` of the answer's last paragraph. Official scorer: RULERv2 match type "2steps"."""
    return soft_match_all(prediction.split("\n\n")[-1], references, details)


def soft_match_part(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Best reference of `soft_match_all`, documents copied into the answer dropped. Official: RULERv2 match type "part"."""
    bare = re.sub(r"Document \d+:(?:.*\n)+?\n", "", prediction)
    return best_of(lambda reference: _soft(bare, reference), references)


def after_prefix(prediction: str, prefix: str = "Answer:") -> str:
    """The rest of the line after the first `prefix`, case ignored, or the first line where there is none: HELMET's parse."""
    found = re.search(rf"{re.escape(prefix)}(.*)", prediction, re.IGNORECASE) or re.match(r"(.*)", prediction)
    assert found is not None  # the second pattern matches every text
    return re.sub(rf"^{re.escape(prefix)}", "", found[1].strip(), flags=re.IGNORECASE).strip()


def substring_exact_match(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if a reference stands in the answer after SQuAD's normalisation of both, in words or parts of words.

    Official scorer: HELMET `substring_exact_match` (recall and RAG tasks), of the answer and of what follows "Answer:".
    """
    texts = [" ".join(normal_words(text)) for text in (prediction, after_prefix(prediction))]
    return best_of(
        lambda reference: float(any(" ".join(normal_words(reference)) in text for text in texts)), references
    )


def label_exact_match(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if what follows "label:" (or the first line) equals a reference after SQuAD's normalisation.

    Official scorer: HELMET's many-shot tasks, `exact_match` after `parse_output`.

    Args:
        details: "prefix", in place of "label:".
    """
    label = normal_words(after_prefix(prediction, str(details.get("prefix", "label:"))))
    return best_of(lambda reference: float(label == normal_words(reference)), references)


def mrcr(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """difflib's ratio of the reference and what follows the last occurrence of its first 12 characters, the hash; else 0.

    Official scorer: MRCR v2 `mrcr_v2_metric`. Its fault: its text asks for the hash at the very start, and it takes it
    anywhere; `mrcr_fixed` asks.
    """
    return best_of(
        lambda reference: _after_hash(prediction.strip(), reference.strip(), anywhere=True), references
    )


def mrcr_fixed(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`mrcr` of an answer that starts with the hash, as its instructions ask; 0 otherwise."""
    return best_of(
        lambda reference: _after_hash(prediction.strip(), reference.strip(), anywhere=False), references
    )


def _after_hash(prediction: str, target: str, *, anywhere: bool) -> float:
    mark = target[:HASH_CHARACTERS]
    if len(mark) < HASH_CHARACTERS or mark not in prediction or not (anywhere or prediction.startswith(mark)):
        return 0.0
    start = prediction.rfind(mark) if anywhere else 0
    content = prediction[start + HASH_CHARACTERS :].strip()
    return SequenceMatcher(a=target[HASH_CHARACTERS:].strip(), b=content).ratio()
