"""Rows of InfiniteBench as questions: the official instructions in own words, one for all models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from longspan.evaluation.published import Question

__all__ = [
    "Row",
    "book",
    "book_choice",
    "broken_code",
    "hidden",
    "numbers",
    "pairs",
    "running_code",
    "running_values",
]

LETTERS = "ABCD"
Row = Mapping[str, Any]


def _answers(row: Row) -> tuple[str, ...]:
    gold = row["answer"]
    found = tuple(map(str, gold)) if isinstance(gold, list | tuple) else (str(gold),)
    if not found:
        raise ValueError("`answer` is empty")
    return found


def _options(row: Row) -> str:
    if len(row["options"]) != len(LETTERS):
        raise ValueError(f"`options` has {len(row['options'])} entries, four are expected")
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, row["options"], strict=True))


def _choice(row: Row) -> tuple[str, str]:
    """The right option and its letter. The data name the option, or both."""
    gold = _answers(row)
    if len(gold) == 2 and gold[1] in tuple(LETTERS):
        return gold[0], gold[1]
    if len(gold) != 1 or gold[0] not in row["options"]:
        raise ValueError(f"`answer` {list(gold)!r} is not one of the options")
    return gold[0], LETTERS[list(row["options"]).index(gold[0])]


def hidden(prefix: str, row: Row) -> Question:
    """Needles in noise. prefix: start of the answer."""
    return Question(
        context=f"One important piece of information is hidden in the text below. Remember it.\n\n{row['context']}",
        question=row["input"].strip(),
        answer_prefix=prefix,
        references=_answers(row),
        evidence=tuple(line for line in row["context"].splitlines() if _answers(row)[0] in line)[:1],
    )


def _split_start(text: str) -> tuple[str, str]:
    """The input without its last sentence "The ... is:", and that sentence, which starts the answer."""
    found = re.search(r"The [^.\n]+ is:?\s*$", text)
    return (text[: found.start()].strip(), found[0].strip()) if found else (text.strip(), "")


def pairs(row: Row) -> Question:
    """One value of a JSON object of 2,500 pairs."""
    asked, start = _split_start(row["input"])
    value = _answers(row)[0]
    found = re.search(rf'"[^"]*": "{re.escape(value)}"', row["context"])
    return Question(
        context=row["context"],
        question=f"Which value does this key have in the JSON object above?\n{asked}",
        answer_prefix=start,
        references=(value,),
        evidence=() if found is None else (found[0],),
    )


def numbers(row: Row) -> Question:
    """The largest, smallest or middle number of a list of 60,000."""
    asked, start = _split_start(row["input"])
    return Question(
        context=f"A list of numbers:\n\n{row['context']}",
        question=asked,
        answer_prefix=start,
        references=_answers(row),
    )


def running_values(row: Row) -> Question:
    """All running values of 30,000 additions and subtractions."""
    values = _answers(row)
    return Question(
        context="Work out an expression from left to right and give the value after each operation. For 1 + 3 + 4 that is "
        f"[4, 8], for 8 - 3 + 2 - 4 it is [5, 7, 3].\n\nExpression: {row['context']}",
        question="Give the values as a list and nothing else.",
        answer_prefix="Values:",
        references=values,
        answer=f"[{', '.join(values)}]",
    )


def running_code(row: Row) -> Question:
    """What a function returns that calls others."""
    found = re.search(r"func_\d+\(-?\d+\)", row["input"])
    if found is None:
        raise ValueError(f"`input` {row['input'][:80]!r} names no call such as func_12(-3)")
    return Question(
        context=row["context"],
        question=f"What number does {found[0]} return? Your answer must end with that number.",
        answer_prefix=f"The value of {found[0]} is",
        references=_answers(row),
    )


def broken_code(row: Row) -> Question:
    """Which of four functions of a project is broken."""
    name, letter = _choice(row)
    return Question(
        context=f"One function of this project has been broken on purpose; all others work.\n\n{row['context']}",
        question=f"Which function is broken?\n{_options(row)}\nAnswer with letter and name as above, such as `A. name`.",
        answer_prefix="The correct option is:",
        references=(name, letter),
        answer=f"{letter}. {name}",
        details={"choices": list(LETTERS)},
    )


def book_choice(row: Row) -> Question:
    """A question on a book with four options."""
    option, letter = _choice(row)
    return Question(
        context=f"Read this book for a question about it.\n\n{row['context']}",
        question=f"Question: {row['input'].strip()}\n{_options(row)}\nOne option is right. Answer with its letter alone.",
        answer_prefix="The letter of the correct answer is",
        references=(option, letter),
        answer=letter,
        details={"choices": list(LETTERS)},
    )


def book(before: str, after: str, start: str, row: Row) -> Question:
    """A question on a book or script.

    Args:
        before, after: the instruction around it; "{input}" stands for the question. start: of the answer.
        row: as published.
    """
    return Question(
        context=f"{before}\n\n{row['context']}",
        question=after.replace("{input}", row.get("input", "").strip()),
        answer_prefix=start,
        references=_answers(row),
    )
