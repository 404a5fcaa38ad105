"""Sparse attention kernels on a CPU against PyTorch's dense attention, in one process and in turns, after a gate.

    python -m benchmarks.cpu_kernels --threads 2

Random data, float32, 8 query heads, 2 kv heads. Each case is first compared with its float32 naive twin and not timed when
it differs. `ratio` is the median of the ratios within a round, so that other load on the machine hits both sides;
`share_of_ideal` is the ratio times the density, 1.0 for a kernel that does its pairs (or reads its keys) as fast as dense
attention does. `cpu_ratio` compares processor seconds. Decoding goes through a layer's buffers after another's, as in a
model, so that keys do not wait in a cache.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.kernels.__main__ import write
from benchmarks.kernels.harness import Call, Case, GateError, relative_error
from longspan.evaluation.provenance import commit
from longspan.ops.block_sparse import BlockTable, block_sparse_prefill, naive_block_sparse_prefill
from longspan.ops.block_sparse.cpu import matrix_product
from longspan.ops.decode import gather_decode, naive_gather_decode

RESULTS = Path(__file__).parent / "results" / "cpu_kernels.json"
H, K = 8, 2
TOLERANCE = 1e-5
LAYERS = 8  # of a decode case: 134 MB at 16K tokens and head_dim 64


def random_table(num_heads: int, tokens: int, block: int, density: float) -> BlockTable:
    """Rows with their own block and random earlier ones, `density` of those up to it."""
    rows = tokens // block
    counts = torch.tensor([max(1, round((row + 1) * density)) for row in range(rows)])
    keys = torch.rand(1, num_heads, rows, rows)
    row = torch.arange(rows)
    keys = keys.masked_fill(row > row[:, None], 2.0).masked_fill(row == row[:, None], -1.0)
    index = keys.argsort(dim=-1)[..., : int(counts.max())]
    counts = counts.expand(1, num_heads, rows)
    return BlockTable(index=index.int(), counts=counts.int().contiguous(), block_tokens=block)


def density_of(table: BlockTable, tokens: int) -> float:
    """Share of the causal pairs; every row visits its own block."""
    block = table.block_tokens
    whole = float((table.counts.double() - 1).sum()) * block**2 / table.counts.shape[1]
    return (whole + tokens * (block + 1) / 2) / (tokens * (tokens + 1) / 2)


def prefill_case(name: str, num_rows_heads: int, block: int, tokens: int, D: int) -> Case:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, H, tokens, D), torch.randn(1, K, tokens, D), torch.randn(1, K, tokens, D)
    table = random_table(num_rows_heads, tokens, block, 0.1)
    scale = D**-0.5

    def ours() -> Tensor:
        return block_sparse_prefill(q, k, v, table, scale=scale, backend="cpu")[0]

    def error() -> float:
        out, worst = ours(), 0.0
        for last in (512, tokens // 2, tokens):
            first = last - 256
            rows = slice(first // block, last // block)
            part = BlockTable(
                index=table.index[:, :, rows], counts=table.counts[:, :, rows], block_tokens=block
            )
            expected, _ = naive_block_sparse_prefill(
                q[:, :, first:last], k[:, :, :last], v[:, :, :last], part, scale=scale
            )
            worst = max(worst, relative_error(out[:, :, first:last], expected))
        return worst

    density = density_of(table, tokens)
    return Case(
        op="block_sparse_prefill",
        case=f"{name}, blocks of {block}, head_dim {D}",
        tokens=tokens,
        density=density,
        error=error,
        tolerance=TOLERANCE,
        ours=[ours],
        baseline=[lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)],
        baseline_name="SDPA, causal",
        flops=4 * D * H * density * tokens * (tokens + 1) / 2,
    )


def decode_case(page: int, tokens: int, D: int) -> Case:
    torch.manual_seed(0)
    q = torch.randn(1, H, 1, D)
    num_pages = (tokens - 1) // page
    num_chosen = round(0.1 * tokens / page)
    layers = [
        (
            torch.randn(1, K, tokens, D),
            torch.randn(1, K, tokens, D),
            torch.rand(1, K, num_pages).argsort(dim=-1)[..., :num_chosen].int(),
        )
        for _ in range(LAYERS)
    ]
    scale = D**-0.5

    def ours(k: Tensor, v: Tensor, index: Tensor) -> Tensor:
        return gather_decode(q, k, v, index, scale=scale, page_tokens=page, backend="cpu")[0]

    def error() -> float:
        k, v, index = layers[0]
        expected, _ = naive_gather_decode(q, k, v, index, scale=scale, page_tokens=page)
        return relative_error(ours(k, v, index), expected)

    def dense(k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, enable_gqa=True)

    return Case(
        op="gather_decode",
        case=f"pages of {page}, head_dim {D}",
        tokens=tokens,
        density=(num_chosen * page + 1) / tokens,
        error=error,
        tolerance=TOLERANCE,
        ours=[lambda layer=layer: ours(*layer) for layer in layers],
        baseline=[lambda layer=layer: dense(*layer[:2]) for layer in layers],
        baseline_name="SDPA, one query",
        num_bytes=2 * 4 * K * D * (num_chosen * page + 1),
    )


def cases(tokens: int) -> Iterator[Callable[[], Case]]:
    """Built one at a time, for the sake of memory."""
    for D in (64, 128):
        for name, heads, block in (("a table for each head", H, 128), ("a table for each kv head", K, 128)):
            yield lambda name=name, heads=heads, block=block, D=D: prefill_case(name, heads, block, tokens, D)
    yield lambda: prefill_case("a table for each head", H, 64, tokens, 64)
    for D in (64, 128):
        for page in (1, 16, 64):
            yield lambda page=page, D=D: decode_case(page, tokens, D)


def seconds_of(calls: Sequence[Call]) -> tuple[float, float]:
    """Wall and processor seconds of a call, over all of them once."""
    start = time.perf_counter(), time.process_time()
    for call in calls:
        call()
    ends = time.perf_counter(), time.process_time()
    return (ends[0] - start[0]) / len(calls), (ends[1] - start[1]) / len(calls)


def measure(case: Case, rounds: int, peak_flops: float) -> dict[str, Any]:
    """The row of a case.

    Raises:
        GateError: it differs from the naive twin.
    """
    error = case.error()
    if not error <= case.tolerance:
        raise GateError(f"{case.op} {case.case}: error {error:.2e} > {case.tolerance:.0e}; not timed")
    for calls in (case.ours, case.baseline):
        seconds_of(calls)
    pairs = [(seconds_of(case.ours), seconds_of(case.baseline)) for _ in range(rounds)]
    ours, baseline = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
    ratio, cpu_ratio = (statistics.median(b[kind] / a[kind] for a, b in pairs) for kind in (0, 1))
    assert case.density is not None
    return {
        "op": case.op,
        "case": case.case,
        "tokens": case.tokens,
        "density": round(case.density, 4),
        "ours_ms": float(f"{1e3 * ours:.4g}"),
        "baseline": case.baseline_name,
        "baseline_ms": float(f"{1e3 * baseline:.4g}"),
        "ratio": round(ratio, 3),
        "cpu_ratio": round(cpu_ratio, 3),
        "share_of_ideal": round(ratio * case.density, 3),
        "error": float(f"{error:.2e}"),
        "gflops": round(case.flops / ours / 1e9, 1) if case.flops else None,
        "gigabytes_per_second": round(case.num_bytes / ours / 1e9, 2) if case.num_bytes else None,
        "share_of_matmul": round(case.flops / ours / peak_flops, 3) if case.flops else None,
    }


def matmul_flops() -> float:
    """Operations a second of a product of two 2048 x 2048 matrices, the best of 20: by oneDNN where the CPU path has it."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / min(seconds_of([lambda: matrix_product(a, b)])[0] for _ in range(20))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=16384, help="a multiple of 512")
    parser.add_argument("--rounds", type=int, default=5, help="of prefill; decoding has ten times as many")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.tokens < 512 or given.tokens % 512:
        parser.error(f"got --tokens {given.tokens}; allowed are multiples of 512")
    torch.set_num_threads(given.threads)
    peak = matmul_flops()
    facts = {
        "device": f"{platform.machine()} CPU, {given.threads} threads of {os.cpu_count()}",
        "torch": torch.__version__,
        "commit": commit(),
        "matmul_gflops": round(peak / 1e9, 1),
    }
    print(facts, flush=True)
    rows: list[dict[str, Any]] = []
    for build in cases(given.tokens):
        case = build()
        rounds = given.rounds * (10 if case.op == "gather_decode" else 1)
        try:
            row = measure(case, rounds, peak)
        except GateError as error:
            raise SystemExit(str(error)) from None
        rows.append({**row, "rounds": rounds, "load": round(os.getloadavg()[0], 1), **facts})
        print(
            f"{row['op']:<21} {row['case']:<54} density {row['density']:.3f}  {row['ours_ms']:>8.4g} ms against "
            f"{row['baseline_ms']:>8.4g} ms  {row['ratio']:>6.2f}x (processor {row['cpu_ratio']:.2f}x)  "
            f"{row['share_of_ideal']:.2f} of ideal  error {row['error']:.1e}",
            flush=True,
        )
        write(rows, given.out)
    print(f"wrote {len(rows)} rows to {given.out}")


if __name__ == "__main__":
    main()
