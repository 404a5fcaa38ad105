"""What `longspan bench` shows on the terminal: a live table with a progress bar, the proof's table; and the summary as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from longspan.cli._output import console
from longspan.evaluation.summary import Summary, distinct, skips, summarise
from longspan.evaluation.wording import bytes_text, percent, seconds_text, tokens_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from longspan.evaluation.proof import Verdict

__all__ = ["LiveView", "proof_table", "skip_lines", "summary_json", "summary_table"]

_SECONDS_BETWEEN_TABLES = 0.5


class LiveView:
    """A table that grows with the rows, over a progress bar with the time left. Use as a context manager.

    Args:
        total: rows to come.
    """

    def __init__(self, total: int) -> None:
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.rows: list[Mapping[str, Any]] = []
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._task = self._progress.add_task("", total=total)
        self._console = console()
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._drawn = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row in."""
        self.rows.append(row)
        shown = f"{row['task']}, {tokens_text(row['length_tokens'])}: {row['spec']}"
        self._progress.update(self._task, advance=1, description=shown)
        if time.monotonic() - self._drawn > _SECONDS_BETWEEN_TABLES:
            self._live.update(self._render())
            self._drawn = time.monotonic()

    def _render(self) -> RenderableType:
        from rich.console import Group

        return Group(summary_table(self.rows), self._progress)

    def __enter__(self) -> LiveView:
        self._live.start()
        self._live.update(self._progress)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if self.rows:
            self._console.print(summary_table(self.rows))


def summary_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line a (length, spec): accuracy with its interval, seconds, bytes; perplexity where it was measured."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    has_answers = any(row.get("score") is not None for row in rows)
    has_likelihoods = any(row.get("nll") is not None for row in rows)
    table.add_column("length", justify="right")
    table.add_column("spec", overflow="fold")
    titles = ["accuracy", "95% interval"] if has_answers or not has_likelihoods else []
    titles += ["perplexity"] if has_likelihoods else []
    for title in (*titles, "n", "prefill", "tok/s", "KV held", "KV peak"):
        table.add_column(title, justify="right", no_wrap=True)
    groups = summarise(rows, ("length_tokens", "spec"))
    specs = distinct(rows, "spec")
    for group in sorted(
        groups, key=lambda found: (found.group["length_tokens"], specs.index(found.group["spec"]))
    ):
        cells = [tokens_text(group.group["length_tokens"]), group.group["spec"]]
        if titles[:1] == ["accuracy"]:
            low, high = group.interval or (0.0, 1.0)
            cells += [
                percent(group.accuracy),
                f"{percent(low)} to {percent(high)}" if group.interval else "–",
            ]
        if has_likelihoods:
            cells.append("–" if group.perplexity is None else f"{group.perplexity:,.1f}")
        speed = group.decode_tokens_per_second
        cells += [_count(group), seconds_text(group.prefill_seconds)]
        cells += [
            f"{speed:,.1f}" if speed else "–",
            bytes_text(group.kv_bytes),
            bytes_text(group.peak_kv_bytes),
        ]
        table.add_row(*cells)
    return table


def _count(group: Summary) -> str:
    counts = [str(group.num_samples)] if group.num_samples or not group.num_texts else []
    counts += [f"{group.num_texts} texts"] if group.num_texts else []
    counts += [f"{group.num_skipped} skipped"] if group.num_skipped else []
    return " + ".join(counts)


def skip_lines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence for every kind of sample that was not run."""
    return [
        f"skipped {count} of {task} at {tokens_text(length)} with {spec}: {reason}"
        for spec, task, length, reason, count in skips(rows)
    ]


def proof_table(verdicts: Sequence[Verdict]) -> Table:
    """A line a claim."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("method", "spec", "task", "asked", "measured", "against", "verdict"):
        table.add_column(title, overflow="fold")
    for verdict in verdicts:
        claim = verdict.claim
        measured = percent(verdict.measured.accuracy) if verdict.measured else "–"
        baseline = percent(verdict.baseline.accuracy) if verdict.baseline else "–"
        colour = {True: "green", False: "red", None: "yellow"}[verdict.holds]
        task = f"{claim.task}, {tokens_text(claim.length_tokens)}"
        against = f"{claim.against}: {baseline}"
        words = f"[{colour}]{verdict.words}[/{colour}]"
        table.add_row(claim.method, claim.spec, task, claim.threshold, measured, against, words)
    return table


def summary_json(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every number of the report as plain values.

    Returns:
        `summary`: a line a (spec, task, length); `effective_lengths`: scores by length of each spec; `comparisons`: each
        spec against dense, or the first spec where dense was not measured, sample by sample.
    """
    from dataclasses import asdict

    from longspan.evaluation.comparison import compare_with
    from longspan.evaluation.summary import baseline_spec, summarise_lengths

    against = baseline_spec(rows)
    compared = compare_with(rows, against) if against is not None else []
    return {
        "summary": [summary.as_dict() for summary in summarise(rows, ("spec", "task", "length_tokens"))],
        "effective_lengths": [asdict(found) for found in summarise_lengths(rows)],
        "comparisons": [comparison.as_dict() for comparison in compared],
    }
