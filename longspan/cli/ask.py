"""`longspan ask`: a question about any text file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longspan.cli._output import JSON_HELP
from longspan.errors import UserInputError

if TYPE_CHECKING:
    from rich.console import Console

    from longspan.engine.context import Answer

REFERENCE = "reference"
BEYOND_WINDOW = "tokenselect"


def command(
    file: Annotated[str, typer.Argument(help="A text file, or - for standard input.")],
    questions: Annotated[
        list[str], typer.Argument(metavar="QUESTION...", help="One or more questions about the text.")
    ],
    model: Annotated[
        str, typer.Option(help="A hub id, a folder, or 'reference', the model that comes with longspan.")
    ] = REFERENCE,
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"Method spec; by default none, and {BEYOND_WINDOW!r} for a text beyond the model's window."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 48,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Keep what was read here, and read no text twice; see `longspan contexts`."
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help=JSON_HELP)] = None,
) -> None:
    """Read a text once and answer questions about it, with the sentences the answers came from.

    Example: longspan ask book.txt "Who keeps the lantern?" --methods "tokenselect"
    """
    from longspan.cli._output import check_writable, console, loading, write_json
    from longspan.cli._text import read_text

    _check_questions(questions)
    check_writable(json_file)
    text = read_text(file)
    out = console()
    if model == REFERENCE:
        out.print(
            "Model: the bundled reference model (22M parameters, English, made for measuring); --model takes any other.",
            style="dim",
        )
    with loading():
        from longspan.engine.api import load
        from longspan.engine.shelf import ContextStore

        shelf = None if store is None else ContextStore(store)
        span = load(model, methods)
    if span.tokenizer is None:
        raise UserInputError(f"the model {model!r} has no tokenizer; use a folder or hub id that holds one")
    num_tokens = len(span.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if methods is None and num_tokens + min(512, span.window_tokens // 4) > span.window_tokens:
        out.print(
            f"The text has {num_tokens:,} tokens, the model's window {span.window_tokens:,}: "
            f"reading it with {BEYOND_WINDOW} (choose with --methods).",
            style="dim",
        )
        span = span.with_methods(BEYOND_WINDOW)
    for note in span.plan.notes:
        out.print(note, style="dim")
    context = span.read(text) if shelf is None else shelf.read(span, text)
    read_seconds = sum(context.usage.seconds.values())
    results: list[dict[str, Any]] = []
    try:
        for question in questions:
            answer = context.ask(question, max_new_tokens=max_new_tokens)
            _show(out, question, answer, num_tokens)
            results.append(_result(question, answer))
    finally:
        # After Ctrl-C or a question that cannot be asked, the answers so far are written all the same.
        if json_file is not None and results:
            write_json(
                json_file,
                {
                    "model": span.name,
                    "spec": span.spec,
                    "tokens": context.num_tokens,
                    "cached_tokens": context.cached_tokens,
                    "kv_bytes": context.kv_bytes,
                    "peak_kv_bytes": context.usage.peak_kv_bytes,
                    "read_seconds": read_seconds,
                    "backends": context.usage.backends,
                    "answers": results,
                },
            )
    cached = (
        f" ({context.cached_tokens:,} of them from {_plain(str(store))})" if context.cached_tokens else ""
    )
    out.print(
        f"\n{context.num_tokens:,} tokens read{cached} in {read_seconds:.1f} s with {span.spec}; "
        f"{context.kv_bytes / 1e6:.1f} MB of keys and values held.",
        style="dim",
    )


def _check_questions(questions: list[str]) -> None:
    """Refuse questions that can never be asked before the text is read, which can take minutes."""
    for question in questions:
        if not question.strip():
            raise UserInputError("the question is empty; write one")
        try:
            question.encode()
        except UnicodeEncodeError as error:
            raise UserInputError(
                f"the question {ascii(question)} is not in UTF-8; set the terminal's encoding to UTF-8"
            ) from error


def _show(out: Console, question: str, answer: Answer, num_tokens: int) -> None:
    out.print(f"\n[bold]{_plain(question)}[/bold]")
    out.print(_plain(answer.text) or "(no answer)", style="green")
    for source in answer.sources[:1]:
        out.print(f"source (token {source.token:,} of {num_tokens:,}): {_plain(source.text)}", style="dim")


def _result(question: str, answer: Answer) -> dict[str, Any]:
    return {
        "question": question,
        "answer": answer.text,
        "sources": [{"text": s.text, "token": s.token, "weight": round(s.weight, 4)} for s in answer.sources],
        "seconds": answer.usage.seconds,
        "generated_tokens": answer.usage.generated_tokens,
        "backends": answer.usage.backends,
    }


def _plain(text: str) -> str:
    """Text that Rich does not take for markup."""
    from rich.markup import escape

    return escape(text)
