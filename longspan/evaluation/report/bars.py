"""Accuracy per task, one bar a spec, with its 95% interval and its number."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from longspan.evaluation.report.draw import CHART_WIDTH, element, series_class, short, text
from longspan.evaluation.results import Row
from longspan.evaluation.summary import Summary, distinct, summarise
from longspan.evaluation.wording import percent

__all__ = ["task_bars"]

_LEFT, _RIGHT, _LINE, _BAR = 24, 52, 18, 12
_NUM_TICKS = 5


def task_bars(rows: Sequence[Row]) -> str:
    """One figure a task; empty text when no row has an accuracy."""
    specs = distinct(rows, "spec")
    figures = []
    for task in distinct((row for row in rows if row.get("score") is not None), "task"):
        groups = {
            group.group["spec"]: group for group in summarise([row for row in rows if row["task"] == task])
        }
        figures.append(element("figure", element("figcaption", escape(task)) + _bars(groups, specs, task)))
    return "".join(figures)


def _bars(groups: dict[str, Summary], specs: Sequence[str], task: str) -> str:
    span = CHART_WIDTH - _LEFT - _RIGHT
    bottom = len(specs) * (_LINE + 12)
    parts = []
    for step in range(_NUM_TICKS):
        x = _LEFT + span * step / (_NUM_TICKS - 1)
        parts.append(element("line", x1=x, x2=x, y1=0, y2=bottom, class_="grid"))
        parts.append(
            text(x, bottom + 14, percent(step / (_NUM_TICKS - 1)), text_anchor="middle", class_="tick")
        )
    for line, spec in enumerate(specs):
        top = line * (_LINE + 12)
        number = line + 1
        colour = series_class(number)
        parts.append(text(_LEFT, top + 11, short(spec, 48), class_="bar-name"))
        parts.append(text(_LEFT - 6, top + 24, str(number), text_anchor="end", class_=f"label {colour}"))
        group = groups.get(spec)
        y = top + 14
        if group is None or group.accuracy is None or group.interval is None:
            parts.append(
                element("rect", x=_LEFT, y=y, width=span, height=_BAR, fill="url(#hatch)", class_="not-run")
            )
            parts.append(text(CHART_WIDTH, y + 10, "not run", text_anchor="end", class_="tick"))
            continue
        low, high = (_LEFT + span * bound for bound in group.interval)
        title = element("title", escape(f"{spec}: {percent(group.accuracy)} of {group.num_samples}"))
        parts.append(element("rect", x=_LEFT, y=y, width=float(span), height=_BAR, class_="track"))
        parts.append(
            element(
                "rect",
                title,
                x=_LEFT,
                y=y,
                width=float(span * group.accuracy),
                height=_BAR,
                class_=f"bar {colour}",
            )
        )
        middle = y + _BAR / 2
        whisker = f"M{low:.1f},{middle - 3}v6m0,-3H{high:.1f}m0,-3v6"
        parts.extend(element("path", d=whisker, class_=kind) for kind in ("interval-ground", "interval"))
        parts.append(text(CHART_WIDTH, y + 10, percent(group.accuracy), text_anchor="end", class_="value"))
    parts.append(
        text(
            _LEFT + span / 2, bottom + 30, "accuracy, with 95% interval", text_anchor="middle", class_="axis"
        )
    )
    label = f"Accuracy on {task} by spec"
    return element(
        "svg", "".join(parts), viewBox=f"0 0 {CHART_WIDTH} {bottom + 36}", role="img", aria_label=label
    )
