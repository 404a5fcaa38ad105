"""Results as a table and as a figure, and their place in docs/diffusion.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from longspan._files import write_whole
from longspan.evaluation.report.draw import element, heat_colours, log_ticks, text
from longspan.evaluation.wording import tokens_text

BEGIN, END = (
    "<!-- measured: written by `python -m benchmarks.diffusion`, do not edit -->",
    "<!-- end of what was measured -->",
)
NAMES = {"diffusion": "diffusion", "causal": "causal"}
Row = dict[str, Any]
_CELL, _HIGH, _LEFT, _TOP, _GAP = 46, 20, 52, 64, 40
_COLOURS = {"diffusion": "#0b6e4f", "causal": "#b3401c"}
_PLAIN = {"style": "font:11px system-ui, sans-serif", "fill": "#333"}


def table(rows: Sequence[Row]) -> str:
    """What was found, in Markdown: perplexity, then the needle within the last window and before it."""
    done = [row for row in rows if "skipped" not in row]
    if not done:
        return "Nothing was measured.\n"
    facts = done[0]
    lengths = sorted({row["tokens"] for row in rows})
    window = facts["window"]
    lines = [
        f"Trained for {facts['train_seconds']:.0f} s on {facts['train_tokens']:,} tokens ({facts['train_steps']:,} steps) in rows of up to "
        f"{window:,}; {facts['device']}, torch {facts['torch']}, commit {facts['commit']}.",
        "",
        f"Perplexity of the last quarter of a text, and of the whole text in brackets, on {_texts(done)} texts: {facts['text']}. "
        f"The denoiser's is an upper bound from {facts['draws']} draws for each text, so lines of different models do not compare.",
        "",
        *_lines(
            ["model", "frequencies", *map(tokens_text, lengths)],
            [
                [model, _spec_name(kind), *[_perplexity(done, model, kind, length) for length in lengths]]
                for model, kind in _pairs(rows, "perplexity")
            ],
        ),
        "",
        f"A needle found, percent, by where it stands: within the last {tokens_text(window)} of the text / before that. The denoiser fills "
        f"a block of {facts['block_tokens']} tokens in {facts['steps']} steps.",
        "",
        *_lines(
            ["model", "frequencies", *map(tokens_text, lengths)],
            [
                [model, _spec_name(kind), *[_found(done, model, kind, length) for length in lengths]]
                for model, kind in _pairs(rows, "needle")
            ],
        ),
    ]
    left_out = sorted(
        {f"{row['case']} {row['model']} at {row['tokens']:,}" for row in rows if "skipped" in row}
    )
    if left_out:
        lines += ["", f"Left out, since the time was over or memory too small: {', '.join(left_out)}."]
    factors = sorted(
        {(row["tokens"], row["law_times"], row["spec"]) for row in rows if row["spec"] != "dense"}
    )
    if factors:
        shown = ", ".join(f"{tokens_text(tokens)} `{spec}`" for tokens, _, spec in factors)
        lines += ["", f"`ntk` low and high are the factor of the scaling law and 1.5 times that: {shown}."]
    return "\n".join(lines) + "\n"


def check_page(page: Path) -> str:
    """The page as it is.

    Raises:
        ValueError: it is missing, or has no marks.
    """
    known = page.read_text(encoding="utf-8") if page.is_file() else ""
    if BEGIN not in known or END not in known:
        raise ValueError(f"{page} has no place for results: it needs the lines {BEGIN!r} and {END!r}")
    return known


def write_page(page: Path, rows: Sequence[Row]) -> None:
    """Put the table between the page's marks."""
    before, rest = check_page(page).split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    image = "![Perplexity by length, and the needle by depth and length](images/diffusion.svg)"
    write_whole(page, f"{before}{BEGIN}\n\n{image}\n\n{table(rows)}\n{END}{after}")


def _kind(row: Row) -> str:
    """ "dense", or whether a spec has the scaling law's factor or more."""
    if row["law_times"] is None:
        return "dense"
    return "ntk high" if row["law_times"] > 1 else "ntk low"


def _pairs(rows: Sequence[Row], case: str) -> list[tuple[str, str]]:
    pairs = {(row["model"], _kind(row)) for row in rows if row["case"] == case}
    order = ("dense", "ntk low", "ntk high")
    return sorted(pairs, key=lambda pair: (pair[0] != "diffusion", order.index(pair[1])))


def _spec_name(kind: str) -> str:
    return "as trained" if kind == "dense" else kind.replace("ntk", "`ntk`")


def _of(rows: Sequence[Row], case: str, model: str, kind: str, length: int) -> list[Row]:
    return [
        row
        for row in rows
        if (row["case"], row["model"], row["tokens"]) == (case, model, length)
        and "skipped" not in row
        and _kind(row) == kind
    ]


def _perplexity(rows: Sequence[Row], model: str, kind: str, length: int) -> str:
    found = _of(rows, "perplexity", model, kind, length)
    return f"{_short(found[0]['last_quarter'])} ({_short(found[0]['perplexity'])})" if found else "–"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _found(rows: Sequence[Row], model: str, kind: str, length: int) -> str:
    found = _of(rows, "needle", model, kind, length)
    parts = []
    for inside in (True, False):
        own = [row for row in found if (row["distance"] <= row["window"]) is inside]
        count = sum(row["samples"] for row in own)
        parts.append(f"{100 * sum(row['right'] for row in own) / count:.0f}" if count else "–")
    return " / ".join(parts) if found else "–"


def _texts(rows: Sequence[Row]) -> int:
    return max((row["texts"] for row in rows if row["case"] == "perplexity"), default=0)


def _lines(head: list[str], body: list[list[str]]) -> list[str]:
    shown = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return shown + ["| " + " | ".join(cells) + " |" for cells in body]


def figure(rows: Sequence[Row]) -> str:
    """Perplexity of the last quarter by length, then a heatmap for each model and kind: depth by length."""
    done = [row for row in rows if "skipped" not in row]
    lengths = sorted({row["tokens"] for row in rows})
    depths = sorted({row["depth"] for row in done if row["case"] == "needle"})
    pairs = _pairs(done, "needle")
    wide, high = len(lengths) * _CELL, max(len(depths), 8) * _HIGH
    width = _LEFT + (1 + len(pairs)) * (wide + _GAP)
    height = _TOP + high + 30
    parts = [element("rect", x=0, y=0, width=width, height=height, fill="#fff")]
    parts += _plot(done, lengths, wide, high)
    for number, (model, kind) in enumerate(pairs):
        left = _LEFT + (number + 1) * (wide + _GAP)
        name = "as trained" if kind == "dense" else kind
        parts.append(text(left, 20, f"{NAMES[model]}, {name}", font_weight="bold", **_PLAIN))
        parts.append(text(left, 36, "needle found, by depth", **_PLAIN))
        parts += [
            text(left + (i + 0.5) * _CELL, _TOP - 8, tokens_text(length), text_anchor="middle", **_PLAIN)
            for i, length in enumerate(lengths)
        ]
        for line, depth in enumerate(depths):
            y = _TOP + line * _HIGH
            parts.append(text(left - 4, y + 14, f"{depth:.0%}", text_anchor="end", **_PLAIN))
            for i, length in enumerate(lengths):
                own = [row for row in _of(done, "needle", model, kind, length) if row["depth"] == depth]
                parts += _cell(
                    left + i * _CELL, y, own, f"{model}, {name}, {length:,} tokens, depth {depth:.0%}"
                )
        parts += _window_edges(done, model, kind, lengths, depths, left)
    return element(
        "svg", "".join(parts), xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}",
        width=width, height=height, role="img", aria_label="Perplexity by length, and the needle by depth and length",
    )  # fmt: skip


def _cell(x: float, y: float, own: Sequence[Row], where: str) -> list[str]:
    box = {"x": x + 1, "y": y + 1, "width": _CELL - 2, "height": _HIGH - 2, "rx": 2}
    if not own:
        return [element("rect", element("title", escape(f"{where}: not run")), fill="#eee", **box)]
    value = own[0]["right"] / own[0]["samples"]
    fill, colour = heat_colours(value)
    title = element("title", escape(f"{where}: {own[0]['right']} of {own[0]['samples']}"))
    number = text(
        x + _CELL / 2, y + 14, f"{100 * value:.0f}", text_anchor="middle", fill=colour,
        style="font:11px system-ui, sans-serif",
    )  # fmt: skip
    return [element("rect", title, fill=fill, **box), number]


def _window_edges(
    rows: Sequence[Row], model: str, kind: str, lengths: Sequence[int], depths: Sequence[float], left: float
) -> list[str]:
    """A line in each column above the first depth whose needle stands within the last window."""
    parts = []
    for i, length in enumerate(lengths):
        found = {row["depth"]: row for row in _of(rows, "needle", model, kind, length)}
        outside = [
            line
            for line, depth in enumerate(depths)
            if depth in found and found[depth]["distance"] > found[depth]["window"]
        ]
        if outside:
            y = _TOP + (max(outside) + 1) * _HIGH
            x = left + i * _CELL
            parts.append(element("line", x1=x, x2=x + _CELL, y1=y, y2=y, stroke="#d1007a", stroke_width=2))
    return parts


def _plot(rows: Sequence[Row], lengths: Sequence[int], wide: float, high: float) -> list[str]:
    """Perplexity of the last quarter against length, both axes logarithmic."""
    found = [row for row in rows if row["case"] == "perplexity"]
    parts = [
        text(_LEFT, 20, "perplexity, last quarter", font_weight="bold", **_PLAIN),
        text(_LEFT, 36, "dashed: ntk", **_PLAIN),
    ]
    if not found:
        return parts
    low = min(row["last_quarter"] for row in found) / 1.2
    top = max(max(row["last_quarter"] for row in found) * 1.2, 2 * low)

    def place(length: int, value: float) -> tuple[float, float]:
        x = _LEFT + (lengths.index(length) + 0.5) * _CELL
        return x, _TOP + high - high * math.log(value / low) / math.log(top / low)

    for tick in log_ticks(low, top, most=6):
        y = place(lengths[0], tick)[1]
        parts.append(element("line", x1=_LEFT, x2=_LEFT + wide, y1=y, y2=y, stroke="#ddd"))
        parts.append(text(_LEFT - 4, y + 4, f"{tick:,.0f}", text_anchor="end", **_PLAIN))
    for length in lengths:
        parts.append(
            text(place(length, low)[0], _TOP + high + 16, tokens_text(length), text_anchor="middle", **_PLAIN)
        )
    for model, kind in _pairs(rows, "perplexity"):
        points = [
            place(length, own[0]["last_quarter"])
            for length in lengths
            if (own := _of(rows, "perplexity", model, kind, length))
        ]
        colour, dashes = _COLOURS[model], None if kind == "dense" else "4 3"
        parts.append(
            element(
                "polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), fill="none", stroke=colour,
                stroke_width=2, stroke_dasharray=dashes,
            )
        )  # fmt: skip
        parts += [element("circle", cx=x, cy=y, r=3, fill=colour) for x, y in points]
        if points and kind == "dense":
            x, y = points[-1]
            parts.append(
                text(x, y - 8, model, text_anchor="end", style="font:11px system-ui, sans-serif", fill=colour)
            )
    return parts
