"""`longspan bench`: what every spec costs in answers, seconds and bytes; `--proof` for the methods' claims."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longspan.cli._bench_options import read_depths, read_lengths, read_seeds, read_tasks, rerun_command
from longspan.cli._output import (
    EXIT_INTERRUPTED,
    JSON_HELP,
    check_writable,
    console,
    loading,
    write_json,
    write_text,
)
from longspan.errors import UserInputError

if TYPE_CHECKING:
    from longspan.evaluation.runner import Job, Runner

_DEFAULTS = {"tasks": "niah_single_2,niah_multikey_1,vt", "lengths": "1024,4096", "depths": "0,25,50,75,100"}


def command(
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
        typer.Option(
            help="How many seeds, or a list such as 7,8. Every depth runs with every seed. Default: 1"
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Samples of each task, length and spec; takes as many seeds as that needs."),
    ] = None,
    haystack: Annotated[
        str, typer.Option(help="pydoc, noise, or a text file or folder to hide answers in.")
    ] = "pydoc",
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
    list_tasks: Annotated[bool, typer.Option("--list-tasks", help="Show all tasks and exit.")] = False,
) -> None:
    """Measure specs x tasks x lengths x depths x seeds: accuracy with its 95% interval, seconds, bytes.

    Example: longspan bench --methods dense --methods "snapkv(keep=0.25)" --tasks keys8_numbers --lengths 4096
    """
    if list_tasks:
        _show_tasks()
        return
    chosen = {"tasks": tasks, "lengths": lengths, "depths": depths}
    load = {"dtype": dtype, "device": device}
    check_writable(out / "results.jsonl", json_file)
    opening = (model, load, haystack, out, fresh, limit_seconds or None)
    if proof:
        given = [f"--{name}" for name, value in chosen.items() if value is not None]
        given += ["--model"] if model != "reference" else []
        if given:
            raise UserInputError(
                f"{given[0]} has no effect with --proof, where each claim sets it; leave it out"
            )
        _run_proof(_open(*opening), methods, seeds, samples, docs, json_file)
    else:
        settings = _settings(
            {name: _DEFAULTS[name] if value is None else value for name, value in chosen.items()},
            methods,
            seeds,
            samples,
        )
        rerun = rerun_command(model, settings, haystack, dtype, device)
        _run_grid(_open(*opening), settings, rerun, out, json_file)


def _show_tasks() -> None:
    from longspan.cli._bench_view import task_table
    from longspan.evaluation.exams import find_tasks

    console().print(task_table(find_tasks()))


def _settings(
    chosen: dict[str, str], methods: list[str] | None, seeds: str | None, samples: int | None
) -> dict[str, Any]:
    """The arguments of `grid`, checked."""
    from longspan.spec import canonical

    return {
        "specs": list(dict.fromkeys(canonical(spec) for spec in methods or ["dense"])),
        "tasks": read_tasks(chosen["tasks"]),
        "lengths": read_lengths(chosen["lengths"]),
        "depths": read_depths(chosen["depths"]),
        "seeds": read_seeds("1" if seeds is None else seeds),
        "samples": samples,
    }


def _open(
    model: str, load: dict[str, Any], haystack: str, out: Path, fresh: bool, limit_seconds: float | None
) -> Runner:
    """Everything a run needs, with the results file opened first so that a broken one costs no waiting."""
    from longspan.evaluation.results import ResultLog, set_aside

    file = out / "results.jsonl"
    # Before it is opened: --fresh is the way out when the file cannot be read.
    if fresh and (aside := set_aside(file)) is not None:
        console().print(f"Earlier results are now in {aside}.")
    log = ResultLog(file)
    if log.dropped_bytes:
        console().print(
            f"Dropped a last line that was cut short ({log.dropped_bytes} bytes) from {log.path}."
        )
    with loading():
        import longspan
        from longspan.evaluation.limits import Limits, free_memory
        from longspan.evaluation.runner import Runner, Setup, open_haystack

        name, text = open_haystack(haystack)
        loaded = longspan.load(model, **load)
    if loaded.tokenizer is None:
        raise UserInputError(f"the model {model!r} has no tokenizer; use a folder or hub id that holds one")
    limits = Limits(seconds=limit_seconds, free_bytes=free_memory(loaded.info.device.type))
    return Runner(model=loaded, haystack=text, setup=Setup.of(loaded, name), log=log, limits=limits)


def _run(runner: Runner, jobs: list[Job]) -> tuple[list[Any], int, bool]:
    """Rows, how many of them were there already, and whether Ctrl-C ended it early."""
    from longspan.cli._bench_view import LiveView, skip_lines

    resumed, stopped = 0, False
    with LiveView(sum(len(job.specs) for job in jobs)) as view:
        try:
            for outcome in runner.run(jobs):
                view.add(outcome.row)
                resumed += outcome.resumed
        except KeyboardInterrupt:
            stopped = True
    for line in skip_lines(view.rows):
        console().print(line)
    if stopped:
        total = sum(len(job.specs) for job in jobs)
        kept = (
            f"{len(view.rows)} of {total} results are kept in {runner.log.path}"
            if view.rows
            else "Nothing was measured yet"
        )
        console().print(f"Stopped. {kept}; the same command goes on.")
    return view.rows, resumed, stopped


def _run_grid(
    runner: Runner, settings: dict[str, Any], rerun: str, out: Path, json_file: Path | None
) -> None:
    from longspan.evaluation.report import render_report
    from longspan.evaluation.runner import grid
    from longspan.evaluation.summary import summarise

    jobs = grid(**settings, tokenizer=runner.model.tokenizer)
    rows, resumed, stopped = _run(runner, jobs)
    total = sum(len(job.specs) for job in jobs)
    notes = (
        [f"{len(rows)} of {total} samples, {resumed} of them from an earlier run."]
        if resumed or stopped
        else []
    )
    notes += _commit_notes(runner, rows)
    if rows:
        missing = _not_reached(runner, jobs, rows) if stopped else []
        title = f"longspan bench: {runner.setup.model}"
        write_text(
            out / "report.html", render_report([*rows, *missing], title=title, command=rerun, notes=notes)
        )
        for note in notes:
            console().print(note)
        console().print(f"Report: {out / 'report.html'}   Results: {runner.log.path}")
    if json_file is not None:
        lines = [summary.as_dict() for summary in summarise(rows, ("spec", "task", "length_tokens"))]
        write_json(
            json_file, {"command": rerun, "setup": vars(runner.setup), "notes": notes, "summary": lines}
        )
    if stopped:
        raise typer.Exit(EXIT_INTERRUPTED)
    if rows and all(row["status"] == "skipped" for row in rows):
        raise UserInputError(f"nothing could be measured: {rows[0]['reason']}")


def _not_reached(runner: Runner, jobs: list[Job], rows: list[Any]) -> list[dict[str, Any]]:
    """Rows for the report's "not run" cells after an early stop."""
    done = {row["key"] for row in rows}
    return [
        {
            **vars(job.case),
            "spec": spec,
            "kind": "answer",
            "status": "skipped",
            "reason": "stopped before it was reached",
        }
        for job in jobs
        for spec in job.specs
        if runner.key(job.case, spec) not in done
    ]


def _run_proof(
    runner: Runner,
    methods: list[str] | None,
    seeds: str | None,
    samples: int | None,
    docs: Path,
    json_file: Path | None,
) -> None:
    from longspan.cli._bench_view import proof_table
    from longspan.errors import did_you_mean
    from longspan.evaluation.proof import judge, load_claims, plan, proof_ledger, proof_markdown

    claims, silent = load_claims()
    names = {claim.method for claim in claims}
    for name in methods or []:
        if name not in names:
            raise UserInputError(f"--methods {name!r} is no method with a claim; {did_you_mean(name, names)}")
    tokenizer, first = runner.model.tokenizer, read_seeds("1" if seeds is None else seeds)
    chosen = [claim for claim in claims if not methods or claim.method in methods]
    _, _, stopped = _run(runner, plan(chosen, first, tokenizer, samples))
    keys = dict.fromkeys(
        runner.key(job.case, spec) for job in plan(claims, first, tokenizer, samples) for spec in job.specs
    )
    rows = [runner.log.rows[key] for key in keys if key in runner.log.rows]
    verdicts = [judge(claim, rows, samples) for claim in claims]
    shown = [verdict for verdict in verdicts if verdict.claim in chosen]
    console().print(proof_table(shown))
    for note in _commit_notes(runner, rows):
        console().print(note)
    if stopped:
        raise typer.Exit(EXIT_INTERRUPTED)
    command = "longspan bench --proof" + (f" --samples {samples}" if samples else "")
    write_text(docs / "proof.md", proof_markdown(verdicts, silent, rows, command))
    write_json(docs / "proof.json", proof_ledger(verdicts, silent, rows))
    console().print(f"Ledger: {docs / 'proof.md'}, {docs / 'proof.json'}   Results: {runner.log.path}")
    if json_file is not None:
        write_json(json_file, proof_ledger(shown, [], rows))


def _commit_notes(runner: Runner, rows: list[Any]) -> list[str]:
    others = {str(row["commit"]) for row in rows} - {str(runner.setup.commit)}
    if not others:
        return []
    count = sum(str(row["commit"]) in others for row in rows)
    names = ", ".join(sorted(others))
    return [
        f"{count} of {len(rows)} samples were measured at another commit ({names}); --fresh measures again."
    ]
