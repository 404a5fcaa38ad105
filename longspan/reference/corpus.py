"""Plain text for training: folders of Markdown, text and Python files to clean, English, titled documents.

Books come as Markdown (one file a book, a `# Title:` block on top). Headings become plain lines, emphasis marks,
links, images, rules and licence blocks go, and paragraphs stay separated by one empty line. Python files stay as
they are.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_TITLES = ("war and peace", "pride and prejudice", "a christmas carol")
HELD_OUT_SHARE = 0.05
MAX_PYTHON_FILE_CHARACTERS = 200_000
MIN_DOCUMENT_CHARACTERS = 2_000

_COMMON_WORDS = re.compile(r"\b(?:the|of|and|to|in|a|that|was|he|it|his|with|for|as|had|is)\b", re.IGNORECASE)
_WORDS = re.compile(r"\b\w+\b")
_SKIPPED_FOLDERS = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "encodings",
    "site-packages",
    "turtledemo",
    "__pycache__",
}


@dataclass(frozen=True, kw_only=True)
class Document:
    """One cleaned text. `held_out` documents are never trained on; `kind` is "book" or "python"."""

    title: str
    text: str
    kind: str
    held_out: bool


def clean_markdown(raw: str) -> str:
    """The prose of a Markdown book: no title block, marks, links, images, rules or Project Gutenberg licence."""
    text = raw.replace("\r\n", "\n").replace("\ufeff", "").replace("\u00a0", " ")
    text = re.sub(r"\A(?:\s*#+ *(?:Title|Author|Year|Translat\w*)[^\n]*\n|\s*-{3,} *\n)+", "", text)
    text = re.sub(
        r"\n[^\n]*\*\*\* ?(?:END|START) OF[^\n]*PROJECT GUTENBERG.*\Z", "\n", text, flags=re.S | re.I
    )
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<[^<>\n]{1,200}>", "", text)
    text = re.sub(r"^[ \t]*(?:[-*_=][ \t]?){3,}$", "", text, flags=re.M)
    text = re.sub(r"^[ \t]*#+[ \t]*", "", text, flags=re.M)
    text = re.sub(r"^[ \t]*>[ \t]?", "", text, flags=re.M)
    text = re.sub(r"(?<!\w)[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}(?!\w)", "", text)
    text = re.sub(r"\\([^\w\s])", r"\1", text)
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"(?<=\S)[ \t]{2,}", " ", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def looks_english(text: str) -> bool:
    """True if common English words make up at least 15% of the words in three places of the text."""
    for part in (0.2, 0.5, 0.8):
        window = text[int(len(text) * part) :][:20_000]
        words = len(_WORDS.findall(window))
        if words == 0 or len(_COMMON_WORDS.findall(window)) < 0.15 * words:
            return False
    return True


def looks_like_prose(text: str) -> bool:
    """False for tables, verse laid out in columns and other heavily formatted text: judged by odd characters."""
    odd = sum(text.count(mark) for mark in "|{}<>\\=~^")
    return odd < 0.003 * len(text)


def is_held_out(title: str) -> bool:
    """True for the three titles kept for examples and tests, and for 5% of all others by a hash of the title."""
    if any(held in title.lower() for held in HELD_OUT_TITLES):
        return True
    digest = hashlib.sha256(title.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def read_corpus(folders: Iterable[Path]) -> Iterator[Document]:
    """Documents under `folders` in a fixed order: `.md` and `.txt` as books, `.py` as Python source.

    Raises:
        ValueError: a folder is missing, or no usable text was found in any.
    """
    found = 0
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(
                f"text folder {str(folder)!r} does not exist; give a folder of .md, .txt or .py files"
            )
        paths = sorted(path for path in folder.rglob("*") if path.suffix in (".md", ".txt", ".py"))
        for path in paths:
            document = _read_document(path, folder)
            if document is not None:
                found += 1
                yield document
    if not found:
        raise ValueError(
            "no usable text found; give folders with English .md or .txt books of 2,000 characters or more"
        )


def _read_document(path: Path, folder: Path) -> Document | None:
    title = path.relative_to(folder).with_suffix("").as_posix()
    if _SKIPPED_FOLDERS & set(path.relative_to(folder).parts):
        return None
    if path.suffix == ".py":
        text = path.read_text(encoding="utf-8", errors="replace")
        if not MIN_DOCUMENT_CHARACTERS <= len(text) <= MAX_PYTHON_FILE_CHARACTERS:
            return None
        return Document(title=title, text=text, kind="python", held_out=is_held_out(title))
    text = clean_markdown(path.read_text(encoding="utf-8", errors="replace"))
    if len(text) < MIN_DOCUMENT_CHARACTERS or not looks_english(text) or not looks_like_prose(text):
        return None
    return Document(title=title, text=text, kind="book", held_out=is_held_out(title))
