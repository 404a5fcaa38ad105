"""Procedures written out step by step: a countdown search, a route, a table taken from a page, a trace of beliefs.

Paper: Ye et al., *LongProc: Benchmarking Long-Context Language Models on Long Procedural Generation*, 2025. Each metric gives
"score" (the official accuracy, or F1), "partial" where there is one, and "extracted": whether an answer could be read.
"""

from __future__ import annotations

import csv
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import need_references, normal_words

__all__ = [
    "countdown",
    "countdown_fixed",
    "countdown_solved",
    "html_to_tsv",
    "path_traversal",
    "path_traversal_fixed",
    "tom_tracking",
]

SEARCH = "# Search Procedure"
BELIEF_WORDS = (
    r"\b(a|an|the|on|in|at|step|thinks|think|believes|believe|is|are|of|location|know|knows|belief)\b"
)


def _tagged(text: str, tag: str) -> str | None:
    start, end = text.find(f"<{tag}>"), text.find(f"</{tag}>")
    return None if start == -1 or end == -1 else text[start + len(tag) + 2 : end].strip()


def countdown_solved(numbers: Sequence[int], target: int, solution: str) -> bool:
    """Whether three lines "a + b = c" use up the numbers, each once, and end at the target.

    Args:
        numbers: the four numbers to begin with.
        target: what the last line must give.
        solution: three lines with +, -, * or / between whole numbers; a division must leave no rest.
    """
    left, lines = list(numbers), solution.split("\n")
    if len(lines) != 3:
        return False
    for line in lines:
        found = re.fullmatch(r"\s*(\d+)\s*([-+*/])\s*(\d+)\s*=\s*(-?\d+)\s*", line)
        if not found:
            return False
        first, second, result = int(found[1]), int(found[3]), int(found[4])
        right = {"+": first + second, "-": first - second, "*": first * second}.get(found[2], result * second)
        if found[2] == "/" and (second == 0 or result * second != first):
            return False
        if right != result and found[2] != "/":
            return False
        for number in (first, second):
            if number not in left:
                return False
            left.remove(number)
        left.append(result)
    return left[0] == target


def countdown(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """1.0 if the lines in <Solution>...</Solution> solve the countdown; "partial": part of the search that is right.

    Official scorer: LongProc `eval_countdown`. Its fault: the partial score is the place, from 0, of the first wrong line or of
    the last compared one, so a search without any mistake falls a line short, and one
    that ends after its first line is below 0, which is 0 here; see `countdown_fixed`.

    Args:
        references: the whole search, which starts after "# Search Procedure"; only "partial" needs it.
        details: "nums" and "target".
    """
    return _countdown(prediction, references, details, fixed=False)


def countdown_fixed(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> dict[str, float]:
    """`countdown` whose partial score counts the right lines."""
    return _countdown(prediction, references, details, fixed=True)


def _countdown(
    prediction: str, references: Sequence[str], details: Mapping[str, Any], *, fixed: bool
) -> dict[str, float]:
    if "nums" not in details or "target" not in details:
        raise ValueError(f"details have the keys {sorted(details)}; a countdown needs 'nums' and 'target'")
    solution = _tagged(prediction, "Solution")
    extracted = float(solution is not None)
    if solution is not None and countdown_solved(details["nums"], int(details["target"]), solution):
        return {"score": 1.0, "partial": 1.0, "extracted": extracted}
    if SEARCH not in prediction or not references:
        return {"score": 0.0, "partial": 0.0, "extracted": extracted}
    wanted = references[0].split(SEARCH)[-1].split("Now we have found the target")[0].strip().split("\n")
    found = prediction.split(SEARCH)[-1].strip().split("\n")
    if found[0] != wanted[0] or len(wanted) == 1:
        return {"score": 0.0, "partial": 0.0, "extracted": extracted}
    right, compared = 0, min(len(found), len(wanted)) - 1
    while right < compared and _same_step(found[right + 1], wanted[right + 1]):
        right += 1
    # The official count is the index of the line at which it stopped.
    lines = right if fixed or right < compared else max(0, compared - 1)
    return {"score": 0.0, "partial": lines / (len(wanted) - 1), "extracted": extracted}


def _same_step(found: str, wanted: str) -> bool:
    if found == wanted or "Pick two numbers" in wanted:
        return found == wanted
    dropped = "drop this branch"
    return found.split("=")[0] == wanted.split("=")[0] and (dropped in found) == (dropped in wanted)


def path_traversal(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> dict[str, float]:
    """1.0 if the lines in <Route>...</Route> are the reference; "partial": part of its lines before the first wrong one.

    Official scorer: LongProc `eval_path_traversal`. Its fault: the first wrong line is counted as right, so any answer of one
    line gets something; see `path_traversal_fixed`.
    """
    return _route(prediction, references, counted_too_many=1)


def path_traversal_fixed(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> dict[str, float]:
    """`path_traversal` whose partial score counts the right lines only."""
    return _route(prediction, references, counted_too_many=0)


def _route(prediction: str, references: Sequence[str], *, counted_too_many: int) -> dict[str, float]:
    need_references(references)
    route = _tagged(prediction, "Route")
    if route is None:
        return {"score": 0.0, "partial": 0.0, "extracted": 0.0}
    wanted, found = references[0].strip().split("\n"), route.split("\n")
    if wanted == found:
        return {"score": 1.0, "partial": 1.0, "extracted": 1.0}
    pairs = list(zip(wanted, found, strict=False))
    wrong = next((place for place, (line, other) in enumerate(pairs) if line != other), None)
    right = len(pairs) if wrong is None else wrong + counted_too_many
    return {"score": 0.0, "partial": right / len(wanted), "extracted": 1.0}


def html_to_tsv(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """F1 of the rows of a table in ```tsv fences, with "precision" and "recall"; rows are compared normalised, in any order.

    Official scorer: LongProc `eval_html_to_tsv`. Its faults: the header is not compared, a repeated row counts each time, and
    a table with another number of columns scores 0.
    """
    need_references(references)
    fenced = re.search(r"```tsv([\s\S]*)```", prediction)
    text = fenced[1] if fenced else prediction.split("```tsv")[1] if "```tsv" in prediction else prediction
    wanted, found = _rows(references[0]), _rows(text)
    if not wanted or not found or len(wanted[0]) != len(found[0]):
        return {"score": 0.0, "precision": 0.0, "recall": 0.0, "extracted": 0.0}
    precision = sum(row in wanted for row in found) / len(found)
    recall = sum(row in found for row in wanted) / len(wanted)
    score = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"score": score, "precision": precision, "recall": recall, "extracted": 1.0}


def _rows(text: str) -> list[tuple[str, ...]]:
    try:
        table = list(csv.reader(text.strip().split("\n"), delimiter="\t"))
    except csv.Error:
        return []
    header, rows = table[0], table[1:]
    if not rows or len(set(header)) != len(header):
        return []
    if len(rows[-1]) != len(header):
        rows = rows[:-1]  # an end marker, or a row that was cut off
    width = len(header)
    return [tuple(_cell(cell) for cell in (row if len(row) == width else ["N/A"] * width)) for row in rows]


def _cell(text: str) -> str:
    return "".join(normal_words(text))


def tom_tracking(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """1.0 if the beliefs on lines that begin with "-" are the reference's; "partial": part of them before the first wrong one.

    Official scorer: LongProc `eval_tom_tracking`. Lines indented before the hyphen are dropped, but for the first.
    """
    need_references(references)
    wanted, found = _beliefs(references[0]), _beliefs(prediction)
    if not wanted:
        raise ValueError("the reference states no belief; its lines must begin with '-'")
    if wanted == found:
        return {"score": 1.0, "partial": 1.0, "extracted": 1.0}
    pairs = list(zip(found, wanted, strict=False))
    right = next((place for place, (belief, other) in enumerate(pairs) if belief != other), len(pairs))
    return {"score": 0.0, "partial": right / len(wanted), "extracted": 1.0}


def _beliefs(text: str) -> list[str]:
    lines = "\n".join(line for line in text.splitlines() if line.strip().startswith("-")).strip().split("\n")
    beliefs = list[str]()
    for line in lines:
        if line.startswith("-"):
            bare = "".join(letter for letter in line[1:].lower() if letter not in string.punctuation + "’")
            beliefs.append(" ".join(re.sub(BELIEF_WORDS, " ", bare).split()))
    return [belief for belief in beliefs if belief]
