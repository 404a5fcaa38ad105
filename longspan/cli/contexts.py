"""`longspan contexts`: what a folder of saved contexts holds, whether every byte of it is as it was written, and contexts that come
over a link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from longspan.cli._output import JSON_HELP, check_writable, console, keep_stdout_for, loading, write_json
from longspan.errors import UserInputError, did_you_mean

if TYPE_CHECKING:
    from longspan.engine.shelf import ContextStore, Saved
    from longspan.storage.contexts import Streamed

EXIT_DAMAGED = 1
MEGABIT_BYTES = 125_000

Folder = Annotated[Path, typer.Argument(help="A folder that `longspan ask --store` or a ContextStore keeps.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help=JSON_HELP)]

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _contexts() -> None:
    """Look after a folder of saved contexts.

    Example: longspan contexts list contexts/
    """


@app.command("list")
def list_contexts(folder: Folder, json_file: JsonFile = None) -> None:
    """List the contexts, the most recently used first.

    Example: longspan contexts list contexts/
    """
    check_writable(json_file)
    keep_stdout_for(json_file)
    found = _open(folder).list()
    if json_file is not None:
        write_json(json_file, [asdict(saved) for saved in found])
    if str(json_file) != "-":
        _print(found)


@app.command()
def verify(folder: Folder, json_file: JsonFile = None) -> None:
    """Read every file and check every byte; exit code 1 where one is damaged.

    Example: longspan contexts verify contexts/
    """
    check_writable(json_file)
    keep_stdout_for(json_file)
    store = _open(folder)
    problems = store.verify()
    if json_file is not None:
        write_json(
            json_file, {"contexts": len(store.list()), "problems": [asdict(problem) for problem in problems]}
        )
    out = console()
    for problem in problems:
        out.print(problem.sentence, style="red", markup=False)
    if problems:
        raise typer.Exit(EXIT_DAMAGED)
    out.print(f"{len(store.list())} contexts, every byte as it was written.")


@app.command()
def remove(
    folder: Folder,
    contexts: Annotated[
        list[str], typer.Argument(metavar="KEY...", help="Keys or names, as `list` shows them.")
    ],
) -> None:
    """Remove contexts by key or name.

    Example: longspan contexts remove contexts/ "the book"
    """
    store = _open(folder)
    for context in contexts:
        store.remove(context)
    console().print(f"Removed {len(contexts)}; {len(store.list())} left.")


@app.command()
def rebuild(folder: Folder) -> None:
    """Make the index anew from the files' headers.

    Example: longspan contexts rebuild contexts/
    """
    console().print(f"{_open(folder).rebuild()} contexts listed.")


@app.command()
def publish(
    folder: Folder,
    context: Annotated[str, typer.Argument(help="Its key or name, as `list` shows it.")],
    target: Annotated[Path, typer.Argument(help="A folder for the chunks; made where there is none.")],
) -> None:
    """Cut a context into chunks that `ask` fetches one by one, from the folder or over HTTP.

    Example: longspan contexts publish contexts/ "the book" published/
    """
    store = _open(folder)
    found = {key: saved for saved in store.list() for key in (saved.key, saved.name) if key is not None}
    if context not in found:
        raise UserInputError(f"there is no context {context!r} in {folder}; {did_you_mean(context, found)}")
    with loading():
        from longspan.storage.contexts import publish_context
    publish_context(store.folder / found[context].file, target)
    total = sum(path.stat().st_size for path in target.iterdir())
    from longspan.evaluation.wording import bytes_text

    console().print(f"{bytes_text(total)} in {target}; hand it out with: longspan contexts serve {target}")


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="A folder that `longspan contexts publish` made.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    megabits: Annotated[float | None, typer.Option(help="Send at this pace, in megabits a second.")] = None,
) -> None:
    """Hand out a published context on this machine, until Ctrl-C.

    Example: longspan contexts serve published/ --megabits 100
    """
    from longspan.storage.range_server import serve as served

    if megabits is not None and not megabits > 0:
        raise UserInputError(f"got --megabits {megabits:g}; give a number above 0, or leave it out")
    pace = None if megabits is None else megabits * MEGABIT_BYTES
    with served(folder, port=port, bytes_per_second=pace) as server:
        console().print(f"Serving {folder} at {server.url}", soft_wrap=True)
        Event().wait()


@app.command()
def ask(
    source: Annotated[str, typer.Argument(help="A published folder, its address, or a .span file.")],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="One or more questions.")],
    model: Annotated[str, typer.Option(help="A hub id, a folder, or 'reference'.")] = "reference",
    methods: Annotated[str | None, typer.Option(help="The spec that it was read under.")] = None,
    deadline: Annotated[
        float | None,
        typer.Option(help="Seconds in which all should be there; by default, all comes exactly."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 48,
    json_file: JsonFile = None,
) -> None:
    """Open a context from wherever it lies, chunk by chunk, and answer questions about it.

    Example: longspan contexts ask http://127.0.0.1:8000 "Who wrote it?" --deadline 2
    """
    check_writable(json_file)
    keep_stdout_for(json_file)
    with loading():
        from longspan.engine.api import load, open_context
        from longspan.storage.contexts import is_published, stream_context

        span = load(model, methods)
    out = console()
    streamed: Streamed | None = None
    if is_published(source):
        streamed = stream_context(source, span, deadline_seconds=deadline)
        _print_chunks(streamed)
        opened = streamed.context
    else:
        opened = open_context(source, span, deadline_seconds=deadline)
    answers = []
    for question in questions:
        answer = opened.ask(question, max_new_tokens=max_new_tokens)
        out.print(question, style="bold", markup=False)
        out.print(answer.text or "(no answer)", style="green", markup=False)
        answers.append({"question": question, "answer": answer.text, "seconds": answer.usage.seconds})
    if json_file is not None:
        chunks = [] if streamed is None else [asdict(chunk) for chunk in streamed.chunks]
        seconds = sum(opened.usage.seconds.values()) if streamed is None else streamed.seconds
        write_json(
            json_file,
            {"tokens": opened.num_tokens, "seconds": seconds, "chunks": chunks, "answers": answers},
        )


def _open(folder: Path) -> ContextStore:
    """The store in a folder that is one already. Raises UserInputError where it is not."""
    if not folder.exists():
        raise UserInputError(f"there is no folder {folder}; give one that `longspan ask --store` made")
    with loading():
        from longspan.engine.shelf import ContextStore
        from longspan.engine.shelf_index import INDEX
    if folder.is_dir() and not (folder / INDEX).exists() and not any(folder.glob("*.span")):
        raise UserInputError(
            f"{folder} holds no saved contexts; give a folder that `longspan ask --store` made"
        )
    return ContextStore(folder)


def _print(found: Sequence[Saved]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from longspan.evaluation.wording import bytes_text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("key", style="bold", no_wrap=True)
    table.add_column("name")
    for title in ("tokens", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("model", "spec", "saved"):
        table.add_column(title, overflow="fold")
    for saved in found:
        table.add_row(
            saved.key,
            Text(saved.name or ""),
            f"{saved.num_tokens:,}",
            bytes_text(saved.num_bytes),
            Text(saved.model),
            Text(saved.spec),
            _when(saved),
        )
    out = console()
    out.print(table)
    out.print(f"{len(found)} contexts, {bytes_text(sum(saved.num_bytes for saved in found))}.", style="dim")


def _print_chunks(streamed: Streamed) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from longspan.evaluation.wording import bytes_text, seconds_text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("chunk", "tokens"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("came as", no_wrap=True)
    for title in ("bytes", "fetched in", "there after"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for number, chunk in enumerate(streamed.chunks):
        table.add_row(
            str(number),
            f"{chunk.num_tokens:,}",
            chunk.how,
            bytes_text(chunk.num_bytes),
            seconds_text(chunk.fetch_seconds),
            seconds_text(chunk.ready_seconds),
            Text(chunk.note),
        )
    out, context = console(), streamed.context
    out.print(table)
    total = sum(chunk.num_bytes for chunk in streamed.chunks)
    out.print(
        f"{context.num_tokens:,} tokens in {seconds_text(streamed.seconds)}, {context.cached_tokens:,} of them as bytes; "
        f"{bytes_text(total)} fetched.",
        style="dim",
    )


def _when(saved: Saved) -> str:
    return datetime.fromtimestamp(saved.saved_at).strftime("%Y-%m-%d %H:%M")
