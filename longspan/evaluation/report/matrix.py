"""Every task against every spec: the mean score in each cell, grouped by suite, sortable where the script runs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from longspan.evaluation.report.draw import badge, element, heat_colours, name_markup
from longspan.evaluation.results import Row
from longspan.evaluation.summary import Summary, distinct, summarise
from longspan.evaluation.wording import percent

__all__ = ["task_matrix"]

_LABELS = ("ability", "diffusion", "scope")
_LEGEND = (
    "Mean score over all lengths and depths that were run; hold the pointer over a cell for its 95% interval. Diffusion: how "
    "hard the needed text is to find; scope: how much of the text is needed (Goldman et al., 2024). Hatched: not run."
)


def task_matrix(rows: Sequence[Row]) -> str:
    """A line a task and a column a spec; empty text when no row has a score."""
    specs = distinct(rows, "spec")
    scored = [row for row in rows if row.get("score") is not None]
    if not scored:
        return ""
    answers = [row for row in rows if row.get("kind", "answer") == "answer"]
    cells = {
        (group.group["task"], group.group["spec"]): group for group in summarise(answers, ("task", "spec"))
    }
    labels = _labels(answers)
    shown = [name for name in _LABELS if any(found.get(name) for found in labels.values())]
    head = [element("th", "task", scope="col")]
    head += [element("th", badge(number, spec), scope="col") for number, spec in enumerate(specs, start=1)]
    head += [element("th", name, scope="col") for name in shown]
    suites: dict[str, list[str]] = {}
    for task in labels:
        suites.setdefault(_suite(task), []).append(task)
    bodies = []
    for suite, tasks in suites.items():
        lines = []
        if len(suites) > 1:
            heading = element("th", escape(suite), colspan=len(head), scope="rowgroup")
            lines.append(element("tr", heading, class_="group"))
        for task in tasks:
            name = task.removeprefix(f"{suite}/") if len(suites) > 1 else task
            found = [labels[task].get(label) or "–" for label in shown]
            values = [element("th", name_markup(name), scope="row")]
            values += [_cell(cells.get((task, spec)), f"{task}, {spec}") for spec in specs]
            values += [element("td", escape(value)) for value in found]
            lines.append(element("tr", "".join(values), data_words=" ".join((task, *found))))
        bodies.append(element("tbody", "".join(lines)))
    table = element(
        "table", element("thead", element("tr", "".join(head))) + "".join(bodies), class_="sortable matrix"
    )
    names = "".join(
        element("li", f"{badge(number)} {escape(spec)}") for number, spec in enumerate(specs, start=1)
    )
    return (
        element("ul", names, class_="specs")
        + element("div", table, class_="scroll fit", data_filter="Filter tasks")
        + element("p", _LEGEND, class_="small")
    )


def _suite(task: str) -> str:
    """Of a task's full name; a wrapped task (`suite/wrapper:suite/task`) belongs to its wrapper's suite."""
    return task.split("/", 1)[0] if "/" in task else "other"


def _labels(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """What the rows say about each task; skipped rows may say nothing."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        mine = found.setdefault(row["task"], {})
        for name in _LABELS:
            if row.get(name):
                mine.setdefault(name, str(row[name]))
    return found


def _cell(group: Summary | None, where: str) -> str:
    if group is None or group.accuracy is None or group.interval is None:
        why = f"not run: {group.reasons[0]}" if group and group.reasons else "not run"
        return element("td", "–", class_="hatched", title=f"{where}: {why}", data_value=-1)
    low, high = group.interval
    fill, ink = heat_colours(group.accuracy)
    title = (
        f"{where}: {percent(group.accuracy)} ({percent(low)} to {percent(high)}), {group.num_samples} samples"
    )
    style = f"background:{fill};color:{ink}"
    return element(
        "td", percent(group.accuracy), style=style, title=title, data_value=f"{group.accuracy:.6g}"
    )
