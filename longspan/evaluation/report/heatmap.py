"""Accuracy by depth of the needle and length of the context: one small heatmap a spec, a number in every cell."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from longspan.evaluation.report.draw import CHART_WIDTH, badge, element, heat_colours, short, text
from longspan.evaluation.results import Row
from longspan.evaluation.summary import Summary, distinct, summarise
from longspan.evaluation.wording import percent, tokens_text

__all__ = ["heatmaps"]

_LEFT = 66
_TOP = 8
_CELL_HEIGHT = 28
_BELOW = 40
_WIDEST_CELL = 64


def heatmaps(rows: Sequence[Row]) -> str:
    """One figure a spec; empty text when no row has an accuracy.

    Args:
        rows: result rows; likelihood rows are left out.
    """
    rows = [{**row, "depth": _depth(row)} for row in rows if row.get("kind", "answer") == "answer"]
    specs = distinct(rows, "spec")
    lengths = sorted(distinct(rows, "length_tokens"))
    known = [depth for depth in distinct(rows, "depth") if depth is not None]
    depths: list[float | None] = [*sorted(known)]
    if any(row.get("depth") is None for row in rows):
        depths.append(None)
    if not known:
        # One line that says "spread" is the chart of score by length over again.
        return ""
    figures = []
    for number, spec in enumerate(specs, start=1):
        cells = {
            (summary.group["depth"], summary.group["length_tokens"]): summary
            for summary in summarise([row for row in rows if row["spec"] == spec], ("depth", "length_tokens"))
        }
        caption = element("figcaption", f"{badge(number)} {escape(spec)}")
        figures.append(element("figure", caption + _heatmap(cells, depths, lengths, spec)))
    return "".join(figures)


def _depth(row: Row) -> float | None:
    """The depth that was asked for; else where a single piece of evidence lies, to the nearest quarter; else None."""
    if row.get("depth") is not None:
        return float(row["depth"])
    found = row.get("depths") or []
    return round(found[0] * 4) / 4 if len(found) == 1 else None


def _heatmap(cells: dict, depths: list[float | None], lengths: list[int], spec: str) -> str:
    width = min(_WIDEST_CELL, (CHART_WIDTH - _LEFT - 4) / max(1, len(lengths)))
    height = _TOP + _CELL_HEIGHT * len(depths) + _BELOW
    parts = []
    for line, depth in enumerate(depths):
        y = _TOP + line * _CELL_HEIGHT
        name = "spread" if depth is None else percent(depth)
        parts.append(text(_LEFT - 8, y + _CELL_HEIGHT / 2 + 4, name, text_anchor="end", class_="tick"))
        parts.extend(
            _cell(
                _LEFT + column * width,
                y,
                width,
                cells.get((depth, length)),
                f"{spec}, depth {name}, {length:,} tokens",
            )
            for column, length in enumerate(lengths)
        )
    bottom = _TOP + len(depths) * _CELL_HEIGHT
    every = max(1, round(30 / width))
    parts.extend(
        text(
            _LEFT + (column + 0.5) * width,
            bottom + 15,
            tokens_text(length),
            text_anchor="middle",
            class_="tick",
        )
        for column, length in enumerate(lengths)
        if column % every == 0
    )
    grid = width * len(lengths)
    parts.append(
        text(
            _LEFT + max(grid, 110) / 2,
            bottom + 32,
            "context length (tokens)",
            text_anchor="middle",
            class_="axis",
        )
    )
    middle = _TOP + _CELL_HEIGHT * len(depths) / 2
    if len(depths) > 1:
        parts.append(
            text(
                11,
                middle,
                "depth of answer",
                text_anchor="middle",
                class_="axis",
                transform=f"rotate(-90 11 {middle:.0f})",
            )
        )
    label = f"Accuracy of {short(spec, 60)} by depth and context length"
    return element("svg", "".join(parts), viewBox=f"0 0 {CHART_WIDTH} {height}", role="img", aria_label=label)


def _cell(x: float, y: float, width: float, summary: Summary | None, where: str) -> str:
    box = {
        "x": float(x + 1),
        "y": float(y + 1),
        "width": float(width - 2),
        "height": _CELL_HEIGHT - 2,
        "rx": 3,
    }
    if summary is None or summary.accuracy is None or summary.interval is None:
        why = f"not run: {summary.reasons[0]}" if summary and summary.reasons else "not run"
        return element(
            "rect", element("title", escape(f"{where}: {why}")), fill="url(#hatch)", class_="not-run", **box
        )
    fill, colour = heat_colours(summary.accuracy)
    low, high = summary.interval
    interval = f"95% interval {percent(low)} to {percent(high)}"
    title = f"{where}: {percent(summary.accuracy)} of {summary.num_samples}, {interval}"
    rect = element("rect", element("title", escape(title)), fill=fill, **box)
    style = f"fill:{colour};font-size:{12 if width >= 30 else 9}px"
    shown = f"{summary.accuracy * 100:.0f}"
    number = text(
        x + width / 2, y + _CELL_HEIGHT / 2 + 4, shown, text_anchor="middle", style=style, class_="cell"
    )
    return rect + number
