"""Suites and tasks, found by walking the suites folder.

A task's name is `suite/task`. A bare task name serves where only one suite has it. `wrapper:TASK` puts a task into a
wrapper, such as `scbench/multi_turn:ruler/niah_multikey_2`: a suite offers wrappers as `WRAPPERS`, from name to a function
that makes an exam of a task's entry.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from longspan.errors import UserInputError, did_you_mean
from longspan.evaluation.exams import Exam, exam_of

__all__ = ["TaskEntry", "find_suite_cards", "find_task", "find_tasks", "find_wrappers", "tasks_named"]

SUITES_ROOT = Path(__file__).with_name("suites")
SUITES_PACKAGE = "longspan.evaluation.suites"
_IMPORTED = re.compile(r"longspan\.evaluation\.suites(?:\.| import )(\w+)")
SHARED_FILES = ("sample.py", "task.py", "published.py", "haystacks/__init__.py", "haystacks/lines.py")


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """A task as it was found.

    Attributes:
        suite: file name of its suite.
        name: full name, `suite/task`.
        exam: how it is run.
        generator: digest of the source that makes its items: another digest, other items.
    """

    suite: str
    name: str
    exam: Exam
    generator: str


def _suite_paths() -> list[Path]:
    files = [path for path in SUITES_ROOT.glob("*.py") if not path.stem.startswith("_")]
    folders = [
        path.parent for path in SUITES_ROOT.glob("*/__init__.py") if not path.parent.name.startswith("_")
    ]
    return sorted(files + folders)


def _module(path: Path) -> ModuleType:
    return import_module(f"{SUITES_PACKAGE}.{path.stem}")


def _sources(path: Path, seen: frozenset[str] = frozenset()) -> set[Path]:
    """Files of a suite or helper, and of all that they import from the suites folder."""
    files = set(path.rglob("*.py")) if path.is_dir() else {path}
    names = {name for file in files for name in _IMPORTED.findall(file.read_text(encoding="utf-8"))}
    for name in names - seen - {path.stem}:
        other = SUITES_ROOT / name if (SUITES_ROOT / name).is_dir() else SUITES_ROOT / f"{name}.py"
        if other.exists():
            files |= _sources(other, seen | {path.stem})
    return files


def _digest(path: Path) -> str:
    files = _sources(path) | {SUITES_ROOT.parent / name for name in SHARED_FILES}
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:12]


@cache
def find_tasks() -> Mapping[str, TaskEntry]:
    """All tasks of all suites by full name."""
    entries: dict[str, TaskEntry] = {}
    for path in _suite_paths():
        generator = _digest(path)
        for name, task in _module(path).TASKS.items():
            full = f"{path.stem}/{name}"
            entries[full] = TaskEntry(
                suite=path.stem, name=full, exam=exam_of(full, task), generator=generator
            )
    return entries


@cache
def find_suite_cards() -> Mapping[str, Mapping[str, Any]]:
    """The `CARD` of every suite by the suite's name."""
    return {path.stem: _module(path).CARD for path in _suite_paths()}


@cache
def _wrappers() -> Mapping[str, tuple[Path, Callable[[str, TaskEntry], Exam]]]:
    """By full name: the suite that offers a wrapper, and what makes the exam."""
    return {
        f"{path.stem}/{name}": (path, make)
        for path in _suite_paths()
        for name, make in getattr(_module(path), "WRAPPERS", {}).items()
    }


def find_wrappers() -> Mapping[str, tuple[str, ...]]:
    """Full names of the wrappers of every suite that has some."""
    suites = dict.fromkeys(path.stem for path, _ in _wrappers().values())
    return {
        suite: tuple(name for name, (path, _) in _wrappers().items() if path.stem == suite)
        for suite in suites
    }


def find_task(name: str) -> TaskEntry:
    """The task of that name: `suite/task`, a bare task name that is unique, or `wrapper:TASK`.

    Raises:
        UserInputError: there is none, naming the nearest; or several suites have it, naming them.
    """
    entries = find_tasks()
    if name in entries:
        return entries[name]
    wrapper, colon, inner = name.partition(":")
    if colon:
        return _wrapped(wrapper, find_task(inner))
    bare = [entry for entry in entries.values() if entry.name.split("/", 1)[1] == name]
    if len(bare) == 1:
        return bare[0]
    if bare:
        choices = ", ".join(entry.name for entry in bare)
        raise UserInputError(f"the task {name!r} is in several suites; name one of {choices}")
    known = [*entries, *(entry.name.split("/", 1)[1] for entry in entries.values())]
    raise UserInputError(f"there is no task {name!r}; {did_you_mean(name, known)}")


def tasks_named(word: str) -> list[str]:
    """Full names of the tasks a word stands for: a suite's name stands for all its tasks."""
    suite = [entry.name for entry in find_tasks().values() if entry.suite == word]
    return suite or [find_task(word).name]


def _wrapped(wrapper: str, inner: TaskEntry) -> TaskEntry:
    if wrapper not in _wrappers():
        raise UserInputError(f"there is no wrapper {wrapper!r}; {did_you_mean(wrapper, _wrappers())}")
    path, make = _wrappers()[wrapper]
    full = f"{wrapper}:{inner.name}"
    generator = hashlib.sha256((_digest(path) + inner.generator).encode()).hexdigest()[:12]
    return TaskEntry(suite=path.stem, name=full, exam=make(full, inner), generator=generator)
