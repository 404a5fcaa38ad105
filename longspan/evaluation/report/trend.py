"""Score by length of the text: one line a spec with 95% intervals, and the table of effective lengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from longspan.evaluation.metrics.statistics import RULER_THRESHOLD
from longspan.evaluation.report.draw import (
    CHART_WIDTH,
    element,
    series_class,
    short,
    spec_markup,
    spread,
    text,
)
from longspan.evaluation.results import Row
from longspan.evaluation.summary import (
    NOLIMA_SHARE,
    LengthSummary,
    Summary,
    distinct,
    summarise,
    summarise_lengths,
)
from longspan.evaluation.wording import percent, tokens_text

__all__ = ["effective_table", "score_lines", "task_lines"]

_LEFT, _RIGHT, _TOP, _HEIGHT, _BELOW = 54, 26, 12, 190, 42
_DODGE = 3.0
"""Chart units between the lines of two specs at one length, so that their whiskers stay apart."""

_LEGEND = (
    f"Mean over tasks, each weighing the same. Effective length: the longest tested length with a score of at least "
    f"{percent(RULER_THRESHOLD)} (Llama2-7B at 4K on RULER), all shorter tested lengths passing too. Relative: the same with "
    f"{percent(NOLIMA_SHARE)} of the spec's own score at the shortest length (NoLiMa), however low that is. wAvg (inc), (dec): "
    "averages whose weights rise, or fall, with length (RULER). The bar was set on RULER's 13 tasks: on others read the relative one."
)

_Place = Callable[[int], float]


def score_lines(rows: Sequence[Row]) -> str:
    """One figure over all tasks; empty text with scores at fewer than two lengths."""
    rows = [row for row in rows if row.get("score") is not None]
    tasks = distinct(rows, "task")
    return _figure(tasks[0] if len(tasks) == 1 else "all tasks", rows, distinct(rows, "spec"))


def task_lines(rows: Sequence[Row]) -> str:
    """One figure a task; empty text with fewer than two tasks, whose figure `score_lines` is."""
    rows = [row for row in rows if row.get("score") is not None]
    specs, tasks = distinct(rows, "spec"), distinct(rows, "task")
    if len(tasks) < 2:
        return ""
    return "".join(_figure(task, [row for row in rows if row["task"] == task], specs) for task in tasks)


def _figure(title: str, rows: Sequence[Row], specs: Sequence[str]) -> str:
    lengths = sorted(distinct(rows, "length_tokens"))
    if len(lengths) < 2:
        return ""
    svg = _plot(summarise(rows, ("spec", "length_tokens")), specs, lengths, title)
    return element("figure", element("figcaption", escape(title)) + svg)


def _plot(groups: Sequence[Summary], specs: Sequence[str], lengths: Sequence[int], title: str) -> str:
    right, base = CHART_WIDTH - _RIGHT, _TOP + _HEIGHT
    shown = [spec for spec in specs if any(group.group["spec"] == spec for group in groups)]
    reach = math.log(lengths[-1] / lengths[0])

    def place_x(length: int) -> float:
        return _LEFT + 14 + (right - _LEFT - 28) * math.log(length / lengths[0]) / reach

    parts = []
    for step in (0, 0.25, 0.5, 0.75, 1):
        y = base - _HEIGHT * step
        parts.append(element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(text(_LEFT - 6, y + 4, percent(step), text_anchor="end", class_="tick"))
    parts += _length_ticks(lengths, place_x, base)
    name = "context length (tokens, log scale)"
    parts.append(text((_LEFT + right) / 2, base + 34, name, text_anchor="middle", class_="axis"))
    turn = f"rotate(-90 10 {_TOP + _HEIGHT / 2:.0f})"
    parts.append(text(10, _TOP + _HEIGHT / 2, "score", text_anchor="middle", class_="axis", transform=turn))
    lines = [
        sorted((g for g in groups if g.group["spec"] == spec), key=lambda g: g.group["length_tokens"])
        for spec in shown
    ]
    ends = spread([base - _HEIGHT * (line[-1].accuracy or 0.0) for line in lines], base)
    for order, (spec, line, end) in enumerate(zip(shown, lines, ends, strict=True)):
        shift = _DODGE * (order - (len(shown) - 1) / 2)
        parts.append(_line(line, specs.index(spec) + 1, _shifted(place_x, shift), base, end))
    return element(
        "svg", "".join(parts), viewBox=f"0 0 {CHART_WIDTH} {base + _BELOW}", role="img",
        aria_label=f"Score by context length: {title}",
    )  # fmt: skip


def _shifted(place_x: _Place, by: float) -> _Place:
    return lambda length: place_x(length) + by


def _line(line: Sequence[Summary], number: int, place_x: _Place, base: float, end: float) -> str:
    colour = series_class(number)
    points, parts = [], []
    for group in line:
        x, y = place_x(group.group["length_tokens"]), base - _HEIGHT * (group.accuracy or 0.0)
        low, high = group.interval or (0.0, 1.0)
        points.append(f"{x:.1f},{y:.1f}")
        title = (
            f"{short(group.group['spec'], 60)}, {group.group['length_tokens']:,} tokens: {percent(group.accuracy)} "
            f"({percent(low)} to {percent(high)}), {group.num_samples} samples"
        )
        bottom, top = base - _HEIGHT * low, base - _HEIGHT * high
        parts.append(element("line", x1=x, x2=x, y1=bottom, y2=top, class_=f"whisker {colour}"))
        parts.append(
            element("circle", element("title", escape(title)), cx=x, cy=y, r=3.5, class_=f"dot {colour}")
        )
    path = element("polyline", points=" ".join(points), class_=f"line {colour}")
    return (
        path + "".join(parts) + text(CHART_WIDTH - _RIGHT + 8, end + 4, str(number), class_=f"label {colour}")
    )


def _length_ticks(lengths: Sequence[int], place_x: _Place, base: float) -> list[str]:
    ticks, free = [], math.inf
    for length in reversed(lengths):
        x = place_x(length)
        if x + 18 <= free:
            ticks.append(text(x, base + 15, tokens_text(length), text_anchor="middle", class_="tick"))
            free = x - 18
    return ticks


def effective_table(rows: Sequence[Row]) -> str:
    """A line a spec: score at each length, effective length, weighted averages; empty text without scores."""
    specs = distinct(rows, "spec")
    found = summarise_lengths(rows)
    lengths = sorted({length for line in found for length in line.scores})
    if len(lengths) < 2:
        return ""
    names = ["spec", "effective length", "relative", *map(tokens_text, lengths), "wAvg (inc)", "wAvg (dec)"]
    head = element("tr", "".join(element("th", name, scope="col") for name in names))
    body = "".join(_effective_line(line, lengths, specs.index(line.spec) + 1) for line in found)
    table = element("table", element("thead", head) + element("tbody", body))
    left = [
        f"{line.spec}: {', '.join((*line.left_out, *(f'{tokens_text(n)} tokens' for n in line.left_out_tokens)))}"
        for line in found
        if line.left_out or line.left_out_tokens
    ]
    words = "Left out, because not every task was measured at every length: " + "; ".join(left)
    note = element("p", escape(words), class_="small") if left else ""
    return element("div", table, class_="scroll") + element("p", _LEGEND, class_="small") + note


def _effective_line(line: LengthSummary, lengths: Sequence[int], number: int) -> str:
    longest = max(line.scores, default=0)
    cells = [
        _length_cell(value, longest) for value in (line.effective_tokens, line.effective_relative_tokens)
    ]
    for length in lengths:
        score = line.scores.get(length)
        passed = score is not None and score >= RULER_THRESHOLD - 1e-9
        cells.append(element("td", element("strong", percent(score)) if passed else percent(score)))
    cells += [element("td", percent(value)) for value in (line.rising_average, line.falling_average)]
    name = element("th", spec_markup(number, line.spec), scope="row")
    return element("tr", name + "".join(cells))


def _length_cell(length: int | None, longest: int) -> str:
    if length is None:
        return element("td", "none", title="the shortest length fails already")
    # What lies beyond the longest test is not known.
    return element("td", ("≥ " if length == longest else "") + tokens_text(length))
