"""What the syntax trees of functions say: calls, variables, and whether names are beyond doubt."""

from __future__ import annotations

import ast
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from longspan.evaluation.suites._source_tree import Chunk, SourceTree, description

__all__ = [
    "calls_in_file", "callers_in_file", "defines", "entry", "flows", "listed", "mentions", "named_units",
]  # fmt: skip

FEWEST_UNITS, MOST_UNITS = 3, 12
FEWEST_FLOW_LINES, MOST_FLOW_LINES = 4, 10
ENTRY_WORDS = (5, 80)  # so that an answer fits 192 tokens


@dataclass(frozen=True, kw_only=True)
class Uses:
    """What a function calls by plain name and as an attribute, and the names that it gives values to itself."""

    plain: frozenset[str]
    attributes: frozenset[str]
    own: frozenset[str]


@cache
def _parsed(function: Chunk) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The function's syntax tree; None where it does not stand alone or defines others."""
    try:
        statement = ast.parse(textwrap.dedent(function.code)).body[0]
    except SyntaxError:
        return None
    inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    return None if any(isinstance(node, inner) for node in list(ast.walk(statement))[1:]) else statement


@cache
def _uses(function: Chunk) -> Uses | None:
    tree = _parsed(function)
    if tree is None:
        return None
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    stored = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    stored |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    stored |= {
        name.asname or name.name
        for node in ast.walk(tree)
        for name in getattr(node, "names", ())
        if isinstance(name, ast.alias)
    }
    return Uses(
        plain=frozenset(one.id for one in called if isinstance(one, ast.Name)),
        attributes=frozenset(one.attr for one in called if isinstance(one, ast.Attribute)),
        own=frozenset(stored),
    )


def mentions(chunk: Chunk, name: str) -> bool:
    return name in chunk.text and bool(re.search(rf"\b{re.escape(name)}\b", chunk.text))


def flows(function: Chunk) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Variables that get a value in the function, with their lines; only those whose name means nothing else there."""
    tree = _parsed(function)
    if tree is None:
        return
    code = textwrap.dedent(function.code).split("\n")
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    for variable in {node.id for node in names if isinstance(node.ctx, ast.Store)}:
        numbers = sorted({node.lineno for node in names if node.id == variable})
        seen = [at for at, line in enumerate(code, start=1) if re.search(rf"\b{re.escape(variable)}\b", line)]
        if numbers == seen and FEWEST_FLOW_LINES <= len(seen) <= MOST_FLOW_LINES:
            yield variable, tuple(code[at - 1].strip() for at in seen)


@lru_cache(maxsize=2)
def _unique_codes(tree: SourceTree) -> frozenset[Chunk]:
    codes = Counter(one.code for one in tree.functions)
    return frozenset(one for one in tree.functions if codes[one.code] == 1)


@cache
def entry(function: Chunk) -> str:
    """How a manual lists a function: file, name and arguments, then its documentation."""
    tree = _parsed(function)
    arguments = ast.unparse(tree.args) if tree is not None else "..."
    owner = f"{function.owner}." if function.owner else ""
    return f"{function.path}: {owner}{function.name}({arguments})\n{textwrap.indent(description(function), '    ')}"


@lru_cache(maxsize=2)
def listed(tree: SourceTree) -> tuple[Chunk, ...]:
    """Documented functions, one for each place and for each description."""
    few, many = ENTRY_WORDS
    by_text = {
        description(one): one
        for one in tree.functions
        if few <= len(description(one).split()) <= many and _parsed(one) is not None
    }
    by_place = {(one.path, one.owner, one.name): one for one in by_text.values()}
    return tuple(by_place.values())


@lru_cache(maxsize=2)
def _unique_names(tree: SourceTree) -> frozenset[Chunk]:
    return frozenset(tree.unique)


def defines(chunk: Chunk, name: str) -> bool:
    """True if a function of this name is defined in a chunk, also inside of another."""
    return f"def {name}(" in chunk.text


def named_units(tree: SourceTree, file: tuple[Chunk, ...]) -> list[Chunk]:
    """A file's functions without special methods; none where they are too few, too many, not all different, or nested."""
    functions = [chunk for chunk in file if chunk.name]
    named = [one for one in functions if not one.name.startswith("__")]
    lines = sum(len(re.findall(r"^\s*(?:async\s+)?def\s", chunk.text, re.MULTILINE)) for chunk in file)
    clear = (
        FEWEST_UNITS <= len(named) <= MOST_UNITS
        and len({one.name for one in named}) == len(named)
        and lines == len(functions)
        and all(one in _unique_codes(tree) for one in named)
    )
    return named if clear else []


def calls_in_file(tree: SourceTree, function: Chunk) -> tuple[list[Chunk], frozenset[str]]:
    """The functions of its file that a function calls, and all names that it calls; none where a name is in doubt."""
    file, uses = tree.files[tree.place[function][0]], _uses(function)
    if uses is None:
        return [], frozenset()
    callees = [one for one in file if one.name in uses.plain and not one.owner]
    called, hidden = uses.plain | uses.attributes, uses.own | uses.attributes
    doubtful = any(
        chunk.name in hidden if chunk.name else any(defines(chunk, name) for name in called) for chunk in file
    )
    clear = all(one in _unique_names(tree) and one is not function for one in callees)
    return (callees, called) if len(callees) > 1 and clear and not doubtful else ([], frozenset())


def callers_in_file(tree: SourceTree, function: Chunk) -> list[Chunk]:
    """The functions of its file that call a function; none where anything else there mentions its name."""
    own = _uses(function)
    if function.owner or own is None or function.name in own.plain:
        return []
    file = tree.files[tree.place[function][0]]
    found = [chunk for chunk in file if chunk is not function and mentions(chunk, function.name)]
    if not 2 <= len(found) <= MOST_UNITS or len({one.name for one in found}) < len(found):
        return []
    for one in found:
        uses = _uses(one) if one.name and one in _unique_codes(tree) else None
        if uses is None or function.name not in uses.plain or function.name in uses.own:
            return []
    return found
