"""Sample by sample: the question, the text around its evidence, the expected answer, and what each spec said."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from longspan.evaluation.report.draw import badge, element
from longspan.evaluation.results import Row
from longspan.evaluation.summary import distinct
from longspan.evaluation.wording import percent, tokens_text

__all__ = ["MAX_SAMPLES", "sample_list"]

MAX_SAMPLES = 200
_MAX_CHARACTERS = 1500
_KEY = ("task", "length_tokens", "depth", "seed")


def sample_list(rows: Sequence[Row]) -> str:
    """Samples that fold open, the worst answered first; empty text when no row tells question and answer.

    Args:
        rows: result rows. Used beside their scores: `question`, `references`, `prediction`, and `excerpt`, a list of
            [before, evidence, after].
    """
    specs = distinct(rows, "spec")
    samples: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if (
            row.get("score") is not None
            and row.get("question") is not None
            and row.get("prediction") is not None
        ):
            samples.setdefault(tuple(row.get(name) for name in _KEY), []).append(row)
    if not samples:
        return ""
    ordered = sorted(samples.values(), key=_mean)
    shown = "".join(_sample(answers, specs) for answers in ordered[:MAX_SAMPLES])
    wrong = sum(_num_wrong(answers) > 0 for answers in ordered)
    counted = f"{len(ordered):,} samples, {wrong:,} of them with an answer that is not wholly right; the worst come first."
    if len(ordered) > MAX_SAMPLES:
        counted += f" {len(ordered) - MAX_SAMPLES:,} more are left out here; the results file holds them all."
    listed = element("div", shown, class_="samples", data_filter="Filter samples")
    return element("p", counted, class_="small") + listed


def _mean(answers: Sequence[Row]) -> float:
    return float(sum(row["score"] for row in answers) / len(answers))


def _num_wrong(answers: Sequence[Row]) -> int:
    return sum(row["score"] < 1 - 1e-9 for row in answers)


def _sample(answers: Sequence[Row], specs: Sequence[str]) -> str:
    row = answers[0]
    place = [row["task"], f"{tokens_text(row['length_tokens'])} tokens"]
    place += [f"depth {percent(row['depth'])}"] if row.get("depth") is not None else []
    place += [f"seed {row['seed']}"] if row.get("seed") is not None else []
    marks = "".join(
        element(
            "span",
            f"{_sign(found['score'])}{badge(specs.index(found['spec']) + 1)}",
            class_=_class(found["score"]),
        )
        for found in answers
    )
    parts = [
        element("summary", element("span", escape(", ".join(place))) + element("span", marks, class_="marks"))
    ]
    parts.append(element("p", escape(_cut(str(row["question"])))))
    excerpts = next((found["excerpt"] for found in answers if found.get("excerpt")), None) or []
    parts += [element("blockquote", _excerpt(piece)) for piece in excerpts]
    expected = ", ".join(map(str, row.get("references") or [])) or "–"
    parts.append(element("p", "Expected: " + element("strong", escape(_cut(expected)))))
    parts.append(element("ul", "".join(_answer(found, specs) for found in answers), class_="given"))
    return element(
        "details",
        "".join(parts),
        data_words=" ".join((*place, *(found["spec"] for found in answers))),
        data_wrong=int(_num_wrong(answers) > 0),
    )


def _answer(row: Row, specs: Sequence[str]) -> str:
    score = row["score"]
    word = {"right": "right", "wrong": "wrong", "partly": percent(score)}[_class(score)]
    sign = element("span", f"{_sign(score)} {word}", class_=f"verdict {_class(score)}")
    shown = escape(_cut(str(row["prediction"]).strip())) or "<i>nothing</i>"
    parts = ", ".join(f"{name} {percent(value)}" for name, value in (row.get("scores") or {}).items())
    note = element("span", escape(f" ({parts})"), class_="small") if parts else ""
    mark = badge(specs.index(row["spec"]) + 1)
    return element("li", f"{sign}<div>{mark} <code>{escape(row['spec'])}</code>{note}<br>{shown}</div>")


def _class(score: float) -> str:
    return "right" if score >= 1 - 1e-9 else "wrong" if score <= 1e-9 else "partly"


def _sign(score: float) -> str:
    return {"right": "✓", "wrong": "✗", "partly": "◐"}[_class(score)]


def _excerpt(piece: Sequence[str]) -> str:
    before, evidence, after = piece
    return f"…{escape(before)}{element('mark', escape(_cut(evidence)))}{escape(after)}…"


def _cut(text: str) -> str:
    if len(text) <= _MAX_CHARACTERS:
        return text
    return f"{text[:_MAX_CHARACTERS]}… ({len(text) - _MAX_CHARACTERS:,} characters more)"
