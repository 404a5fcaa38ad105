"""Score against what it costs (bytes, seconds), one plot a context length: the cost on a log axis, intervals as bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from longspan.evaluation.report.draw import CHART_WIDTH, element, log_ticks, series_class, short, text
from longspan.evaluation.results import Row
from longspan.evaluation.summary import Summary, distinct, summarise
from longspan.evaluation.wording import bytes_text, percent, seconds_text, tokens_text

__all__ = ["COSTS", "KV_BYTES", "Box", "Cost", "place_labels", "scatters"]

_LEFT, _RIGHT, _TOP, _HEIGHT, _BELOW = 54, 12, 12, 210, 42
_RADIUS = 4.5
_CHARACTER = 7.2
_LINE = 13.0
_TICK_WIDTH = 42.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a spec costs.

    Attributes:
        heading: of the section's part.
        axis: under the plot.
        value: of a group of rows; None where it was not measured.
        shown: the value in words.
    """

    heading: str
    axis: str
    value: Callable[[Summary], float | None]
    shown: Callable[[float | None], str]


def _token_time(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:.3g} ms"


KV_BYTES = Cost(
    heading="Score against memory",
    axis="bytes of keys and values held",
    value=lambda group: group.kv_bytes,
    shown=bytes_text,
)
COSTS = (
    KV_BYTES,
    Cost(
        heading="Score against time to first token",
        axis="time to first token",
        value=lambda group: group.prefill_seconds,
        shown=seconds_text,
    ),
    Cost(
        heading="Score against time per token",
        axis="time per generated token",
        value=lambda group: group.decode_seconds_per_token,
        shown=_token_time,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Box:
    """An upright rectangle, in chart units."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """True if the two share any area."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def inside(self, other: Box) -> bool:
        """True if `other` holds all of this box."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


def place_labels(
    points: Sequence[tuple[float, float]], labels: Sequence[str], obstacles: Sequence[Box], frame: Box
) -> list[tuple[str, Box] | None]:
    """Put a label near each point so that none covers a point, an obstacle or another label, and none leaves the frame.

    Every label first looks for a free place with its full text, then with its first word (the number of the spec).

    Args:
        points: centres, in chart units.
        labels: texts, one a point.
        obstacles: boxes that must stay free.
        frame: where labels may be.

    Returns:
        The shown text and its box for each point; None where nothing fits.
    """
    taken = [*obstacles]
    taken += [
        Box(left=x - _RADIUS, top=y - _RADIUS, right=x + _RADIUS, bottom=y + _RADIUS) for x, y in points
    ]
    placed: list[tuple[str, Box] | None] = []
    for (x, y), label in zip(points, labels, strict=True):
        found = None
        for shown in dict.fromkeys((label, label.split(" ")[0])):
            boxes = _candidates(x, y, len(shown) * _CHARACTER)
            found = next(
                (box for box in boxes if box.inside(frame) and not any(map(box.overlaps, taken))), None
            )
            if found:
                taken.append(found)
                placed.append((shown, found))
                break
        if not found:
            placed.append(None)
    return placed


def _candidates(x: float, y: float, width: float) -> list[Box]:
    """Places around a point, nearest first: right and left in rising and falling steps, then above and below."""
    centres = []
    for distance in range(0, 7):
        for sign in (-1, 1) if distance else (1,):
            shift = sign * distance * _LINE * 0.75
            gap = 8 + 3 * distance
            centres += [(x + gap + width / 2, y + shift), (x - gap - width / 2, y + shift)]
            if distance >= 2:
                centres.append((x, y + shift))
    return [
        Box(left=cx - width / 2, top=cy - _LINE / 2, right=cx + width / 2, bottom=cy + _LINE / 2)
        for cx, cy in centres
    ]


def scatters(rows: Sequence[Row], cost: Cost = KV_BYTES) -> str:
    """One figure a context length; empty text when no row has both a score and the cost."""
    figures = []
    specs = distinct(rows, "spec")
    for length in sorted(distinct(rows, "length_tokens")):
        chosen = [row for row in rows if row["length_tokens"] == length and row.get("score") is not None]
        groups = [group for group in summarise(chosen) if cost.value(group)]
        if groups:
            caption = element("figcaption", f"{tokens_text(length)} tokens")
            figures.append(element("figure", caption + _plot(groups, specs, cost)))
    return "".join(figures)


def _plot(groups: Sequence[Summary], specs: Sequence[str], cost: Cost) -> str:
    sizes = [float(cost.value(group) or 0) for group in groups]
    low, high = min(sizes) / 1.6, max(sizes) * 1.6
    right = CHART_WIDTH - _RIGHT

    def place_x(size: float) -> float:
        return _LEFT + (right - _LEFT) * math.log(size / low) / math.log(high / low)

    def place_y(accuracy: float) -> float:
        return _TOP + _HEIGHT * (1 - accuracy)

    parts = []
    for step in (0, 0.25, 0.5, 0.75, 1):
        y = place_y(step)
        parts.append(element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(text(_LEFT - 6, y + 4, percent(step), text_anchor="end", class_="tick"))
    for x, tick in _apart([(place_x(tick), tick) for tick in log_ticks(low, high) or [sizes[0]]]):
        parts.append(element("line", x1=x, x2=x, y1=_TOP, y2=_TOP + _HEIGHT, class_="grid"))
        anchor, place = ("end", right + _RIGHT - 2) if x > right - 12 else ("middle", x)
        parts.append(text(place, _TOP + _HEIGHT + 15, cost.shown(tick), text_anchor=anchor, class_="tick"))
    name = f"{cost.axis} (log scale)"
    parts.append(text((_LEFT + right) / 2, _TOP + _HEIGHT + 34, name, text_anchor="middle", class_="axis"))

    middle = _TOP + _HEIGHT / 2
    turn = f"rotate(-90 10 {middle:.0f})"
    parts.append(text(10, middle, "score", text_anchor="middle", class_="axis", transform=turn))

    points = [
        (place_x(size), place_y(group.accuracy or 0.0)) for size, group in zip(sizes, groups, strict=True)
    ]
    spans = [tuple(place_y(bound) for bound in group.interval or (0.0, 1.0)) for group in groups]
    bars = [
        Box(left=x - 2, right=x + 2, top=top, bottom=base)
        for (x, _), (base, top) in zip(points, spans, strict=True)
    ]
    numbers = [specs.index(group.group["spec"]) + 1 for group in groups]
    labels = [
        f"{number} {short(group.group['spec'], 24)}" for number, group in zip(numbers, groups, strict=True)
    ]
    frame = Box(left=_LEFT + 1, right=right + _RIGHT, top=1, bottom=_TOP + _HEIGHT - 1)
    placed = place_labels(points, labels, bars, frame)
    for (x, y), (base, top), number, group in zip(points, spans, numbers, groups, strict=True):
        colour = series_class(number)
        parts.append(element("line", x1=x, x2=x, y1=top, y2=base, class_=f"whisker {colour}"))
        parts.append(element("circle", _title(group, cost), cx=x, cy=y, r=_RADIUS, class_=f"dot {colour}"))
    for (x, y), number, label in zip(points, numbers, placed, strict=True):
        if label:
            parts.append(_label(x, y, series_class(number), *label))
    return element(
        "svg", "".join(parts), viewBox=f"0 0 {CHART_WIDTH} {_TOP + _HEIGHT + _BELOW}", role="img",
        aria_label=f"Score against {cost.axis}",
    )  # fmt: skip


def _apart(ticks: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Ticks (place, value) whose labels do not touch: powers of ten come first, then 2 and 5, then the others."""
    kept: list[tuple[float, float]] = []
    for x, tick in sorted(ticks, key=lambda found: _roundness(found[1])):
        if all(abs(x - other) >= _TICK_WIDTH for other, _ in kept):
            kept.append((x, tick))
    return sorted(kept)


def _roundness(value: float) -> int:
    digits = round(value / 10 ** math.floor(math.log10(value) + 1e-9), 6)
    return {1: 0, 2: 1, 5: 1}.get(digits, 2)


def _title(group: Summary, cost: Cost) -> str:
    low, high = group.interval or (0.0, 1.0)
    value = cost.shown(cost.value(group))
    shown = f"{group.group['spec']}: {percent(group.accuracy)} ({percent(low)} to {percent(high)}), {value}"
    return element("title", escape(shown))


def _label(x: float, y: float, colour: str, shown: str, box: Box) -> str:
    leader = ""
    edge_x = min(max(x, box.left), box.right)
    edge_y = min(max(y, box.top), box.bottom)
    if math.hypot(edge_x - x, edge_y - y) > 12:
        leader = element("line", x1=x, y1=y, x2=edge_x, y2=edge_y, class_=f"leader {colour}")
    return leader + text(box.left, box.bottom - 3, shown, class_=f"label {colour}")
