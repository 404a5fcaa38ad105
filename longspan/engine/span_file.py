"""The file of a saved context: tensors in safetensors' format with a JSON header, each under a checksum, written whole or not at all.

Beside the tensors' own table stand two strings: `longspan`, the header as JSON, and `longspan_crc32`, the CRC-32 of its UTF-8
bytes, which every format from 2 on computes alike. Under `tensors` the header has type, shape and CRC-32 of each tensor, so a
byte that was altered anywhere is found when it is read. CRC-32 finds damage, not forgery; nothing in a file is ever executed.

A file is written beside its place, under a name that ends in `.partial` and with a lock on it, synced, and then renamed. What
a process leaves behind that was killed meanwhile has lost its lock, and the next to write there removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longspan.errors import UserInputError

FORMAT = 2
HEADER, CHECKSUM = "longspan", "longspan_crc32"
_ALIGN = 8
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint64: "U64", torch.uint32: "U32",
    torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


class DamagedFileError(UserInputError):
    """The bytes of a saved context are not those that were written."""


class SpanFile:
    """A saved context that is open for reading: its header, checked, and its tensors, read and checked when they are asked for.

    Raises:
        UserInputError: no such file, no saved context, or one of another format.
        DamagedFileError: cut short, or the header was altered.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise UserInputError(f"{path} is a folder; give the file that context.save wrote")
        try:
            self._inode = self.path.stat().st_ino
        except OSError as error:
            raise UserInputError(
                f"there is no file {path} ({error.strerror}); give the path that context.save wrote"
            ) from error
        try:
            self._file = safe_open(str(path), framework="pt", device="cpu")
            found = self._file.metadata() or {}
            self.header = json.loads(found.get(HEADER, "null"))
        except (SafetensorError, ValueError) as error:
            raise DamagedFileError(
                f"{path} is not a saved context (or is cut short); save it again"
            ) from error
        except OSError as error:
            raise UserInputError(f"cannot read {path} ({error}); check its permissions") from error
        self._check(found)

    def _check(self, found: dict[str, str]) -> None:
        number = self.header.get("format") if isinstance(self.header, dict) else None
        if not isinstance(number, int):
            raise DamagedFileError(
                f"{self.path} is not a saved context (its header has no format); save it again"
            )
        if number < FORMAT and CHECKSUM not in found:
            raise UserInputError(
                f"{self.path} was written by an older longspan (format {number}, without checksums), this one reads format "
                f"{FORMAT}; read the text again and save it"
            )
        if found.get(CHECKSUM) != _crc(found[HEADER].encode()):
            raise self.damaged("its header was altered")
        if number != FORMAT:
            raise UserInputError(
                f"{self.path} was written by a newer longspan (format {number}), this one reads up to {FORMAT}; update longspan"
            )
        # a type or shape that was altered in the tensors' own table shows when the tensor is read
        if not isinstance(self.header.get("tensors"), dict) or set(self.header["tensors"]) != set(self.names):
            raise self.damaged("its tensors are not those of its header")

    @property
    def names(self) -> list[str]:
        return list(self._file.keys())

    @property
    def is_in_place(self) -> bool:
        """Its name has not been given to another file since."""
        return self.path.is_file() and self.path.stat().st_ino == self._inode

    def tensor(self, name: str) -> Tensor:
        """A tensor on the CPU, mapped from the file, not copied; its bytes are those that were written.

        Raises:
            DamagedFileError: they are not.
        """
        known = self.header["tensors"].get(name)
        try:
            value: Tensor = self._file.get_tensor(name)
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise self.damaged(f"{name} cannot be read") from error
        if known != _facts(value) | {"crc32": _crc(_bytes(value))}:
            raise self.damaged(f"{name} was altered")
        return value

    def verify(self) -> None:
        """Read everything, and keep nothing. Raises DamagedFileError."""
        for name in self.names:
            self.tensor(name)

    def damaged(self, why: str) -> DamagedFileError:
        return DamagedFileError(f"{self.path} is a damaged context ({why}); read the text again and save it")


@contextmanager
def written_beside(target: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[Path]:
    """A whole file, safe on the disk, beside the one that it shall become by `put_in_place` inside the block; else it is gone
    at the end of it.

    Raises:
        OSError: no space, no permission.
    """
    remove_leftovers(target.parent, f".{target.name}.")
    stream, partial = _open_partial(target)
    try:
        with stream:
            _write(stream, header, tensors)
            stream.flush()
            os.fsync(stream.fileno())
            yield partial
    finally:
        with suppress(OSError):  # on a read-only disk there is none, and asking is an error of its own
            partial.unlink(missing_ok=True)


def put_in_place(partial: Path, target: Path) -> None:
    """Rename, and see to it that the new name outlasts a power cut."""
    os.replace(partial, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_leftovers(folder: Path, prefix: str = ".") -> None:
    """Remove the partial files of processes that died; those that are being written now are locked, and stay."""
    for name in os.listdir(folder):
        if not (name.startswith(prefix) and name.endswith(".partial")):
            continue
        with suppress(OSError), (folder / name).open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / name).unlink()


def _open_partial(target: Path) -> tuple[BinaryIO, Path]:
    mask = os.umask(0)
    os.umask(mask)
    while True:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
        stream = os.fdopen(handle, "wb")
        fcntl.flock(stream, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else taken for a leftover before it was locked
            os.fchmod(handle, 0o666 & ~mask)
            return stream, Path(name)
        stream.close()


def _write(stream: BinaryIO, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Tensors first, one at a time, then the header in the room left before them: only then are the checksums known."""
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())  # safetensors wants them aligned
    facts: dict[str, dict[str, Any]] = {
        name: _facts(tensors[name]) | {"crc32": _crc(b"")} for name in tensors
    }
    start = len(_head(header, facts, tensors, order))
    stream.seek(start)
    for name in order:
        data = _bytes(tensors[name])
        facts[name]["crc32"] = _crc(data)
        stream.write(data)
    stream.seek(0)
    head = _head(header, facts, tensors, order)
    assert len(head) == start
    stream.write(head)


def _head(
    header: Mapping[str, Any],
    facts: dict[str, dict[str, Any]],
    tensors: Mapping[str, Tensor],
    order: list[str],
) -> bytes:
    """Everything before the tensors; its length does not depend on checksums."""
    text = json.dumps({"format": FORMAT, **header, "tensors": facts})
    table: dict[str, Any] = {"__metadata__": {HEADER: text, CHECKSUM: _crc(text.encode())}}
    offset = 0
    for name in order:
        stop = offset + tensors[name].numel() * tensors[name].element_size()
        entry = {"dtype": facts[name]["type"], "shape": facts[name]["shape"], "data_offsets": [offset, stop]}
        table[name], offset = entry, stop
    raw = json.dumps(table).encode()
    raw += b" " * (-len(raw) % _ALIGN)
    return len(raw).to_bytes(8, "little") + raw


def _facts(tensor: Tensor) -> dict[str, Any]:
    return {"type": _TYPES[tensor.dtype], "shape": list(tensor.shape)}


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _crc(data: bytes | memoryview) -> str:
    return f"{zlib.crc32(data):08x}"
