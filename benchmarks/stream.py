"""Reading a million tokens as a stream: perplexity, keys and values held, peak memory and speed by position.

    python -m benchmarks.stream --text FOLDER_OR_FILE...
    python -m benchmarks.stream --text books --tokens 65536 --stretch 16384 --device cpu --out /tmp/stream.json

The text passes once through the model under each spec, chunk by chunk; a chunk's logits become the negative log-likelihoods
of its tokens and are gone. Rows are stretches of it, the first one cut in parts, so that one sees where a method begins to
fail. Text differs from stretch to stretch, so each also has the perplexity of *restarted* windows: the model's own attention
in a fresh context of one trained window, which begins anew every half window; only the second half of each is counted. The
ratio of the two does not drift where reading on and on costs nothing. "dense" ends early: it fails past the trained window,
and its memory grows.

Peak memory is what PyTorch allocated on the GPU, weights included; on a CPU the memory of the process, looked at after each
chunk. Ids of what was read are kept, 8 bytes a token.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from operator import mul
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import longspan
from longspan._files import write_json_whole, write_whole
from longspan.engine.model import SpanModel
from longspan.engine.prompt import encode
from longspan.engine.reader import rechunk
from longspan.engine.run import Run
from longspan.evaluation.pages import put_between
from longspan.evaluation.provenance import commit, versions
from longspan.evaluation.report.draw import element, log_ticks, text
from longspan.evaluation.wording import bytes_text, seconds_text, tokens_text
from longspan.ops.backend import backend_rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "stream.json"
FIGURE, PAGE = ROOT / "docs" / "images" / "stream.svg", ROOT / "docs" / "streaming.md"
MARKS = ("<!-- table: made by `python -m benchmarks.stream` -->", "<!-- end of table -->")
WINDOW = "duo_attention(retrieval_fraction=0, sink_tokens=10, recent_tokens={tokens})"
SPECS = (
    "dense",
    "lm_infinite()",
    "self_extend(max_distance_tokens=4095) + " + WINDOW.format(tokens=4096),
    "self_extend(max_distance_tokens=4095) + " + WINDOW.format(tokens=8192),
)
CHUNK_TOKENS = {"cpu": 1024, "cuda": 4096}
PARTS = 16  # of the first stretch
GATE_TOKENS = 1024
_COLOURS = ("#b3261e", "#1b6ca8", "#2e7d32", "#8e5bb5", "#b26a00", "#00838f")
_PANEL, _HEIGHT, _LEFT, _GAP, _LINE = 330, 230, 62, 74, 18


def read_texts(paths: Sequence[Path]) -> tuple[str, list[str]]:
    """Files, and the .md and .txt files of folders, one after another; and their names.

    Raises:
        ValueError: a path is missing, or holds no text.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"there is no {path}; give text files, or folders of .md and .txt files")
        inside = sorted(file for file in path.rglob("*") if file.suffix in (".md", ".txt"))
        if path.is_dir() and not inside:
            raise ValueError(f"the folder {path} holds no .md and no .txt file; give another")
        files += inside if path.is_dir() else [path]
    return "\n\n".join(file.read_text(encoding="utf-8") for file in files), [file.name for file in files]


def text_ids(model: SpanModel, whole: str, num_tokens: int) -> Tensor:
    """The first `num_tokens` ids of a text, the tokenizer's bos before it; fewer where the text ends."""
    bos = model.tokenizer.bos_token_id
    head = [] if bos is None else [torch.tensor([bos])]
    return torch.cat([*head, encode(model.tokenizer, whole)])[:num_tokens]


def stream_losses(span: SpanModel, ids: Tensor, chunk_tokens: int) -> Iterator[tuple[Run, Tensor]]:
    """Read a text `[S]` under a spec: after each chunk the run so far, and the negative log-likelihoods of its tokens, on the
    model's device: `[chunk]`, of the first chunk one fewer."""
    reader = span.reader(chunk_tokens=chunk_tokens)
    run = reader.new_run()  # nobody knows how long a stream gets
    before: Tensor | None = None
    for chunk in rechunk([ids], chunk_tokens):
        logits, wanted = reader.all_logits(run, chunk), chunk.to(span.info.device)
        parts = [cross_entropy(logits[:-1], wanted[1:], reduction="none")]
        if before is not None:
            parts.insert(0, cross_entropy(before, wanted[:1], reduction="none"))
        before = logits[-1:].clone()
        yield run, torch.cat(parts)


@torch.no_grad()
def restarted_losses(model: SpanModel, ids: Tensor) -> Tensor:
    """Negative log-likelihoods `[S - 1]` of a text's tokens from the second on, by stock attention in fresh windows.

    Every window begins with the text's first token, so that none lacks the start that the model expects.
    """
    half, device, losses = model.window_tokens // 2, model.info.device, []
    for start in range(0, len(ids), half):
        stop = min(start + half, len(ids))
        held = torch.cat([ids[:1], ids[max(1, start - half + 1) : stop]]).to(device)
        counted = stop - max(start, 1)
        if counted == 0:
            continue
        logits = model.hf_model(input_ids=held[None], use_cache=False, logits_to_keep=counted + 1).logits[0]
        losses.append(cross_entropy(logits[:-1].float(), held[-counted:], reduction="none").cpu())
    return torch.cat(losses)


def edges_of(num_tokens: int, stretch: int, chunk_tokens: int) -> list[int]:
    """Where rows begin and end: the first stretch in `PARTS` parts of whole chunks, then stretch by stretch."""
    part = -(-stretch // PARTS // chunk_tokens) * chunk_tokens or chunk_tokens
    inside = range(0, min(stretch, num_tokens), part)
    return [*inside, *range(stretch, num_tokens, stretch), num_tokens]


def read_stream(
    span: SpanModel, ids: Tensor, restarted: Tensor, edges: Sequence[int], chunk_tokens: int
) -> Iterator[dict[str, Any]]:
    """A row for each stretch between two edges, as soon as it is read.

    Args:
        ids: the text, `[S]`.
        restarted: `restarted_losses` of it.
        edges: multiples of `chunk_tokens`, and the text's end.
        chunk_tokens: tokens a forward.
    """
    steps = stream_losses(span, ids, chunk_tokens)
    for start, stop in zip(edges, edges[1:], strict=False):
        _reset_peak(span)
        clock, peak, kv_peak, losses = time.perf_counter(), 0, 0, []
        for run, loss in steps:
            losses.append(loss)
            kv_peak, peak = max(kv_peak, run.kv_bytes), max(peak, _memory(span))
            if run.seen >= stop:
                break
        nll = torch.cat(losses).double().mean().item()
        seconds = time.perf_counter() - clock
        fresh = restarted[max(start, 1) - 1 : stop - 1].double().mean().item()
        yield {
            "spec": span.spec,
            "start": start,
            "tokens": stop - start,
            "nll": round(nll, 5),
            "perplexity": round(math.exp(nll), 3),
            "restarted_perplexity": round(math.exp(fresh), 3),
            "ratio": round(math.exp(nll - fresh), 4),
            "kv_bytes": run.kv_bytes,
            "peak_kv_bytes": kv_peak,
            "peak_bytes": peak,
            "seconds": round(seconds, 3),
            "backends": sorted({f"{row['op']}={row['backend']}" for row in backend_rows(run.backends)}),
        }


def _reset_peak(span: SpanModel) -> None:
    if span.info.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def _memory(span: SpanModel) -> int:
    """Bytes: on a GPU the peak since the stretch began, on a CPU what the process holds now."""
    if span.info.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check(model: SpanModel, ids: Tensor) -> float:
    """The gate: read in chunks, token by token the model's own attention gives what stock gives at once. Returns the largest
    difference in float32, the mean one below, where single tokens are rounded apart.

    Raises:
        SystemExit: it does not.
    """
    some = ids[: min(GATE_TOKENS, model.window_tokens)]
    losses = [loss for _, loss in stream_losses(model.with_methods("dense"), some, 300)]
    difference = torch.cat(losses).cpu() - restarted_losses(model, some)
    exact = model.info.dtype == torch.float32
    error = float(difference.abs().max() if exact else difference.mean().abs())
    if not error < (1e-3 if exact else 1e-2):
        raise SystemExit(
            f"the correctness gate failed: chunks differ from stock by {error:.2e}; nothing was measured"
        )
    return error


# the page


def merged(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Several stretches as one: `perplexity`, `ratio`, `peak_bytes` (the largest), `tokens_per_second`."""
    rows = list(rows)
    total = sum(row["tokens"] for row in rows)
    weights = [row["tokens"] - (row["start"] == 0) for row in rows]  # the text's first token is not predicted

    def mean(values: Iterable[float]) -> float:
        return sum(map(mul, values, weights)) / sum(weights)

    nll = mean(row["nll"] for row in rows)
    fresh = mean(math.log(row["restarted_perplexity"]) for row in rows)
    return {
        "perplexity": math.exp(nll),
        "ratio": math.exp(nll - fresh),
        "peak_bytes": max(row["peak_bytes"] for row in rows),
        "tokens_per_second": total / sum(row["seconds"] for row in rows),
    }


def by_spec(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["spec"], []).append(row)
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The page's table: of each spec the first stretch, the worst and the last."""
    stretch, facts = rows[0]["stretch_tokens"], rows[0]
    heads = [
        "spec", "tokens", f"perplexity, first {tokens_text(stretch)}", "last stretch", "ratio to restarted windows: first",
        "largest later", "last", "KV held at most", "peak memory, first", "later", "tokens/s",
    ]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for spec, mine in by_spec(rows).items():
        first = merged(row for row in mine if row["start"] < stretch)
        later = [row for row in mine if row["start"] >= stretch]
        last = merged(later[-1:]) if later else None
        cells = [
            f"`{spec}`",
            f"{mine[-1]['start'] + mine[-1]['tokens']:,}",
            f"{first['perplexity']:.1f}",
            "–" if last is None else f"{last['perplexity']:.1f}",
            f"{first['ratio']:.3f}",
            "–" if last is None else f"{max(row['ratio'] for row in later):.3f}",
            "–" if last is None else f"{last['ratio']:.3f}",
            bytes_text(max(row["peak_kv_bytes"] for row in mine)),
            bytes_text(first["peak_bytes"]),
            "–" if last is None else bytes_text(max(row["peak_bytes"] for row in later)),
            f"{merged(mine)['tokens_per_second']:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    told = (
        f"Text: {', '.join(facts['text'])}; {facts['text_tokens']:,} tokens of {facts['wanted_tokens']:,} asked for. "
        f"{facts['device']}, {facts['dtype']}, {facts['chunk_tokens']:,} tokens a forward, torch {facts['torch']}, "
        f"transformers {facts['transformers']}, commit {facts['commit']}."
    )
    return "\n".join([*lines, "", told])


def figure(rows: Sequence[dict[str, Any]]) -> str:
    """Perplexity and bytes of keys and values by position, one line a spec, as SVG; all axes logarithmic."""
    specs = by_spec(rows)
    plain = {"style": "font:11px system-ui, sans-serif", "fill": "#333"}
    longest = max(specs.values(), key=lambda mine: mine[-1]["start"] + mine[-1]["tokens"])
    names = {"restarted windows": "#888"} | dict(zip(specs, _COLOURS * len(specs), strict=False))
    top = 14 + _LINE * len(names)
    width, height = 2 * (_LEFT + _PANEL) + _GAP - _LEFT, top + _HEIGHT + 66
    parts = [element("rect", x=0, y=0, width=width, height=height, fill="#fff")]
    for number, (name, colour) in enumerate(names.items()):
        y = 16 + number * _LINE
        parts.append(
            element("line", x1=_LEFT, x2=_LEFT + 22, y1=y - 4, y2=y - 4, stroke=colour, stroke_width=2)
        )
        parts.append(text(_LEFT + 28, y, name, **plain))
    lines = {
        "perplexity": {name: _points(mine, "perplexity") for name, mine in specs.items()}
        | {"restarted windows": _points(longest, "restarted_perplexity")},
        "keys and values, bytes": {name: _points(mine, "kv_bytes") for name, mine in specs.items()},
    }
    for number, (title, series) in enumerate(lines.items()):
        parts += _panel(_LEFT + number * (_PANEL + _GAP), top + 24, title, series, names)
    return element(
        "svg", "".join(parts), xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}",
        width=width, height=height, role="img", aria_label="Perplexity and memory by position in a stream",
    )  # fmt: skip


def _points(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(row["start"] + row["tokens"]), float(row[key])) for row in rows]


def _panel(
    left: int, top: int, title: str, series: dict[str, list[tuple[float, float]]], colours: dict[str, str]
) -> list[str]:
    plain = {"style": "font:11px system-ui, sans-serif", "fill": "#333"}
    places = [point for line in series.values() for point in line]
    first, last = min(x for x, _ in places) / 1.1, max(x for x, _ in places) * 1.1
    low, high = min(y for _, y in places) / 1.25, max(y for _, y in places) * 1.25
    base = top + _HEIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + _PANEL * math.log(x / first) / math.log(last / first)
        return across, base - _HEIGHT * math.log(y / low) / math.log(high / low)

    parts = [text(left, top - 8, title, font_weight="bold", **plain)]
    for tick in log_ticks(low, high):
        y = place(first, tick)[1]
        shown = bytes_text(tick) if "bytes" in title else f"{tick:,g}"
        parts.append(element("line", x1=left, x2=left + _PANEL, y1=y, y2=y, stroke="#ddd"))
        parts.append(text(left - 6, y + 4, shown, text_anchor="end", **plain))
    for power in range(math.ceil(math.log2(first)), math.floor(math.log2(last)) + 1, 2):
        x = place(2.0**power, low)[0]
        parts.append(element("line", x1=x, x2=x, y1=base, y2=base + 4, stroke="#333"))
        parts.append(text(x, base + 17, tokens_text(2**power), text_anchor="middle", **plain))
    parts.append(element("line", x1=left, x2=left + _PANEL, y1=base, y2=base, stroke="#333"))
    parts.append(text(left + _PANEL / 2, base + 34, "tokens read", text_anchor="middle", **plain))
    for number, (name, line) in enumerate(series.items()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        dashes = (
            None if number == 0 else f"{3 + 2 * number} {2 + number}"
        )  # lines that lie on each other stay visible
        parts.append(
            element(
                "polyline",
                points=path,
                fill="none",
                stroke=colours[name],
                stroke_width=1.8,
                stroke_dasharray=dashes,
            )
        )
    return parts


def write_page(rows: Sequence[dict[str, Any]], page: Path, image: Path) -> None:
    """Put the table between the page's marks, and draw the figure."""
    image.parent.mkdir(parents=True, exist_ok=True)
    write_whole(image, figure(rows) + "\n")
    held = page.read_text(encoding="utf-8") if page.exists() else "# Streaming\n"
    drawn = f"![Perplexity and memory by position]({os.path.relpath(image, page.parent)})"
    write_whole(page, put_between(held, *MARKS, f"{drawn}\n\n{table(rows)}"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, nargs="+", help="files, or folders of .md and .txt")
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help="measure nothing: page and figure of this file's rows"
    )
    parser.add_argument("--model", default="reference")
    parser.add_argument("--specs", nargs="+", default=list(SPECS))
    parser.add_argument("--tokens", type=int, default=2**20, help="read at most this many")
    parser.add_argument("--dense-tokens", type=int, default=2**15, help="where dense stops")
    parser.add_argument("--stretch", type=int, default=2**16, help="tokens of a row")
    parser.add_argument("--chunk", type=int, help="tokens a forward; 1024 on a CPU, 4096 on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown page that holds the table")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    given = parser.parse_args()
    if given.rows:
        write_page(json.loads(given.rows.read_text(encoding="utf-8")), given.page, given.figure)
        return
    if not given.text:
        parser.error("no text to read; give --text FOLDER_OR_FILE")
    chunk = given.chunk or CHUNK_TOKENS.get(torch.device(given.device).type, 1024)
    if chunk < 1 or given.stretch < chunk or given.stretch % chunk:
        parser.error(f"got --stretch {given.stretch} and --chunk {chunk}; a stretch must be whole chunks")
    dtype = given.dtype or ("float32" if given.device == "cpu" else "bfloat16")
    try:
        model = longspan.load(given.model, dtype=dtype, device=given.device)
        whole, names = read_texts(given.text)
        models = [model.with_methods(spec) for spec in given.specs]
    except ValueError as error:
        parser.error(str(error))
    ids = text_ids(model, whole, given.tokens)
    if len(ids) < 2 * chunk:
        parser.error(f"the text has {len(ids):,} tokens; give more than two chunks of {chunk:,}")
    facts = {
        "stretch_tokens": given.stretch,
        "chunk_tokens": chunk,
        "text": names,
        "text_tokens": len(ids),
        "wanted_tokens": given.tokens,
        "model": model.name,
        "device": torch.cuda.get_device_name() if model.info.device.type == "cuda" else _cpu_name(),
        "dtype": dtype,
        **versions(),
        "commit": commit(),
        "gate_difference": round(check(model, ids), 7),
    }
    print(facts, flush=True)
    restarted = restarted_losses(model, ids)
    print(f"restarted windows: perplexity {math.exp(restarted.double().mean().item()):.2f}", flush=True)
    rows: list[dict[str, Any]] = []
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for span in models:
        mine = ids[: given.dense_tokens] if span.spec == "dense" else ids
        began = time.perf_counter()
        for row in read_stream(span, mine, restarted, edges_of(len(mine), given.stretch, chunk), chunk):
            rows.append({**row, **facts})
            print(_short(row), flush=True)
            write_json_whole(given.out, rows)
        print(f"{span.spec}: {len(mine):,} tokens in {seconds_text(time.perf_counter() - began)}", flush=True)
        gc.collect()
    write_page(rows, given.page, given.figure)
    print(f"wrote {len(rows)} rows to {given.out}, the table to {given.page}, the figure to {given.figure}")


def _cpu_name() -> str:
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads of {os.cpu_count()}"


def _short(row: dict[str, Any]) -> str:
    return (
        f"{row['start']:>9,} +{row['tokens']:>6,} ppl {row['perplexity']:>9.2f} fresh {row['restarted_perplexity']:>6.2f} "
        f"ratio {row['ratio']:>8.3f} kv {bytes_text(row['kv_bytes']):>8} peak {bytes_text(row['peak_bytes']):>8} "
        f"{row['seconds']:>7.1f} s {row['spec']}"
    )


if __name__ == "__main__":
    main()
