"""What every run of `longspan bench` does: open the results, measure, say what was skipped, choose the exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from longspan.cli._output import EXIT_INTERRUPTED, EXIT_SKIPPED, console, loading
from longspan.errors import UserInputError

if TYPE_CHECKING:
    from longspan.evaluation.runner import Job, Runner

__all__ = [
    "commit_notes",
    "finish",
    "measure",
    "not_reached",
    "open_runner",
    "source_notes",
    "truncation_notes",
]


def open_runner(
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


def measure(runner: Runner, jobs: list[Job]) -> tuple[list[Any], int, bool]:
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


def not_reached(runner: Runner, jobs: list[Job], rows: list[Any]) -> list[dict[str, Any]]:
    """Rows for the report's "not run" cells after an early stop."""
    done = {row["key"] for row in rows}
    return [
        {
            **vars(job.case),
            "spec": spec,
            "fingerprint": runner.setup.fingerprint,
            "kind": "answer",
            "status": "skipped",
            "reason": "stopped before it was reached",
        }
        for job in jobs
        for spec in job.specs
        if runner.key(job.case, spec) not in done
    ]


def commit_notes(runner: Runner, rows: list[Any]) -> list[str]:
    """A sentence where rows come from another state of the source than this run."""
    others = {str(row["commit"]) for row in rows} - {str(runner.setup.commit)}
    if not others:
        return []
    count = sum(str(row["commit"]) in others for row in rows)
    names = ", ".join(sorted(others))
    return [
        f"{count} of {len(rows)} samples were measured at another commit ({names}); --fresh measures again."
    ]


def source_notes(rows: list[Any]) -> list[str]:
    """Licence and citation of every suite of published data that was run."""
    from longspan.evaluation.registry import find_suite_cards

    cards = find_suite_cards()
    suites = dict.fromkeys(row["suite"] for row in rows if row["status"] == "done")
    return [
        f"{suite}: licence {cards[suite]['licence']}; cite {cards[suite]['citation']}"
        for suite in suites
        if "citation" in cards.get(suite, {})
    ]


def truncation_notes(rows: list[Any]) -> list[str]:
    """A sentence where published texts were longer than the length asked for."""
    longer = sum(bool(row.get("truncated")) for row in rows)
    if not longer:
        return []
    return [
        f"{longer} of {len(rows)} samples lost the middle of their text to fit --lengths; ask for longer ones."
    ]


def finish(rows: list[Any], stopped: bool) -> None:
    """End the command with the right exit code: 130 after Ctrl-C, 3 when some samples were skipped.

    Raises:
        UserInputError: all were skipped.
    """
    if stopped:
        raise typer.Exit(EXIT_INTERRUPTED)
    skipped = [row for row in rows if row["status"] == "skipped"]
    if skipped and len(skipped) == len(rows):
        raise UserInputError(f"nothing could be measured: {skipped[0]['reason']}")
    if skipped:
        console().print(f"{len(skipped)} of {len(rows)} samples were skipped, see above")
        raise typer.Exit(EXIT_SKIPPED)
