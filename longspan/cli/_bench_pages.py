"""`longspan bench pages`: the tables of docs/ that show the reference model over RULER and over every suite."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longspan.cli._bench_options import read_lengths, read_tasks
from longspan.cli._bench_run import finish, measure, open_runner
from longspan.cli._bench_score import DATA_HELP, use_data
from longspan.cli._output import check_writable, console, write_json, write_text
from longspan.errors import UserInputError

if TYPE_CHECKING:
    from longspan.evaluation.proof import Verdict

__all__ = ["Page", "pages", "write_ledger"]


class Page(StrEnum):
    """A page of docs/."""

    ruler = "ruler"
    suites = "suites"
    positions = "positions"
    compression = "compression"
    proof = "proof"


def pages(
    page: Annotated[
        Page,
        typer.Argument(
            help="ruler: every method over RULER. suites: dense over every suite. positions: past the trained window. "
            "compression: what is kept at five budgets. proof: every method's claim, as `longspan bench --proof`."
        ),
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option(help="With all but suites: names of methods; default all."),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="With suites: tasks or suites; default all.")] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Only these of the page's lengths, such as 2K,4K.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples of each task, length and spec. Default: 10; with proof what each claim names.",
        ),
    ] = None,
    skip: Annotated[
        int, typer.Option(min=0, help="Leave out so many first samples, measured elsewhere.")
    ] = 0,
    part: Annotated[
        str, typer.Option(help="K/N: measure the K-th of N parts only and write no page, to share the work.")
    ] = "1/1",
    read: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Measure nothing: take rows of these results.jsonl files."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
    haystack: Annotated[
        str, typer.Option(help="pydoc, noise, keyvalue, or a text file or folder.")
    ] = "pydoc",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl.")] = Path("longspan-bench"),
    docs: Annotated[Path, typer.Option(help="Folder of proof.md and suites.md.")] = Path("docs"),
) -> None:
    """Measure and write the tables of docs/: proof.md (claims, RULER by method), suites.md, positions.md and compression.md.

    Example: longspan bench pages ruler --samples 10 --device cuda
    """
    use_data(data)
    number, parts = _part(part)
    if read:
        rows = [row for file in read for row in _rows(file)]
        _write(page, rows, samples, docs)
        return
    check_writable(out / "results.jsonl")
    runner = open_runner("reference", {"dtype": dtype, "device": device}, haystack, out, False, None)
    jobs = _plan(page, methods, tasks, samples, skip, runner.model.tokenizer)
    wanted = None if lengths is None else read_lengths(lengths)
    jobs = [job for job in jobs if wanted is None or job.case.length_tokens in wanted]
    # Sample by sample, so that a run that is stopped has something of every cell.
    jobs = sorted(jobs, key=lambda job: job.case.seed)[number - 1 :: parts]
    rows, _, stopped = measure(runner, jobs)
    if parts == 1 and not stopped:
        _write(page, rows, samples, docs)
    finish(rows, stopped)


def _plan(
    page: Page, methods: list[str] | None, tasks: str | None, given: int | None, skip: int, tokenizer: Any
) -> list[Any]:
    from longspan.evaluation.compression import plan_compression
    from longspan.evaluation.exams import FIRST_SEED
    from longspan.evaluation.pages import plan_ruler, plan_suites
    from longspan.evaluation.proof import chosen_claims, load_claims, plan
    from longspan.evaluation.stretch import plan_stretch

    samples = 10 if given is None else given
    if page is Page.proof:
        return plan(chosen_claims(load_claims()[0], methods), [1 + skip], tokenizer, given)
    if page is Page.compression:
        return plan_compression(methods, samples, FIRST_SEED + skip, tokenizer)
    if page is Page.positions:
        return plan_stretch(methods, samples, FIRST_SEED + skip, tokenizer)
    if page is Page.ruler:
        return plan_ruler(methods, samples, FIRST_SEED + skip, tokenizer)
    return plan_suites(None if tasks is None else read_tasks(tasks), samples, FIRST_SEED + skip, tokenizer)


def _part(text: str) -> tuple[int, int]:
    number, slash, parts = text.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise UserInputError(f"--part is {text!r}, allowed is K/N with K from 1 to N, such as 2/8")
    return int(number), int(parts)


def _rows(file: Path) -> list[Any]:
    from longspan.evaluation.comparison import read_rows

    if not file.is_file():
        raise UserInputError(f"--from {str(file)!r} is no file; give a results.jsonl")
    return read_rows(file)


def write_ledger(
    verdicts: Sequence[Verdict], silent: Sequence[str], rows: Sequence[Any], samples: int | None, docs: Path
) -> None:
    """Write proof.md, with the RULER table that stands in it, and proof.json.

    Args:
        verdicts, silent: of all claims, and who has none.
        rows: what was judged.
        samples: of each claim; None for its own number.
        docs: folder.
    """
    from longspan.evaluation.pages import RULER_END, RULER_START, kept_section, put_between
    from longspan.evaluation.proof import proof_ledger, proof_markdown

    command = "longspan bench --proof" + (f" --samples {samples}" if samples else "")
    page, file = proof_markdown(verdicts, silent, rows, command), docs / "proof.md"
    kept = kept_section(file, RULER_START, RULER_END)
    write_text(file, page if kept is None else put_between(page, RULER_START, RULER_END, kept))
    write_json(docs / "proof.json", proof_ledger(verdicts, silent, rows))


def _write(page: Page, rows: list[Any], samples: int | None, docs: Path) -> None:
    from longspan.evaluation.compression import compression_figure, compression_page
    from longspan.evaluation.pages import RULER_END, RULER_START, put_between, ruler_section, suites_page
    from longspan.evaluation.proof import judge, load_claims
    from longspan.evaluation.stretch import stretch_figure, stretch_page

    if page is Page.ruler:
        file = docs / "proof.md"
        whole = file.read_text(encoding="utf-8") if file.exists() else "# Proof\n"
        rows = [row for row in rows if row["suite"] == "ruler"]
        write_text(file, put_between(whole, RULER_START, RULER_END, ruler_section(rows)))
    elif page is Page.proof:
        file = docs / "proof.md"
        rows = list({row["key"]: row for row in rows}.values())  # machines that share the work may meet
        claims, silent = load_claims()
        write_ledger([judge(claim, rows, samples) for claim in claims], silent, rows, samples, docs)
    elif page is Page.positions:
        file = docs / "positions.md"
        write_text(docs / "images" / "positions.svg", stretch_figure(rows))
        write_text(file, stretch_page(rows))
    elif page is Page.compression:
        file = docs / "compression.md"
        write_text(docs / "images" / "compression.svg", compression_figure(rows))
        write_text(file, compression_page(rows))
    else:
        file = docs / "suites.md"
        write_text(file, suites_page(rows))
    console().print(f"Page: {file}")
