"""Suites whose questions were published: read from a local folder in the published format, or from the hub.

Data are looked for in `$LONGSPAN_DATA/<suite>/` (set by `longspan bench --data DIR`), at any depth below it. With
`LONGSPAN_DOWNLOAD=1` (`--download`) what is missing there comes from the hub by the `datasets` library. Nothing is
downloaded unasked, and nothing is unpickled.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from longspan.evaluation.haystacks import TokenizerLike
from longspan.evaluation.task import Labels

__all__ = ["DataMissing", "DataTask", "Question", "Source", "cut_middle", "data_file", "read_rows"]

DATA_VARIABLE = "LONGSPAN_DATA"
DOWNLOAD_VARIABLE = "LONGSPAN_DOWNLOAD"


class DataMissing(ValueError):
    """A suite's data are not on this machine; the message says what to put where."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a suite's data come from.

    Attributes:
        hub: dataset id on the hub; None where it is not there.
        licence: of the data.
        citation: whom to cite.
        url: page of the benchmark.
    """

    hub: str | None
    licence: str
    citation: str
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One published question.

    Attributes:
        context, question: what the model sees, `{context}\\n\\n{question}`.
        references: gold answers. details: what else the metric needs.
        evidence: pieces of the context that hold the answer, where the data name them.
        answer: the ideal answer; default: the first reference.
    """

    context: str
    question: str
    references: tuple[str, ...]
    answer_prefix: str = ""
    answer: str = ""
    evidence: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataTask(Labels):
    """Published questions of one task, see `Question`; its length is the most that a model reads of each.

    Attributes:
        suite: name of the suite, which is the folder of its data.
        source: where the data come from.
        file: name of the file in the published layout, such as "data/hotpotqa.jsonl".
        parse: a row of the file to its questions.
        max_new_tokens: tokens to generate.
        subset, split: of the data set on the hub.
    """

    suite: str
    source: Source
    file: str
    parse: Callable[[Mapping[str, Any]], Iterable[Question]]
    max_new_tokens: int
    subset: str | None = None
    split: str = "test"

    def questions(self) -> Sequence[Question]:
        """All questions, in the order of the file; read once.

        Raises:
            DataMissing: the file is not there. ValueError: a row is malformed; names it.
        """
        try:
            path = data_file(self.suite, self.file, self.source)
        except DataMissing:
            if os.environ.get(DOWNLOAD_VARIABLE) != "1" or self.source.hub is None:
                raise
            return _questions(self, None, None)
        return _questions(self, path, path.stat().st_mtime_ns)


def parse_row(task: DataTask, row: Mapping[str, Any], number: int, place: object) -> list[Question]:
    """The questions of one row.

    Args:
        task: whose row it is.
        row: as published.
        number: of the row, from 1.
        place: file or data set that holds it, for the message.

    Raises:
        DataMissing: a further file is not there. ValueError: the row is malformed; names it.
    """
    try:
        return list(task.parse(row))
    except DataMissing:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise malformed(task, f"row {number}", place, error) from error


def malformed(task: DataTask, row: str, place: object, error: Exception) -> ValueError:
    """The error for a row that is not as published."""
    return ValueError(
        f"{row} of {place} is not a row of {task.suite} as published "
        f"({type(error).__name__}: {error}); check the file, or fetch it anew"
    )


@lru_cache(maxsize=8)
def _questions(task: DataTask, path: Path | None, changed: int | None) -> Sequence[Question]:
    found: list[Question] = []
    rows = _hub_rows(task) if path is None else read_rows(path)
    for number, row in enumerate(rows, start=1):
        found += parse_row(task, row, number, path or task.source.hub)
    if not found:
        raise ValueError(f"{path or task.source.hub} holds no question of {task.suite}; check the file")
    return tuple(found)


def _hub_rows(task: DataTask) -> Iterator[Mapping[str, Any]]:
    if find_spec("datasets") is None:
        raise DataMissing(
            f"downloading {task.source.hub} needs `datasets`; run `pip install longspan[data]`, "
            f"or put {task.file} into {DATA_VARIABLE}/{task.suite}"
        )
    import datasets

    own = getattr(getattr(datasets, "exceptions", None), "DatasetsError", OSError)
    try:
        yield from datasets.load_dataset(task.source.hub, task.subset, split=task.split)
    except (OSError, RuntimeError, own) as error:
        raise DataMissing(
            f"{task.source.hub} could not be loaded from the hub ({' '.join(str(error).split())[:200]}); "
            f"put {task.file} into a folder {task.suite} under --data DIR instead"
        ) from error


def data_file(suite: str, file: str, source: Source) -> Path:
    """The local file of a suite: `DIR/<suite>/<file>`, that path anywhere below `DIR/<suite>`, or the file alone right in it.

    Args:
        suite: folder name.
        file: relative path in the published layout; may be a pattern such as "squad*.json".
        source: named in the message when the file is absent.

    Raises:
        DataMissing: no such file, or no folder was given.
    """
    root = os.environ.get(DATA_VARIABLE)
    if root:
        folder = Path(root) / suite
        if (folder / file).is_file():
            return folder / file
        below = (path for path in folder.rglob(Path(file).name) if path.match(file))
        found = sorted(path for path in (*below, *folder.glob(Path(file).name)) if path.is_file())
        if found:
            return found[0]
    where = f"{Path(root) / suite}" if root else f"DIR/{suite}"
    origin = f"hub data set {source.hub}" if source.hub else source.url
    raise DataMissing(
        f"the data of {suite} are not here: put {Path(file).name} into {where}"
        f"{'' if root else ' and pass --data DIR'} ({origin}, licence {source.licence})"
        + ("" if source.hub is None else ", or let --download fetch it")
    )


def read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a published file: .jsonl (also with objects not separated by line ends), .json, .csv, .tsv, .parquet.

    A .json file holds a list of rows, or an object: then its only list, or else the object itself, is taken.

    Raises:
        ValueError: the file is malformed; names it and the place.
    """
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        with open(path, encoding="utf-8", newline="") as stream:
            yield from csv.DictReader(stream, delimiter="\t" if ending == ".tsv" else ",")
    elif ending == ".parquet":
        yield from _parquet_rows(path)
    elif ending in (".jsonl", ".json", ".jsonlines"):
        yield from _json_rows(path)
    else:
        raise ValueError(f"{path} has the ending {ending!r}; allowed are .jsonl, .json, .csv, .tsv, .parquet")


def _json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); give the published file") from error
    decoder, place = json.JSONDecoder(), 0
    while place < len(text):
        while place < len(text) and text[place] in " \t\r\n\ufeff":
            place += 1
        if place == len(text):
            break
        try:
            value, place = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError) as error:
            line = text.count("\n", 0, place) + 1
            raise ValueError(
                f"{path} line {line} is not JSON; repair the line, or fetch the file anew"
            ) from error
        yield from _rows_of(value, path)


def _rows_of(value: Any, path: Path) -> Iterable[Mapping[str, Any]]:
    if isinstance(value, list):
        rows = value
    elif isinstance(value, dict):
        lists = [
            part for part in value.values() if isinstance(part, list) and part and isinstance(part[0], dict)
        ]
        rows = lists[0] if len(value) <= 2 and len(lists) == 1 else [value]
    else:
        rows = [value]
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError(
                f"{path} holds {type(row).__name__} values where rows (JSON objects) are expected"
            )
    return rows


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if find_spec("pyarrow") is None:
        raise ValueError(f"reading {path} needs `pyarrow`; run `pip install longspan[data]`")
    from pyarrow import parquet

    for batch in parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def cut_middle(
    text: str, num_tokens: int, tokenizer: TokenizerLike, *, keep: Literal["both", "start"] = "both"
) -> tuple[str, bool]:
    """The text without its middle when it is longer than `num_tokens`: LongBench's way to fit a window.

    Returns:
        The text, and whether something was cut.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    ids = encoded["input_ids"]
    if len(ids) <= num_tokens:
        return text, False
    head = num_tokens if keep == "start" else num_tokens // 2
    tail = num_tokens - head
    if tokenizer.is_fast:
        offsets = encoded["offset_mapping"]
        end = text[offsets[len(ids) - tail][0] :] if tail else ""
        return text[: offsets[head - 1][1] if head else 0] + end, True
    end = tokenizer.decode(ids[len(ids) - tail :]) if tail else ""
    return tokenizer.decode(ids[:head]) + end, True
