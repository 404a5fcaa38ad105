"""What a judge is told, and what can be read from its reply.

Prompts end in a last paragraph that asks for one JSON value. Replies are read leniently (thinking, code fences and prose
around the JSON are passed over) but never guessed: what cannot be read is None, which callers count and report.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = ["block", "json_values", "verdict"]

Value = TypeVar("Value")

_MAX_CHARACTERS = 20_000
_OPENING = re.compile(r"[{\[]")
_NEGATION = re.compile(r"\b(?:not|never|cannot|\w+n['\u2019]t)\b")


def block(label: str, text: str) -> str:
    """`text` between `<label>` and `</label>`, from which it cannot break out."""
    inner = re.sub(rf"<(/?\s*{re.escape(label)}\s*)>", r"(\1)", text.strip(), flags=re.IGNORECASE)
    return f"<{label}>\n{inner}\n</{label}>"


def json_values(reply: str) -> list[Any]:
    """The JSON objects and arrays of a reply, in order, wherever they stand; values inside a value are not repeated.

    Args:
        reply: a judge's text; only its last 20,000 characters are read.
    """
    text = _without_thinking(reply)[-_MAX_CHARACTERS:]
    decoder = json.JSONDecoder()
    found: list[Any] = []
    place = 0
    while (opening := _OPENING.search(text, place)) is not None:
        try:
            value, place = decoder.raw_decode(text, opening.start())
            found.append(value)
        except (ValueError, RecursionError):
            place = opening.end()
    return found


def verdict(reply: str, words: Mapping[str, Value]) -> Value | None:
    """The verdict of a reply: its last `{"verdict": word}`, or else the one verdict that its prose names.

    Prose that names two verdicts, or that negates ("I would not say it is correct"), is not read.

    Args:
        reply: a judge's text.
        words: what each allowed word, in lower case, stands for.

    Returns:
        The word's value; None where none can be read.
    """
    for value in reversed(json_values(reply)):
        if isinstance(value, dict) and "verdict" in value:
            return words.get(_plain(str(value["verdict"])).strip("."))
    longest_first = sorted(words, key=len, reverse=True)
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")
    prose = _plain(_without_thinking(reply))
    named = {words[word] for word in pattern.findall(prose)}
    if len(named) != 1 or _NEGATION.search(pattern.sub(" ", prose)):
        return None
    return named.pop()


def _without_thinking(reply: str) -> str:
    """What stands behind the thinking; nothing when that was cut off before its end."""
    return reply.rpartition("</think>")[2].partition("<think>")[0]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
