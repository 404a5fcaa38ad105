"""One self-contained HTML page from result rows: no external resource, whole without its script, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from longspan.evaluation.comparison import Comparison
from longspan.evaluation.report.answers import answer_cards
from longspan.evaluation.report.bars import task_bars
from longspan.evaluation.report.draw import element
from longspan.evaluation.report.heatmap import heatmaps
from longspan.evaluation.report.lines import perplexity_lines, perplexity_table
from longspan.evaluation.report.matrix import task_matrix
from longspan.evaluation.report.page import page
from longspan.evaluation.report.samples import sample_list
from longspan.evaluation.report.scatter import COSTS, scatters
from longspan.evaluation.report.tables import settings_table, skipped_list, summary_table
from longspan.evaluation.report.trend import effective_table, score_lines, task_lines
from longspan.evaluation.report.versus import comparison_tables, paired_section
from longspan.evaluation.summary import distinct

__all__ = ["render_comparison", "render_report"]

_MOST_OPEN = 3
"""Charts, one a task, that stand open; more fold away under one line."""


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
        (
            "Score by length",
            _charts(score_lines(rows), _LENGTH_LEGEND)
            + effective_table(rows)
            + _charts(task_lines(rows), fold=True),
        ),
        ("Paired comparison", paired_section(rows)),
        ("Tasks", task_matrix(rows) + _charts(task_bars(rows), _TASK_LEGEND, fold=True)),
        ("Score against cost", _costs(rows)),
        ("Score by depth and length", _charts(heatmaps(rows), _HEAT_LEGEND)),
        ("Perplexity by position", _charts(perplexity_lines(rows)) + perplexity_table(rows)),
        ("Samples", sample_list(rows)),
        ("Not run", skipped_list(rows)),
        ("Settings and versions", settings_table(rows)),
        ("Run it again", element("pre", escape(command))),
    ]
    return page(title, notes, sections)


def render_comparison(
    comparisons: Sequence[Comparison], *, title: str, command: str, notes: Sequence[str] = ()
) -> str:
    """The page of `longspan bench compare`.

    Args:
        comparisons: what was compared; those without a pair are left out.
        title, command, notes: as in `render_report`.

    Returns:
        A whole HTML document.
    """
    sections = [
        ("Paired comparison", comparison_tables(comparisons)),
        ("Run it again", element("pre", escape(command))),
    ]
    return page(title, notes, sections, with_script=False)


_LENGTH_LEGEND = '<p class="small">Mean score with its 95% interval, each sample weighing the same.</p>'

_TASK_LEGEND = '<p class="small">Over all lengths and depths that were run.</p>'

_HEAT_LEGEND = (
    '<p class="small">Mean score in percent. Hatched: not run. "spread": the task hides its needles all over '
    "the text.</p>"
)


def _charts(figures: str, legend: str = "", *, fold: bool = False) -> str:
    if not figures:
        return ""
    count = figures.count("<figure>")
    charts = element("div", figures, class_="charts") + legend
    if fold and count > _MOST_OPEN:
        charts = element("details", element("summary", f"{count} charts, one a task") + charts, class_="fold")
    return charts


def _costs(rows: Sequence[Mapping[str, Any]]) -> str:
    parts = ((cost.heading, _charts(scatters(rows, cost))) for cost in COSTS)
    return "".join(element("h3", heading) + charts for heading, charts in parts if charts)
