"""What the commands share when they print and write."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

JSON_HELP = "Write the result as JSON to this file; - for standard output."


def console() -> Console:
    """Where tables and panels go: standard output, as wide as the terminal, 100 columns where there is none."""
    import sys

    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100, highlight=False)


def write_json(file: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all; `-` prints it."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if str(file) == "-":
        print(text, end="")
    else:
        write_text(file, text)


def write_text(file: Path, text: str) -> None:
    """Replace a file's text, whole or not at all; makes its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
