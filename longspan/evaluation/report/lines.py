"""Perplexity by position: one line a spec, both axes logarithmic, one plot a context length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from longspan.evaluation.report.draw import (
    CHART_WIDTH,
    element,
    log_ticks,
    series_class,
    short,
    spec_markup,
    spread,
    text,
)
from longspan.evaluation.results import Row
from longspan.evaluation.summary import Summary, distinct, summarise
from longspan.evaluation.wording import tokens_text

__all__ = ["perplexity_lines", "perplexity_table"]

_LEFT, _RIGHT, _TOP, _HEIGHT, _BELOW = 58, 22, 10, 190, 42
_LARGEST = 1e9


def perplexity_lines(rows: Sequence[Row]) -> str:
    """One figure a (task, context length); empty text when no row has a likelihood."""
    specs = distinct(rows, "spec")
    rows = [row for row in rows if row.get("nll") is not None]
    figures = []
    for task in distinct(rows, "task"):
        for length in sorted(distinct((row for row in rows if row["task"] == task), "length_tokens")):
            groups = summarise(
                [row for row in rows if row["task"] == task and row["length_tokens"] == length]
            )
            caption = element("figcaption", f"{escape(task)}, {tokens_text(length)} tokens")
            figures.append(element("figure", caption + _plot(groups, specs)))
    return "".join(figures)


def _plot(groups: Sequence[Summary], specs: Sequence[str]) -> str:
    right, base = CHART_WIDTH - _RIGHT, _TOP + _HEIGHT
    values = [min(bucket.perplexity, _LARGEST) for group in groups for bucket in group.buckets]
    low, high = min(values) / 1.2, max(values) * 1.2
    ends = sorted({bucket.end for group in groups for bucket in group.buckets})
    first, last = ends[0] / 1.3, ends[-1] * 1.1

    def place(end: float, perplexity: float) -> tuple[float, float]:
        x = _LEFT + (right - _LEFT) * math.log(end / first) / math.log(last / first)
        return x, base - _HEIGHT * math.log(min(perplexity, _LARGEST) / low) / math.log(high / low)

    parts = []
    for tick in log_ticks(low, high, most=6):
        y = place(ends[0], tick)[1]
        parts.append(element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(
            text(
                _LEFT - 6,
                y + 4,
                f"{tick:,.0f}" if tick < 1e5 else f"{tick:.0e}",
                text_anchor="end",
                class_="tick",
            )
        )
    every = math.ceil(len(ends) / 7)
    for end in ends[::-1][::every]:
        parts.append(
            text(place(end, low)[0], base + 15, tokens_text(end), text_anchor="middle", class_="tick")
        )
    name = "position, up to (tokens, log scale)"
    parts.append(text((_LEFT + right) / 2, base + 34, name, text_anchor="middle", class_="axis"))
    middle = _TOP + _HEIGHT / 2
    turn = f"rotate(-90 10 {middle:.0f})"
    parts.append(
        text(10, middle, "perplexity (log scale)", text_anchor="middle", class_="axis", transform=turn)
    )
    ends_y = [place(group.buckets[-1].end, group.buckets[-1].perplexity)[1] for group in groups]
    for group, label_y in zip(groups, spread(ends_y, base), strict=True):
        spec = group.group["spec"]
        number = specs.index(spec) + 1
        colour = series_class(number)
        points = [place(bucket.end, bucket.perplexity) for bucket in group.buckets]
        parts.append(text(right + 4, label_y + 4, str(number), class_=f"label {colour}"))
        parts.append(
            element(
                "polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=f"line {colour}"
            )
        )
        for (x, y), bucket in zip(points, group.buckets, strict=True):
            title = element(
                "title",
                escape(f"{short(spec, 60)}: {bucket.perplexity:,.1f} at {bucket.start:,} to {bucket.end:,}"),
            )
            parts.append(element("circle", title, cx=x, cy=y, r=3.5, class_=f"dot {colour}"))
    view = f"0 0 {CHART_WIDTH} {base + _BELOW}"
    return element("svg", "".join(parts), viewBox=view, role="img", aria_label="Perplexity by position")


def perplexity_table(rows: Sequence[Row]) -> str:
    """A table with a line a (task, spec, length) and a column a position bucket; empty text without likelihoods."""
    specs = distinct(rows, "spec")
    groups = summarise([row for row in rows if row.get("nll") is not None], ("task", "spec", "length_tokens"))
    if not groups:
        return ""
    edges = sorted({(bucket.start, bucket.end) for group in groups for bucket in group.buckets})
    head = "".join(
        element("th", f"{tokens_text(start)}–{tokens_text(end)}", scope="col") for start, end in edges
    )
    lines = [
        element("tr", '<th scope="col">spec</th><th scope="col">length</th><th scope="col">all</th>' + head)
    ]
    for group in groups:
        found = {(bucket.start, bucket.end): f"{bucket.perplexity:,.1f}" for bucket in group.buckets}
        number = specs.index(group.group["spec"]) + 1
        cells = [element("th", spec_markup(number, group.group["spec"]), scope="row")]
        shown = [
            tokens_text(group.group["length_tokens"]),
            f"{group.perplexity:,.1f}",
            *(found.get(edge, "") for edge in edges),
        ]
        cells += [element("td", value) for value in shown]
        lines.append(element("tr", "".join(cells)))
    return element("div", element("table", "".join(lines)), class_="scroll")
