"""Texts that users hand to a command: a file, or standard input as `-`."""

from __future__ import annotations

import sys
from pathlib import Path


def read_text(name: str) -> str:
    """The text of a file in UTF-8 (or UTF-16 with a byte order mark).

    Raises:
        UserInputError: no such file, a folder, an empty file, or bytes that are no text.
    """
    from longspan.errors import UserInputError

    if name == "-":
        data, shown = sys.stdin.buffer.read(), "standard input"
    else:
        path, shown = Path(name), name or "''"
        if name and path.is_dir():
            raise UserInputError(f"{shown} is a folder; give one text file, or - for standard input")
        # A pipe is a file too: longspan ask <(pdftotext book.pdf -) "Who?"
        if not (path.is_file() or path.is_fifo()):
            raise UserInputError(f"there is no file {shown}; give a text file, or - for standard input")
        data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserInputError(
            f"{shown} is not a text in UTF-8 (byte {error.start} does not fit); convert it to plain text first"
        ) from error
    if "\x00" in text:
        raise UserInputError(
            f"{shown} looks like a binary file; give plain text (a PDF or a .docx has to be converted first)"
        )
    if not text.strip():
        raise UserInputError(f"{shown} is empty; give a text with at least one word")
    return text
