"""Python source files as long text: read once, cut into functions, laid around what a question is about.

The files are those of `$LONGSPAN_SOURCE`, or of `$LONGSPAN_DATA/<suite>` where it holds any, or else the standard library of
the Python that runs: the same questions come back on the same version of Python only. Documentation strings are taken out of
the code, as questions are made of them.
"""

from __future__ import annotations

import ast
import bisect
import os
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from weakref import WeakKeyDictionary

from longspan.evaluation.haystacks import TokenizerLike, count_tokens
from longspan.evaluation.published import DATA_VARIABLE
from longspan.evaluation.task import SEAM_TOKENS, Room

__all__ = ["SOURCE_VARIABLE", "Chunk", "SourceTree", "description", "lay_around", "source_tree", "written"]

SOURCE_VARIABLE = "LONGSPAN_SOURCE"
LEFT_OUT = re.compile(
    r"^(?:\..*|__pycache__|tests?|idle_test|idlelib|lib2to3|encodings|site-packages|dist-packages|turtledemo|pydoc_data|config-.*)$"
)
EXACT_TOKENS = 16_384
LONG_LINES = 40  # of statements outside of functions in one chunk
Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Consecutive lines of a file: a function, a method, the head of a class, or other statements.

    Attributes:
        path: of the file, relative to the tree.
        text: the lines, comments before them too; without documentation strings.
        name, owner: of a function and of its class; "" elsewhere.
        code: a function from its first decorator on, as it stands in `text`.
        doc: its documentation string, cleaned; "" where it has none.
    """

    path: str
    text: str
    name: str = ""
    owner: str = ""
    code: str = ""
    doc: str = ""

    @property
    def header(self) -> str:
        """The line before the first chunk of a file."""
        return f"# Path: {self.path}\n"


class SourceTree:
    """The files of a folder, in the order of their paths, each as chunks, one or more."""

    def __init__(self, files: Sequence[tuple[Chunk, ...]]) -> None:
        self.files = files
        functions = [chunk for file in files for chunk in file if chunk.name]
        names, codes = Counter(one.name for one in functions), Counter(one.code for one in functions)
        self.functions = tuple(functions)
        self.unique = tuple(one for one in functions if names[one.name] == 1 and codes[one.code] == 1)
        self.place = {
            chunk: (number, at) for number, file in enumerate(files) for at, chunk in enumerate(file)
        }
        self._tokens: WeakKeyDictionary[TokenizerLike, dict[str, int]] = WeakKeyDictionary()

    def tokens(self, text: str, tokenizer: TokenizerLike) -> int:
        """Tokens of a text with an empty line before it; counted once for each tokenizer."""
        known = self._tokens.setdefault(tokenizer, {})
        if text not in known:
            known[text] = count_tokens(tokenizer, "\n\n" + text)
        return known[text]


def source_tree(suite: str) -> SourceTree:
    """The tree that a suite's questions are about.

    Raises:
        ValueError: the folder asked for is not there, or holds no Python function.
    """
    chosen = os.environ.get(SOURCE_VARIABLE)
    if chosen:
        if not Path(chosen).is_dir():
            raise ValueError(
                f"{SOURCE_VARIABLE} is {chosen!r}, which is no folder; name one with Python files"
            )
        return _read(Path(chosen).resolve())
    data = os.environ.get(DATA_VARIABLE)
    folder = Path(data) / suite if data else None
    if folder is not None and next(folder.rglob("*.py"), None) is not None:
        return _read(folder.resolve())
    return _read(Path(sysconfig.get_paths()["stdlib"]))


@lru_cache(maxsize=2)
def _read(root: Path) -> SourceTree:
    files = list[tuple[Chunk, ...]]()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if any(LEFT_OUT.match(part) for part in parts[:-1]):
            continue
        try:
            text = path.read_text(encoding="utf-8")
            found = tuple(_chunks("/".join(parts), text))
        except (OSError, UnicodeDecodeError, SyntaxError, ValueError):
            continue  # not Python 3, or not text: other files have enough
        files += [found] if found else []
    tree = SourceTree(files)
    if not tree.functions:
        raise ValueError(
            f"{root} holds no Python function; set {SOURCE_VARIABLE} to a folder of source files"
        )
    return tree


def _chunks(path: str, text: str) -> Iterator[Chunk]:
    module = ast.parse(text)
    lines = text.replace("\f", "").split("\n")
    dropped = _drop_documentation(module, lines)
    shown = 0
    for start, end, definition, owner in _pieces(module):
        kept = [line for number, line in enumerate(lines[shown:end], start=shown) if number not in dropped]
        code = [line for number, line in enumerate(lines[start:end], start=start) if number not in dropped]
        shown = end
        body = re.sub(r"\n\s*\n+", "\n\n", "\n".join(kept)).strip("\n").rstrip()
        if not body.strip():
            continue
        if definition is None:
            yield Chunk(path=path, text=body)
        else:
            yield Chunk(
                path=path,
                text=body,
                name=definition.name,
                owner=owner,
                code=re.sub(r"\n\s*\n+", "\n\n", "\n".join(code)).strip("\n").rstrip(),
                doc=ast.get_docstring(definition) or "",
            )


def _pieces(module: ast.Module) -> Iterator[tuple[int, int, Definition | None, str]]:
    """First line (from 0), line after the last, the function if it is one, and the class that it is in."""
    pending, done = None, 0
    for statement in module.body:
        start, end = _first_line(statement), statement.end_lineno or 0
        if isinstance(statement, ast.ClassDef | Definition) and pending is not None:
            yield pending, done, None, ""
            pending = None
        if isinstance(statement, Definition):
            yield start, end, statement, ""
        elif isinstance(statement, ast.ClassDef):
            for inner in statement.body:
                if isinstance(inner, Definition):
                    if start < _first_line(inner):
                        yield start, _first_line(inner), None, ""
                    yield _first_line(inner), inner.end_lineno or 0, inner, statement.name
                    start = inner.end_lineno or 0
            if start < end:
                yield start, end, None, ""
        else:
            pending, done = start if pending is None else pending, end
            if done - pending > LONG_LINES:
                yield pending, done, None, ""
                pending = None
    if pending is not None:
        yield pending, done, None, ""


def _first_line(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(one.lineno for one in decorators)]) - 1


def _drop_documentation(module: ast.Module, lines: list[str]) -> set[int]:
    """Numbers of the lines that are documentation only; where nothing would be left, the first becomes `pass`."""
    dropped = set[int]()
    for node in ast.walk(module):
        if not isinstance(node, ast.Module | ast.ClassDef | Definition) or not ast.get_docstring(
            node, clean=False
        ):
            continue
        doc = node.body[0]
        first, last = doc.lineno - 1, (doc.end_lineno or 0) - 1
        if isinstance(node, ast.Module) or lines[first][: doc.col_offset].strip() == "":
            dropped |= set(range(first, last + 1))
            if not isinstance(node, ast.Module) and len(node.body) == 1:
                lines[first] = " " * doc.col_offset + "pass"
                dropped.discard(first)
    return dropped


def description(function: Chunk) -> str:
    """The first paragraph of a function's documentation, on one line."""
    return " ".join(re.split(r"\n\s*\n|>>>", function.doc.strip())[0].split())


def written(chunks: Iterable[Chunk]) -> str:
    """Chunks as one text; the path stands before the first of each file."""
    texts, path = list[str](), ""
    for chunk in chunks:
        texts.append((chunk.header if chunk.path != path else "") + chunk.text)
        path = chunk.path
    return "\n\n".join(texts)


def lay_around(
    wanted: Sequence[Chunk],
    tree: SourceTree,
    left: int,
    room: Room,
    rng: random.Random,
    *,
    skip: Callable[[Chunk], bool],
    neighbours: bool = False,
) -> list[Chunk]:
    """Chunks of one file among those of others, with `left` tokens together, at the depth asked for or anywhere.

    The farthest chunk on either side is cut at a line.

    Args:
        wanted: chunks of one file, which stay together.
        left: tokens of the whole.
        skip: true for chunks that must not be there.
        neighbours: what stands around `wanted` in its file stays around it; otherwise the rest of the file is left out.

    Raises:
        ValueError: `wanted` does not fit.
    """
    (own, first), (_, last) = tree.place[wanted[0]], tree.place[wanted[-1]]
    spare = left - tree.tokens(written(wanted), room.tokenizer)
    if spare < 0:
        raise ValueError(
            f"what is asked about does not fit {room.tokens} tokens; ask for {2 * room.tokens} or more"
        )
    numbers = [number for number in range(len(tree.files)) if number != own]
    rng.shuffle(numbers)
    half = len(numbers) // 2
    before = [chunk for number in numbers[:half] for chunk in reversed(tree.files[number])]
    after = [chunk for number in numbers[half:] for chunk in tree.files[number]]
    if neighbours:
        before = [*reversed(tree.files[own][:first]), *before]
        after = [*tree.files[own][last + 1 :], *after]
    ahead = round((rng.random() if room.depth is None else room.depth) * spare)
    taken, rest = _take(before, ahead, tree, room, skip, wanted[0].path)
    front = [*_cut(rest, ahead - _size(taken, tree, room), room, back=True), *reversed(taken), *wanted]
    taken, rest = _take(after, left - _size(front, tree, room), tree, room, skip, wanted[0].path)
    shown = [*front, *taken]
    return [*shown, *_cut(rest, left - _size(shown, tree, room), room, back=False)]


def _size(chunks: Sequence[Chunk], tree: SourceTree, room: Room) -> int:
    """Tokens of the text; at great lengths the sum of its parts, a little more."""
    if room.tokens <= EXACT_TOKENS:
        return room.count(written(chunks))
    paths = [""] + [chunk.path for chunk in chunks]
    headers = [chunk.header for before, chunk in zip(paths, chunks, strict=False) if chunk.path != before]
    return sum(tree.tokens(text, room.tokenizer) for text in [*headers, *(chunk.text for chunk in chunks)])


def _take(
    chunks: Iterable[Chunk], left: int, tree: SourceTree, room: Room, skip: Callable[[Chunk], bool], path: str
) -> tuple[list[Chunk], Chunk]:
    """The first chunks, as many as fit, and the next, which does not."""
    taken = list[Chunk]()
    for chunk in chunks:
        if skip(chunk):
            continue
        cost = tree.tokens(chunk.text, room.tokenizer)
        cost += tree.tokens(chunk.header, room.tokenizer) if chunk.path != path else 0
        if cost > left:
            return taken, chunk
        taken.append(chunk)
        left, path = left - cost, chunk.path
    raise ValueError(f"the source files are fewer than fill {room.tokens} tokens; ask for fewer tokens")


def _cut(chunk: Chunk, left: int, room: Room, *, back: bool) -> list[Chunk]:
    """As many of a chunk's last (`back`) or first lines as fit, at most `left` tokens with its path."""
    lines = chunk.text.split("\n")

    def part(num_lines: int) -> str:
        return "\n".join(lines[len(lines) - num_lines :] if back else lines[:num_lines]).strip("\n")

    fits = bisect.bisect_right(
        range(len(lines) + 1),
        left - SEAM_TOKENS,
        key=lambda count: room.count("\n\n" + chunk.header + part(count)),
    )
    text = part(max(0, fits - 1))
    return [replace(chunk, text=text, name="", code="")] if text.strip() else []
