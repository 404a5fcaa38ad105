"""`longspan demo`: the first thing to run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longspan.cli._output import JSON_HELP

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from longspan.engine.model import SpanModel
    from longspan.evaluation.demonstration import Exam, Result

SPECS = (
    "dense",
    "truncate",
    "ntk(factor=8) + duo_attention",
    "tokenselect",
    "lm_infinite(evict=false, window_tokens=1024) + gemfilter(keep=512, layer=6, score=softmax, pool_tokens=15)",
)
LENGTHS = "4096,8192,16384,65536"


def command(
    seed: Annotated[int, typer.Option(help="Decides the facts and where they are hidden.")] = 0,
    methods: Annotated[
        list[str] | None, typer.Option(help="Spec to compare; give it several times. Default: five specs.")
    ] = None,
    lengths: Annotated[str, typer.Option(help="Text lengths in tokens.")] = LENGTHS,
    facts: Annotated[int, typer.Option(min=1, max=32, help="Facts hidden in each text.")] = 5,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Time to spend; what would not fit is left out and said so.")
    ] = 3.75,
    report: Annotated[Path, typer.Option(help="The HTML report.")] = Path("longspan-demo.html"),
    json_file: Annotated[Path | None, typer.Option("--json", help=JSON_HELP)] = None,
) -> None:
    """Read texts far beyond the reference model's window, with and without methods, and compare the answers.

    Example: longspan demo --seed 7
    """
    from longspan.cli._output import EXIT_INTERRUPTED, check_writable, console, loading

    out = console()
    sizes = _lengths(lengths)
    check_writable(report, json_file)
    with loading():
        from longspan.engine.api import load
        from longspan.evaluation.demonstration import make_exam
        from longspan.evaluation.haystacks.pydoc import pydoc_haystack

        model = load("reference")
        specs = tuple(model.with_methods(spec).spec for spec in (methods or SPECS))
        haystack = pydoc_haystack()
        exams = [make_exam(haystack, size, facts, model.tokenizer, seed) for size in sizes]
    out.print(
        f"A model of {_millions(model)}M parameters with a window of {model.window_tokens:,} tokens reads the Python language "
        f"reference, in which {facts} facts are hidden, and is asked for each. 'dense' is its own attention."
    )
    results, stopped = _run(out, model, specs, exams, minutes)
    notes = [f"{_tokens(r.exam.length_tokens)} {r.spec}: left out, {r.reason}." for r in results if r.reason]
    notes += [f"Stopped after {len(results)} of {len(specs) * len(exams)} readings."] if stopped else []
    for line in notes:
        out.print(line, style="dim", markup=False)
    if results:
        _show_one(out, results)
        _write(out, model, specs, results, notes, seed, report, json_file)
    if stopped:
        raise typer.Exit(EXIT_INTERRUPTED)


def _run(
    out: Console, model: SpanModel, specs: tuple[str, ...], exams: list[Exam], minutes: float
) -> tuple[list[Result], bool]:
    """Results, shown as they come, and whether Ctrl-C ended it early."""
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from longspan.evaluation.demonstration import run_demo

    results: list[Result] = []
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} tokens"),
        TimeElapsedColumn(),
    )
    task = bar.add_task("", total=None)

    def on_progress(spec: str, exam: Any, done: int) -> None:
        bar.update(
            task,
            description=f"{exam.length_tokens // 1024}K {spec}",
            completed=done,
            total=exam.length_tokens,
        )

    stopped = False
    with Live(console=out, refresh_per_second=4) as live:
        live.update(bar)
        try:
            for result in run_demo(model, specs, exams, budget_seconds=minutes * 60, on_progress=on_progress):
                results.append(result)
                live.update(Group(_table(results), bar))
        except KeyboardInterrupt:
            stopped = True
        live.update(_table(results))
    return results, stopped


def _write(
    out: Console,
    model: SpanModel,
    specs: tuple[str, ...],
    results: list[Result],
    notes: list[str],
    seed: int,
    report: Path,
    json_file: Path | None,
) -> None:
    """The report, and the rows as JSON where they are asked for."""
    from longspan.cli._output import write_json, write_text
    from longspan.evaluation.demonstration import report_answers, report_rows
    from longspan.evaluation.report import render_report

    about = {"model": model.name, "seed": seed, "device": str(model.info.device), "haystack": "pydoc"}
    results.sort(key=lambda found: (found.exam.length_tokens, specs.index(found.spec)))
    rows = report_rows(results, about)
    facts = len(results[0].exam.facts)
    page = render_report(
        rows,
        title="longspan demo",
        command="longspan " + shlex.join(sys.argv[1:]),
        notes=[
            f"{facts} facts hidden in the Python language reference at each length; the model's window is {model.window_tokens:,} tokens.",
            *notes,
        ],
        answers=report_answers(results),
    )
    write_text(report, page)
    out.print(f"Report: {report.resolve()}", markup=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, {"seed": seed, "rows": rows})


def _lengths(text: str) -> list[int]:
    from longspan.cli._bench_options import MAX_LENGTH_TOKENS
    from longspan.errors import UserInputError

    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise UserInputError(
            f"got --lengths {text!r}; give whole numbers of tokens, such as {LENGTHS}"
        ) from error
    if sizes[0] < 1024 or sizes[-1] > MAX_LENGTH_TOKENS:
        wrong = sizes[0] if sizes[0] < 1024 else sizes[-1]
        raise UserInputError(f"got a length of {wrong} tokens; give 1024 to {MAX_LENGTH_TOKENS}")
    return sizes


def _table(results: list[Result]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("text", justify="right")
    table.add_column("spec", overflow="fold")
    for title in ("right", "sources", "read s", "decode s", "tok/s", "peak KV MB"):
        table.add_column(title, justify="right", no_wrap=True)
    previous = None
    for result in sorted(results, key=lambda found: found.exam.length_tokens):
        size = result.exam.length_tokens
        if previous not in (None, size):
            table.add_section()
        previous = size
        if result.reason is not None:
            table.add_row(_tokens(size), result.spec, "left out", "", "", "", "", "")
            continue
        right, asked = sum(result.right), len(result.right)
        style = "green" if right == asked else "yellow" if right else "red"
        table.add_row(
            _tokens(size),
            result.spec,
            f"[{style}]{right}/{asked}[/{style}]",
            f"{result.sources_found}/{right}" if right else "-",
            f"{result.read_seconds + result.seconds('prefill'):.1f}",
            f"{result.seconds('decode'):.1f}",
            f"{result.tokens_per_second:.0f}",
            f"{result.peak_kv_bytes / 1e6:.1f}",
        )
    return table


def _show_one(out: Any, results: list[Result]) -> None:
    """One answer with its source, from the longest text."""
    for result in sorted(results, key=lambda r: -r.exam.length_tokens):
        for fact, answer, right in zip(result.exam.facts, result.answers, result.right, strict=False):
            if right and answer.sources:
                out.print(
                    f"\n{_tokens(result.exam.length_tokens)}, {result.spec}: {fact.question}", markup=False
                )
                out.print(f"  answer: {answer.text}", markup=False, style="green")
                out.print(f"  source: {answer.sources[0].text}\n", markup=False, style="dim")
                return


def _tokens(size: int) -> str:
    return f"{size // 1024}K" if size % 1024 == 0 else f"{size:,}"


def _millions(model: Any) -> int:
    return round(sum(weight.numel() for weight in model.hf_model.parameters()) / 1e6)
