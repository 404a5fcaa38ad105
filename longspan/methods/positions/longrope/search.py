"""The offline part of LongRoPE: which factor suits which frequency, searched once per model on a text.

Evolution as in the paper: from the factors of linear interpolation, NTK and YaRN and variants of them, the
best by perplexity stay and are mutated and crossed. Factors never fall from a pair to the next slower one,
which leaves out most of the space and little of worth.

    found = search_factors(model, model.tokenizer(text, return_tensors="pt").input_ids[0])
    write_factors(found, "factors.json")
    model = model.with_methods("longrope(factors='factors.json')")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longspan._files import write_json_whole
from longspan.methods.positions.longrope import LongRope
from longspan.roles import Rope

START_TOKENS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)  # the paper's choices of n_hat
STEPS = 100  # factors are whole hundredths; the paper's step of 0.01
REACH = 1.25  # the largest factor over s; the paper's
CHANGE = 0.3  # the probability that one factor changes; the paper's
MOST_TRIES = 20  # crossings that may fail before a parent is mutated instead; the authors' code


class Candidate(NamedTuple):
    """Factors in hundredths, never falling, and the number of first tokens left alone."""

    factors: tuple[int, ...]
    start_tokens: int = 0


def search_factors(
    model: Any,
    ids: Tensor,
    *,
    factor: float | None = None,
    population: int = 8,
    iterations: int = 4,
    parents: int = 4,
    mutations: int = 4,
    crossovers: int = 4,
    start_tokens: Sequence[int] = START_TOKENS,
    seed: int = 0,
) -> dict[str, Any]:
    """Look for the factors with the least perplexity on a text; each candidate reads it once.

    Args:
        model: of `longspan.load`, without methods.
        ids: int64 `[S]`, a text as long as those to come.
        factor: s; by default S over the trained window.
        population: candidates to begin with, three of them known methods (the paper: 64).
        iterations: generations (the paper: 40).
        parents: candidates that stay (the paper: 32).
        mutations, crossovers: new ones in each generation (the paper: 16 and 16).
        start_tokens: choices of n_hat; `(0,)` leaves no token alone.

    Returns:
        what `write_factors` writes: method, model, fingerprints, num_tokens, `factor`, `factors`,
        `start_tokens`, `perplexity`, that of each method it began with in `start`, and the best of each
        generation in `history`.

    Raises:
        ValueError: the model runs methods, has no rotary positions of one size, or the text is too short.
    """
    rope = _common_rope(model)
    times = len(ids) / rope.window_tokens if factor is None else factor
    if times <= 1:
        raise ValueError(
            f"got a text of {len(ids)} tokens, but {model.name} was trained on {rope.window_tokens}; give a text as "
            "long as those to come, or factor=2 for texts of twice the window"
        )
    if not 2 <= parents <= population:
        raise ValueError(
            f"got parents={parents} and population={population}; allowed is 2 <= parents <= population"
        )
    rng, most = Random(seed), math.floor(REACH * times * STEPS)
    known = known_methods(rope, times, most)
    scores: dict[Candidate, float] = {}

    def keep_best(found: Sequence[Candidate], count: int) -> list[Candidate]:
        for one in found:
            if one not in scores:
                scores[one] = _perplexity(model, ids, one, times)
        return sorted(dict.fromkeys(found), key=scores.__getitem__)[:count]

    first = list(known.values())
    while len(first) < population:
        first.append(mutated(rng.choice(first[: len(known)]), most, start_tokens, rng))
    best = keep_best(first, parents)
    history = [scores[best[0]]]
    for _ in range(iterations):
        children = [mutated(rng.choice(best), most, start_tokens, rng) for _ in range(mutations)]
        for _ in range(crossovers):
            one, other = rng.sample(best, 2)
            children.append(crossed(one, other, most, start_tokens, rng))
        best = keep_best([*best, *children], parents)
        history.append(scores[best[0]])
    return {
        "method": "longrope",
        "model": model.name,
        "fingerprints": [model.info.fingerprint],
        "num_tokens": len(ids),
        "factor": times,
        "start_tokens": best[0].start_tokens,
        "perplexity": round(history[-1], 4),
        "start": {name: round(scores[one], 4) for name, one in known.items()},
        "history": [round(value, 4) for value in history],
        "factors": [value / STEPS for value in best[0].factors],
    }


def write_factors(found: dict[str, Any], path: str | Path) -> None:
    """Write what `search_factors` found as JSON for `longrope(factors=...)`, whole or not at all."""
    write_json_whole(path, found)


def _common_rope(model: Any) -> Rope:
    """The embedding to search for; ValueError where layers differ in size or a method is on."""
    if model.spec != "dense":
        raise ValueError(
            f"factors are searched on the model as it is, but it runs {model.spec}; use model.with_methods(None)"
        )
    ropes = [layer.rope for layer in model.info.open_layers if layer.rope is not None]
    if len({rope.rotary_dims for rope in ropes}) != 1:
        raise ValueError(
            f"{model.name} has no rotary positions of one size in the layers that methods may change, and factors "
            "are one list for all of them; use a model such as Llama, Qwen or Mistral"
        )
    return ropes[0]


def known_methods(rope: Rope, times: float, most: int) -> dict[str, Candidate]:
    """Linear interpolation, NTK and YaRN, each as what it divides every frequency by."""
    dims = rope.rotary_dims
    scaled = {
        "pi": rope.inv_freq / times,
        "ntk": rope.with_theta(rope.theta * times ** (dims / (dims - 2))).inv_freq,
        "yarn": rope.with_parameters(rope_type="yarn", factor=times).inv_freq,
    }
    found = {}
    for name, inv_freq in scaled.items():
        values = [
            min(max(round(value * STEPS), STEPS), most) for value in (rope.inv_freq / inv_freq).tolist()
        ]
        found[name] = Candidate(tuple(accumulate(values, max)))
    return found


def mutated(parent: Candidate, most: int, starts: Sequence[int], rng: Random) -> Candidate:
    """Some factors drawn anew between their neighbours, and perhaps another number of first tokens."""
    factors = list(parent.factors)
    for pair in range(len(factors)):
        if rng.random() < CHANGE:
            low = factors[pair - 1] if pair else STEPS
            high = factors[pair + 1] if pair + 1 < len(factors) else most
            factors[pair] = rng.randint(low, high)
    start = rng.choice(list(starts)) if rng.random() < CHANGE else parent.start_tokens
    return Candidate(tuple(factors), start)


def crossed(one: Candidate, other: Candidate, most: int, starts: Sequence[int], rng: Random) -> Candidate:
    """One parent with some factors of the other; a mutation of it where no mix rises from pair to pair."""
    for _ in range(MOST_TRIES):
        factors = tuple(
            theirs if rng.random() < CHANGE else mine
            for mine, theirs in zip(one.factors, other.factors, strict=True)
        )
        rises = all(low <= high for low, high in pairwise(factors))
        if rises and factors not in (one.factors, other.factors):
            return Candidate(factors, rng.choice((one, other)).start_tokens)
    return mutated(one, most, starts, rng)


@torch.no_grad()
def _perplexity(model: Any, ids: Tensor, candidate: Candidate, times: float) -> float:
    """exp of the mean loss of every token but the first, each given those before it."""
    method = LongRope(
        factors=tuple(value / STEPS for value in candidate.factors),
        factor=times,
        start_tokens=candidate.start_tokens,
    )
    total = 0.0
    for start, logits in model.with_methods(method).logits(ids):
        wanted = ids[start + 1 : start + 1 + len(logits)].to(logits.device)
        losses = torch.nn.functional.cross_entropy(logits[: len(wanted)], wanted, reduction="sum")
        total += float(losses)
    return math.exp(total / (len(ids) - 1))
