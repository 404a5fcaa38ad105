"""Two tables for the docs, on the reference model: RULER's tasks for every method, and every suite at growing lengths.

Rows come from the runner as in `longspan bench`; these functions say what to run, and write the result down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from longspan.card import Card, all_cards
from longspan.evaluation.exams import DataExam
from longspan.evaluation.metrics.interval import wilson_interval
from longspan.evaluation.registry import find_suite_cards, find_tasks
from longspan.evaluation.results import Row
from longspan.evaluation.runner import Job, grid
from longspan.evaluation.wording import tokens_text
from longspan.spec import canonical

__all__ = [
    "RULER_END",
    "RULER_START",
    "counts_line",
    "kept_section",
    "mean_or_none",
    "measured_with",
    "percent_or_dash",
    "reach_specs",
    "plan_ruler",
    "plan_suites",
    "put_between",
    "ruler_section",
    "ruler_specs",
    "scores_by_cell",
    "suites_page",
]

LENGTHS = (2048, 4096)
REACH_LENGTHS = (8192, 16384)
SUITE_LENGTHS = (512, 1024, 2048, 4096)
CLEARLY = 0.02
RULER_START, RULER_END = (
    "<!-- RULER by method: made by `longspan bench pages ruler` -->",
    "<!-- end of RULER -->",
)


def ruler_specs(card: Card) -> dict[int, str]:
    """The spec of a method for each length: its claim's, and at 8K and 16K what its claim names under `reach`.

    Those lengths are for methods that claim to go beyond the window, and for what they compare themselves with.
    """
    claim = card.claim
    if not claim:
        return {}
    specs = {length: canonical(claim["spec"]) for length in LENGTHS}
    if claim["length_tokens"] > LENGTHS[-1] or claim.get("reach") or canonical(claim["spec"]) in _baselines():
        specs |= reach_specs(card, REACH_LENGTHS)
    return specs


def reach_specs(card: Card, lengths: Iterable[int]) -> dict[int, str]:
    """For each length the spec that a card's claim names under `reach`, its own where it names none."""
    own = canonical(card.claim["spec"])
    reach = {int(length): canonical(spec) for length, spec in card.claim.get("reach", {}).items()}
    return {length: reach.get(length, own) for length in lengths}


@cache
def _baselines() -> frozenset[str]:
    """What methods that reach beyond the window compare themselves with."""
    claims = [card.claim for card in all_cards().values() if card.claim]
    return frozenset(
        canonical(claim["against"])
        for claim in claims
        if claim["length_tokens"] > LENGTHS[-1] or claim.get("reach")
    )


def plan_ruler(methods: Iterable[str] | None, samples: int, seed: int, tokenizer: Any) -> list[Job]:
    """RULER's 13 tasks for every method at 2K and 4K, and at 8K and 16K for those that claim to reach beyond the window.

    Args:
        methods: names; None for all.
        samples: of each task, length and spec.
        seed: of the first sample.
        tokenizer: of the reference model.
    """
    cards = {name: card for name, card in all_cards().items() if methods is None or name in methods}
    tasks = [name for name, entry in find_tasks().items() if entry.suite == "ruler"]
    jobs = []
    for length in (*LENGTHS, *REACH_LENGTHS):
        specs = list(
            dict.fromkeys(specs[length] for card in cards.values() if length in (specs := ruler_specs(card)))
        )
        if specs:
            jobs += grid(
                specs=specs,
                tasks=tasks,
                lengths=[length],
                depths=(None,),
                seeds=[seed],
                tokenizer=tokenizer,
                samples=samples,
            )
    return jobs


def plan_suites(tasks: Sequence[str] | None, samples: int, seed: int, tokenizer: Any) -> list[Job]:
    """Every generated task, or those named, at 512 to 4,096 tokens under dense attention."""
    if tasks is None:
        tasks = [
            name
            for name, entry in find_tasks().items()
            if entry.exam.labels is not None and not isinstance(entry.exam, DataExam)
        ]
    return grid(
        specs=["dense"],
        tasks=tasks,
        lengths=SUITE_LENGTHS,
        depths=(None,),
        seeds=[seed],
        tokenizer=tokenizer,
        samples=samples,
    )


def ruler_section(rows: Sequence[Row]) -> str:
    """The table of RULER's tasks for every method as Markdown; scores in percent, with the mean over the tasks."""
    rows = _shared(rows)
    scores = scores_by_cell(rows)
    ran = {task for _, task, _ in scores}
    tasks = [name for name in find_tasks() if name in ran]
    heads = [task.removeprefix("ruler/").replace("niah_", "") for task in tasks]
    lines = [
        "## RULER by method",
        "",
        "Score in percent on the reference model (window 4,096 tokens), RULER's own metrics; *mean* is over the tasks. Specs",
        "measured on one haystack saw the same samples. `qa_1` and `qa_2` ask about SQuAD and HotpotQA, which a model of this size cannot.",
        f"{counts_line(rows)} Made by `longspan bench pages ruler`.",
        "",
    ]
    for length in (*LENGTHS, *REACH_LENGTHS):
        present = [
            (card.name, specs[length])
            for card in all_cards().values()
            if length in (specs := ruler_specs(card))
        ]
        table = [
            (name, spec, [mean_or_none(scores.get((spec, task, length))) for task in tasks])
            for name, spec in present
        ]
        table = [line for line in table if any(value is not None for value in line[2])]
        if not table:
            continue
        lines += [f"### {tokens_text(length)} tokens", ""]
        lines += ["| method | spec | mean | " + " | ".join(heads) + " |", "|---" * (3 + len(heads)) + "|"]
        for name, spec, values in table:
            known = [value for value in values if value is not None]
            cells = [f"`{name}`", f"`{spec}`", f"**{100 * fmean(known):.1f}**", *map(percent_or_dash, values)]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join([*lines, *measured_with(rows)])


def suites_page(rows: Sequence[Row]) -> str:
    """Every suite on the reference model as Markdown: score by length, chance, and whether the model can do it at all."""
    scores, entries = scores_by_cell(rows), find_tasks()
    lengths = sorted({length for _, _, length in scores})
    lines = [
        "# Suites",
        "",
        "Every generated task on the reference model under dense attention, in percent. Generated by",
        f"`longspan bench pages suites`; do not edit. {counts_line(rows)}",
        "",
        "*Diffusion*: how hard the needed information is to find; *scope*: how much of the text is needed (Goldman et al.,",
        "2024). *Chance*: what an answerer scores who never saw the text. *Verdict*: `partly` when the 95% interval over all lengths",
        "lies 2 points above chance or more, `can` when the score is at least half too; `cannot` otherwise, which for most",
        "tasks of reasoning says that a model of 22M parameters is too small, not that the task is broken: an oracle scores",
        "100 on each (tests/laws/test_suites.py). –: not run at that length (too short for the task, or its data are absent).",
        "",
    ]
    for suite, card in find_suite_cards().items():
        tasks = [
            name
            for name in entries
            if entries[name].suite == suite and any(task == name for _, task, _ in scores)
        ]
        if not tasks:
            continue
        year = f", {card['year']}" if card.get("year") else ""
        lines += [f"## {suite}", "", f"{card['title']}{year}. Metric: {card['metric']}.", ""]
        heads = ["task", "ability", "diffusion", "scope", "chance", *map(tokens_text, lengths), "verdict"]
        lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for task in tasks:
            labels = entries[task].exam.labels
            assert labels is not None
            values = [scores.get(("dense", task, length)) for length in lengths]
            cells = [f"`{task.split('/', 1)[1]}`", labels.ability, labels.diffusion, labels.scope]
            cells += [
                f"{100 * labels.chance:.0f}",
                *(percent_or_dash(mean_or_none(found)) for found in values),
            ]
            lines.append("| " + " | ".join([*cells, _verdict(labels.chance, values)]) + " |")
        lines.append("")
    return "\n".join([*lines, *measured_with(rows)]) + "\n"


def put_between(page: str, start: str, end: str, section: str) -> str:
    """The page with `section` between the two marks, which are added at the end where they are not there."""
    block = f"{start}\n{section}\n{end}"
    if start in page and end in page:
        return page[: page.index(start)] + block + page[page.index(end) + len(end) :]
    return page.rstrip("\n") + f"\n\n{block}\n"


def kept_section(file: Path, start: str, end: str) -> str | None:
    """What stands between the marks in a file; None where there is none."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return text.partition(start)[2].partition(end)[0].strip("\n") if start in text and end in text else None


def _shared(rows: Sequence[Row]) -> list[Row]:
    """Of each task, length and haystack, the samples that all its specs have: a run may have stopped between specs."""
    specs: dict[tuple[int, str], set[str]] = {}
    seen: dict[tuple[str, int, int, str], dict[str, Row]] = {}
    for row in rows:
        if row["status"] == "done":
            length, text = row["length_tokens"], row["haystack"]
            specs.setdefault((length, text), set()).add(row["spec"])
            seen.setdefault((row["task"], length, row["seed"], text), {})[row["spec"]] = row
    return [
        row
        for (_, length, _, text), found in seen.items()
        if set(found) == specs[length, text]
        for row in found.values()
    ]


def scores_by_cell(rows: Sequence[Row]) -> dict[tuple[str, str, int], list[float]]:
    """Scores of what ran, by spec, task and length."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        if row["status"] == "done" and row.get("score") is not None:
            found.setdefault((row["spec"], row["task"], row["length_tokens"]), []).append(row["score"])
    return found


def _verdict(chance: float, values: Sequence[list[float] | None]) -> str:
    scores = [score for found in values for score in found or []]
    if not scores:
        return "not run"
    low, _ = wilson_interval(fmean(scores), len(scores))
    if low <= chance + CLEARLY:
        return "cannot"
    return "can" if fmean(scores) >= 0.5 else "partly"


def counts_line(rows: Sequence[Row]) -> str:
    """How many samples stand behind a cell, in words."""
    counts = sorted({len(found) for found in scores_by_cell(rows).values()})
    most = (
        f"{counts[0]} to {counts[-1]}"
        if counts and counts[0] != counts[-1]
        else f"{counts[-1] if counts else 0}"
    )
    return f"Samples a cell: {most}."


def measured_with(rows: Sequence[Row]) -> list[str]:
    """Device, versions and commit of the rows, as the last line of a page."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        values: Mapping[str, Any] = {name: row[name] for name in ("device", "dtype", "haystack", "commit")}
        for name, value in {**values, **row["versions"]}.items():
            if value is not None:
                found.setdefault(name, {})[str(value)] = None
    return [
        "Measured with " + "; ".join(f"{name} {', '.join(values)}" for name, values in found.items()) + ".",
        "",
    ]


def mean_or_none(scores: Sequence[float] | None) -> float | None:
    """Mean of a cell, None where nothing ran."""
    return fmean(scores) if scores else None


def percent_or_dash(value: float | None) -> str:
    """A share in percent as it stands in a table."""
    return "–" if value is None else f"{100 * value:.0f}"
