"""The index of a folder of saved contexts: an SQLite file that says what is there, how long, and how recently used.

The files are the truth; the index is made of them, and made again from them when it is missing or damaged. All changes, of
rows and of names in the folder, happen under one lock of the folder and in one transaction each, so that processes that share
it never see a half of one.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

from longspan.errors import UserInputError

INDEX = "index.sqlite"
_LOCK = ".lock"
_SCHEMA = 1
_BUSY_SECONDS = 60.0
_TABLES = (
    "CREATE TABLE contexts (key TEXT PRIMARY KEY, space TEXT NOT NULL, file TEXT NOT NULL, name TEXT UNIQUE, "
    "num_tokens INTEGER NOT NULL, num_bytes INTEGER NOT NULL, model TEXT NOT NULL, spec TEXT NOT NULL, "
    "croppable INTEGER NOT NULL, saved_at REAL NOT NULL, last_use INTEGER NOT NULL)",
    "CREATE INDEX by_space ON contexts (space, num_tokens)",
    "CREATE TABLE blocks (hash TEXT NOT NULL, key TEXT NOT NULL REFERENCES contexts (key) ON DELETE CASCADE, "
    "PRIMARY KEY (hash, key)) WITHOUT ROWID",
    "CREATE INDEX by_key ON blocks (key)",
)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A context in a store.

    Args:
        key: hash of its text and of all else that it depends on.
        space: hash of all but the text.
        file: name of its file in the folder.
        saved_at: seconds since the epoch.
        croppable: it can also serve a text that only begins like its own.
    """

    key: str
    space: str
    file: str
    name: str | None
    num_tokens: int
    num_bytes: int
    model: str
    spec: str
    croppable: bool
    saved_at: float


_COLUMNS = tuple(entry.name for entry in fields(Saved))


class Index:
    """Rows of the index of `folder`, which exists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def change(self) -> Iterator[Rows]:
        """The rows, for changes that become valid together at the end of the block, or not at all.

        Raises:
            sqlite3.DatabaseError: the index is damaged.
            UserInputError: it was made by a newer longspan.
        """
        with self.locked(), closing(self._connect()) as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield Rows(db, is_new=_prepare(db))
            except BaseException:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes the folder meanwhile."""
        with (self.folder / _LOCK).open("wb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def check(self) -> None:
        """Raises sqlite3.DatabaseError where the index is damaged. Inside `locked`."""
        with closing(self._connect()) as db:
            problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(problem)

    def delete(self) -> None:
        """Remove the index itself, for one that is damaged. Inside `locked`."""
        for end in ("", "-wal", "-shm", "-journal"):
            (self.folder / f"{INDEX}{end}").unlink(missing_ok=True)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.folder / INDEX, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            db.execute("PRAGMA foreign_keys=ON")
            db.execute("PRAGMA journal_mode=WAL")
        except sqlite3.Error:
            db.close()
            raise
        return db


class Rows:
    """The rows inside one transaction; `is_new` where the index has just been made."""

    def __init__(self, db: sqlite3.Connection, *, is_new: bool) -> None:
        self._db, self.is_new = db, is_new

    def all(self) -> list[Saved]:
        """Most recently used first."""
        return self._select("ORDER BY last_use DESC, key")

    def get(self, key_or_name: str) -> Saved | None:
        found = self._select("WHERE key = ? OR name = ?", key_or_name, key_or_name)
        return found[0] if found else None

    def in_space(self, space: str, most_tokens: int) -> list[Saved]:
        """Contexts of at most so many tokens, longest first."""
        return self._select(
            "WHERE space = ? AND num_tokens <= ? ORDER BY num_tokens DESC", space, most_tokens
        )

    def longest_common(self, hashes: Sequence[str]) -> tuple[Saved, int] | None:
        """The context that has most of these blocks, and how many; who has one has all before it. The first hash is no block's."""

        def holder(number: int) -> list[Saved]:
            where = "WHERE key IN (SELECT key FROM blocks WHERE hash = ?) ORDER BY num_tokens LIMIT 1"
            return self._select(where, hashes[number])

        low, high = 0, len(hashes) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if holder(middle) else (low, middle - 1)
        return (holder(low)[0], low) if low else None

    def put(self, saved: Saved, hashes: Iterable[str]) -> None:
        """Add a context, or replace the one of its key; its name is no other's any more. It counts as used now."""
        if saved.name is not None:
            self._db.execute("UPDATE contexts SET name = NULL WHERE name = ?", (saved.name,))
        self.drop(saved.key)
        names, marks = ", ".join([*_COLUMNS, "last_use"]), ", ".join("?" * (len(_COLUMNS) + 1))
        values = [getattr(saved, name) for name in _COLUMNS]
        self._db.execute(f"INSERT INTO contexts ({names}) VALUES ({marks})", [*values, self._next_use()])
        self._db.executemany("INSERT INTO blocks VALUES (?, ?)", [(hash_, saved.key) for hash_ in hashes])

    def drop(self, key: str) -> None:
        self._db.execute("DELETE FROM contexts WHERE key = ?", (key,))

    def touch(self, key: str) -> None:
        """It was used now."""
        self._db.execute("UPDATE contexts SET last_use = ? WHERE key = ?", (self._next_use(), key))

    def _next_use(self) -> int:
        """A count, not a clock, which may go back."""
        return int(self._db.execute("SELECT coalesce(max(last_use), 0) + 1 FROM contexts").fetchone()[0])

    def _select(self, rest: str, *values: str | int) -> list[Saved]:
        rows = self._db.execute(f"SELECT {', '.join(_COLUMNS)} FROM contexts {rest}", values)
        return [
            Saved(
                **(
                    dict(zip(_COLUMNS, row, strict=True))
                    | {"croppable": bool(row[_COLUMNS.index("croppable")])}
                )
            )
            for row in rows
        ]


def _prepare(db: sqlite3.Connection) -> bool:
    """Make the tables of an empty index; False where they are there."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > _SCHEMA:
        raise UserInputError(
            f"the index of this store was made by a newer longspan (schema {version}), this one reads up to {_SCHEMA}; "
            "update longspan"
        )
    if version == _SCHEMA:
        return False
    for statement in _TABLES:
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {_SCHEMA}")
    return True
