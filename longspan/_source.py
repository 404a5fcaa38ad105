"""What a method file says of itself, read from its source: docstring, literals, and the settings of its class.

Nothing is imported, so a table of a hundred methods costs their parsing and no more. Used by `longspan.card`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from longspan.errors import CardError

_PACKAGE_ROOT = Path(__file__).parent
_ROLES_FILE = _PACKAGE_ROOT / "roles.py"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One setting of a method.

    Args:
        name: key in specs.
        type: its annotation, as written.
        default: its default, as written; None where it must be given.
        comment: the comment on its line: what it means, its unit, and where its default comes from.
    """

    name: str
    type: str
    default: str | None
    comment: str


@dataclass(frozen=True)
class SourceFile:
    """A parsed file."""

    path: Path
    lines: tuple[str, ...]
    tree: ast.Module

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.tree) or ""

    @property
    def classes(self) -> dict[str, ast.ClassDef]:
        return {node.name: node for node in self.tree.body if isinstance(node, ast.ClassDef)}

    def literal(self, name: str) -> Any:
        """Value of the module-level `name = <literal>`; CardError where there is none, or it is not a literal."""
        for node in self.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else getattr(node, "target", None)
            targets = targets if isinstance(targets, list) else [targets]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                try:
                    return ast.literal_eval(node.value)  # type: ignore[attr-defined]
                except (ValueError, TypeError) as error:
                    raise CardError(
                        f"{self.path}: {name} is not a literal ({error}); write plain strings, numbers, lists and dicts"
                    ) from error
        raise CardError(f"{self.path} has no {name}; add {name} = {{...}} below its docstring")


def read_source(path: Path) -> SourceFile:
    """Parse a file; the same file is parsed once until it changes."""
    return _read_source(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _read_source(path: Path, _changed_ns: int) -> SourceFile:
    text = path.read_text(encoding="utf-8")
    try:
        tree = ast.parse(text, filename=str(path))
    except SyntaxError as error:
        raise CardError(f"{path}: line {error.lineno} is not Python ({error.msg}); correct it") from error
    return SourceFile(path, tuple(text.splitlines()), tree)


def method_parameters(path: Path) -> tuple[Parameter, ...]:
    """Settings of the one public class of a file that derives from a role, those of its bases first.

    Raises:
        CardError: the file does not define exactly one such class.
    """
    found = {
        name: lineage
        for name in read_source(path).classes
        if not name.startswith("_") and (lineage := _lineage(path, name))
    }
    if len(found) != 1:
        listed = ", ".join(found) or "none"
        raise CardError(
            f"{path} defines {listed}; a method file defines one public class derived from a role"
        )
    parameters: dict[str, Parameter] = {}
    for owner, node in next(iter(found.values())):
        parameters |= _class_parameters(owner, node)
    return tuple(parameters.values())


def _lineage(path: Path, name: str) -> list[tuple[SourceFile, ast.ClassDef]]:
    """The classes from `Method` down to `name`, or [] where it does not derive from `Method`."""
    source = read_source(path)
    node = source.classes.get(name)
    if node is None:
        return []
    if path == _ROLES_FILE and name == "Method":
        return [(source, node)]
    above: list[tuple[SourceFile, ast.ClassDef]] = []
    imported = _imported_classes(source)
    for base in reversed(node.bases):
        if isinstance(base, ast.Name):
            owner, base_name = imported.get(base.id, (path, base.id))
            above += [entry for entry in _lineage(owner, base_name) if entry not in above]
    return [*above, (source, node)] if above else []


def _imported_classes(source: SourceFile) -> dict[str, tuple[Path, str]]:
    """Names that a file takes from longspan's own modules: the file that defines them, and their name there."""
    found: dict[str, tuple[Path, str]] = {}
    for node in source.tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("longspan."):
            place = _PACKAGE_ROOT.joinpath(*str(node.module).split(".")[1:])
            owner = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
            if owner.exists():
                found |= {alias.asname or alias.name: (owner, alias.name) for alias in node.names}
    return found


def _class_parameters(source: SourceFile, node: ast.ClassDef) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        annotation = ast.unparse(field.annotation)
        if "ClassVar" in annotation:
            continue
        found[field.target.id] = Parameter(
            name=field.target.id,
            type=annotation.strip("'\""),
            default=None if field.value is None else _default_text(field.value),
            comment=_comment_after(source, field),
        )
    return found


def _default_text(value: ast.expr) -> str | None:
    """A default as written; of `field(default=...)` or `field(default_factory=...)`, what is inside."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "field":
        for keyword in value.keywords:
            if keyword.arg in ("default", "default_factory"):
                return ast.unparse(keyword.value) + ("()" if keyword.arg == "default_factory" else "")
        return None
    return ast.unparse(value)


def _comment_after(source: SourceFile, field: ast.AnnAssign) -> str:
    assert field.end_lineno is not None
    line = source.lines[field.end_lineno - 1].encode("utf-8")
    rest = line[field.end_col_offset :].decode("utf-8").strip()
    return rest.lstrip("#").strip() if rest.startswith("#") else ""
