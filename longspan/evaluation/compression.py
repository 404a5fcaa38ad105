"""The page that compares what is kept: RULER at several budgets, the question hidden from compression or seen by it.

Rows come from the runner as in `longspan bench`. A method runs at every share of the cache: with that `keep`, where it has such a
setting, else with the specs that its card names under `shares`, by the share of the bytes that they hold. Some of them are
also run with a codec beside them, keeping more tokens in the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

from longspan.card import Card, all_cards
from longspan.evaluation.pages import counts_line, measured_with, scores_by_cell
from longspan.evaluation.registry import find_tasks
from longspan.evaluation.report.draw import element, text
from longspan.evaluation.results import Row
from longspan.evaluation.runner import Job, grid
from longspan.evaluation.wording import bytes_text
from longspan.spec import canonical

__all__ = ["compression_figure", "compression_page", "compression_specs", "plan_compression"]

LENGTH = 4096
SHARES = (0.75, 0.5, 0.25, 0.125, 0.06)
DENSE = "dense"
CODED = (  # eviction that knows the question, guesses it, or does without
    "snapkv",
    "expected_attention",
    "kvzip",
    "compactor",
)
CODEC = "kivi(bits=4, group_tokens=64, residual_tokens=32)"
ABOVE = 1.2
CODED_KEEPS = {
    0.25: 0.85,
    0.125: 0.4,
    0.06: 0.17,
}  # of the tokens, by the share of the bytes that they then take
MODES = {"": "Question hidden while the text is compressed", "compression/question_seen:": "Question seen"}
_COLOURS = (
    "#1b6ca8", "#b3261e", "#2e7d32", "#8e5bb5", "#b26a00", "#00838f", "#c2185b", "#5d4037", "#455a64", "#9e9d24",
)  # fmt: skip
_DASHES = ("7 3", "2 2", "9 2 2 2")
_LEFT, _TOP, _WIDTH, _HEIGHT, _GAP, _LINE = 46, 34, 400, 300, 70, 17


def compression_specs(methods: Iterable[str] | None = None) -> dict[str, dict[float, str]]:
    """Methods by name: the spec of each for every share of the cache that it can be asked for.

    Raises:
        ValueError: a name is no such method.
    """
    found = {name: specs for name, card in all_cards().items() if (specs := _specs(card))}
    for name in CODED:
        found[f"{name} + kivi"] = {
            share: canonical(f"{name}(keep={keep}) + {CODEC}") for share, keep in CODED_KEEPS.items()
        }
    wanted = list(found) if methods is None else list(methods)
    for name in wanted:
        if name not in found:
            raise ValueError(f"{name!r} cannot be asked to keep a share; allowed are {', '.join(found)}")
    return {name: found[name] for name in wanted}


def _specs(card: Card) -> dict[float, str]:
    if card.shares:
        return {share: canonical(spec) for share, spec in card.shares.items()}
    keeps = any(parameter.name == "keep" for parameter in card.parameters)
    if not keeps or "Storage" not in card.roles:
        return {}
    return {share: canonical(f"{card.name}(keep={share})") for share in SHARES}


def plan_compression(methods: Iterable[str] | None, samples: int, seed: int, tokenizer: Any) -> list[Job]:
    """RULER's tasks at 4K for every method and share, in both modes, beside dense attention.

    Args:
        methods: names; None for all.
        samples: of each task, spec and mode.
        seed: of the first sample.
        tokenizer: of the reference model.
    """
    specs = [
        DENSE,
        *dict.fromkeys(spec for found in compression_specs(methods).values() for spec in found.values()),
    ]
    tasks = [mode + name for mode in MODES for name, entry in find_tasks().items() if entry.suite == "ruler"]
    return grid(
        specs=specs,
        tasks=tasks,
        lengths=[LENGTH],
        depths=(None,),
        seeds=[seed],
        tokenizer=tokenizer,
        samples=samples,
    )


def _means(rows: Sequence[Row], mode: str) -> tuple[dict[str, float], list[str]]:
    """By spec the mean over the tasks that every spec has run in a mode, and these tasks."""
    scores = scores_by_cell(rows)
    tasks = sorted({task for _, task, _ in scores if task.startswith(f"{mode}ruler/")})
    specs = dict.fromkeys(spec for spec, task, _ in scores if task in tasks)
    shared = [task for task in tasks if all((spec, task, LENGTH) in scores for spec in specs)]
    means = {spec: fmean(fmean(scores[spec, task, LENGTH]) for task in shared) for spec in specs if shared}
    return means, shared


def _bytes(rows: Sequence[Row], mode: str) -> dict[str, float]:
    """By spec the mean bytes held after reading."""
    found: dict[str, list[int]] = {}
    for row in rows:
        if row["status"] == "done" and row["task"].startswith(f"{mode}ruler/"):
            found.setdefault(row["spec"], []).append(row["kv_bytes"])
    return {spec: fmean(values) for spec, values in found.items()}


def compression_page(rows: Sequence[Row]) -> str:
    """The comparison as Markdown: the mean over RULER's tasks and the bytes held, by method and share."""
    methods = compression_specs()
    lines = [
        "# What is kept, compared",
        "",
        f"RULER's tasks at {LENGTH:,} tokens on the reference model. A cell is the mean score over the tasks in percent, and the bytes",
        "of keys, values and positions that were held after reading, measured from storage, room for a question included. *Hidden*:",
        "the text is read and compressed before the question is known; *seen*: the text ends with the question. "
        f"{counts_line(rows)}",
        f"In bold the best of a column among those that hold at most {ABOVE:g} times its share. Dropping tokens and coding those that stay",
        f"go together: beside `{CODEC}` more tokens stay in the same bytes.",
        "Generated by `longspan bench pages compression`; do not edit.",
        "",
        "![Mean score by bytes held](images/compression.svg)",
        "",
    ]
    for mode, title in MODES.items():
        (means, tasks), held = _means(rows, mode), _bytes(rows, mode)
        if not means:
            continue
        whole = f"{100 * means[DENSE]:.1f} in {bytes_text(held[DENSE])}" if DENSE in means else "not run"
        lines += [
            f"## {title}",
            "",
            f"{len(tasks)} tasks. `dense` keeps everything: {whole}.",
            *_unanswered(rows, tasks),
            "",
        ]
        lines += ["| method | " + " | ".join(f"{100 * share:g}%" for share in SHARES) + " |"]
        lines += ["|---" * (1 + len(SHARES)) + "|"]
        leaders = {share: _leaders(methods, share, means, held) for share in SHARES}
        for name, specs in methods.items():
            cells = [_shown(specs.get(share), means, held, leaders[share]) for share in SHARES]
            if any(cell != "–" for cell in cells):
                lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
        lines.append("")
    run = {row["spec"] for row in rows}
    lines += [
        "## Specs",
        "",
        "Of methods whose budget is not `keep`, or not alone.",
        "",
        "| share | spec |",
        "|---|---|",
    ]
    for name, specs in methods.items():
        if all(spec in (name, f"{name}(keep={share})") for share, spec in specs.items()):
            continue
        lines += [f"| {100 * share:g}% | `{spec}` |" for share, spec in specs.items() if spec in run]
    return "\n".join([*lines, "", *measured_with(rows)]) + "\n"


def _unanswered(rows: Sequence[Row], tasks: Sequence[str]) -> list[str]:
    """A sentence about the tasks that no spec scores anything in, which count like the others."""
    best = dict.fromkeys(tasks, 0.0)
    for (_, task, _), found in scores_by_cell(rows).items():
        if task in best:
            best[task] = max(best[task], *found)
    names = [f"`{task.rpartition('/')[2]}`" for task, score in best.items() if score == 0]
    return [f"No spec answers anything in {' and '.join(names)}, which count."] if names else []


def _leaders(
    methods: Mapping[str, Mapping[float, str]],
    share: float,
    means: Mapping[str, float],
    held: Mapping[str, float],
) -> set[str]:
    """The specs with the highest mean at a share, of those that do not hold much more."""
    most = ABOVE * share * held.get(DENSE, float("inf"))
    found = [specs[share] for specs in methods.values() if specs.get(share) in means]
    fitting = {spec: means[spec] for spec in found if held[spec] <= most}
    return {spec for spec, mean in fitting.items() if mean == max(fitting.values())}


def _shown(spec: str | None, means: Mapping[str, float], held: Mapping[str, float], leaders: set[str]) -> str:
    if spec is None or spec not in means:
        return "–"
    score = f"{100 * means[spec]:.1f}"
    return f"{f'**{score}**' if spec in leaders else score} in {bytes_text(held[spec])}"


def compression_figure(rows: Sequence[Row]) -> str:
    """Mean score by share of dense attention's bytes as one SVG: a panel a mode, a line a method."""
    panels, methods = [], compression_specs()
    for number, (mode, title) in enumerate(MODES.items()):
        (means, _), held = _means(rows, mode), _bytes(rows, mode)
        if DENSE in means:
            panels += _panel(_LEFT + number * (_WIDTH + _GAP), title, means, held, methods)
    run = {row["spec"] for row in rows}
    shown = [name for name, specs in methods.items() if run.intersection(specs.values())]
    left = _LEFT + 2 * (_WIDTH + _GAP)
    for line, name in enumerate(shown):
        y = _TOP + line * _LINE
        panels.append(element("line", x1=left, x2=left + 24, y1=y + 2, y2=y + 2, **_stroke(methods, name)))
        panels.append(text(left + 30, y + 6, name, style="font:11px system-ui, sans-serif", fill="#333"))
    width, height = left + 200, max(_TOP + _HEIGHT + 40, _TOP + len(shown) * _LINE + 10)
    background = element("rect", x=0, y=0, width=width, height=height, fill="#fff")
    return element(
        "svg", background + "".join(panels), xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}",
        width=width, height=height, role="img", aria_label="Mean score by share of the bytes held",
    )  # fmt: skip


def _stroke(methods: Iterable[str], name: str) -> dict[str, Any]:
    """A colour, and a dash once all colours are taken."""
    turn, colour = divmod(list(methods).index(name), len(_COLOURS))
    dashes = {} if turn == 0 else {"stroke_dasharray": _DASHES[turn - 1]}
    return {"stroke": _COLOURS[colour], "stroke_width": 1.6, **dashes}


def _panel(
    left: float,
    title: str,
    means: Mapping[str, float],
    held: Mapping[str, float],
    methods: Mapping[str, Mapping[float, str]],
) -> list[str]:
    plain = {"style": "font:11px system-ui, sans-serif", "fill": "#333"}

    def at(share: float, score: float) -> tuple[float, float]:
        return left + min(share, 1.0) * _WIDTH, _TOP + (1 - score) * _HEIGHT

    parts = [text(left, 18, title, font_weight="bold", **plain)]
    for score in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = at(0, score)[1]
        parts.append(element("line", x1=left, x2=left + _WIDTH, y1=y, y2=y, stroke="#ddd"))
        parts.append(text(left - 6, y + 4, f"{score:.0%}", text_anchor="end", **plain))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            text(at(share, 0)[0], _TOP + _HEIGHT + 16, f"{share:.0%}", text_anchor="middle", **plain)
        )
    parts.append(
        text(
            left + _WIDTH / 2,
            _TOP + _HEIGHT + 32,
            "of dense attention's bytes",
            text_anchor="middle",
            **plain,
        )
    )
    y = at(0, means[DENSE])[1]
    parts.append(
        element("line", x1=left, x2=left + _WIDTH, y1=y, y2=y, stroke="#999", stroke_dasharray="4 3")
    )
    for name, specs in methods.items():
        points = sorted(
            (held[spec] / held[DENSE], means[spec], spec) for spec in specs.values() if spec in means
        )
        places = [at(share, score) for share, score, _ in points]
        stroke = _stroke(methods, name)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(element("polyline", points=path, fill="none", **stroke))
        for (x, y), (share, score, spec) in zip(places, points, strict=True):
            note = element("title", escape(f"{spec}: {score:.1%} at {share:.1%} of the bytes"))
            parts.append(element("circle", note, cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.6, fill=stroke["stroke"]))
    return parts
