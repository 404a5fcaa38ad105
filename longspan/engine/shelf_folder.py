"""A folder of saved contexts with its index: both are changed together, and one is made of the other where it is lost."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from longspan.engine.prefix import Trail, ids_in_order, space_of
from longspan.engine.shelf_index import Index, Rows, Saved
from longspan.engine.span_file import DamagedFileError, SpanFile, put_in_place, remove_leftovers
from longspan.errors import UserInputError

ENDING = ".span"


class StoreFolder:
    """Files and rows of a store.

    Args:
        path: made where there is no folder.
        max_bytes: of all files together; beyond it those go that were not used for longest.

    Raises:
        UserInputError: `path` is a file, or cannot be written.
    """

    def __init__(self, path: Path, max_bytes: int | None) -> None:
        self.path, self.max_bytes = path, max_bytes
        if path.exists() and not path.is_dir():
            raise UserInputError(f"{path} is a file; give a folder for the store")
        self._index = Index(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with self._index.locked():
                remove_leftovers(path)
                self._delete_damaged_index()
        except OSError as error:
            raise UserInputError(
                f"cannot keep contexts in {path} ({error.strerror}); give a folder that can be written"
            ) from error
        with self.change() as rows:
            self._adopt(rows)
            self._evict(rows)

    def rebuild(self) -> None:
        """Make the index anew from the files' headers."""
        with self._index.locked():
            self._index.delete()
        with self.change():
            pass

    @contextmanager
    def change(self) -> Iterator[Rows]:
        """The index, for changes that become valid together; made of the files first where there is none."""
        try:
            with self._index.change() as rows:
                if rows.is_new:
                    self._adopt(rows)
                yield rows
        except sqlite3.Error as error:
            raise UserInputError(
                f"cannot use the index of {self.path} ({error}); free space if the disk is full, or run "
                f"`longspan contexts rebuild {self.path}`"
            ) from error

    def put(self, rows: Rows, partial: Path, file: str) -> None:
        """Give a written file its name in the folder, and a row; then remove what was not used for longest until all fits."""
        put_in_place(partial, self.path / file)
        saved, hashes = _described(self.path / file)
        rows.put(saved, hashes)
        self._evict(rows, saved.key)

    def _delete_damaged_index(self) -> None:
        try:
            self._index.check()
        except sqlite3.OperationalError:
            pass  # no space or no permission, which a new index would not mend; the first change says so
        except sqlite3.DatabaseError:
            self._index.delete()

    def _adopt(self, rows: Rows) -> None:
        """List the files that are not listed: all, where the index was lost; else those of a process that was killed after it
        had renamed one, or that somebody put here."""
        listed = {saved.file for saved in rows.all()}
        found = []
        for path in self.path.glob(f"*{ENDING}"):
            if path.name not in listed:
                with suppress(
                    UserInputError, KeyError, TypeError
                ):  # no context, or none of this version: `verify` tells
                    found.append(_described(path))
        for saved, hashes in sorted(found, key=lambda pair: pair[0].saved_at):
            if rows.get(saved.key) is None:
                rows.put(saved, hashes)

    def present(self, rows: Rows, saved: Saved) -> bool:
        """Is the file of a row there? A row without one is removed."""
        there = (self.path / saved.file).is_file()
        if not there:
            rows.drop(saved.key)
        return there

    def drop(self, rows: Rows, saved: Saved) -> None:
        rows.drop(saved.key)
        (self.path / saved.file).unlink(missing_ok=True)

    def discard(self, rows: Rows, saved: Saved, error: UserInputError) -> None:
        """Forget a context that does not open; a damaged file, which opens for nobody, goes too."""
        warnings.warn(f"left out of the store: {error}", stacklevel=2)
        if isinstance(error, DamagedFileError):
            self.drop(rows, saved)
        else:
            rows.drop(saved.key)

    def _evict(self, rows: Rows, kept: str | None = None) -> None:
        """Remove what was not used for longest until the rest fits, but not the context `kept`."""
        held = rows.all()
        total = sum(saved.num_bytes for saved in held)
        for saved in reversed(held):
            if self.max_bytes is None or total <= self.max_bytes:
                return
            if saved.key != kept:
                self.drop(rows, saved)
                total -= saved.num_bytes

    def refuse_larger(self, num_bytes: int) -> None:
        if self.max_bytes is not None and num_bytes > self.max_bytes:
            raise UserInputError(
                f"the context has {num_bytes:,} bytes, the store {self.path} may have {self.max_bytes:,}; "
                "give a larger max_bytes, or a spec that keeps less"
            )


def _described(path: Path) -> tuple[Saved, Sequence[str]]:
    """A file as a row and the hashes of its blocks. Raises UserInputError where it is no context."""
    file = SpanFile(path)
    header, status = file.header, path.stat()
    origin = file.tensor("origin") if "origin" in file.names else None
    trail = Trail(space_of(header), ids_in_order(file.tensor("token_ids"), origin))
    store = {
        "key": trail.key(trail.num_tokens),
        "num_tokens": trail.num_tokens,
        "name": None,
        "saved_at": status.st_mtime,
    } | header.get("store", {})
    saved = Saved(
        **store,
        space=trail.space,
        file=path.name,
        num_bytes=status.st_size,
        model=header["model"],
        spec=header["spec"],
        croppable=header["croppable"],
    )
    return saved, trail.hashes[1:] if saved.croppable else ()
