"""One self-contained HTML page from result rows: no script, no external resource, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from longspan.evaluation.report.answers import answer_cards
from longspan.evaluation.report.bars import task_bars
from longspan.evaluation.report.draw import HATCH, element
from longspan.evaluation.report.heatmap import heatmaps
from longspan.evaluation.report.lines import perplexity_lines, perplexity_table
from longspan.evaluation.report.scatter import scatters
from longspan.evaluation.report.style import STYLE
from longspan.evaluation.report.tables import settings_table, skipped_list, summary_table
from longspan.evaluation.summary import distinct

__all__ = ["render_report"]


def render_report(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    command: str,
    notes: Sequence[str] = (),
    answers: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The report of `longspan bench` and `longspan demo`.

    Args:
        rows: result rows (see `longspan.evaluation.results`). Needed in each: `status`, `spec`, `task`,
            `length_tokens`; for answers `score`, for likelihoods `nll` and `buckets`, for skipped rows `reason`.
            Whatever else is missing is shown as not measured.
        title: heading of the page.
        command: the exact command that makes this page again.
        notes: sentences under the heading.
        answers: what each spec answered, see `longspan.evaluation.report.answers`; None leaves the section out.

    Returns:
        A whole HTML document.
    """
    specs = distinct(rows, "spec")
    sections = [("Summary", summary_table(rows) if rows else "<p>Nothing was measured.</p>")]
    if answers:
        sections.append(("Answers", answer_cards(answers, specs)))
    sections += [
        ("Accuracy against memory", _charts(scatters(rows))),
        ("Accuracy by depth and length", _charts(heatmaps(rows), _HEAT_LEGEND)),
        ("Accuracy by task", _charts(task_bars(rows), _TASK_LEGEND)),
        ("Perplexity by position", _charts(perplexity_lines(rows)) + perplexity_table(rows)),
        ("Not run", skipped_list(rows)),
        ("Settings and versions", settings_table(rows)),
        ("Run it again", element("pre", escape(command))),
    ]
    body = [element("h1", escape(title)), *(element("p", escape(note), class_="note") for note in notes)]
    body += [element("section", element("h2", name) + content) for name, content in sections if content]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{HATCH}<main>{''.join(body)}</main></body></html>\n"
    )


_TASK_LEGEND = '<p class="small">Over all lengths and depths that were run.</p>'

_HEAT_LEGEND = (
    '<p class="small">Mean accuracy in percent. Hatched: not run. "spread": the task hides its needles all over '
    "the text.</p>"
)


def _charts(figures: str, legend: str = "") -> str:
    return element("div", figures, class_="charts") + legend if figures else ""
