"""Loong's answers without a judge: names, numbers, groups, matches and chains compared as they are.

The official score is a mark of GPT-4 from 1 to 100. These rules read the same structured answers and need no model; they do not
give the official number.

Paper: Wang et al., *Leave No Document Behind: Benchmarking Long-Context LLMs with Extended Multi-Doc QA*, 2024.
"""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.judging.fallbacks import keywords_of

__all__ = ["first_value", "loong"]

SHORT_ANSWER = 60
SEPARATORS = re.compile(r"[;；、，\n]|,(?!\d)")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def loong(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """How much of the answer is right, and "perfect": 1.0 where all of it is.

    Groups (a JSON object of lists) score the F1 of their pairs of group and member, matches (an object of strings) the part
    that is right, chains (a list) their longest common subsequence over the longer chain. Plain answers score the part of their
    items, or in a long answer of its numbers (without any: its words that matter), that stands in the reply.

    Args:
        references: the answer, JSON where it is no plain text.
        details: "answer_type", "text", "list" or "dict" (default: told from the reference).
    """
    if not references:
        raise ValueError("got no references; a metric needs at least one to compare with")
    kind = details.get("answer_type")
    wanted = references[0] if kind == "text" else first_value(references[0], dict, list)
    if isinstance(wanted, dict) and wanted:
        score = _objects(first_value(prediction, dict), wanted)
    elif isinstance(wanted, list) and wanted:
        score = _chain(first_value(prediction, list), wanted)
    else:
        score = _text(prediction, references[0])
    return {"score": score, "perfect": float(score == 1.0)}


def first_value(text: str, *kinds: type) -> Any:
    """The first JSON (or Python) object or list of these kinds in a text; None where there is none."""
    opening: dict[Any, str] = {dict: "{", list: "["}
    for found in re.finditer("|".join(re.escape(opening[kind]) for kind in kinds), text):
        value = _value_at(text, found.start())
        if isinstance(value, kinds):
            return value
    return None


def _value_at(text: str, start: int) -> Any:
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except (json.JSONDecodeError, RecursionError):
        pass
    closing = "}" if text[start] == "{" else "]"
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] in "{[") - (text[place] in "}]")
        if depth == 0:
            if text[place] != closing:
                return None
            try:
                return ast.literal_eval(text[start : place + 1])
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return None
    return None


def _ungrouped(text: str) -> str:
    """A text without the separators of thousands, in lower case and in the plain forms of its characters."""
    return unicodedata.normalize("NFKC", THOUSANDS.sub("", text)).lower()


def _plain(value: Any) -> str:
    """A name or number without case, white space, title marks and thousands separators."""
    return re.sub(r"[\s#《》\"'“”‘’]", "", _ungrouped(str(value))).rstrip(".。")


def _objects(found: Any, wanted: Mapping[str, Any]) -> float:
    if not isinstance(found, dict):
        return 0.0
    given, right = _pairs(found), _pairs(wanted)
    if all(not isinstance(value, list) for value in wanted.values()):
        return len(given & right) / len(right)
    if not right:  # every group is empty
        return float(not given)
    common = len(given & right)
    return 2 * common / (len(given) + len(right))


def _pairs(groups: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {
        (_plain(name), _plain(member))
        for name, members in groups.items()
        for member in (members if isinstance(members, list) else [members])
    }


def _chain(found: Any, wanted: Sequence[Any]) -> float:
    if not isinstance(found, list):
        return 0.0
    first, second = [_plain(one) for one in found], [_plain(one) for one in wanted]
    row = [0] * (len(second) + 1)
    for one in first:
        before = row[:]
        for place, other in enumerate(second, start=1):
            row[place] = before[place - 1] + 1 if one == other else max(row[place - 1], before[place])
    return row[-1] / max(len(first), len(second))


def _text(prediction: str, answer: str) -> float:
    texts = (_plain(prediction), _ungrouped(prediction))
    parts = [part for one in SEPARATORS.split(answer) if (part := _plain(one))]
    if len(answer) > SHORT_ANSWER:
        numbers = NUMBER.findall(_ungrouped(answer))
        parts = list(dict.fromkeys(numbers or map(_plain, keywords_of(answer))))
    right = sum(any(_stands(part, text) for text in texts) for part in parts)
    return right / len(parts) if parts else 0.0


def _stands(part: str, text: str) -> bool:
    """Whether a part stands in a text; a number must not be part of a longer one."""
    left, right = (r"(?<![\d.])" if part[0].isdigit() else ""), (r"(?!\.?\d)" if part[-1].isdigit() else "")
    return re.search(left + re.escape(part) + right, text) is not None
