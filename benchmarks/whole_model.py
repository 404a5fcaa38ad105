"""A whole model on one GPU: time to first token, milliseconds a token and peak memory, stock against specs.

    python -m benchmarks.whole_model --tokens 131072 524288 --out benchmarks/results/whole_model.json

The model has the shape of Llama-3.1-8B and random weights (no download). With random weights what is chosen means
nothing: every spec has fixed budgets, and only time and memory are compared. Stock is transformers with
`attn_implementation="sdpa"`, the whole text in one forward and then one token at a time with its own cache; where that does
not fit into memory the row says so. "dense" is longspan without a method: cuDNN attention over an in-place cache.

A step of decoding is some thousand small kernels, which Python launches more slowly than the GPU runs them. longspan replays
all but attention from CUDA graphs; `ms_per_token` still depends on how busy the host is, `gpu_ms_per_token`, the sum of the kernels' own
times, does not. With `--in-turns` the caches of all specs stay, and `turn_ms_per_token` is the median over turns in which they decode one
after the other, `unrecorded_turn_ms_per_token` the same without graphs.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import longspan
from benchmarks.kernels.__main__ import write
from longspan.engine.model import SpanModel
from longspan.evaluation.provenance import commit
from longspan.ops.backend import backend_rows

RESULTS = Path(__file__).parent / "results" / "whole_model.json"
SPECS = (
    "dense",
    "minference()",
    "tokenselect(positions=stored)",
    "snapkv(keep=0.25)",
    "on(phase=prefill, minference()) + on(phase=decode, tokenselect(positions=stored)) + snapkv(keep=0.25)",
)
Steps: TypeAlias = dict[tuple[str, str], Callable[[Tensor], Tensor]]
GATE_TOKENS, GATE_LAYERS = 600, 4
PROFILED_TOKENS = 8
TURNS, TURN_TOKENS = 5, 16
_alone: dict[str, int] = {}  # memory that the model takes before any cache is made
WARM_TOKENS = 24 * 1024  # read under every spec before anything is timed: its kernels are compiled then


def make_model(num_layers: int) -> LlamaForCausalLM:
    """Llama-3.1-8B's shape in bfloat16 with random weights, made on the GPU."""
    config = LlamaConfig(
        hidden_size=4096,
        num_hidden_layers=num_layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=14336,
        vocab_size=128256,
        max_position_embeddings=2**20,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cuda").eval()
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        weight.data.fill_(1.0) if "norm" in name else weight.data.normal_(std=0.02)
    # its buffers are not parameters and were left empty
    model.model.rotary_emb = LlamaRotaryEmbedding(config).cuda()
    return model


def check() -> float:
    """The gate, on a model of four layers: against stock in float32, longspan in bfloat16 must not be further off than
    stock in bfloat16 is, by more than half. Returns longspan's error, relative.

    Raises:
        SystemExit: it is.
    """
    model = make_model(GATE_LAYERS)
    ids = torch.randint(
        0, model.config.vocab_size, (GATE_TOKENS,), generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        stock = model(ids[None].cuda()).logits[0].float()
    span = longspan.load(model)
    ours = torch.cat([part for _, part in span.logits(ids, chunk_tokens=256)]).cuda()
    span.detach()
    with torch.no_grad():
        exact = model.float()(ids[None].cuda()).logits[0]
    error, allowed = (float((x - exact).norm() / exact.norm()) for x in (ours, stock))
    if not error < 1.5 * allowed:
        raise SystemExit(
            f"the correctness gate failed: error {error:.2e}, stock's own {allowed:.2e}; nothing was timed"
        )
    return error


def stock_run(model: LlamaForCausalLM, ids: Tensor, num_new: int) -> dict[str, Any]:
    """Stock transformers: one forward over the text, then token by token."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)

    def step(tokens: Tensor) -> Tensor:
        return (
            model(tokens[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
            .logits[0, -1]
            .argmax()[None]
        )

    with torch.no_grad():
        return _timed(lambda: step(ids.cuda()), step, num_new)


def span_run(span: SpanModel, ids: Tensor, num_new: int, steps: Steps | None = None) -> dict[str, Any]:
    """longspan: the text is read in chunks, the last token is asked, then token by token. Where `steps` is given its step is put
    there, with graphs and without, and its cache stays."""
    reader = span.reader()
    runs: list[Any] = []

    def read() -> Tensor:
        run = reader.prefill(reader.new_run(num_tokens=len(ids) + num_new), [ids[:-1]])
        runs.append(run)
        return step(ids[-1:])

    def step(tokens: Tensor, graphs: bool = True) -> Tensor:
        reader.graphs = span.loaded.graphs if graphs else None
        logits = reader.advance(runs[0], tokens)
        assert logits is not None
        return logits[0].argmax()[None]

    found = _timed(read, step, num_new)
    found["kv_bytes"] = runs[0].kv_bytes
    found["backends"] = backend_rows(runs[0].backends)
    if steps is not None:
        steps[span.spec, "turn_ms_per_token"] = step
        steps[span.spec, "unrecorded_turn_ms_per_token"] = partial(step, graphs=False)
    return found


def in_turns(steps: Steps) -> dict[tuple[str, str], float]:
    """Milliseconds a token of each, the median over turns."""
    token = torch.zeros(1, dtype=torch.long, device="cuda")
    found: dict[tuple[str, str], list[float]] = {name: [] for name in steps}
    for _ in range(TURNS):
        for name, step in steps.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(TURN_TOKENS):
                token = step(token)
            torch.cuda.synchronize()
            found[name].append(1e3 * (time.perf_counter() - start) / TURN_TOKENS)
    return {name: round(statistics.median(times), 2) for name, times in found.items()}


def _timed(first: Callable[[], Tensor], step: Callable[[Tensor], Tensor], num_new: int) -> dict[str, Any]:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    others = max(0, torch.cuda.memory_allocated() - _alone.setdefault("bytes", torch.cuda.memory_allocated()))
    torch.cuda.synchronize()
    start = time.perf_counter()
    token = first()
    torch.cuda.synchronize()
    to_first = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() - others
    token = step(token)  # kernels of a decoding step are compiled here
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(num_new):
        token = step(token)
    torch.cuda.synchronize()
    wall = time.perf_counter() - start
    return {
        "seconds_to_first_token": round(to_first, 3),
        "ms_per_token": round(1e3 * wall / num_new, 2),
        "gpu_ms_per_token": round(_kernel_ms(step, token), 2),
        "peak_bytes": max(peak, torch.cuda.max_memory_allocated() - others),
        "prefill_peak_bytes": peak,
    }


def _kernel_ms(step: Callable[[Tensor], Tensor], token: Tensor) -> float:
    """Milliseconds a token that kernels run, gaps between them left out."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(PROFILED_TOKENS):
            token = step(token)
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e3 / PROFILED_TOKENS


def run_case(name: str, call: Callable[[], dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """One row; a case that does not fit into memory says so."""
    try:
        found = call()
    except torch.OutOfMemoryError:
        found = {"skipped": "does not fit into the GPU's memory"}
    gc.collect()
    torch.cuda.empty_cache()
    row = {"op": "whole_model", "case": name, **found, **facts}
    shown = {key: value for key, value in row.items() if key not in ("backends", *facts)}
    print(facts["tokens"], json.dumps(shown), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[131072, 524288])
    parser.add_argument("--specs", nargs="+", default=list(SPECS), help='specs, "stock" is run before them')
    parser.add_argument(
        "--no-stock-from", type=int, default=10**9, help="leave stock out from this many tokens on"
    )
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--in-turns", action="store_true", help="keep all caches, and decode in turns")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here; this benchmark needs one")
    gate = check()
    model = make_model(given.layers)
    ids = torch.randint(0, 128256, (max(given.tokens),), generator=torch.Generator().manual_seed(0))
    span = longspan.load(model)
    for spec in given.specs:
        span_run(span.with_methods(spec), ids[:WARM_TOKENS], 2)
    facts = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "layers": given.layers,
        "new_tokens": given.new_tokens,
        "gate_error": round(gate, 5),
        "commit": commit(),
    }
    print(facts, flush=True)
    rows: list[dict[str, Any]] = []
    for tokens in given.tokens:
        text, known = ids[:tokens], {"tokens": tokens, **facts}
        steps: Steps | None = {} if given.in_turns else None
        if tokens < given.no_stock_from:
            span.detach()
            rows.append(run_case("stock", partial(stock_run, model, text, given.new_tokens), known))
            span = longspan.load(model)
        for spec in given.specs:
            under = span.with_methods(spec)
            call = partial(span_run, under, text, given.new_tokens, steps)
            rows.append(run_case(under.spec, call, known))
            write(rows, given.out)
        for (name, column), ms in in_turns(steps or {}).items():
            next(row for row in reversed(rows) if row["case"] == name)[column] = ms
            print(tokens, name, column, ms, flush=True)
        write(rows, given.out)
    print(f"wrote {len(rows)} rows to {given.out}")


if __name__ == "__main__":
    main()
