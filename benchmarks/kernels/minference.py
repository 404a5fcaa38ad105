"""MInference in attention, end to end: chunked reading of one layer through the engine, the building of indices included,
against cuDNN over the whole text at once. Both put keys and values into a cache, as every reading does.

Random data: what is chosen means nothing, so budgets are fixed (the method's defaults) and only time is compared. Short
texts are read by several layers in a row, so that the time of Python hides behind the GPU's as it does in a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from benchmarks.kernels.baselines import CUDNN, cudnn_prefill, random_qkv
from benchmarks.kernels.harness import Case, relative_error
from longspan.engine.attention import NewTokens, attend_layer
from longspan.engine.plan import Plan, build_plan
from longspan.engine.reader import CHUNK_TOKENS
from longspan.engine.run import Run
from longspan.model_info import LayerInfo, ModelInfo
from longspan.ops.attend import Problem, naive_attend
from longspan.ops.block_sparse.table import table_row
from longspan.spec import resolve
from longspan.visit import BlockTable, visit_of_heads

SIZES = (4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576)
SPECS = ("minference()", "minference(block_tokens=128)")
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
TOKENS_AT_ONCE = 131072  # short texts are read by so many layers that together they hold this many tokens


def cases(quick: bool) -> Iterator[Case]:
    sizes = (8192, 32768) if quick else SIZES
    for spec, tokens in [(spec, tokens) for spec in SPECS for tokens in sizes]:
        q, k, v = random_qkv(tokens, tokens)
        store = torch.empty_like(k), torch.empty_like(v)
        layers = max(1, TOKENS_AT_ONCE // tokens)
        yield Case(
            op="minference",
            case=f"{spec} in attention",
            tokens=tokens,
            error=lambda q=q, k=k, v=v, s=spec: worst_error(s, q, k, v),
            tolerance=1e-2,
            ours=[lambda q=q, k=k, v=v, n=layers, s=spec: [read_layer(s, q, k, v) for _ in range(n)]],
            baseline=[
                lambda q=q, k=k, v=v, n=layers, s=store: [stored_prefill(q, k, v, *s) for _ in range(n)]
            ],
            baseline_name=f"{CUDNN}, keys and values copied into a cache first",
            facts={"layers_in_a_row": layers, "chunk_tokens": CHUNK_TOKENS["cuda"]},
        )


def stored_prefill(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Dense attention of a whole text whose keys and values go into `keys` and `values` first."""
    keys.copy_(k)
    values.copy_(v)
    return cudnn_prefill(q, keys, values)


@cache
def one_layer_plan(spec: str, num_layers: int = 1) -> Plan:
    """A plan for layers without rotary embedding (queries and keys come rotated), outside any model."""
    layers = tuple(
        LayerInfo(
            index=index,
            num_heads=HEADS,
            num_kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            scale=HEAD_DIM**-0.5,
            rope=None,
            sliding_window_tokens=None,
        )
        for index in range(num_layers)
    )
    info = ModelInfo(
        name="one layer",
        layers=layers,
        window_tokens=2**20,
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
        fingerprint="",
    )
    return build_plan(resolve(spec), info)


def read_layer(
    spec: str, q: Tensor, k: Tensor, v: Tensor, problems: list[Problem] | None = None
) -> list[Tensor]:
    """Attention output of each chunk of a text; `problems` collects what each chunk was."""
    tokens, chunk = q.shape[2], CHUNK_TOKENS["cuda"]
    run = Run(plan=one_layer_plan(spec), chunk_tokens=chunk, reserve_tokens=tokens)
    if problems is not None:
        run.tracers.append(lambda _, problem: problems.append(problem))
    outs = []
    for start in range(0, tokens, chunk):
        stop = min(start + chunk, tokens)
        new = NewTokens(
            queries=q[:, :, start:stop],
            keys=k[:, :, start:stop],
            values=v[:, :, start:stop],
            positions=_positions(start, stop),
            first=start,
            padded=False,
            scale=HEAD_DIM**-0.5,
        )
        outs.append(attend_layer(run, 0, new))
    return outs


@cache
def _positions(start: int, stop: int) -> Tensor:
    """All layers of a forward get the same tensor."""
    return torch.arange(start, stop, device="cuda")[None]


def worst_error(spec: str, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Error of the last rows of the first, the middle and the last chunk, against the naive twin, for one kv head."""
    problems: list[Problem] = []
    outs = read_layer(spec, q, k, v, problems)
    return max(_row_error(problems[i], outs[i]) for i in {0, len(problems) // 2, len(problems) - 1})


def _row_error(p: Problem, out: Tensor) -> float:
    groups = p.num_groups
    heads = tuple(range(groups))
    rows = (
        64
        if not isinstance(p.visit, BlockTable)
        else p.num_new - (p.visit.index.shape[2] - 1) * p.visit.block_tokens
    )
    visit = p.visit
    if isinstance(visit, BlockTable):
        visit = visit_of_heads(table_row(visit, visit.index.shape[2] - 1), heads, HEADS)
    last = replace(
        p.for_heads(heads, visit),
        queries=p.queries[:, :groups, -rows:].float(),
        keys=p.keys[:, :1].float(),
        values=p.values[:, :1].float(),
        query_positions=p.query_positions[:, -rows:],
        num_new=rows,
    )
    return relative_error(out[:, :groups, -rows:].float(), naive_attend(last))
