"""The longest context that one GPU holds, by spec, of a model with the shape of Llama-3.1-8B and random weights.

    python -m benchmarks.longest_context --specs dense "kivi(bits=4, group_tokens=128, when=chunk)"

A text of a million tokens takes minutes to read, and what is asked here is memory. So a run reads `--read-tokens`, what each
layer holds of them is repeated until it is as much as it would hold of the whole text but its last chunk (coded, where a codec
is in the spec), and then that chunk is read and tokens are decoded as ever, under the longest past. A length that does not get
through that is too long; between one that does and one that does not the search goes on until they are `--step` apart.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import longspan
from benchmarks.kernels.__main__ import write
from benchmarks.whole_model import check, make_model
from longspan.engine.model import SpanModel
from longspan.engine.run import Run
from longspan.evaluation.provenance import commit

RESULTS = Path(__file__).parent / "results" / "longest_context.json"
SPECS = (
    "dense",
    "kivi(bits=4, group_tokens=128, when=chunk)",
    "snapkv(keep=0.25, when=chunk)",
    "snapkv(keep=0.25, when=chunk) + kivi(bits=4, group_tokens=128)",
)
PIECE_TOKENS = 65536  # appended at a time
NEW_TOKENS = 4


def stretched(span: SpanModel, ids: Tensor, num_tokens: int, read_tokens: int) -> Run:
    """A run as it is when `num_tokens` of a text have come and more is read: that of `read_tokens`, repeated."""
    reader = span.reader()
    reserve = num_tokens + reader.chunk_tokens + NEW_TOKENS
    run = reader.prefill(reader.new_run(num_tokens=reserve), [ids[:read_tokens]])
    run.phase = "prefill"
    for index, (plan, layer) in enumerate(zip(run.plan.layers, run.layers, strict=True)):
        for slab in layer.slabs:
            wanted = num_tokens if plan.storage is None else slab.num_tokens * num_tokens // read_tokens
            keys, values = (x.clone() for x in (slab.keys, slab.values))
            slab.rest()
            repeats = -(-PIECE_TOKENS // keys.shape[2])
            keys, values = (x.repeat(1, 1, repeats, 1)[:, :, :PIECE_TOKENS] for x in (keys, values))
            while slab.num_tokens < wanted:
                first, new = slab.num_tokens, min(PIECE_TOKENS, wanted - slab.num_tokens)
                last = torch.arange(first, first + new, device=keys.device)[None]
                if plan.storage is not None:  # spread over the text
                    last = read_tokens + (last * (num_tokens - read_tokens) // wanted)
                slab.append(
                    keys[:, :, :new],
                    values[:, :, :new],
                    last,
                    first=first if plan.storage is None else None,
                    reserve_tokens=run.reserve_tokens,
                )
                if plan.storage is None:
                    run.settle(index, "chunk")
        for slab in layer.slabs:
            if (
                plan.storage is not None
            ):  # what a storage method leaves has no more than the usual room behind it
                slab.fit()
    run.seen = num_tokens
    run.token_ids = [ids[:read_tokens].repeat(-(-num_tokens // read_tokens))[:num_tokens]]
    return run


def attempt(span: SpanModel, ids: Tensor, num_tokens: int, read_tokens: int) -> dict[str, Any] | None:
    """What a context of `num_tokens` takes, or None where it does not fit."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    reader = span.reader()
    chunk = reader.chunk_tokens
    try:
        run = stretched(span, ids, num_tokens - chunk, read_tokens)
        torch.cuda.synchronize()
        start = time.perf_counter()
        run = reader.prefill(run, [ids[:chunk]])
        torch.cuda.synchronize()
        read = time.perf_counter() - start
        token = ids[:1]
        for number in range(NEW_TOKENS):
            if number == 1:  # the first one compiles
                torch.cuda.synchronize()
                start = time.perf_counter()
            logits = reader.advance(run, token)
            assert logits is not None
            token = logits[0].argmax()[None].cpu()
        torch.cuda.synchronize()
        return {
            "tokens": num_tokens,
            "kv_bytes": run.kv_bytes,
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "last_chunk_seconds": round(read, 3),
            "ms_per_token": round(1e3 * (time.perf_counter() - start) / (NEW_TOKENS - 1), 1),
        }
    except torch.OutOfMemoryError:
        return None


def longest(span: SpanModel, ids: Tensor, read_tokens: int, step: int) -> dict[str, Any]:
    """The longest context that fits, to `step` tokens, and the shortest that was seen not to."""
    run = span.reader().prefill(span.reader().new_run(), [ids[:read_tokens]])
    free = torch.cuda.mem_get_info()[1] - torch.cuda.memory_allocated()
    guess = int(0.95 * free * read_tokens / run.kv_bytes)
    del run
    low, high, found = 0, 2 * guess // step * step, None
    tried = guess // step * step
    while high - low > step:
        row = attempt(span, ids, tried, read_tokens)
        print(span.spec, f"{tried:,}", json.dumps(row), flush=True)
        if row is None:
            high = tried
        else:
            low, found = tried, row
        tried = (low + high) // 2 // step * step
    if found is None:
        return {"skipped": f"nothing down to {high} tokens fits"}
    return {**found, "too_long": high}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--specs", nargs="+", default=list(SPECS))
    parser.add_argument("--read-tokens", type=int, default=8192)
    parser.add_argument("--chunk-tokens", type=int, default=2048, help="of reading")
    parser.add_argument("--step", type=int, default=65536, help="how closely the length is found")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here; this benchmark needs one")
    gate = check()
    model = make_model(given.layers)
    ids = torch.randint(0, 128256, (given.read_tokens,), generator=torch.Generator().manual_seed(0))
    span = longspan.load(model, chunk_tokens=given.chunk_tokens)
    facts = {
        "device": torch.cuda.get_device_name(),
        "memory_bytes": torch.cuda.mem_get_info()[1],
        "torch": torch.__version__,
        "layers": given.layers,
        "chunk_tokens": given.chunk_tokens,
        "gate_error": round(gate, 5),
        "commit": commit(),
    }
    rows: list[dict[str, Any]] = []
    for spec in given.specs:
        found = longest(span.with_methods(spec), ids, given.read_tokens, given.step)
        rows.append({"op": "longest_context", "case": spec, **found, **facts})
        write(rows, given.out)
    print(f"wrote {len(rows)} rows to {given.out}")


if __name__ == "__main__":
    main()
