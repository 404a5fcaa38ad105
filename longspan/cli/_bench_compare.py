"""`longspan bench compare`: two result files, or the specs of one, sample by sample."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longspan.cli._output import JSON_HELP, check_writable, console, write_json, write_text
from longspan.errors import UserInputError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

    from longspan.evaluation.comparison import Comparison, Tally

__all__ = ["compare", "comparison_table"]


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="results.jsonl, or a folder that holds one.")],
    second: Annotated[
        Path | None, typer.Argument(metavar="[B]", help="Another; without it the specs of A are compared.")
    ] = None,
    spec_a: Annotated[str | None, typer.Option(help="Spec of A to compare.")] = None,
    spec_b: Annotated[str | None, typer.Option(help="Spec of B (of A without B) to compare with.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Without B: compare every spec with this one. Default: dense")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help=JSON_HELP)] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write an HTML page too.")] = None,
) -> None:
    """Compare on the same samples: wins, losses, mean difference with its 95% interval, sign test.

    With A and B every spec that is in both is compared, A minus B; with A alone its specs with dense.

    Example: longspan bench compare before/ after/ --json difference.json
    """
    check_writable(json_file, out)
    found = (
        _within(first, spec_a, spec_b, against)
        if second is None
        else _between(first, second, spec_a, spec_b, against)
    )
    if not any(comparison.overall for comparison in found):
        raise UserInputError(_nothing(found))
    if str(json_file) != "-":
        for comparison in found:
            console().print(comparison_table(comparison))
            for line in _left_out(comparison):
                console().print(line, markup=False)
        console().print("p: exact sign test on wins and losses, two-sided, not corrected for several tasks.")
    if json_file is not None:
        write_json(json_file, {"comparisons": [comparison.as_dict() for comparison in found]})
    if out is not None:
        from longspan.evaluation.report import render_comparison

        words = ["longspan", "bench", "compare", str(first), *([str(second)] if second else [])]
        for name, value in (("--spec-a", spec_a), ("--spec-b", spec_b), ("--against", against)):
            words += [name, value] if value is not None else []
        write_text(out, render_comparison(found, title="longspan bench compare", command=shlex.join(words)))
        if str(json_file) != "-":
            console().print(f"Report: {out}", markup=False, soft_wrap=True)


def _within(file: Path, spec_a: str | None, spec_b: str | None, against: str | None) -> list[Comparison]:
    from longspan.evaluation.comparison import compare_rows, compare_with, read_rows
    from longspan.evaluation.summary import distinct

    if against is not None and spec_b is not None:
        raise UserInputError("--against and --spec-b say the same without B; leave one out")
    rows = read_rows(file)
    specs = distinct(rows, "spec")
    other = _chosen(against or spec_b or "dense", specs, file)
    if spec_a is None:
        if len(specs) == 1:
            raise UserInputError(
                f"{file} holds one spec only, {other!r}; give a second file, or measure another spec"
            )
        return compare_with(rows, other)
    mine = _chosen(spec_a, specs, file)
    return [compare_rows(_of(rows, mine), _of(rows, other), first=mine, second=other)]


def _between(
    first: Path, second: Path, spec_a: str | None, spec_b: str | None, against: str | None
) -> list[Comparison]:
    from longspan.evaluation.comparison import compare_rows, read_rows
    from longspan.evaluation.summary import distinct

    if against is not None:
        raise UserInputError(
            "--against has no effect with two files; leave it out, or name --spec-a and --spec-b"
        )
    rows, others = read_rows(first), read_rows(second)
    specs, other_specs = distinct(rows, "spec"), distinct(others, "spec")
    common = [spec for spec in specs if spec in other_specs]
    pairs = [(spec, spec) for spec in common]
    if spec_a is not None or spec_b is not None:
        mine = _chosen_or_only(spec_a, spec_b, specs, first)
        theirs = _chosen_or_only(spec_b, spec_a, other_specs, second)
        pairs = [(mine, theirs)]
    elif not common:
        if len(specs) > 1 or len(other_specs) > 1:
            raise UserInputError(
                f"no spec is in both files: {_names(specs)} in A, {_names(other_specs)} in B; "
                "choose with --spec-a and --spec-b"
            )
        pairs = [(specs[0], other_specs[0])]
    return [
        compare_rows(
            _of(rows, mine),
            _of(others, theirs),
            first=_side("A", mine, theirs),
            second=_side("B", theirs, mine),
        )
        for mine, theirs in pairs
    ]


def _chosen(wanted: str, specs: Sequence[str], file: Path) -> str:
    """The spec of a file that a user means, whether or not they write out its defaults."""
    from longspan.spec import canonical

    if wanted in specs:
        return wanted
    name = canonical(wanted)
    if name not in specs:
        raise UserInputError(f"the spec {name!r} is not in {file}; {did_you_mean(name, specs)}")
    return name


def _chosen_or_only(wanted: str | None, other: str | None, specs: Sequence[str], file: Path) -> str:
    """The spec asked for; without one, a file's only spec, or the one that the other side was asked for."""
    if wanted is None and len(specs) == 1:
        return specs[0]
    return _chosen(wanted or other or "", specs, file)


def _of(rows: Sequence[dict[str, Any]], spec: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["spec"] == spec]


def _side(letter: str, spec: str, other: str) -> str:
    return f"{letter}: {spec}" if spec == other else spec


def _names(specs: Sequence[str]) -> str:
    return ", ".join(map(repr, specs))


def _nothing(found: Sequence[Comparison]) -> str:
    reasons = dict.fromkeys(left.reason for comparison in found for left in comparison.unpaired)
    why = ", ".join(reasons) or "no rows"
    return f"no sample could be paired ({why}); measure both sides with the same model, tasks, lengths, depths and seeds"


def _left_out(comparison: Comparison) -> list[str]:
    if not comparison.unpaired:
        return []
    lines = [f"{comparison.num_unpaired} rows could not be paired:"]
    return lines + [f"  {left.count} of {left.task}: {left.reason}" for left in comparison.unpaired]


def comparison_table(comparison: Comparison) -> Table:
    """A line a task and one for all: wins, losses, ties, difference in points with its interval, p."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from longspan.evaluation.comparison import p_text, points_text
    from longspan.evaluation.wording import percent

    title = f"{escape(comparison.first)} minus {escape(comparison.second)}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("task", overflow="fold")
    for name in ("first", "second", "difference", "95% interval", "wins", "losses", "ties", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for tally in _lines(comparison):
        low, high = tally.interval
        table.add_row(
            tally.task or "[bold]all tasks[/bold]",
            percent(tally.mean),
            percent(tally.other_mean),
            points_text(tally.difference),
            f"{points_text(low)} to {points_text(high)}",
            str(tally.wins),
            str(tally.losses),
            str(tally.ties),
            p_text(tally.p_value),
        )
    return table


def _lines(comparison: Comparison) -> list[Tally]:
    overall = [comparison.overall] if comparison.overall and len(comparison.tasks) > 1 else []
    return [*comparison.tasks, *overall]
