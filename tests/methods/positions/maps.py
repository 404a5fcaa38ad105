"""What the bands of a position map say about every pair of a text, and the map under the model's own forward."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.engine.api import applied, load
from longspan.roles import LayerInfo, Positions
from tests.methods.positions.small import one_layer, one_rope, pair_distances
from tests.models import full_logits, random_ids, random_model


def distances_of_bands(method: Positions, num_tokens: int, layer: LayerInfo | None = None) -> Tensor:
    """Distance of every query and key `[T, T]`, 0 above the diagonal; every visible pair must be in one band."""
    at = torch.arange(num_tokens)
    matrix, times = torch.zeros(num_tokens, num_tokens, dtype=torch.long), torch.zeros(num_tokens, num_tokens)
    for band in method.bands(layer or one_layer(rope=one_rope())):
        assert bool((band.key(at) <= at).all()), "kernels ask that no key moves forward"
        assert bool((band.low(at).diff() >= 0).all()) and bool((band.high(at).diff() >= 0).all())
        inside = (at[None] >= band.low(at)[:, None]) & (at[None] < band.high(at)[:, None])
        matrix = torch.where(inside, band.query(at)[:, None] - band.key(at)[None], matrix)
        times += inside
    causal = pair_distances(num_tokens) >= 0
    assert bool((times[causal] == 1).all()), "every visible pair belongs to exactly one band"
    return matrix.where(causal, 0)


def same_by_forward_and_by_chunks(family: str, spec: str, *, num_tokens: int = 200) -> None:
    """A prompt and three tokens through the model's own forward equal the text read in chunks, and differ from stock."""
    ids = random_ids(num_tokens)
    model = random_model(family)
    with torch.no_grad():
        stock = model(ids[None]).logits[0]
        with applied(model, spec):
            prompt = model(ids[None, :-3])
            steps, cache = [prompt.logits[0]], prompt.past_key_values
            for token in ids[-3:]:
                steps.append(model(token[None, None], past_key_values=cache).logits[0])
        got = torch.cat(steps)
        assert torch.equal(model(ids[None]).logits[0], stock)
    assert (got - stock).abs().max() > 1e-3
    torch.testing.assert_close(
        full_logits(load(model, spec), ids, chunk_tokens=37), got, atol=1e-4, rtol=1e-4
    )
