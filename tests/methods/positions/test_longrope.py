from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longspan.engine.api import applied, load
from longspan.engine.plan import build_plan
from longspan.methods.positions.longrope import BUNDLED, LongRope, read_factors
from longspan.roles import Selection
from longspan.spec import resolve
from tests.methods.positions.small import (
    HEAD_DIM,
    WINDOW,
    decoded_logits,
    default_frequencies,
    one_layer,
    one_model,
    one_rope,
    pair_distances,
    pairwise_logits,
    read_logits,
    small_llama,
    some_ids,
    stock_rope,
    worst,
)
from tests.models import full_logits, random_ids, random_model

FACTORS = (1.0, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 4.5)
LISTED = f"[{', '.join(map(str, FACTORS))}]"
SCALING = math.sqrt(1 + math.log(4) / math.log(WINDOW))
STOCK = {
    "rope_type": "longrope",
    "long_factor": list(FACTORS),
    "short_factor": [1.0] * 8,
    "factor": 4.0,
    "original_max_position_embeddings": WINDOW,
}


class TurnedByHand(nn.Module):
    """In a stock model's place of cos and sin: the first tokens as trained, the others slowed."""

    def __init__(self, start_tokens: int, scaling: float) -> None:
        super().__init__()
        self.start_tokens, self.scaling = start_tokens, scaling

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        plain = default_frequencies()
        slowed = plain / torch.tensor(FACTORS, dtype=torch.float64)
        rows = [n * (plain if n < self.start_tokens else slowed) for n in position_ids.flatten().tolist()]
        angle = torch.stack(rows).repeat(1, 2)[None]
        return (angle.cos() * self.scaling).float(), (angle.sin() * self.scaling).float()


@pytest.mark.parametrize("times", [1.0, 2.0, 16.0])
@pytest.mark.parametrize("rotary_dims", [8, 64])
def test_equals_transformers_longrope(times, rotary_dims):
    factors = [1 + 0.5 * i for i in range(rotary_dims // 2)]
    config = LlamaConfig(
        hidden_size=rotary_dims,
        num_attention_heads=1,
        head_dim=rotary_dims,
        max_position_embeddings=WINDOW,
        rope_parameters={
            **STOCK,
            "rope_theta": 10_000.0,
            "long_factor": factors,
            "short_factor": [1.0] * len(factors),
            "factor": times,
        },
    )
    wanted, scaling = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=WINDOW + 1)
    got = LongRope(factors=tuple(factors), factor=times).rope(one_rope(rotary_dims=rotary_dims))
    assert torch.allclose(got.inv_freq, wanted, rtol=1e-5, atol=0)
    assert got.scaling == pytest.approx(scaling, rel=1e-6)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_reading_equals_transformers_longrope(kv_heads):
    ids = some_ids(301)
    with torch.no_grad():
        wanted = stock_rope(STOCK, kv_heads=kv_heads)(ids[None]).logits[0]
    span = load(small_llama(kv_heads=kv_heads), f"longrope(factors={LISTED}, factor=4)")
    assert worst(read_logits(span, ids, chunk_tokens=77), wanted) < 1e-5


@pytest.mark.parametrize("chunk_tokens", [1024, 64, 13])
def test_reading_equals_pairwise_rotation(chunk_tokens):
    ids, model = some_ids(131), small_llama()
    distances = pair_distances(131)
    frequencies = default_frequencies() / torch.tensor(FACTORS, dtype=torch.float64)
    wanted = pairwise_logits(model, ids, distances=distances, frequencies=frequencies, cos_scaling=SCALING)
    got = read_logits(load(model, f"longrope(factors={LISTED}, factor=4)"), ids, chunk_tokens=chunk_tokens)
    assert worst(got, wanted) < 1e-5
    assert worst(got, pairwise_logits(model, ids, distances=distances, frequencies=frequencies)) > 0.01
    assert worst(got, pairwise_logits(model, ids, distances=distances)) > 0.05


@pytest.mark.parametrize("chunk_tokens", [1024, 64, 7])
def test_the_first_tokens_turn_as_trained(chunk_tokens):
    ids, model = some_ids(131), small_llama()
    spec = f"longrope(factors={LISTED}, factor=4, start_tokens=10)"
    got = read_logits(load(model, spec), ids, chunk_tokens=chunk_tokens)
    decoded = decoded_logits(load(small_llama(), spec), ids, num_read=120)
    by_hand = small_llama()
    by_hand.model.rotary_emb = TurnedByHand(10, SCALING)
    with torch.no_grad():
        wanted = by_hand(ids[None]).logits[0]
    assert worst(got, wanted) < 1e-5
    assert worst(decoded, wanted[120:]) < 1e-5
    without = f"longrope(factors={LISTED}, factor=4)"
    assert worst(read_logits(load(small_llama(), without), ids, chunk_tokens=64), wanted) > 0.01


def test_the_attention_factor_can_be_set():
    rope = LongRope(factors=FACTORS, factor=4.0, attention_factor=1.0).rope(one_rope())
    assert rope.scaling == 1.0
    assert LongRope(factors=FACTORS).rope(one_rope()).scaling == pytest.approx(
        math.sqrt(1 + math.log(4.5) / math.log(WINDOW))
    )


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma3", "Phi3"])
def test_one_factor_for_all_equals_linear_interpolation(family):
    ids = random_ids(200)
    wanted = full_logits(load(random_model(family), "pi(factor=3)"), ids)
    spec = "longrope(factors=3, attention_factor=1)"
    got = full_logits(load(random_model(family), spec), ids, chunk_tokens=64)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    model = random_model(family)
    with applied(model, spec), torch.no_grad():
        torch.testing.assert_close(model(ids[None]).logits[0], wanted, atol=1e-4, rtol=1e-4)


def test_factors_of_one_change_nothing():
    rope = one_rope()
    assert LongRope(factors=(1.0,)).rope(rope) is rope
    assert LongRope(factors=(1.0,) * 8, start_tokens=4).rope(rope) is rope


def test_nothing_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        LongRope(factors=FACTORS).rope(one_rope())
    assert caplog.records == []


def test_a_file_says_the_same_as_the_list(tmp_path: Path):
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(FACTORS))
    named = tmp_path / "named.json"
    named.write_text(json.dumps({"factors": FACTORS, "factor": 4, "start_tokens": 6}))
    assert torch.equal(
        LongRope(factors=str(listed)).rope(one_rope()).inv_freq,
        LongRope(factors=FACTORS).rope(one_rope()).inv_freq,
    )
    rope = LongRope(factors=str(named)).rope(one_rope())
    assert rope.scaling == pytest.approx(SCALING) and rope.start_tokens == 6
    overruled = LongRope(factors=str(named), factor=2.0, start_tokens=0).rope(one_rope())
    assert overruled.scaling == pytest.approx(math.sqrt(1 + math.log(2) / math.log(WINDOW)))
    assert overruled.start_inv_freq is None


def test_the_bundled_factors_are_the_reference_models():
    info = load("reference").info
    plain, method = info.layers[0].rope, LongRope()
    method.check(info)
    slowed = method.rope(plain)
    ratio = plain.inv_freq / slowed.inv_freq
    assert bool((ratio.diff() > -1e-5).all()) and float(ratio[0]) == 1 and 1.9 < float(ratio[-1]) <= 2.5
    assert slowed.scaling == pytest.approx(math.sqrt(1 + math.log(2) / math.log(4096)))
    assert slowed.start_tokens == read_factors(BUNDLED)["start_tokens"] > 0


def test_bad_files(tmp_path: Path):
    with pytest.raises(ValueError, match=r"cannot read factors='.*none\.json' .*search_factors"):
        read_factors(tmp_path / "none.json")
    path = tmp_path / "bad.json"
    for text in ("{", '{"factors": []}', '{"factors": [1, "2"]}', "[0.0, 1.0]", '{"other": 1}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="factors='|allowed is a list of numbers above 0"):
            LongRope(factors=str(path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factors": ()}, r"got factors = \[\]; allowed is a list of numbers above 0"),
        ({"factors": (1.0, -2.0)}, r"got factors = \[1.0, -2.0\]; allowed is a list of numbers above 0"),
        ({"factors": (1.0, math.inf)}, "allowed is a list of numbers above 0"),
        ({"factors": (2.0,), "factor": 0.5}, r"got factor=0.5; allowed is 1 \(no change\) or more"),
        ({"factors": (2.0,), "start_tokens": -1}, "got start_tokens=-1; allowed is 0 or more"),
        ({"factors": (2.0,), "attention_factor": 0.0}, "got attention_factor=0; allowed is above 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        LongRope(**settings)


def test_models_that_it_cannot_serve_are_refused():
    with pytest.raises(ValueError, match="there are no factors for toy .*bundled are of reference"):
        LongRope().check(one_model(one_layer(rope=one_rope())))
    with pytest.raises(ValueError, match="got 3 factors, but layer 0 of toy has 8 rotary pairs"):
        LongRope(factors=(1.0, 2.0, 3.0)).check(one_model(one_layer(rope=one_rope())))
    with pytest.raises(ValueError, match="longrope changes rotary positions, but no layer of toy"):
        LongRope(factors=(2.0,)).check(one_model(one_layer()))
    with pytest.raises(ValueError, match="already scales its own"):
        load(stock_rope({"rope_type": "linear", "factor": 2.0}), "longrope(factors=2)")


@dataclass(frozen=True, kw_only=True)
class Renumbers(Selection):
    def needs_pre_rotary(self) -> bool:
        return True


def test_first_tokens_need_keys_that_keep_their_places():
    model = one_model(one_layer(rope=one_rope()))
    slowed = LongRope(factors=FACTORS, start_tokens=4)
    build_plan(resolve([LongRope(factors=FACTORS), Renumbers()]), model)
    with pytest.raises(ValueError, match="longrope turns the first 4 positions apart"):
        build_plan(resolve([slowed, Renumbers()]), model)


def test_partial_rotary_takes_a_factor_for_each_of_its_pairs():
    rope = LongRope(factors=(1.0, 2.0, 3.0, 4.0)).rope(one_rope(rotary_dims=HEAD_DIM // 2))
    assert torch.allclose(
        one_rope(rotary_dims=8).inv_freq / rope.inv_freq, torch.tensor([1.0, 2.0, 3.0, 4.0])
    )
