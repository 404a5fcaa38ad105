"""The `longspan` command: one Typer app whose sub-commands are the files of this folder.

A file `<name>.py` that exposes a function `command` is the sub-command `<name>`; one that exposes a Typer `app` is a
group of that name; names that start with "_" are helpers. These files import typer at their top and whatever is heavy
inside their functions, so that `longspan --help` answers at once.

Errors of a user end here, in one place: one line on stderr and exit code 2 (130 after Ctrl-C). Set LONGSPAN_TRACEBACK=1
to see where an error came from.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextvars import copy_context
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from longspan.cli._output import EXIT_INTERRUPTED

_EXIT_BAD_INPUT = 2
_EXIT_BROKEN_PIPE = 141

_HELP = """Give any Hugging Face language model a long context, and see what it costs in answers.

Example: longspan ask book.txt "Who keeps the lantern?" --methods "snapkv(keep=0.25)"
"""


def command_names() -> tuple[str, ...]:
    """Sub-commands, by the files of this folder."""
    return tuple(
        sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    )


def build_app() -> typer.Typer:
    """The whole app. Imports every sub-command's file, and none of what they import on use."""
    app = typer.Typer(
        name="longspan",
        help=_HELP,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name in command_names():
        module = import_module(f"{__name__}.{name}")
        if hasattr(module, "command"):
            app.command(name)(module.command)
        else:
            app.add_typer(module.app, name=name)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: without the program's name; none means `--help`.

    Returns:
        exit code: 0, what the command chose by `typer.Exit`, 2 for bad input, 130 after Ctrl-C.
    """
    command = typer.main.get_command(build_app())
    try:
        with command.make_context("longspan", list(arguments) or ["--help"]) as context:
            # In a context of its own, so that what one command sets does not last into the next.
            copy_context().run(command.invoke, context)
        sys.stdout.flush()
    except typer.Exit as leaving:
        return leaving.exit_code
    except (typer.TyperException, ValueError, OSError, KeyboardInterrupt, typer.Abort) as error:
        if os.environ.get("LONGSPAN_TRACEBACK") == "1":
            raise
        return _report(error, arguments)
    return 0


def _show_version(wanted: bool) -> None:
    if wanted:
        from longspan import __version__

        typer.echo(f"longspan {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Options of the program itself; each does its work in its callback."""


def _report(error: BaseException, arguments: Sequence[str]) -> int:
    """Say what went wrong in one line on stderr; the exit code."""
    if isinstance(error, BrokenPipeError):
        # The reader has left (`longspan methods | head`): nothing to say, and nothing more to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_BROKEN_PIPE
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        _say("interrupted")
        return EXIT_INTERRUPTED
    if isinstance(error, typer.TyperException):
        path = " ".join(["longspan", *[name for name in arguments[:1] if name in command_names()]])
        problem = error.format_message().rstrip(".") or "no command given"
        _say(f"{problem} (see `{path} --help`)")
    elif isinstance(error, OSError) and error.errno is not None:
        _say(_file_sentence(error))
    else:
        _say(str(error) or type(error).__name__)
    return _EXIT_BAD_INPUT


def _file_sentence(error: OSError) -> str:
    place = f"{error.filename!r}" if error.filename is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk for {place or 'the output'}; free some, or write to another place"
    return f"{error.strerror}: {place}; check the path and its permissions" if place else str(error.strerror)


def _say(sentence: str) -> None:
    sys.stdout.flush()
    print(f"longspan: {' '.join(sentence.split())}", file=sys.stderr)
