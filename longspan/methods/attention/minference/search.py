"""The offline part of MInference: which pattern suits which head, searched once per model on a text.

Kernel-aware as in the paper: all candidates cost the kernel the same (here: visit equally many past tokens), and each
head takes the one whose attention output comes closest to dense attention's.

    found = search_patterns(model, model.tokenizer(text, return_tensors="pt").input_ids[0])
    write_patterns(found, "patterns.json")
    model = model.with_methods("minference(patterns='patterns.json')")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longspan._files import write_json_whole
from longspan.methods.attention.minference.index import HeadPattern, visit_patterns
from longspan.ops.attend import Problem, attend
from longspan.roles import Step
from longspan.visit import Dense


def equal_cost_patterns(budget_tokens: int = 1200) -> tuple[HeadPattern, ...]:
    """Candidates that visit `budget_tokens` each; the shares of verticals follow the authors' search space."""
    if budget_tokens < 8:
        raise ValueError(
            f"got budget_tokens={budget_tokens}; allowed is 8 or more, such as budget_tokens=1200"
        )
    # the authors search (vertical, slash) of (30, 800), (100, 750), (500, 700), (3500, 100), and (sink, window) of
    # (100, 800)
    verticals = [round(budget_tokens * share) for share in (0.04, 0.12, 0.42, 0.97)]
    few = verticals[1]
    return (
        *(("vertical_slash", vertical, budget_tokens - vertical) for vertical in verticals),
        ("a_shape", few, budget_tokens - few),
        ("block_sparse", budget_tokens, 0),
    )


def search_patterns(
    model: Any, ids: Tensor, *, candidates: Sequence[HeadPattern] | None = None, block_tokens: int = 64
) -> dict[str, Any]:
    """Read a text densely and find, per layer and query head, the candidate with the least output error.

    Args:
        model: of `longspan.load`, with no method that selects or drops keys.
        ids: int64 `[S]`, a text longer than the largest budget plus one chunk of reading.
        candidates: patterns with budgets, by default `equal_cost_patterns()`; see `HeadPattern`.
        block_tokens: as it will be set in the spec.

    Returns:
        what `write_patterns` writes: model, fingerprint, num_tokens, block_tokens, `layers` (a pattern per layer and
        head) and `error` (its squared output error over the squared norm of dense attention's output).

    Raises:
        ValueError: the model's spec selects or drops keys, or the text is too short to tell candidates apart.
    """
    candidates = tuple(candidates or equal_cost_patterns())
    if any(layer.selections or layer.storage or layer.pre_rotary for layer in model.plan.layers):
        raise ValueError(
            f"patterns are searched under dense attention, but the model runs {model.spec}; "
            "use model.with_methods(None), or a spec that only sets rotary frequencies"
        )
    layers = model.info.layers
    errors = [torch.zeros(len(candidates), layer.num_heads, dtype=torch.float64) for layer in layers]
    norms = [torch.zeros(layer.num_heads, dtype=torch.float64) for layer in layers]
    largest = max(candidate[1] + candidate[2] for candidate in candidates)

    def compare(index: int, step: Step) -> None:
        if step.num_past <= largest or step.layer.sliding_window_tokens is not None:
            return
        problem = _problem(step)
        exact = attend(problem)
        norms[index] += exact.double().square().sum((0, 2, 3))
        for number, candidate in enumerate(candidates):
            visit = visit_patterns(step, [candidate] * step.layer.num_heads, block_tokens)
            off = attend(replace(problem, visit=visit)) - exact
            errors[index][number] += off.double().square().sum((0, 2, 3))

    reader = model.reader()
    run = reader.new_run(num_tokens=len(ids))
    run.watchers.append(compare)
    reader.prefill(run, [ids])
    if not any(bool(norm.any()) for norm in norms):
        raise ValueError(
            f"got a text of {len(ids)} tokens, too short to compare patterns of {largest} tokens; give more than "
            f"{largest + reader.chunk_tokens} tokens, or candidates with smaller budgets"
        )
    best = [error.argmin(0) for error in errors]
    return {
        "method": "minference",
        "model": model.name,
        "fingerprint": model.info.fingerprint,
        "num_tokens": len(ids),
        "block_tokens": block_tokens,
        "layers": [[list(candidates[i]) for i in chosen.tolist()] for chosen in best],
        "error": [
            [round(float(e), 6) for e in error.gather(0, chosen[None])[0] / norm.clamp(min=1e-30)]
            for error, chosen, norm in zip(errors, best, norms, strict=True)
        ],
    }


def write_patterns(found: dict[str, Any], path: str | Path) -> None:
    """Write what `search_patterns` found as the JSON file that `minference(patterns=...)` reads."""
    write_json_whole(path, found)


def _problem(step: Step) -> Problem:
    """Dense attention of a step whose keys are stored rotated."""
    positions = step.store.positions
    first, S = int(positions[0, 0, 0]), step.store.num_tokens
    plain = torch.arange(first, first + S, device=positions.device)
    return Problem(
        queries=step.queries,
        keys=step.store.keys,
        values=step.store.values,
        query_positions=step.query_positions,
        key_positions=positions,
        num_new=step.num_new,
        scale=step.layer.scale,
        visit=Dense(),
        contiguous_from=first if bool((positions == plain).all()) else None,
    )
