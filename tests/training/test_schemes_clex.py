from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from longspan.engine.api import load
from longspan.engine.seam import find_attention_modules
from longspan.methods.positions.clex import Clex as ClexMethod
from longspan.methods.positions.ntk import NtkAware
from longspan.spec import canonical, resolve
from longspan.training.registry import canonical_scheme, read_scheme_cards, resolve_scheme
from longspan.training.rotation import Rotation
from longspan.training.schemes.clex import Clex, FrequencyFlow
from tests.methods.positions.small import WINDOW, one_rope, small_llama, some_ids

TARGET = 4 * WINDOW
STEP = 4e-6  # the loss bends within 1e-4, and float32 angles are seen below 1e-6


def trained(scheme: Clex, seed: int = 0) -> FrequencyFlow:
    """The scheme's module with weights that move every frequency."""
    torch.manual_seed(seed)
    flow = scheme.module(one_rope())
    assert isinstance(flow, FrequencyFlow)
    torch.nn.init.normal_(flow.down, std=0.01)
    return flow


def test_the_scheme_is_found_and_its_text_reads_back():
    scheme = resolve_scheme("clex(amplification=2)")
    assert scheme == Clex(amplification=2)
    assert canonical_scheme(scheme) == "clex(amplification=2)"
    scheme.module(one_rope())
    assert canonical_scheme(scheme) == "clex(amplification=2)" and scheme == Clex(amplification=2)
    assert read_scheme_cards()["clex"].paper_id == 112
    with pytest.raises(ValueError, match="got amplification=0; allowed is 1 or more"):
        Clex(amplification=0)


@pytest.mark.parametrize("target", [TARGET, TARGET - 100, 5 * WINDOW // 2])
def test_positions_spread_over_the_windows_of_the_frequencies_drawn_with_them(target):
    scheme, rope, factors = Clex(), one_rope(), []
    assert scheme.row_tokens(WINDOW, target) == WINDOW
    for seed in range(60):
        places = scheme.positions(WINDOW, target, np.random.default_rng(seed))
        got = scheme.rope(rope, target, np.random.default_rng(seed))
        factor = -(-(int(places[-1]) + 1) // WINDOW)
        assert places.dtype == np.int64 and places.shape == (WINDOW,)
        assert places[0] == 0 and places[-1] == min(factor * WINDOW, target) - 1
        assert (np.diff(places) > 0).all()
        wanted = NtkAware(factor=2 * factor - 1).rope(rope).inv_freq
        assert torch.allclose(got.inv_freq, wanted, rtol=1e-5, atol=0)
        assert (got is rope) == (factor == 1) == bool((places == np.arange(WINDOW)).all())
        factors.append(factor)
    assert set(factors) == set(range(1, -(-target // WINDOW) + 1))


def test_factors_and_positions_are_drawn_evenly():
    scheme = Clex()
    rows = [scheme.positions(64, 256, np.random.default_rng(seed)) for seed in range(2000)]
    counts = np.bincount([-(-(int(row[-1]) + 1) // 64) for row in rows], minlength=5)[1:]
    assert counts.min() > 430 and counts.max() < 570
    far = np.concatenate([row[1:-1] for row in rows if row[-1] == 255])
    shares = np.histogram(far, bins=4, range=(0, 256))[0] / len(far)
    assert np.abs(shares - 0.25).max() < 0.01


def test_short_rows_are_in_order():
    for num_tokens in (1, 2):
        places = Clex().positions(num_tokens, 8, np.random.default_rng(0))
        assert places.tolist() == list(range(num_tokens))


def test_an_untrained_module_changes_no_frequency():
    scheme, rope = Clex(amplification=3), one_rope()
    plain = scheme.rope(rope, TARGET, np.random.default_rng(1)).inv_freq
    flow = scheme.module(rope)
    assert {name: tuple(value.shape) for name, value in flow.state_dict().items()} == {
        "up": (8, 48),
        "down": (48, 8),
    }
    got = scheme.rope(rope, TARGET, np.random.default_rng(1)).inv_freq
    assert got.requires_grad and torch.equal(got.detach(), plain)


def test_gradients_of_the_loss_reach_the_network_and_equal_finite_differences():
    scheme, model, ids = Clex(), small_llama().train(), some_ids(64)[None]
    flow, seed = trained(scheme), 3
    places = scheme.positions(64, 256, np.random.default_rng(seed))
    rope = one_rope(window_tokens=64)

    def loss() -> torch.Tensor:
        rotation.set(torch.from_numpy(places)[None], [scheme.rope(rope, 256, np.random.default_rng(seed))])
        mask = torch.ones_like(ids)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=torch.from_numpy(places)[None]).logits
        return torch.nn.functional.cross_entropy(logits[0, :-1].double(), ids[0, 1:])

    with Rotation(find_attention_modules(model)) as rotation:
        loss().backward()
        for weights in (flow.up, flow.down):
            assert weights.grad is not None
            direction = torch.sign(weights.grad)
            wanted = float((weights.grad * direction).sum())
            sides = []
            for step in (STEP, -STEP):
                with torch.no_grad():
                    weights += step * direction
                    sides.append(float(loss()))
                    weights -= step * direction
            assert (sides[0] - sides[1]) / (2 * STEP) == pytest.approx(wanted, rel=0.01)
            assert wanted > 0


def test_the_network_learns_other_frequencies():
    """From ntk at 7 to linear interpolation at 4, in 300 steps."""
    torch.manual_seed(0)
    scheme, rope = Clex(), one_rope()
    flow = scheme.module(rope)
    optimizer, losses = torch.optim.Adam(flow.parameters(), lr=1e-3), []
    for _ in range(300):
        loss = (flow(rope.inv_freq, 4.0).log() - (rope.inv_freq / 4).log()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.1 and losses[-1] < 0.01 * losses[0]


def test_the_module_is_one_and_starts_the_same():
    scheme, rope = Clex(), one_rope()
    flow = scheme.module(rope)
    assert scheme.module(rope) is flow
    torch.manual_seed(99)
    assert torch.equal(Clex().module(rope).up, flow.up)
    assert flow.up.abs().max().item() <= 0.25 and flow.up.std().item() > 0.1
    assert scheme.module(one_rope(rotary_dims=8)).up.shape == (4, 8)


def test_the_spec_before_training_is_the_untrained_method():
    rope = one_rope()
    for target, factor in ((TARGET, 4), (TARGET + 1, 5)):
        for asked in (False, True):
            scheme = Clex()
            if asked:
                scheme.module(rope)
            got = resolve(scheme.spec(rope, target))[0].method.rope(rope).inv_freq
            assert torch.allclose(got, ClexMethod(factor=factor).rope(rope).inv_freq, rtol=1e-6, atol=0)


def test_the_exported_spec_loads_and_has_the_trained_frequencies(tmp_path):
    scheme, rope = Clex(), one_rope()
    flow = trained(scheme)
    seed = next(
        seed
        for seed in range(99)
        if scheme.positions(WINDOW, TARGET, np.random.default_rng(seed))[-1] == TARGET - 1
    )
    wanted = scheme.rope(rope, TARGET, np.random.default_rng(seed)).inv_freq.detach()
    untrained = ClexMethod(factor=4).rope(rope).inv_freq
    assert float((wanted / untrained).log().abs().max()) > 0.1
    spec = scheme.spec(rope, TARGET)
    assert spec.startswith("clex(frequencies=[") and canonical(spec) == spec
    file = tmp_path / "scheme.safetensors"
    save_file(dict(flow.state_dict()), file)
    for other in (spec, f"clex(weights='{file}', factor=4)"):
        for layer in load(small_llama(), other).plan.layers:
            assert torch.allclose(layer.info.rope.inv_freq, wanted, rtol=1e-6, atol=0)
    following = load(small_llama(), f"clex(weights='{file}')").plan.layers[0].positions
    assert torch.equal(following.rope_at(rope, TARGET).inv_freq, wanted)
    assert following.rope_at(rope, WINDOW) is rope
