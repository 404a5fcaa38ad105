"""`longspan bench`: what every spec costs in answers, seconds and bytes; `--proof` for the methods' claims.

Alone it measures; its sub-commands read what was measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longspan.cli._bench_compare import compare
from longspan.cli._bench_embed import embed
from longspan.cli._bench_options import read_depths, read_lengths, read_seeds, read_tasks, rerun_command
from longspan.cli._bench_pages import pages, write_ledger
from longspan.cli._bench_run import (
    commit_notes,
    finish,
    measure,
    not_reached,
    open_runner,
    source_notes,
    truncation_notes,
)
from longspan.cli._bench_score import DATA_HELP, samples, score, use_data
from longspan.cli._output import (
    EXIT_INTERRUPTED,
    JSON_HELP,
    check_writable,
    console,
    keep_stdout_for,
    write_json,
    write_text,
)
from longspan.errors import UserInputError

if TYPE_CHECKING:
    from longspan.evaluation.runner import Runner

app = typer.Typer(invoke_without_command=True)
app.command("compare")(compare)
app.command("embed")(embed)
app.command("score")(score)
app.command("samples")(samples)
app.command("pages")(pages)

_DEFAULTS = {"tasks": "niah_single_2,niah_multikey_1,vt", "lengths": "1024,4096", "depths": "0,25,50,75,100"}


@app.callback()
def bench(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="reference, a hub id, or a model folder.")] = "reference",
    methods: Annotated[
        list[str] | None,
        typer.Option(help="A method spec; repeat for several. With --proof: names of methods."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help=f"Tasks or suites, comma-separated. Default: {_DEFAULTS['tasks']}")
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(help=f"Context lengths in tokens, such as 4096,8K. Default: {_DEFAULTS['lengths']}"),
    ] = None,
    depths: Annotated[
        str | None,
        typer.Option(help=f"Where the answer lies, percent of the text. Default: {_DEFAULTS['depths']}"),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="How many seeds, or a list such as 7,8; each runs with every depth. Default: 1"),
    ] = None,
    num_samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=1,
            help="Samples of each task, length and spec; takes as many seeds as that needs.",
        ),
    ] = None,
    haystack: Annotated[
        str, typer.Option(help="pydoc, noise, keyvalue, or a text file or folder to hide answers in.")
    ] = "pydoc",
    data: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Let published data that are not in --data come from the hub.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl and report.html.")] = Path(
        "longspan-bench"
    ),
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Set earlier results aside, or go on where they stop.")
    ] = False,
    limit_seconds: Annotated[
        float,
        typer.Option(min=0, help="Skip samples that would take longer, judged by shorter ones; 0: no limit."),
    ] = 600.0,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help=JSON_HELP)] = None,
    proof: Annotated[
        bool, typer.Option("--proof", help="Measure every method's claim on the reference model.")
    ] = False,
    docs: Annotated[Path, typer.Option(help="Folder for proof.md and proof.json.")] = Path("docs"),
    list_suites: Annotated[
        bool, typer.Option("--list", help="Show all suites, what they ask and what they need, and exit.")
    ] = False,
    list_tasks: Annotated[
        bool, typer.Option("--list-tasks", help="Show all tasks, what they measure and how, and exit.")
    ] = False,
) -> None:
    """Measure specs x tasks x lengths x depths x seeds: accuracy with its 95% interval, seconds, bytes.

    Example: longspan bench --methods dense --methods "snapkv(keep=0.25)" --tasks keys8_numbers --lengths 4096
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context, context.invoked_subcommand)
        return
    if list_suites or list_tasks:
        _show_lists(list_suites, list_tasks)
        return
    use_data(data, download)
    keep_stdout_for(json_file)
    chosen = {"tasks": tasks, "lengths": lengths, "depths": depths}
    load = {"dtype": dtype, "device": device}
    check_writable(out / "results.jsonl", json_file)
    opening = (model, load, haystack, out, fresh, limit_seconds or None)
    if proof:
        _refuse_with_proof(model, chosen)
        _run_proof(open_runner(*opening), methods, seeds, num_samples, docs, json_file)
    else:
        settings = _settings(chosen, methods, seeds, num_samples)
        more = {"--data": data, "--dtype": dtype, "--device": device}
        rerun = rerun_command(model, settings, haystack, more)
        _run_grid(open_runner(*opening), settings, rerun, out, json_file)


def _refuse_options(context: typer.Context, name: str) -> None:
    """Options before a sub-command would be read and then forgotten."""
    given = [
        option
        for option in context.params
        if getattr(context.get_parameter_source(option), "name", "") == "COMMANDLINE"
    ]
    if given:
        shown = next(param.opts[0] for param in context.command.params if param.name == given[0])
        raise UserInputError(
            f"{shown} has no effect before {name!r}; leave it out, or give it after {name!r}"
        )


def _refuse_with_proof(model: str, chosen: dict[str, str | None]) -> None:
    given = [f"--{name}" for name, value in chosen.items() if value is not None]
    given += ["--model"] if model != "reference" else []
    if given:
        raise UserInputError(f"{given[0]} has no effect with --proof, where each claim sets it; leave it out")


def _show_lists(suites: bool, tasks: bool) -> None:
    from longspan.cli._bench_list import suite_table, task_table
    from longspan.evaluation.registry import find_suite_cards, find_tasks, find_wrappers

    entries = find_tasks()
    if suites:
        console().print(suite_table(find_suite_cards(), entries, find_wrappers()))
    if tasks:
        console().print(task_table(entries))


def _settings(
    chosen: dict[str, str | None], methods: list[str] | None, seeds: str | None, samples: int | None
) -> dict[str, Any]:
    """The arguments of `grid`, checked; what was not chosen has its default."""
    from longspan.spec import canonical

    texts = {name: _DEFAULTS[name] if value is None else value for name, value in chosen.items()}
    return {
        "specs": list(dict.fromkeys(canonical(spec) for spec in methods or ["dense"])),
        "tasks": read_tasks(texts["tasks"]),
        "lengths": read_lengths(texts["lengths"]),
        "depths": read_depths(texts["depths"]),
        "seeds": read_seeds("1" if seeds is None else seeds),
        "samples": samples,
    }


def _run_grid(
    runner: Runner, settings: dict[str, Any], rerun: str, out: Path, json_file: Path | None
) -> None:
    from longspan.cli._bench_view import summary_json
    from longspan.evaluation.report import render_report
    from longspan.evaluation.runner import grid

    jobs = grid(**settings, tokenizer=runner.model.tokenizer)
    rows, resumed, stopped = measure(runner, jobs)
    total = sum(len(job.specs) for job in jobs)
    notes = (
        [f"{len(rows)} of {total} samples, {resumed} of them from an earlier run."]
        if resumed or stopped
        else []
    )
    notes += commit_notes(runner, rows) + truncation_notes(rows) + source_notes(rows)
    if rows:
        missing = not_reached(runner, jobs, rows) if stopped else []
        title = f"longspan bench: {runner.setup.model}"
        write_text(
            out / "report.html", render_report([*rows, *missing], title=title, command=rerun, notes=notes)
        )
        for note in notes:
            console().print(note)
        console().print(f"Report: {out / 'report.html'}   Results: {runner.log.path}")
    if json_file is not None:
        write_json(
            json_file, {"command": rerun, "setup": vars(runner.setup), "notes": notes, **summary_json(rows)}
        )
    finish(rows, stopped)


def _run_proof(
    runner: Runner,
    methods: list[str] | None,
    seeds: str | None,
    samples: int | None,
    docs: Path,
    json_file: Path | None,
) -> None:
    from longspan.cli._bench_view import proof_table
    from longspan.evaluation.proof import chosen_claims, judge, load_claims, plan, proof_ledger

    claims, silent = load_claims()
    chosen = chosen_claims(claims, methods)
    tokenizer, first = runner.model.tokenizer, read_seeds("1" if seeds is None else seeds)
    measured, _, stopped = measure(runner, plan(chosen, first, tokenizer, samples))
    keys = dict.fromkeys(
        runner.key(job.case, spec) for job in plan(claims, first, tokenizer, samples) for spec in job.specs
    )
    rows = [runner.log.rows[key] for key in keys if key in runner.log.rows]
    verdicts = [judge(claim, rows, samples) for claim in claims]
    shown = [verdict for verdict in verdicts if verdict.claim in chosen]
    console().print(proof_table(shown))
    for note in commit_notes(runner, rows):
        console().print(note)
    if stopped:
        raise typer.Exit(EXIT_INTERRUPTED)
    write_ledger(verdicts, silent, rows, samples, docs)
    console().print(f"Ledger: {docs / 'proof.md'}, {docs / 'proof.json'}   Results: {runner.log.path}")
    if json_file is not None:
        write_json(json_file, proof_ledger(shown, [], rows))
    finish(measured, stopped)
