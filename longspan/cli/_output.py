"""What the commands share when they print and write."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

EXIT_INTERRUPTED = 130
EXIT_SKIPPED = 3
JSON_HELP = "Write the result as JSON to this file; - for standard output."


_STDOUT_IS_JSON: ContextVar[bool] = ContextVar("_STDOUT_IS_JSON", default=False)


def keep_stdout_for(json_file: Path | None) -> None:
    """With `--json -`, send everything else that this command shows to standard error."""
    _STDOUT_IS_JSON.set(str(json_file) == "-")


def console() -> Console:
    """Where tables and panels go: standard output, as wide as the terminal, 100 columns where there is none."""
    from rich.console import Console

    taken = _STDOUT_IS_JSON.get()
    shown = sys.stderr if taken else sys.stdout
    return Console(
        width=None if shown.isatty() or "COLUMNS" in os.environ else 100, highlight=False, stderr=taken
    )


def write_json(file: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all; `-` prints it."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if str(file) == "-":
        print(text, end="")
    else:
        write_text(file, text)


def write_text(file: Path, text: str) -> None:
    """Replace a file's text, whole or not at all; makes its folder."""
    try:
        with open_whole(file) as stream:
            stream.write(text)
    except OSError as error:
        # The user knows the file, not the temporary one beside it.
        raise OSError(error.errno, error.strerror, str(file)) from error


def check_writable(*files: Path | None) -> None:
    """Refuse files that cannot be written, before a long command begins; None and `-` are skipped.

    Raises:
        UserInputError: a folder stands there, a file stands where a folder must be, or writing is not permitted.
    """
    from longspan.errors import UserInputError

    for file in files:
        if file is None or str(file) == "-":
            continue
        if file.is_dir():
            raise UserInputError(f"{file} is a folder; give a file to write")
        there = next(folder for folder in file.absolute().parents if folder.exists())
        if not there.is_dir():
            raise UserInputError(
                f"cannot write {file}: {there} is a file, not a folder; choose another place"
            )
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserInputError(f"cannot write {file}: {there} is read-only here; choose another place")


@contextmanager
def loading() -> Iterator[None]:
    """Ctrl-C ends the program at once in this block, where nothing can be lost yet.

    Libraries that are being imported swallow a KeyboardInterrupt now and then, and the program would go on. What
    transformers would print beside our one sentence is kept quiet, unless its variables are set.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(*_: object) -> None:
    os.write(2, b"longspan: interrupted\n")
    os._exit(EXIT_INTERRUPTED)


@contextmanager
def open_whole(file: Path) -> Iterator[TextIO]:
    """A stream whose text replaces a file's when the block ends, whole or not at all; makes its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            yield stream
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
