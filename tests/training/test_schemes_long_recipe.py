from __future__ import annotations

import numpy as np
import pytest
import torch

from longspan.engine.api import load
from longspan.training.registry import canonical_scheme, read_scheme_cards, resolve_scheme
from longspan.training.schemes.long_recipe import LongRecipe
from tests.methods.positions.small import one_rope, small_llama


class Drawn:
    """Stands in for a generator: gives what it was made with, and checks what it is asked."""

    def __init__(self, first: int, cuts: list[int], slots: list[int]) -> None:
        self.first, self.choices = first, [cuts, slots]

    def integers(self, low: int, high: int) -> int:
        assert low <= self.first < high
        return self.first

    def choice(self, below: int, count: int, *, replace: bool, shuffle: bool) -> np.ndarray:
        found = self.choices.pop(0)
        assert len(found) == count and max(found, default=0) < below and not replace
        return np.array(found, dtype=np.int64)


def test_a_row_by_hand():
    """12 tokens in segments of 3, 4, 2, 3; 18 positions left out of 30: slots 0 .. 21, gaps of 5 - 1, 2 - 1 and 12 - 1."""
    drawn = Drawn(first=2, cuts=[6, 2, 8], slots=[7, 3, 5, 19])
    places = LongRecipe(segment_tokens=3).positions(12, 30, drawn)
    # slots in order 3, 5, 7, 19; the first is put at 0
    assert places.tolist() == [0, 1, 2, 3 + 4, 8, 9, 10, 7 + 5, 13, 9 + 16, 26, 27]


def test_the_first_tokens_stay_in_order_across_cuts():
    drawn = Drawn(first=5, cuts=[2, 6, 8], slots=[3, 5, 7, 19])
    places = LongRecipe(segment_tokens=3).positions(12, 30, drawn)
    assert places.tolist() == [0, 1, 2, 3, 4, 9, 10, 12, 13, 25, 26, 27]


@pytest.mark.parametrize("num_tokens,target", [(1, 1), (1, 9), (2, 3), (100, 100), (256, 1024), (333, 5000)])
@pytest.mark.parametrize("segment_tokens", [1, 24, 1000])
def test_positions_rise_from_0_and_stay_below_the_target(num_tokens, target, segment_tokens):
    scheme = LongRecipe(segment_tokens=segment_tokens)
    for seed in range(20):
        places = scheme.positions(num_tokens, target, np.random.default_rng(seed))
        assert places.dtype == np.int64 and places.shape == (num_tokens,)
        assert places[0] == 0 and places[-1] < target
        assert (np.diff(places) >= 1).all()
        skips = int((np.diff(places) > 1).sum())
        assert skips <= max(1, round(num_tokens / segment_tokens))
        if num_tokens == target:
            assert places.tolist() == list(range(num_tokens))
        assert (places == scheme.positions(num_tokens, target, np.random.default_rng(seed))).all()


def test_rows_have_many_skips_and_reach_far():
    scheme, rows = LongRecipe(), []
    for seed in range(200):
        rows.append(scheme.positions(512, 2048, np.random.default_rng(seed)))
    skips = np.array([(np.diff(row) > 1).sum() for row in rows])
    assert 10 < skips.mean() < 21 and skips.min() >= 5
    assert np.mean([row[-1] for row in rows]) > 0.9 * 2048
    distances = np.concatenate([row[-1] - row for row in rows])
    assert (np.histogram(distances, bins=8, range=(0, 2048))[0] > 0.05 * len(distances)).all()


def test_left_out_positions_are_shared_evenly():
    """Three segments of one token and two positions left out: the last slot is the largest of 3 of 5, drawn evenly."""
    scheme = LongRecipe(segment_tokens=1)
    last = [int(scheme.positions(3, 5, np.random.default_rng(seed))[-1]) for seed in range(4000)]
    shares = np.bincount(last, minlength=5)[2:] / 4000
    assert shares == pytest.approx([0.1, 0.3, 0.6], abs=0.025)


def test_rows_are_the_window_or_a_share_of_the_target():
    assert LongRecipe().row_tokens(8192, 131_072) == 8192
    assert LongRecipe(share=0.3).row_tokens(8192, 80_000) == 24_000  # the paper's
    assert LongRecipe(share=0.3).row_tokens(8192, 16_384) == 8192


def test_frequencies_and_spec_are_those_of_the_method():
    rope, scheme = one_rope(), resolve_scheme('long_recipe(positions="yarn(factor=4)", segment_tokens=16)')
    assert scheme == LongRecipe(positions_="yarn(factor=4)", segment_tokens=16)
    assert resolve_scheme(canonical_scheme(scheme)) == scheme
    got = scheme.rope(rope, 1024, np.random.default_rng(0))
    spec = scheme.spec(rope, 1024)
    planned = load(small_llama(), spec).plan.layers[0].info.rope
    assert (
        torch.allclose(planned.inv_freq, got.inv_freq, rtol=1e-6, atol=0)
        and planned.scaling == got.scaling > 1
    )
    plain = LongRecipe()
    assert plain.rope(rope, 1024, np.random.default_rng(0)) is rope and plain.spec(rope, 1024) == "dense"
    assert plain.module(rope) is None and plain.attention() is None
    assert read_scheme_cards()["long_recipe"].paper_id == 265


def test_bad_settings():
    with pytest.raises(ValueError, match="got segment_tokens=0; allowed is 1 or more"):
        LongRecipe(segment_tokens=0)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="allowed is above 0 up to 1"):
            LongRecipe(share=share)
    with pytest.raises(ValueError, match="does not set rotary frequencies"):
        LongRecipe(positions_="snapkv()")
