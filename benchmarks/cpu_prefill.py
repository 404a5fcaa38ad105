"""Prefill on a CPU: stock Hugging Face attention against specs, in one process and in turns, after a correctness gate.

    python benchmarks/cpu_prefill.py --tokens 4096 16384 --specs dense "minference()" --scaling 16384 65536

The model has the shape of the reference model and random weights: speed does not depend on them. The baseline is stock
transformers with `attn_implementation="sdpa"`, the whole text in one forward: PyTorch's causal flash attention.
Each row holds the median over the rounds; a ratio is the median of the ratios within a round, so that other load on the
machine hits both sides. "attention" rows count the attention function alone, the choice of keys included.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from longspan._files import write_json_whole
from longspan.engine.api import load
from longspan.engine.attention import attend_layer
from longspan.engine.model import SpanModel
from longspan.evaluation.provenance import commit, versions
from longspan.ops.attend import attend, naive_attend

RESULTS = Path(__file__).parent / "results" / "cpu_prefill.json"
GATE_TOKENS = 1500
WINDOW_TOKENS = 4096


class Meter:
    """Wall and CPU seconds of a call, of the attention inside it, and how far the process's memory grew."""

    def __init__(self) -> None:
        self.attention = [0.0, 0.0]

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter(), time.process_time()
            out = function(*args, **kwargs)
            self.attention[0] += time.perf_counter() - start[0]
            self.attention[1] += time.process_time() - start[1]
            return out

        return call

    def measure(self, call: Callable[[], object]) -> dict[str, float]:
        gc.collect()
        _give_memory_back()
        self.attention = [0.0, 0.0]
        with _watch_memory() as grown:
            start = time.perf_counter(), time.process_time()
            held = call()
            wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        del held
        return {
            "seconds": wall,
            "cpu_seconds": cpu,
            "attention_seconds": self.attention[0],
            "attention_cpu_seconds": self.attention[1],
            "peak_bytes": grown[0],
        }


@contextmanager
def _watch_memory() -> Iterator[list[int]]:
    """Yields `[bytes]`: by how much the resident memory was ever above its start, sampled every 10 ms."""
    page, start, grown, done = os.sysconf("SC_PAGE_SIZE"), _resident_pages(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            grown[0] = max(grown[0], (_resident_pages() - start) * page)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield grown
    finally:
        done.set()
        thread.join()


def _give_memory_back() -> None:
    """Hand freed memory to the system, so that a call's growth does not hide in what an earlier call left behind."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def _resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


def make_model() -> LlamaForCausalLM:
    """The reference model's shape with random weights; query and key weights enlarged, so that attention is uneven."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=1024,
        vocab_size=8192,
        max_position_embeddings=WINDOW_TOKENS,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight *= 4
    return model


def check(model: SpanModel, stock: LlamaForCausalLM, ids: Tensor) -> dict[str, float]:
    """The gate: dense equals stock, and every attention step of the sparse spec equals the naive twin.

    Raises:
        SystemExit: one of them does not.
    """
    text = ids[:GATE_TOKENS]
    with torch.no_grad():
        expected = stock(text[None]).logits[0]
    dense = torch.cat([part for _, part in model.with_methods("dense").logits(text, chunk_tokens=400)])
    worst: dict[str, float] = {"dense_logits": float((dense - expected).abs().max())}

    def compare(problem: Any) -> Tensor:
        out = attend(problem)
        worst["step"] = max(worst.get("step", 0.0), float((out - naive_attend(problem)).abs().max()))
        return out

    for spec in (
        "minference(vertical_tokens=64, slash_tokens=128)",
        "lm_infinite(window_tokens=512, max_distance_tokens=512)",
    ):
        worst.pop("step", None)
        with patch("longspan.engine.attention.attend", compare):
            reader = model.with_methods(spec).reader()
            reader.chunk_tokens = 400
            reader.prefill(reader.new_run(), [text])
        worst[spec] = worst.pop("step")
    bad = {name: error for name, error in worst.items() if not error < 1e-3}
    if bad:
        raise SystemExit(f"the correctness gate failed, largest differences {bad}; nothing was timed")
    return worst


def stock_prefill(model: LlamaForCausalLM, ids: Tensor) -> object:
    with torch.no_grad():
        return model.model(ids[None], use_cache=True).past_key_values


def span_prefill(model: SpanModel, spec: str, ids: Tensor) -> object:
    reader = model.with_methods(spec).reader()
    return reader.prefill(reader.new_run(num_tokens=len(ids)), [ids])


def compare_speed(
    stock: LlamaForCausalLM,
    model: SpanModel,
    specs: list[str],
    ids: Tensor,
    rounds: int,
    facts: dict[str, Any],
) -> list[dict[str, Any]]:
    """Rows of stock against specs at one length."""
    meter = Meter()
    AttentionInterface.register("timed_sdpa", meter.timed(sdpa_attention_forward))
    AttentionMaskInterface.register("timed_sdpa", sdpa_mask)
    stock.set_attn_implementation("timed_sdpa")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("stock", *specs)}
    with patch("longspan.engine.seam.attend_layer", meter.timed(attend_layer)):
        for number in range(rounds):
            for name in found:
                call = (
                    (lambda: stock_prefill(stock, ids))
                    if name == "stock"
                    else (lambda spec=name: span_prefill(model, spec, ids))
                )
                found[name].append(meter.measure(call))
                print(
                    f"round {number + 1} {len(ids):>6} tokens {name:<24} {_short(found[name][-1])}",
                    flush=True,
                )
    stock.set_attn_implementation("sdpa")
    rows = []
    for spec in specs:
        for case, prefix in (("prefill", ""), ("attention", "attention_")):
            row: dict[str, Any] = {"case": case, "tokens": len(ids), "spec": spec}
            for kind in ("seconds", "cpu_seconds"):
                ours = [one[prefix + kind] for one in found[spec]]
                theirs = [one[prefix + kind] for one in found["stock"]]
                row[kind] = round(statistics.median(ours), 3)
                row[f"baseline_{kind}"] = round(statistics.median(theirs), 3)
                name = "ratio" if kind == "seconds" else "cpu_ratio"
                row[name] = round(statistics.median([b / a for a, b in zip(ours, theirs, strict=True)]), 3)
            row["peak_bytes"] = int(max(one["peak_bytes"] for one in found[spec]))
            row["baseline_peak_bytes"] = int(max(one["peak_bytes"] for one in found["stock"]))
            rows.append({**row, "rounds": rounds, **facts})
    return rows


def scaling(
    model: SpanModel, spec: str, lengths: list[int], ids: Tensor, facts: dict[str, Any]
) -> dict[str, Any]:
    """One row: how seconds and memory of a spec grow from the first length to the last."""
    meter, found = Meter(), []
    with patch("longspan.engine.seam.attend_layer", meter.timed(attend_layer)):
        for tokens in lengths:
            found.append(meter.measure(lambda tokens=tokens: span_prefill(model, spec, ids[:tokens])))
            print(f"scaling {tokens:>6} tokens {spec:<24} {_short(found[-1])}", flush=True)
    first, last = found[0], found[-1]
    return {
        "case": "scaling",
        "tokens": lengths[-1],
        "baseline_tokens": lengths[0],
        "spec": spec,
        "seconds": round(last["seconds"], 3),
        "baseline_seconds": round(first["seconds"], 3),
        "ratio": round(last["seconds"] / first["seconds"], 3),
        "cpu_seconds": round(last["cpu_seconds"], 3),
        "baseline_cpu_seconds": round(first["cpu_seconds"], 3),
        "cpu_ratio": round(last["cpu_seconds"] / first["cpu_seconds"], 3),
        "peak_bytes": int(last["peak_bytes"]),
        "baseline_peak_bytes": int(first["peak_bytes"]),
        "rounds": 1,
        **facts,
    }


def _short(one: dict[str, float]) -> str:
    return (
        f"{one['seconds']:8.2f} s ({one['cpu_seconds']:.2f} s of CPU), attention {one['attention_seconds']:.2f} s "
        f"({one['attention_cpu_seconds']:.2f}), memory +{one['peak_bytes'] / 2**20:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokens", type=int, nargs="*", default=[4096, 16384], help="lengths to compare with stock"
    )
    parser.add_argument(
        "--specs", nargs="+", default=["dense", "minference()", "minference(block_tokens=256)"]
    )
    parser.add_argument(
        "--scaling", type=int, nargs="*", default=[16384, 65536], help="lengths of the scaling row"
    )
    parser.add_argument("--scaling-spec", default="lm_infinite()")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given.threads)
    stock = make_model()
    model = load(make_model())
    ids = torch.randint(0, 8192, (max([GATE_TOKENS, *given.tokens, *given.scaling]),))
    gate = check(model, stock, ids)
    print("gate:", gate, flush=True)
    facts = {
        "device": f"{platform.machine()} CPU, {given.threads} threads of {os.cpu_count()}",
        "load": round(os.getloadavg()[0], 1),
        **{name: version for name, version in versions().items() if name in ("torch", "transformers")},
        "commit": commit(),
        "gate_max_difference": max(gate.values()),
    }
    rows: list[dict[str, Any]] = []
    for tokens in given.tokens:
        rows += compare_speed(stock, model, given.specs, ids[:tokens], given.rounds, facts)
        write_json_whole(given.out, rows)
    if given.scaling:
        rows.append(scaling(model, given.scaling_spec, given.scaling, ids, facts))
        write_json_whole(given.out, rows)
    print(f"wrote {len(rows)} rows to {given.out}")


if __name__ == "__main__":
    main()
