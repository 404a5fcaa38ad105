from __future__ import annotations

import pytest
import torch

from longspan.engine.api import applied, load
from longspan.methods.positions import lm_infinite
from longspan.methods.positions.lm_infinite import LmInfinite
from tests.methods.positions.small import (
    WINDOW,
    decoded_logits,
    one_layer,
    one_model,
    one_rope,
    pair_distances,
    pairwise_logits,
    read_logits,
    small_llama,
    some_ids,
    worst,
)

SPEC = "lm_infinite(global_tokens=5, window_tokens=40, max_distance_tokens=60)"


def by_hand(model, ids, *, first: int = 5, window: int = 40, cap: int = 60) -> torch.Tensor:
    """Lambda mask and distance cap as T x T matrices."""
    distances = pair_distances(len(ids))
    visible = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for i in range(len(ids)):
        for j in range(i + 1):
            visible[i, j] = j < first or i - j < window
    return pairwise_logits(model, ids, distances=distances.clamp(max=cap), visible=visible)


class Slab:
    """Stored positions without keys."""

    def __init__(self, positions: list[list[int]]) -> None:
        self.positions = torch.tensor(positions)[:, None]
        self.num_tokens = len(positions[0])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("chunk_tokens", [1024, 50, 7])
@pytest.mark.parametrize("evict", ["true", "false"])
def test_reading_equals_mask_and_cap(kv_heads, chunk_tokens, evict):
    ids, model = some_ids(171), small_llama(kv_heads=kv_heads)
    span = load(model, SPEC.replace(")", f", evict={evict})"))
    assert worst(read_logits(span, ids, chunk_tokens=chunk_tokens), by_hand(model, ids)) < 1e-5


def test_settings_matter():
    ids, model = some_ids(150), small_llama()
    got = read_logits(load(model, SPEC), ids, chunk_tokens=64)
    assert worst(got, by_hand(model, ids)) < 1e-5
    for other in ({"first": 4}, {"window": 39}, {"cap": 50}, {"cap": 1000}, {"first": 0}):
        assert worst(got, by_hand(model, ids, **other)) > 1e-3


def test_defaults_are_the_trained_window():
    ids, model = some_ids(WINDOW + 60), small_llama()
    got = read_logits(load(model, "lm_infinite()"), ids, chunk_tokens=100)
    assert worst(got, by_hand(model, ids, first=10, window=WINDOW, cap=WINDOW)) < 1e-5


def test_what_it_frees():
    ids, loaded = some_ids(1500), load(small_llama(), chunk_tokens=64)
    evicting = loaded.with_methods(SPEC).read(ids)
    whole = loaded.with_methods(SPEC.replace(")", ", evict=false)")).read(ids)
    assert evicting.kept_tokens == 45
    assert whole.kept_tokens == 1500
    for layer in evicting.run.layers:
        assert layer.slabs[0].positions[0, 0].tolist() == [0, 1, 2, 3, 4, *range(1460, 1500)]
    assert evicting.run.peak_bytes < whole.run.peak_bytes / 2
    assert loaded.with_methods(SPEC).read(ids[:30]).kept_tokens == 30


def test_tokens_one_by_one_after_eviction(monkeypatch):
    monkeypatch.setattr(lm_infinite, "SPARE_TOKENS", 16)
    ids, model = some_ids(220), small_llama()
    span = load(model, SPEC, chunk_tokens=50)
    assert worst(decoded_logits(span, ids, num_read=130), by_hand(model, ids)[130:]) < 1e-5
    run = span.read(ids[:130]).run
    for at in range(130, 220):
        span.reader().advance(run, ids[at : at + 1])
        assert 45 <= run.kept_tokens < 45 + 16


def test_keep_pads_rows_that_hold_less():
    method, layer = LmInfinite(global_tokens=2, window_tokens=3), one_layer(rope=one_rope())
    slab = Slab([[-1, -1, -1, -1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]])
    kept = method.compact(layer, slab, {}, event="read")
    assert kept.tolist() == [[[-1, 4, 5, 6, 7]], [[0, 1, 5, 6, 7]]]
    assert method.compact(layer, Slab([[0, 1, 5, 6, 7]]), {}, event="chunk") is None
    assert method.compact(layer, slab, {}, event="token") is None


def test_left_padding_equals_the_single_run():
    short, long = some_ids(150), some_ids(180, seed=2)
    ids, mask = torch.zeros(2, 180, dtype=torch.long), torch.zeros(2, 180, dtype=torch.long)
    ids[0, 30:], ids[1] = short, long
    mask[0, 30:], mask[1] = 1, 1
    model = small_llama()
    with torch.no_grad(), applied(model, SPEC):
        whole = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
        alone = model.generate(short[None], max_new_tokens=12, do_sample=False, pad_token_id=0)
        got = model(ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[0, 30:]
    assert torch.equal(whole[0, 30:], alone[0])
    assert worst(got, by_hand(model, short)) < 1e-5


def test_assisted_decoding_writes_the_same_text(monkeypatch):
    monkeypatch.setattr(lm_infinite, "SPARE_TOKENS", 32)
    ids, model = some_ids(120), small_llama()
    repeated = torch.cat([ids[:40], ids[:40], ids[:40]])[None]
    with torch.no_grad(), applied(model, SPEC):
        plain = model.generate(repeated, max_new_tokens=80, do_sample=False, pad_token_id=0)
        guessed = model.generate(
            repeated, max_new_tokens=80, do_sample=False, pad_token_id=0, prompt_lookup_num_tokens=5
        )
    assert torch.equal(plain, guessed)


def test_logits_stay_finite_far_past_the_window():
    ids = some_ids(6 * WINDOW)
    assert bool(
        torch.isfinite(read_logits(load(small_llama(), "lm_infinite()"), ids, chunk_tokens=256)).all()
    )


def test_roles_it_claims():
    assert LmInfinite().claims() == {"Positions", "Selection", "Storage"}
    assert LmInfinite(evict=False).claims() == {"Positions", "Selection"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"global_tokens": -1}, "got global_tokens=-1; allowed is 0 or more"),
        ({"window_tokens": 0}, "got window_tokens=0; allowed is 1 or more, or none"),
        ({"max_distance_tokens": -5}, "got max_distance_tokens=-5; allowed is 1 or more, or none"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        LmInfinite(**settings)


def test_models_without_rotary_positions_are_refused():
    with pytest.raises(ValueError, match="lm_infinite changes rotary positions, but no layer of toy"):
        LmInfinite().check(one_model(one_layer()))
