"""`longspan contexts`: what a folder of saved contexts holds, and whether every byte of it is as it was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longspan.cli._output import JSON_HELP, check_writable, console, keep_stdout_for, loading, write_json
from longspan.errors import UserInputError

if TYPE_CHECKING:
    from longspan.engine.shelf import ContextStore, Saved

EXIT_DAMAGED = 1

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


def _when(saved: Saved) -> str:
    return datetime.fromtimestamp(saved.saved_at).strftime("%Y-%m-%d %H:%M")
