"""NoCha: is a claim about a novel true or false? Claims come in pairs, one true and one false, about the same event.

`claims` asks one claim at a time; a pair counts when both are judged right, which `metrics.choice.pair_accuracy` works out
from the `pair` in the details. `pairs` asks both claims of a pair at once, and scores the pair.

Paper: One Thousand and One Pairs: A "novel" challenge for long-context language models (Karpinska et al., 2024)
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from longspan.evaluation.metrics.choice import true_or_false
from longspan.evaluation.metrics.nocha_rules import both_claims
from longspan.evaluation.published import Question, Source
from longspan.evaluation.suites._files import GroupedTask, Row, find_text
from longspan.evaluation.task import Sample

CARD: dict[str, Any] = {
    "name": "nocha",
    "title": 'One Thousand and One Pairs: A "novel" challenge for long-context language models',
    "year": 2024,
    "version": 1,
    "metric": "claims: verdict right; pairs: both verdicts right",
    "differs": [
        "63 pairs on four classic novels, all that is published; the 1,001 pairs of the paper are kept back by its authors",
        "instructions are in our own words; the book comes first and the instructions after it",
        "official pair accuracy asks each claim on its own: run `claims` and pair the scores up by `pair` in the details",
        "`pairs` is ours: both claims in one question. Of two claims that contradict each other one is true, so chance is a half",
        "the authors publish no parser; a verdict is read from the tag asked for, else from the last true or false",
    ],
    "paper_id": 47,
    "lengths": "70K to 240K tokens",
    "needs": "data_sample.json, and each book as text: books/<book_title>.txt, such as books/the_great_gatsby_f_scott_fitzgerald.txt "
    "(the official classic_books.pkl is a pickle, which is not opened)",
    "licence": "MIT",
    "citation": "Karpinska et al., 2024",
}

SOURCE = Source(
    hub=None,
    licence="MIT",
    citation='Karpinska et al., One Thousand and One Pairs: A "novel" challenge for long-context language models, EMNLP 2024',
    url="https://github.com/marzenakrp/nocha",
)
RULE = (
    "A statement is TRUE only if all of it is true of the book above, and FALSE if any part of it is false."
)
ONE = (
    "Is the following statement about the book above TRUE or FALSE?\n\n<statement>{claim}</statement>\n\n"
    + RULE
    + " First explain your decision in at most one paragraph, then give your verdict, in this form:\n"
    "<explanation>...</explanation>\n<answer>TRUE or FALSE</answer>"
)
TWO = (
    "Are the following two statements about the book above TRUE or FALSE?\n\n<statement1>{first}</statement1>\n"
    "<statement2>{second}</statement2>\n\n"
    + RULE
    + " Explain each decision in at most one paragraph and give your verdict "
    "after it, for statement 1 and then for statement 2, each in this form:\n"
    "<explanation>...</explanation>\n<answer>TRUE or FALSE</answer>"
)


def _book(row: Row) -> str:
    return find_text("nocha", f"{row['book_title']}.txt", SOURCE)


def _verdict(row: Row) -> str:
    word = str(row["type"]).upper()
    if word not in ("TRUE", "FALSE"):
        raise ValueError(f"the type of claim {row['index']} is {row['type']!r}; it must be True or False")
    return word


def _details(row: Row) -> dict[str, Any]:
    return {"pair": f"{row['book_title']}/{row['index']}", "book": row["book_title"], "genre": row["genre"]}


def _claim(row: Row) -> Iterable[Question]:
    yield Question(
        context=_book(row),
        question=ONE.format(claim=row["claim"]),
        references=(_verdict(row),),
        answer=f"<answer>{_verdict(row)}</answer>",
        details={**_details(row), "explanation": row["false-claim-explanation"]},
    )


def _paired(rows: Iterable[Row]) -> Iterable[Row]:
    """Both claims of each pair, in an order that the pair's name decides."""
    pairs: dict[str, list[Row]] = {}
    for row in rows:
        pairs.setdefault(str(_details(row)["pair"]), []).append(row)
    for name, claims in pairs.items():
        if sorted(map(_verdict, claims)) != ["FALSE", "TRUE"]:
            raise ValueError(
                f"the pair {name} has {len(claims)} claims; it must have one true and one false one"
            )
        claims.sort(key=_verdict, reverse=bool(sha256(name.encode()).digest()[0] % 2))
        yield {**claims[0], "claims": claims}


def _pair(row: Row) -> Iterable[Question]:
    first, second = row["claims"]
    verdicts = (_verdict(first), _verdict(second))
    yield Question(
        context=_book(row),
        question=TWO.format(first=first["claim"], second=second["claim"]),
        references=verdicts,
        answer="\n".join(f"<answer>{verdict}</answer>" for verdict in verdicts),
        details=_details(row),
    )


def _guess(rng: random.Random, sample: Sample) -> str:
    return f"<answer>{rng.choice(('TRUE', 'FALSE'))}</answer>"


def _guess_pair(rng: random.Random, sample: Sample) -> str:
    return "\n".join(
        f"<answer>{word}</answer>" for word in rng.choice((("TRUE", "FALSE"), ("FALSE", "TRUE")))
    )


TASKS: dict[str, GroupedTask] = {
    "claims": GroupedTask(
        suite="nocha", source=SOURCE, file="data_sample.json", parse=_claim, max_new_tokens=600,
        ability="verification", diffusion="high", scope="high", metric=true_or_false, chance=0.5, guess=_guess,
        answers="derived",
    ),
    "pairs": GroupedTask(
        suite="nocha", source=SOURCE, file="data_sample.json", parse=_pair, group=_paired, max_new_tokens=1200,
        ability="verification", diffusion="high", scope="high", metric=both_claims, chance=0.5,
        guess=_guess_pair, answers="derived",
    ),
}  # fmt: skip
