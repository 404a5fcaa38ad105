"""What each spec answered, question by question, beside the expected answer and the sentence that holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from longspan.evaluation.report.draw import badge, element

__all__ = ["answer_cards"]


def answer_cards(answers: Sequence[Mapping[str, Any]], specs: Sequence[str]) -> str:
    """One card a question.

    Args:
        answers: dictionaries with `question`, `expected`, `source` (the sentence that holds the answer, or None) and
            `answers`: a list of dictionaries with `spec`, `text` and `right` (bool).
        specs: all specs in report order, for their numbers and colours.
    """
    return "".join(_card(answer, specs) for answer in answers)


def _card(answer: Mapping[str, Any], specs: Sequence[str]) -> str:
    parts = [element("h3", escape(answer["question"]))]
    parts.append(element("p", "Expected: " + element("strong", escape(answer["expected"]))))
    if answer.get("source"):
        parts.append(
            element(
                "blockquote", escape(answer["source"]), title="the sentence in the text that holds the answer"
            )
        )
    lines = []
    for given in answer["answers"]:
        spec = given["spec"]
        number = specs.index(spec) + 1 if spec in specs else None
        mark = badge(number) + " " if number else ""
        verdict = "right" if given["right"] else "wrong"
        sign = element("span", ("✓ " if given["right"] else "✗ ") + verdict, class_=f"verdict {verdict}")
        shown = escape(given["text"].strip()) or "<i>nothing</i>"
        lines.append(element("li", f"{sign}<div>{mark}<code>{escape(spec)}</code><br>{shown}</div>"))
    parts.append(element("ul", "".join(lines), class_="given"))
    return element("article", "".join(parts), class_="card")
