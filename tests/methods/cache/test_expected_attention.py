"""Expected attention: kept places against a loop over tokens, chunks, padding, freed bytes, and wrong settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.engine.api import applied, load
from longspan.errors import SpecError
from longspan.methods.cache.expected_attention import ExpectedAttention
from longspan.roles import Step
from longspan.spec import resolve
from tests.methods.cache.evicting import HEAD_DIM, Store, bytes_of_slabs, eager_model, layer_of, positions_of
from tests.methods.cache.rotating import dense_pass, turn
from tests.models import random_ids

NUM_TOKENS, FUTURE = 101, 9


def mean_turn(vector: list[float], start: int) -> list[float]:
    turned = [turn(vector, start + p) for p in range(FUTURE)]
    return [sum(v[i] for v in turned) / FUTURE for i in range(HEAD_DIM)]


def brute_force(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    budget: int,
    sinks: int,
    epsilon: float,
    covariance: bool,
) -> list[list[int]]:
    num_tokens, num_heads, _ = queries.shape
    places, groups = [], num_heads // len(keys)
    for kv in range(len(keys)):
        scores = [0.0] * num_tokens
        for head in range(kv * groups, (kv + 1) * groups):
            q = queries[sinks:, head].double().tolist()
            mean = [sum(v[i] for v in q) / len(q) for i in range(HEAD_DIM)]
            apart = [[v[i] - mean[i] for i in range(HEAD_DIM)] for v in q]
            ahead = [mean_turn(v, num_tokens) for v in apart]  # the mean rotation is linear
            mean = mean_turn(mean, num_tokens)
            logits = []
            for k in keys[kv, sinks:].double().tolist():
                logit = sum(a * b for a, b in zip(mean, k, strict=True)) / HEAD_DIM**0.5
                if covariance:
                    squares = [sum(a * b for a, b in zip(v, k, strict=True)) ** 2 for v in ahead]
                    logit += sum(squares) / len(squares) / HEAD_DIM / 2
                logits.append(logit)
            total = sum(math.exp(x - max(logits)) for x in logits)
            for place, x in enumerate(logits, start=sinks):
                scores[place] += math.exp(x - max(logits)) / total / groups
        norms = values[kv].double().norm(dim=-1).tolist()
        ranked = sorted(range(sinks, num_tokens), key=lambda j: -(scores[j] + epsilon) * norms[j])
        places.append(sorted([*range(sinks), *ranked[: budget - sinks]]))
    return places


@pytest.mark.parametrize("covariance", [True, False])
@pytest.mark.parametrize("chunk_tokens", [17, 300])
def test_a_model_keeps_what_a_loop_over_tokens_keeps(chunk_tokens: int, covariance: bool) -> None:
    model, ids = eager_model(), random_ids(NUM_TOKENS)
    layers = dense_pass(model, ids)
    spec = f"expected_attention(keep=31, future_tokens={FUTURE}, epsilon=0.02, covariance={str(covariance).lower()})"
    context = load(model, spec, chunk_tokens=chunk_tokens).read(ids)
    assert context.kept_tokens == 31
    assert positions_of(context.run) == [
        brute_force(*tensors, budget=31, sinks=4, epsilon=0.02, covariance=covariance) for tensors in layers
    ]
    assert context.kv_bytes == bytes_of_slabs(context.run)


def test_it_works_on_keys_that_are_kept_before_rotation() -> None:
    model, ids = eager_model(), random_ids(NUM_TOKENS)
    spec = "expected_attention(keep=31)"
    plain = load(model, spec).read(ids)
    mapped = load(model, f"self_extend(group_size=4, window_tokens=250) + {spec}").read(ids)
    assert positions_of(mapped.run) == positions_of(plain.run)


def kept_places(method: ExpectedAttention, queries: Tensor, keys: Tensor, values: Tensor) -> list[list[int]]:
    """What is kept of one text in a layer without rotation."""
    positions = torch.arange(keys.shape[2])[None]
    layer, state = layer_of(queries.shape[1], keys.shape[1]), {}
    store = Store(keys, values, positions[:, None])
    method.observe(
        Step(
            layer=layer,
            phase="prefill",
            queries=queries,
            query_positions=positions,
            store=store,
            num_new=keys.shape[2],
            state=state,
            logits=store.logits,
        )
    )
    kept = method.compact(layer, store, state, event="read")
    assert kept is not None
    return kept[0].tolist()  # type: ignore[no-any-return]


def needle(**settings: Any) -> list[int]:
    """Queries that look one way along a first dim, as often as the other way along a second; a key for each among noise."""
    make = torch.Generator().manual_seed(0)
    queries = torch.randn(1, 2, 60, HEAD_DIM, generator=make) * 0.1
    queries[..., 0] += 3.0
    queries[:, :, ::2, 1] += 6.0
    queries[:, :, 1::2, 1] -= 6.0
    keys = torch.randn(1, 1, 60, HEAD_DIM, generator=make) * 0.1
    values = torch.ones(1, 1, 60, HEAD_DIM)
    keys[0, 0, 23, 0], keys[0, 0, 41, 1] = 4.0, 4.0
    values[0, 0, 52] = 50.0
    return kept_places(ExpectedAttention(keep=7, **settings), queries, keys, values)[0]


def test_the_key_that_the_mean_query_wants_stays() -> None:
    assert 23 in needle(covariance=False, value_norm=False)
    assert 23 in needle()


def test_the_key_that_half_of_the_queries_want_stays_by_the_covariance() -> None:
    assert 41 in needle(value_norm=False)
    assert 41 not in needle(covariance=False, value_norm=False)


def test_epsilon_lets_a_large_value_stay() -> None:
    assert 52 in needle(epsilon=0.5)
    assert 52 not in needle(value_norm=False)


def test_generate_with_left_padding_equals_single_runs() -> None:
    model = eager_model()
    texts = [random_ids(length, seed=length) for length in (200, 140)]
    ids, mask = torch.zeros(2, 200, dtype=torch.long), torch.zeros(2, 200, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, 200 - len(text) :], mask[row, 200 - len(text) :] = text, 1
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with applied(model, "expected_attention(keep=0.25, spread=heads)"):
        together = model.generate(ids, attention_mask=mask, **settings)
        for row, text in enumerate(texts):
            alone = model.generate(text[None], **settings)
            assert torch.equal(together[row, 200:], alone[0, len(text) :])


def test_the_budget_holds_while_an_answer_is_generated() -> None:
    model = eager_model()
    with applied(model, "expected_attention(keep=40, when=always)"):
        out = model.generate(
            random_ids(120)[None],
            max_new_tokens=100,
            do_sample=False,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
    assert max(layer.slabs[0].num_tokens for layer in out.past_key_values.run.layers) <= 40 + 64


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("future_tokens=0", "got future_tokens=0; allowed is 1 or more"),
        ("sink_tokens=-1", "got sink_tokens=-1; allowed is 0 or more"),
        ("epsilon=-0.5", "got epsilon=-0.5; allowed is 0 or more"),
        ("keep=2, sink_tokens=3", "got keep=2, less than the 3 tokens at the start"),
    ],
)
def test_wrong_settings_are_refused(settings: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        resolve(f"expected_attention({settings})")
