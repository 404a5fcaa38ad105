"""Saved contexts: bytes a token, seconds to save and to open, and the time to the first token of an answer, loaded whole,
loaded while the question runs (`lazy`), or by reading the text again.

    python -m benchmarks.saved_contexts --text FOLDER_OR_FILE...
    python -m benchmarks.saved_contexts --text books --tokens 4096 16384 --specs dense "snapkv(keep=0.25)" --out /tmp/saved.json

Up to `--read-tokens` tokens are read from the text. A longer context, of the model's own attention only, is made of these: their
keys and values are repeated, at positions that go on; its answers mean nothing, its bytes and seconds are those of a text of
that length, and reading again is not measured. Each number is the median of `--repeats`. "cold" rows read a file that the system
was asked to forget before each opening, "warm" rows one that it holds. Nothing is written unless the answer of a context that
was opened, either way, is that of the context that was saved; files at a level of CacheGen's codec, which loses a little, say whether
theirs is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import longspan
from benchmarks.stream import read_texts, text_ids
from longspan._files import write_json_whole
from longspan.engine.context import Context
from longspan.engine.model import SpanModel
from longspan.engine.store import SPARE_TOKENS
from longspan.evaluation.provenance import commit, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "saved_contexts.json"
QUESTION = "Who is the man of whom this is told?"
GATE_TOKENS = 8
WARM_TOKENS = 2048


def first_token(context: Context) -> None:
    """Ask until the first token is there."""
    context.ask(QUESTION, max_new_tokens=1, sources=False)


def forget(file: Path) -> None:
    """Ask the system to drop what it holds of a file in memory."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def seconds(*works: Callable[[], Any], before: Callable[[], None] | None = None, repeats: int) -> list[float]:
    """Median seconds of each work, `before` not counted; they take turns, so that a busy machine is as busy for all."""
    measured: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, mine in zip(works, measured, strict=True):
            if before is not None:
                before()
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            mine.append(time.perf_counter() - start)
    return [round(statistics.median(mine), 4) for mine in measured]


def stretched(context: Context, num_tokens: int) -> Context:
    """A context of so many tokens whose keys and values are those of a shorter one, again and again."""
    run, held = context.run.fork(), context.num_tokens
    for layer in run.layers:
        for slab in layer.slabs:
            keys, values = slab.keys.clone(), slab.values.clone()
            while slab.num_tokens < num_tokens:
                first, new = slab.num_tokens, min(held, num_tokens - slab.num_tokens)
                at = torch.arange(first, first + new, device=keys.device)[None]
                slab.append(
                    keys[:, :, :new],
                    values[:, :, :new],
                    at,
                    first=first,
                    reserve_tokens=num_tokens + SPARE_TOKENS,
                )
    run.token_ids = [run.ids.repeat(-(-num_tokens // held))[:num_tokens]]
    run.seen = num_tokens
    return Context(context.model, run, dict(context.read_seconds))


def measure(
    span: SpanModel, ids: torch.Tensor, num_tokens: int, folder: Path, repeats: int, levels: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for the file cold and one for it warm, exact and at each level of CacheGen's codec.

    Args:
        ids: the text; where it is shorter than `num_tokens`, what it gives is stretched.

    Raises:
        SystemExit: an opened context, saved exactly, answers otherwise than the saved one.
    """
    file = folder / "book.span"
    first_token(span.read(ids[:WARM_TOKENS], progress=False))  # kernels are compiled and chosen here
    start = time.perf_counter()
    context = span.read(ids, progress=False)
    first_token(context)
    again = round(time.perf_counter() - start, 4) if len(ids) == num_tokens else None
    if len(ids) < num_tokens:
        context = stretched(context, num_tokens)
    wanted = context.ask(QUESTION, max_new_tokens=GATE_TOKENS).token_ids
    asking = seconds(lambda: first_token(context), repeats=repeats)[0]
    rows = []
    for level in (None, *levels):
        (save,) = seconds(lambda at=level: context.save(file, level=at), repeats=repeats)  # type: ignore[misc]
        same = [
            longspan.open_context(file, span, lazy=lazy).ask(QUESTION, max_new_tokens=GATE_TOKENS).token_ids
            == wanted
            for lazy in (False, True)
        ]
        if level is None and not all(same):
            raise SystemExit(f"the correctness gate failed: opened again, {span.spec} answers otherwise")
        facts = {
            "spec": span.spec,
            "level": level,
            "tokens": num_tokens,
            "tokens_read": len(ids),
            "file_bytes": file.stat().st_size,
            "bytes_per_token": round(file.stat().st_size / num_tokens, 1),
            "kv_bytes": context.kv_bytes,
            "save_seconds": save,
            "read_again_first_token_seconds": again,
            "ask_seconds": asking,
            "same_answer": all(same),
        }
        rows += [facts | opening(span, file, cache, repeats) for cache in ("cold", "warm")]
    return rows


def opening(span: SpanModel, file: Path, cache: str, repeats: int) -> dict[str, Any]:
    """Seconds until a file is open, and until the first token is there."""

    def before() -> None:
        if cache == "cold":
            forget(file)

    def opened(lazy: bool) -> Context:
        return longspan.open_context(file, span, lazy=lazy)

    whole, eager, lazy = seconds(
        lambda: opened(False),
        lambda: first_token(opened(False)),
        lambda: first_token(opened(True)),
        before=before,
        repeats=repeats,
    )
    return {
        "cache": cache,
        "open_seconds": whole,
        "first_token_eager_seconds": eager,
        "first_token_lazy_seconds": lazy,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", type=Path, nargs="+", required=True, help="files, or folders of .md and .txt"
    )
    parser.add_argument("--model", default="reference")
    parser.add_argument("--specs", nargs="+", default=["dense"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384, 65536, 131072])
    parser.add_argument("--read-tokens", type=int, default=8192, help="read at most so many of them")
    parser.add_argument("--levels", type=int, nargs="*", default=[0, 1, 2], help="of CacheGen's codec")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument(
        "--folder", type=Path, help="where files are put meanwhile, such as the disk to measure"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    if min(given.repeats, given.read_tokens, *given.tokens) < 1:
        parser.error("--repeats, --tokens and --read-tokens must be 1 or more")
    dtype = given.dtype or ("float32" if given.device == "cpu" else "bfloat16")
    try:
        model = longspan.load(given.model, dtype=dtype, device=given.device)
        models = [model.with_methods(spec) for spec in given.specs]
        whole, names = read_texts(given.text)
    except ValueError as error:
        parser.error(str(error))
    ids = text_ids(model, whole, given.read_tokens)
    if len(ids) < 2:
        parser.error("the text is empty; give another")
    for span in models:
        if span.spec != "dense" and max(given.tokens) > len(ids):
            parser.error(
                f"only dense contexts are stretched; give {span.spec} no more --tokens than are read"
            )
    facts = {
        "model": model.name,
        "text": names,
        "device": torch.cuda.get_device_name() if model.info.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cpu_cores": os.cpu_count(),
        "dtype": dtype,
        "repeats": given.repeats,
        **versions(),
        "commit": commit(),
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for tokens in given.tokens:
            for span in models:
                for row in measure(span, ids[:tokens], tokens, Path(folder), given.repeats, given.levels):
                    rows.append(row | facts)
                    print({name: value for name, value in row.items() if name != "kv_bytes"}, flush=True)
                given.out.parent.mkdir(parents=True, exist_ok=True)
                write_json_whole(given.out, rows)
    print(f"wrote {len(rows)} rows to {given.out}")


if __name__ == "__main__":
    main()
