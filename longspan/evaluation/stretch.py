"""The page that compares methods of the positions family past the trained window: one table, one figure.

Rows come from the runner as in `longspan bench`; each method runs at every length with the spec that its card's claim names
for it under `reach` (its claim's own spec elsewhere), beside dense attention and truncation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from longspan.card import Card, all_cards
from longspan.evaluation.pages import (
    counts_line,
    mean_or_none,
    measured_with,
    percent_or_dash,
    scores_by_cell,
)
from longspan.evaluation.report.draw import element, heat_colours, text
from longspan.evaluation.results import Row
from longspan.evaluation.runner import Job, grid
from longspan.evaluation.wording import tokens_text
from longspan.spec import canonical

__all__ = ["plan_stretch", "stretch_figure", "stretch_page", "stretch_specs"]

LENGTHS = (8192, 16384, 32768, 65536)
NEEDLE, LIKELIHOOD = "ruler/niah_single_1", "perplexity/perplexity"
TASKS = {
    NEEDLE: "needle",
    "keyvalue/keys8_numbers": "8 keys",
    "keyvalue/kv64": "64 keys",
    "ruler/vt": "tracing",
}
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
BASELINES = ("dense", "truncate")
_NAME, _CELL_WIDTH, _CELL_HEIGHT, _HEAD, _GAP = 130, 34, 20, 58, 12


def stretch_specs(methods: Iterable[str] | None = None) -> dict[str, dict[int, str]]:
    """Methods by name, baselines first: the spec of each for every length.

    Raises:
        ValueError: a name is no method of the family.
    """
    cards = {name: card for name, card in all_cards().items() if card.family == "positions" and card.claim}
    wanted = list(BASELINES) + list(cards) if methods is None else list(methods)
    for name in wanted:
        if name not in cards and name not in BASELINES:
            raise ValueError(
                f"{name!r} is no method of the positions family; allowed are {', '.join((*BASELINES, *cards))}"
            )
    return {name: _specs(cards[name]) if name in cards else dict.fromkeys(LENGTHS, name) for name in wanted}


def _specs(card: Card) -> dict[int, str]:
    own = canonical(card.claim["spec"])
    reach = {int(length): canonical(spec) for length, spec in card.claim.get("reach", {}).items()}
    return {length: reach.get(length, own) for length in LENGTHS}


def plan_stretch(methods: Iterable[str] | None, samples: int, seed: int, tokenizer: Any) -> list[Job]:
    """Every task at every length for every method.

    Args:
        methods: names; None for the family and its baselines.
        samples: of each task, length and spec; of the needle, of each depth.
        seed: of the first sample.
        tokenizer: of the reference model.
    """
    jobs = []
    for length in LENGTHS:
        specs = list(dict.fromkeys(found[length] for found in stretch_specs(methods).values()))
        shared: dict[str, Any] = {"specs": specs, "lengths": [length], "tokenizer": tokenizer}
        seeds = list(range(seed, seed + samples))
        jobs += grid(tasks=[NEEDLE], depths=DEPTHS, seeds=seeds, **shared)
        others = [task for task in TASKS if task != NEEDLE]
        jobs += grid(tasks=others, depths=(None,), seeds=[seed], samples=samples, **shared)
        jobs += grid(tasks=[LIKELIHOOD], depths=(None,), seeds=[seed], samples=min(samples, 4), **shared)
    return jobs


def stretch_page(rows: Sequence[Row]) -> str:
    """The comparison as Markdown: scores in percent and perplexity of the last stretch, length by length."""
    scores, lines = scores_by_cell(rows), []
    for length in LENGTHS:
        table = []
        for name, specs in stretch_specs().items():
            spec = specs[length]
            cells = [mean_or_none(scores.get((spec, task, length))) for task in TASKS]
            last = last_perplexity(rows, spec, length)
            if last is not None or any(value is not None for value in cells):
                shown = [
                    f"`{name}`",
                    f"`{spec}`",
                    *map(percent_or_dash, cells),
                    "–" if last is None else f"{last:.1f}",
                ]
                table.append("| " + " | ".join(shown) + " |")
        if table:
            heads = ["method", "spec", *TASKS.values(), "perplexity"]
            lines += [f"## {tokens_text(length)} tokens", "", "| " + " | ".join(heads) + " |"]
            lines += ["|---" * len(heads) + "|", *table, ""]
    head = [
        "# Past the trained window, without training",
        "",
        f"Methods of the positions family on the reference model, trained on {tokens_text(4096)} tokens, at 2, 4, 8 and 16 times that.",
        "Scores in percent: a needle at five depths, a number among 8 keys, one of 64 key-value pairs, variable tracking. *Perplexity*",
        "is over the second half of a text. Every method has the settings that its card names for the length; specs measured on one",
        f"length saw the same samples. {counts_line(rows)} Generated by `longspan bench pages positions`; do not edit.",
        "",
        "![Score by method, task and length](images/positions.svg)",
        "",
    ]
    return "\n".join([*head, *lines, *measured_with(rows)]) + "\n"


def stretch_figure(rows: Sequence[Row]) -> str:
    """The same scores as one SVG: a row a method, a column a length, a block a task; of the needle, a block a depth."""
    known: dict[tuple[str, str, int, float | None], list[float]] = {}
    for row in rows:
        if row["status"] == "done" and row.get("score") is not None:
            depth = row.get("depth") if row["task"] == NEEDLE else None
            known.setdefault((row["spec"], row["task"], row["length_tokens"], depth), []).append(row["score"])
    blocks: list[tuple[str, str, float | None]] = [
        (f"needle at {depth:.0%}", NEEDLE, depth) for depth in DEPTHS
    ]
    blocks += [(name, task, None) for task, name in TASKS.items() if task != NEEDLE]
    lengths = [length for length in LENGTHS if any(key[2] == length for key in known)]
    methods = {
        name: specs
        for name, specs in stretch_specs().items()
        if any(
            (specs[length], task, length, depth) in known for _, task, depth in blocks for length in lengths
        )
    }
    wide = len(lengths) * _CELL_WIDTH + _GAP
    width, height = _NAME + len(blocks) * wide, _HEAD + len(methods) * _CELL_HEIGHT + 6
    plain = {"style": "font:11px system-ui, sans-serif", "fill": "#333"}
    parts = [element("rect", x=0, y=0, width=width, height=height, fill="#fff")]
    for number, (title, _, _) in enumerate(blocks):
        left = _NAME + number * wide
        parts.append(text(left, 16, title, font_weight="bold", **plain))
        parts += [
            text(
                left + (i + 0.5) * _CELL_WIDTH, _HEAD - 10, tokens_text(length), text_anchor="middle", **plain
            )
            for i, length in enumerate(lengths)
        ]
    for line, (name, specs) in enumerate(methods.items()):
        y = _HEAD + line * _CELL_HEIGHT
        parts.append(text(_NAME - 8, y + 14, name, text_anchor="end", **plain))
        for number, (title, task, depth) in enumerate(blocks):
            for i, length in enumerate(lengths):
                value = mean_or_none(known.get((specs[length], task, length, depth)))
                x = _NAME + number * wide + i * _CELL_WIDTH
                parts += _cell(x, y, value, f"{specs[length]}, {title}, {length:,} tokens")
    return element(
        "svg", "".join(parts), xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}",
        width=width, height=height, role="img", aria_label="Score by method, task and length",
    )  # fmt: skip


def _cell(x: float, y: float, value: float | None, where: str) -> list[str]:
    box = {"x": x + 1, "y": y + 1, "width": _CELL_WIDTH - 2, "height": _CELL_HEIGHT - 2, "rx": 2}
    if value is None:
        return [element("rect", element("title", escape(f"{where}: not run")), fill="#eee", **box)]
    fill, colour = heat_colours(value)
    title = element("title", escape(f"{where}: {value:.0%}"))
    shown = f"{100 * value:.0f}"
    style = "font:11px system-ui, sans-serif"
    number = text(x + _CELL_WIDTH / 2, y + 14, shown, text_anchor="middle", fill=colour, style=style)
    return [element("rect", title, fill=fill, **box), number]


def last_perplexity(rows: Sequence[Row], spec: str, length: int) -> float | None:
    """exp of the mean negative log-likelihood over the second half of texts of a length."""
    total = count = 0.0
    for row in rows:
        if (row["spec"], row["task"], row["length_tokens"]) != (spec, LIKELIHOOD, length):
            continue
        for start, _, nll, num_tokens in row.get("buckets") or []:
            if start >= length // 2:
                total, count = total + nll * num_tokens, count + num_tokens
    return math.exp(total / count) if count else None
