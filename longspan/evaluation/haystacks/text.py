"""A haystack from the user's own text: one file, or all `.txt` and `.md` files of a folder."""

from pathlib import Path

from longspan.evaluation.haystacks import Haystack


def text_haystack(path: Path) -> Haystack:
    """The text at `path` (UTF-8) as a haystack; files of a folder follow one another in the order of their names.

    Raises:
        ValueError: nothing to read at that path.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".md"))
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise ValueError(f"no text at {str(path)!r}; give a text file, or a folder with .txt or .md files")
    return Haystack("\n\n".join(file.read_text(encoding="utf-8", errors="replace").strip() for file in files))
