"""Small drawing kit of the report: escaped elements, colours, ticks, the hatch for what was not run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape

__all__ = [
    "CHART_WIDTH",
    "HATCH",
    "badge",
    "element",
    "heat_colours",
    "log_ticks",
    "name_markup",
    "series_class",
    "short",
    "spec_markup",
    "spread",
    "text",
]

CHART_WIDTH = 360
"""Width of every chart in its own units: a phone's width, so that 11-unit text is readable there without scaling."""

NUM_COLOURS = 8

HATCH = (
    '<svg width="0" height="0" aria-hidden="true" style="position:absolute"><defs>'
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" class="hatch-ground"/><line x1="0" y1="0" x2="0" y2="6" class="hatch-line"/>'
    "</pattern></defs></svg>"
)
"""Defines the pattern that fills what was not run; stands once on the page."""

# The cividis map: lightness rises evenly, and it reads the same with every kind of colour vision.
# Paper: Nunez, Anderton, Renslow, "Optimizing colormaps with consideration for color vision deficiency", 2018.
_HEAT = ((0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56))


def element(tag: str, content: str = "", **attributes: object) -> str:
    """An element as text. Content is taken as it is (escape it first); attribute values are escaped.

    Args:
        tag: element name.
        content: inner markup.
        attributes: `class_` becomes class, `stroke_width` becomes stroke-width; None is left out; floats are rounded.

    Returns:
        Markup.
    """
    parts = [tag]
    for name, value in attributes.items():
        if value is not None:
            shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
            parts.append(f'{name.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    return f"<{' '.join(parts)}>{content}</{tag}>"


def text(x: float, y: float, shown: str, **attributes: object) -> str:
    """A piece of chart text at (x, y); the baseline is at y."""
    return element("text", escape(shown), x=float(x), y=float(y), **attributes)


def series_class(number: int) -> str:
    """CSS class that carries the colour of the spec with this number (1, 2, ...)."""
    return f"s{(number - 1) % NUM_COLOURS + 1}"


def name_markup(name: str) -> str:
    """A task or a spec, escaped, that may break where it has a joint."""
    return re.sub("([/_:(,])", r"\1<wbr>", escape(name))


def badge(number: int, title: str | None = None) -> str:
    """A spec's number in its colour, as it stands beside the spec's name everywhere on the page."""
    return element("b", str(number), class_="num " + series_class(number), title=title)


def spec_markup(number: int, spec: str) -> str:
    """A spec with its number, for the head of a line; a narrow screen shows as much as three lines hold."""
    name = f"{badge(number)} {name_markup(spec)}"
    return element("span", name, class_="spec", title=spec)


def heat_colours(value: float) -> tuple[str, str]:
    """Fill and text colour of a heatmap cell.

    Args:
        value: 0..1.

    Returns:
        Two CSS colours with a contrast of 4.5 or more.
    """
    place = min(max(value, 0.0), 1.0) * (len(_HEAT) - 1)
    low = min(int(place), len(_HEAT) - 2)
    part = place - low
    rgb = tuple(round(a + (b - a) * part) for a, b in zip(_HEAT[low], _HEAT[low + 1], strict=True))
    dark_text = (_luminance(rgb) + 0.05) / 0.05 > 1.05 / (_luminance(rgb) + 0.05)
    return "#{:02x}{:02x}{:02x}".format(*rgb), "#000000" if dark_text else "#ffffff"


def _luminance(rgb: tuple[int, ...]) -> float:
    """Relative luminance of an sRGB colour, 0..1 (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def short(spec: str, limit: int = 26) -> str:
    """A spec cut to `limit` characters for a chart; the full text stands in the tables."""
    return spec if len(spec) <= limit else spec[: limit - 1].rstrip() + "…"


def log_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers inside [low, high], at most `most` of them: as fine as fits, powers of ten thinned if need be."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    if high / low < 3:
        sizes = (10.0**power * digit for power in powers for digit in (0.1, 0.2, 0.5, 1, 2, 5))
        step = next(size for size in sizes if (high - low) / size <= most)
        return [step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)]
    for steps in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def spread(wanted: Sequence[float], base: float, gap: float = 12.0) -> list[float]:
    """Heights as near to the wanted ones as a distance of `gap` between any two, and staying above `base`, allow."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = list(wanted)
    for before, index in zip(order, order[1:], strict=False):
        placed[index] = max(placed[index], placed[before] + gap)
    limit = base
    for index in reversed(order):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed
