"""Specs against a baseline on the same samples: wins, losses, difference with its interval, p."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from longspan.evaluation.comparison import Comparison, Tally, compare_with, p_text, points_text
from longspan.evaluation.report.draw import element, name_markup
from longspan.evaluation.results import Row
from longspan.evaluation.summary import baseline_spec
from longspan.evaluation.wording import percent

__all__ = ["comparison_tables", "paired_section"]

_COLUMNS = ("task", "difference", "p", "95% interval", "", "wins", "losses", "ties", "first", "second")
_LEGEND = (
    "First minus second, in points, over the samples that both answered. Interval: bootstrap over pairs; where all differences "
    "are equal, what the rest could still do at most. p: exact two-sided sign test on wins and losses, ties dropped, not "
    "corrected for looking at several tasks."
)
_BAR_WIDTH, _BAR_HEIGHT = 110, 14


def paired_section(rows: Sequence[Row]) -> str:
    """Every spec against dense, or against the first spec; empty text with fewer than two specs or no pairs."""
    against = baseline_spec(rows)
    return comparison_tables(compare_with(rows, against)) if against is not None else ""


def comparison_tables(comparisons: Sequence[Comparison]) -> str:
    """A table a comparison, with a word on what could not be paired."""
    parts = [_table(comparison) for comparison in comparisons if comparison.overall]
    return "".join(parts) + element("p", _LEGEND, class_="small") if parts else ""


def _table(comparison: Comparison) -> str:
    head = element("tr", "".join(element("th", name, scope="col") for name in _COLUMNS))
    lines = [_line(tally) for tally in comparison.tasks]
    if comparison.overall and len(comparison.tasks) > 1:
        lines.append(_line(comparison.overall))
    title = f"<code>{escape(comparison.first)}</code> minus <code>{escape(comparison.second)}</code>"
    table = element("table", element("thead", head) + element("tbody", "".join(lines)), class_="versus")
    note = ""
    if comparison.unpaired:
        items = "".join(
            element("li", escape(f"{left.count} of {left.task}: {left.reason}"))
            for left in comparison.unpaired
        )
        summary = element("summary", f"{comparison.num_unpaired} rows could not be paired")
        note = element("details", summary + element("ul", items), class_="small")
    return element("h3", title) + element("div", table, class_="scroll") + note


def _line(tally: Tally) -> str:
    low, high = tally.interval
    name = name_markup(tally.task) if tally.task is not None else "all tasks"
    shown = [element("strong", points_text(tally.difference)), p_text(tally.p_value).replace("<", "&lt;")]
    shown += [f"{points_text(low)} to {points_text(high)}", _bar(tally)]
    shown += [
        f"{tally.wins:,}",
        f"{tally.losses:,}",
        f"{tally.ties:,}",
        percent(tally.mean),
        percent(tally.other_mean),
    ]
    cells = "".join(element("td", value) for value in shown)
    return element("tr", element("th", name, scope="row") + cells, class_=None if tally.task else "total")


def _bar(tally: Tally) -> str:
    """Where the difference and its interval lie between -100 and +100 points."""

    def place(value: float) -> float:
        return _BAR_WIDTH * (1 + min(1.0, max(-1.0, value))) / 2

    low, high = tally.interval
    side = "better" if low > 0 else "worse" if high < 0 else "unclear"
    middle = _BAR_HEIGHT / 2
    parts = [
        element("line", x1=place(0), x2=place(0), y1=0, y2=_BAR_HEIGHT, class_="zero"),
        element("line", x1=place(low), x2=place(high), y1=middle, y2=middle, class_=f"span {side}"),
        element("circle", cx=place(tally.difference), cy=middle, r=3.5, class_=side),
    ]
    view = f"0 0 {_BAR_WIDTH} {_BAR_HEIGHT}"
    return element("svg", "".join(parts), viewBox=view, class_="span-bar", role="img", aria_label=side)
