"""Published questions that are spread over several files: texts beside the questions, or rows that belong together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from longspan.evaluation.published import (
    DATA_VARIABLE,
    DataMissing,
    DataTask,
    Question,
    Source,
    malformed,
    parse_row,
    read_rows,
)

__all__ = ["GroupedTask", "Row", "find_files", "find_text", "missing"]

Row = Mapping[str, Any]


def _as_they_are(rows: Iterator[Row]) -> Iterable[Row]:
    return rows


@dataclass(frozen=True, kw_only=True)
class GroupedTask(DataTask):
    """A `DataTask` whose rows are chosen or joined before they are parsed, or stand in several files.

    Attributes:
        pattern: paths in the published layout, in which "*" stands for any part of a name; default: `file`.
        group: all rows of the files to those that `parse` is given; rows of the hub are parsed as they are.
        lazy: each row makes one question, made when it is asked for: for contexts that would fill the memory together.
    """

    pattern: str = ""
    group: Callable[[Iterator[Row]], Iterable[Row]] = _as_they_are
    lazy: bool = False

    @property
    def place(self) -> str:
        """Where the rows stand in the published layout."""
        return self.pattern or self.file

    def questions(self) -> Sequence[Question]:
        """All questions, files in the order of their names; read once.

        Raises:
            DataMissing: no file is there. ValueError: a row is malformed; names it.
        """
        paths = find_files(self.suite, self.place)
        if paths:
            return _questions(self, tuple((path, path.stat().st_mtime_ns) for path in paths))
        if self.source.hub is None:
            raise missing(self.suite, self.place, self.source)
        return super().questions()


class _Lazy(Sequence[Question]):
    """Questions of a task, one of each row, made when they are asked for."""

    def __init__(self, task: GroupedTask, rows: Sequence[Row]) -> None:
        self.task, self.rows = task, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return tuple(self[one] for one in range(*place.indices(len(self))))
        (question,) = parse_row(self.task, self.rows[place], place + 1, self.task.place)
        return question


@lru_cache(maxsize=4)
def _questions(task: GroupedTask, files: tuple[tuple[Path, int], ...]) -> Sequence[Question]:
    try:
        rows = list(task.group(row for path, _ in files for row in read_rows(path)))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise malformed(task, "a row", task.place, error) from error
    if not rows:
        raise ValueError(f"{task.file} holds no question of {task.suite}; check the file")
    if task.lazy:
        return _Lazy(task, rows)
    return tuple(
        question
        for number, row in enumerate(rows, 1)
        for question in parse_row(task, row, number, task.place)
    )


def find_files(suite: str, pattern: str) -> list[Path]:
    """Files of a suite's local folder whose path ends like `pattern`, "*" standing for any part of a name; sorted."""
    root = os.environ.get(DATA_VARIABLE)
    if not root:
        return []
    return sorted(path for path in (Path(root) / suite).glob(f"**/{pattern}") if path.is_file())


def find_text(suite: str, pattern: str, source: Source) -> str:
    """The text of the first file that matches; read once.

    Raises:
        DataMissing: there is none. ValueError: it is not UTF-8.
    """
    found = find_files(suite, pattern)
    if not found:
        raise missing(suite, pattern, source)
    return _text(found[0], found[0].stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _text(path: Path, changed: int) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); give the published file") from error


def missing(suite: str, file: str, source: Source) -> DataMissing:
    """The error for a file that a question needs and that is not in the suite's folder."""
    root = os.environ.get(DATA_VARIABLE)
    where = f"{Path(root) / suite}" if root else f"DIR/{suite}, and pass --data DIR"
    return DataMissing(
        f"the texts of {suite} are not here: put {file} into {where} "
        f"({source.url or source.hub}, licence {source.licence})"
    )
