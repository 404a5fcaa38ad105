"""Choices: the class, the letter or the label that an answer settles on.

Papers: Bai et al., *LongBench*, 2023, and *LongBench v2: Towards Deeper Understanding and Reasoning on Realistic
Long-context Multitasks*, 2024; Zhang et al., *InfiniteBench*, 2024; An et al., *L-Eval*, 2023; Zhang et al., *Marathon: A
Race Through the Realm of Long Context with Large Language Models*, 2023; Karpinska et al., *One Thousand and One Pairs: A
"novel" challenge for long-context language models*, 2024 (NoCha).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from longspan.evaluation.metrics.text import best_of, first_line, need_references

__all__ = [
    "classification",
    "classification_first_line",
    "classification_fixed",
    "exam_letter",
    "exam_letters",
    "longbench_v2_choice",
    "longbench_v2_letter",
    "longbook_choice",
    "option_letter",
    "pair_accuracy",
    "sci_fi",
    "topic_retrieval",
    "true_or_false",
]

LETTERS = "ABCD"
SOME_OF_THE_LETTERS = 0.25


def classification(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1 / (classes named in the answer) if the right one is among them; best of the references.

    Official scorer: LongBench `classification_score`. A class that is part of the right class's name is not counted
    against it. Its fault: it drops such classes from the list that it walks through, so the one after each is not looked at;
    `classification_fixed` looks at all.

    Args:
        details: "all_classes", the names of all classes.
    """
    classes = _classes(details)

    def score(reference: str) -> float:
        named = [name for name in classes if name in prediction]
        place = 0
        while place < len(named):
            if named[place] in reference and named[place] != reference:
                named.remove(named[place])
            place += 1
        return 1.0 / len(named) if reference in named else 0.0

    return best_of(score, references)


def classification_first_line(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> float:
    """`classification` of the answer's first line: LongBench trec and lsht."""
    return classification(first_line(prediction), references, details)


def classification_fixed(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`classification` with no class passed over."""
    classes = _classes(details)

    def score(reference: str) -> float:
        named = [
            name for name in classes if name in prediction and (name == reference or name not in reference)
        ]
        return 1.0 / len(named) if reference in named else 0.0

    return best_of(score, references)


def _classes(details: Mapping[str, Any]) -> Sequence[str]:
    classes = details.get("all_classes")
    if not classes:
        raise ValueError(
            "the details of a classification name no 'all_classes'; list the names of all classes there"
        )
    return list(classes)


def longbench_v2_letter(prediction: str) -> str | None:
    """The letter in "The correct answer is (A)", stars dropped, brackets optional; None where there is none."""
    bare = prediction.replace("*", "")
    for pattern in (r"The correct answer is \(([A-D])\)", r"The correct answer is ([A-D])"):
        if found := re.search(pattern, bare):
            return found[1]
    return None


def longbench_v2_choice(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the answer says "The correct answer is (X)" with the right letter.

    Official scorer: LongBench v2 `extract_answer`. Its faults: any other wording scores 0, and without brackets "The correct
    answer is Apples" reads as A. The first such sentence counts.
    """
    return best_of(lambda reference: float(longbench_v2_letter(prediction) == reference), references)


def longbook_choice(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the answer's letter, or what follows "answer is", is one of the references.

    Official scorer: InfiniteBench `get_score_one_longbook_choice_eng`. Its fault: an answer that begins with a capital A to D
    is taken for that letter, also "Certainly, ..." and "Both ...".

    Args:
        references: the right option and its letter.
    """
    need_references(references)
    text = prediction.strip()
    if text[:1] and text[0] in LETTERS:
        return float(text[0] in references)
    if not text or text in references:
        return float(bool(text))
    text = re.sub(r" {2,}", " ", re.sub(r"[\n\"'.,?!{}]", " ", text))
    for prefix in ("answer is:", "answer:", "answer is", "option is"):
        if prefix in text:
            rest = text[text.find(prefix) + len(prefix) + 1 :]
            return float(any(rest.startswith(reference) for reference in references))
    word = next((word for word in text.split() if word in LETTERS), "")
    return float(word in references)


def exam_letter(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the first capital A to D in the answer is the reference's.

    Official scorer: L-Eval on TOEFL and QuALITY. Its faults: "Because it is C" reads as B, and an answer without any of the
    letters is taken for A. An answer with a letter that is right beside a wrong one may get a quarter, see `exam_letters`.
    """
    text = prediction.strip()
    if not text:
        return _letters_score("None", references)
    if prediction in LETTERS:
        return _letters_score(prediction, references)
    first = next((letter for letter in prediction if letter in LETTERS), None)
    return (
        exam_letters(prediction, references, details) if first is None else _letters_score(first, references)
    )


def exam_letters(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the answer's letters are the reference's "ABD", 0.25 if they are some of them and none is wrong.

    Official scorer: L-Eval on Coursera. Letters are those at the start, else all before a space, point or bracket, else the
    first run of them; without any, A is taken.
    """
    if not prediction.strip():
        return _letters_score("None", references)
    if prediction in LETTERS:
        return _letters_score(prediction, references)
    start = "".join(takewhile(LETTERS.__contains__, prediction))
    if len(start) > 1:
        return _letters_score("".join(sorted(set(start))), references)
    rest = prediction[len(start) :].split("Question")[0]
    found = start + "".join(re.findall(r"[A-D](?=[\s.)])", rest))
    run = re.search(rf"[{LETTERS}]+", rest)
    return _letters_score("".join(sorted(set(found))) or (run[0] if run else "A"), references)


def _letters_score(letters: str, references: Sequence[str]) -> float:
    def score(reference: str) -> float:
        wanted = re.sub(r"[^A-D]", "", reference.split()[0] if reference.split() else "") or "A"
        if letters == wanted:
            return 1.0
        return SOME_OF_THE_LETTERS if set(letters) <= set(wanted) else 0.0

    return best_of(score, references)


def topic_retrieval(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if a reference stands in the answer, case and spaces ignored, or both are the same number.

    Official scorer: L-Eval `exact_match_score` on topic retrieval.
    """

    def score(reference: str) -> float:
        try:
            return float(float(prediction) == float(reference))
        except ValueError:
            return float(reference.lower().replace(" ", "") in prediction.lower().replace(" ", ""))

    return best_of(score, references)


def sci_fi(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """ "loyalty" (true in the story) and "fact" (true in the world) of an answer "True [fact: False]", and their mean.

    Official scorer: L-Eval `process_output_judge`. It fails on an answer without "[fact:", whose fact is wrong here.
    """
    need_references(references)
    wanted, found = _verdicts(references[0]), _verdicts(prediction)
    loyalty, fact = (
        float(one is not None and one == other) for one, other in zip(found, wanted, strict=True)
    )
    return {"score": (loyalty + fact) / 2, "loyalty": loyalty, "fact": fact}


def _verdicts(text: str) -> tuple[bool | None, bool | None]:
    loyalty, _, fact = text.lower().partition("[fact:")
    return _first_verdict(loyalty), _first_verdict(fact.split("[fact:")[0])


def _first_verdict(text: str) -> bool | None:
    found = re.search(r"true|false", text)
    return None if found is None else found[0] == "true"


def option_letter(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the option of an answer {"option": "A"}, else its first capital letter that stands alone, is the reference.

    Marathon publishes its prompt, which asks for that JSON, and scores letters on its server; this is how they are read here.
    """
    found = re.search(r"\"option\"\s*:\s*\"\(?([A-Z])\b", prediction) or re.search(
        r"(?<![\w'])([A-H])(?![\w'])", prediction
    )
    return best_of(lambda reference: float(found is not None and found[1] == reference.strip()), references)


def true_or_false(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the verdict in <answer>...</answer>, else the last "true" or "false" of the answer, is the reference.

    Made for NoCha, which asks for that tag and publishes no parser.
    """
    tagged = re.findall(r"<answer>\s*(true|false)\b", prediction, re.IGNORECASE)
    found = tagged or re.findall(r"\b(true|false)\b", prediction, re.IGNORECASE)
    return best_of(
        lambda reference: float(bool(found) and found[-1].lower() == reference.strip().lower()), references
    )


def pair_accuracy(scores: Iterable[tuple[Any, float]]) -> float:
    """Part of the pairs in which every claim was judged right: NoCha's score.

    Args:
        scores: (name of the pair, score of one of its claims), in any order.

    Raises:
        ValueError: there are no scores, or a pair has one claim only.
    """
    pairs: dict[Any, list[float]] = {}
    for name, score in scores:
        pairs.setdefault(name, []).append(score)
    lonely = [name for name, found in pairs.items() if len(found) < 2]
    if lonely or not pairs:
        raise ValueError(f"pairs without two claims: {lonely[:3] or 'all'}; score both claims of every pair")
    return sum(all(score >= 1.0 for score in found) for found in pairs.values()) / len(pairs)
