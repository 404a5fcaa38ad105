from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from longspan.engine.api import load
from longspan.methods.positions.clex import Clex, read_weights, solve
from longspan.methods.positions.ntk import NtkAware
from longspan.spec import canonical
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

PAIRS = HEAD_DIM // 2


def some_network(pairs: int = PAIRS, *, width: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    width = width or 2 * pairs
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(pairs, width, generator=generator) / width**0.5
    return up, 0.01 * torch.randn(width, pairs, generator=generator)


def saved(path: Path, network: tuple[Tensor, Tensor]) -> str:
    save_file({"up": network[0], "down": network[1]}, path)
    return str(path)


def solved_by_hand(
    factor: float, network: tuple[Tensor, Tensor], *, dims: int, steps: int = 4000
) -> list[float]:
    """The whole equation in plain numbers, as the docstring has it, by the midpoint method in t."""
    up, down = (part.double().tolist() for part in network)
    pairs, width = dims // 2, len(down)
    theta = [10_000.0 ** (-2 * i / dims) for i in range(pairs)]

    def right_side(z: list[float], t: float) -> list[float]:
        seen = [z[i] + math.log(theta[i]) - 2 * i / (dims - 2) * math.log(2 * t - 1) for i in range(pairs)]
        hidden = [sum(seen[i] * up[i][j] for i in range(pairs)) for j in range(width)]
        active = [x / (1 + math.exp(-x)) for x in hidden]
        fixed = [-4 * i / ((dims - 2) * (2 * t - 1)) for i in range(pairs)]
        return [sum(active[j] * down[j][i] for j in range(width)) + fixed[i] for i in range(pairs)]

    z, step = [math.log(x) for x in theta], (factor - 1) / steps
    for number in range(steps):
        t = 1 + number * step
        half = [a + step / 2 * b for a, b in zip(z, right_side(z, t), strict=True)]
        z = [a + step * b for a, b in zip(z, right_side(half, t + step / 2), strict=True)]
    return [math.exp(x) for x in z]


@pytest.mark.parametrize("factor", [1.5, 4.0, 16.0])
@pytest.mark.parametrize("width", [8, 24])
def test_equals_the_equation_in_plain_numbers(factor, width):
    network, start = some_network(4, width=width), one_rope(rotary_dims=8).inv_freq
    wanted = torch.tensor(solved_by_hand(factor, network, dims=8), dtype=torch.float64)
    got = solve(start.double(), factor, (network[0].double(), network[1].double()))
    assert torch.allclose(got, wanted, rtol=1e-4, atol=0)
    assert torch.allclose(solve(start, factor, network).double(), wanted, rtol=1e-4, atol=0)
    untrained = solve(start.double(), factor, None)
    assert float((got / untrained).log().abs().max()) > 0.01


@pytest.mark.parametrize("factor", [1.25, 2.0, 7.0])
@pytest.mark.parametrize("rotary_dims", [8, 16, 128])
def test_the_untrained_network_is_ntk_at_twice_the_factor_less_one(factor, rotary_dims):
    rope = one_rope(rotary_dims=rotary_dims)
    wanted = NtkAware(factor=2 * factor - 1).rope(rope).inv_freq
    assert torch.allclose(Clex(factor=factor).rope(rope).inv_freq, wanted, rtol=1e-5, atol=0)
    up, _ = some_network(rotary_dims // 2)
    zeros = torch.zeros(rotary_dims, rotary_dims // 2)
    assert torch.allclose(solve(rope.inv_freq, factor, (up, zeros)), wanted, rtol=1e-5, atol=0)


def test_gradients_equal_finite_differences():
    up, down = (part.double().requires_grad_() for part in some_network(4))
    start = one_rope(rotary_dims=8).inv_freq.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b, c: solve(c, 4.0, (a, b)).log(), (up, down, start))


def test_a_finer_solver_finds_the_same(monkeypatch):
    start, network = one_rope().inv_freq.double(), tuple(part.double() for part in some_network())
    coarse = solve(start, 16.0, network)
    monkeypatch.setattr("longspan.methods.positions.clex.STEPS", 16)
    finer = solve(start, 16.0, network)
    assert float((coarse / finer - 1).abs().max()) < 2e-5
    assert float((coarse / solve(start, 16.0, None)).log().abs().max()) > 1


@pytest.mark.parametrize("weighted", [False, True])
def test_the_factor_follows_the_length(tmp_path, weighted):
    network = some_network() if weighted else None
    weights = saved(tmp_path / "w.safetensors", network) if network else ""
    rope, method = one_rope(), Clex(weights=weights, max_factor=5)
    assert method.rope(rope) is rope
    assert method.rope_at(rope, 1) is rope and method.rope_at(rope, WINDOW) is rope
    for num_tokens, factor in ((257, 2), (512, 2), (513, 3), (1280, 5), (1281, 5), (99_999, 5)):
        got = method.rope_at(rope, num_tokens)
        assert torch.equal(got.inv_freq, solve(rope.inv_freq, factor, network))
        assert got.inv_freq is method.rope_at(rope, num_tokens).inv_freq  # one tensor for all layers
    assert torch.equal(Clex(window_tokens=100).rope_at(rope, 301).inv_freq, solve(rope.inv_freq, 4, None))
    assert Clex(factor=3).rope_at(rope, 9999) is None


@pytest.mark.parametrize("chunk_tokens", [1024, 64, 13])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_reading_at_a_factor_equals_pairwise_rotation(tmp_path, kv_heads, chunk_tokens):
    weights = saved(tmp_path / "w.safetensors", some_network())
    ids, model = some_ids(151), small_llama(kv_heads=kv_heads)
    frequencies = solve(default_frequencies(), 3.0, tuple(part.double() for part in some_network()))
    wanted = pairwise_logits(model, ids, distances=pair_distances(151), frequencies=frequencies)
    spec = f"clex(weights='{weights}', factor=3)"
    assert worst(read_logits(load(model, spec), ids, chunk_tokens=chunk_tokens), wanted) < 1e-5
    assert worst(decoded_logits(load(model, spec), ids, num_read=140), wanted[140:]) < 1e-5
    assert worst(wanted, pairwise_logits(model, ids, distances=pair_distances(151))) > 0.05


def test_a_text_read_at_once_has_the_factor_of_its_length(tmp_path):
    weights = saved(tmp_path / "w.safetensors", some_network())
    ids, model = some_ids(300), small_llama()
    frequencies = solve(default_frequencies(), 3.0, tuple(part.double() for part in some_network()))
    wanted = pairwise_logits(model, ids, distances=pair_distances(300), frequencies=frequencies)
    span = load(model, f"clex(weights='{weights}', window_tokens=128)")
    assert worst(read_logits(span, ids, chunk_tokens=1024), wanted) < 1e-5


def test_chunks_of_whole_windows_turn_all_keys_as_dynamic_ntk_does():
    """s = 2 S / L - 1 there, and 2 t - 1 here: the same wherever a step ends at a whole t."""
    ids, model = some_ids(320), small_llama()
    wanted = read_logits(load(model, "dynamic_ntk(factor=2, window_tokens=64)"), ids, chunk_tokens=64)
    got = read_logits(load(model, "clex(window_tokens=64)"), ids, chunk_tokens=64)
    assert worst(got, wanted) < 1e-5


def test_within_the_trained_window_nothing_changes():
    ids, model = some_ids(WINDOW), small_llama()
    loaded = load(model)
    plain = read_logits(loaded, ids, chunk_tokens=100)
    for spec in ("clex()", "clex(factor=1)"):
        assert worst(read_logits(loaded.with_methods(spec), ids, chunk_tokens=100), plain) < 1e-6


def test_a_file_is_read_when_a_model_is_loaded_and_not_before(tmp_path):
    spec = f"clex(weights='{tmp_path / 'later.safetensors'}', factor=2.0)"
    assert canonical(spec).startswith("clex(weights=")
    with pytest.raises(
        ValueError, match=r"cannot read weights=.*later.safetensors.*give the scheme.safetensors or"
    ):
        load(small_llama(), spec)
    up, down = some_network()
    saved(tmp_path / "later.safetensors", (up, down))
    assert load(small_llama(), spec).spec == canonical(spec)
    read_up, read_down = read_weights(str(tmp_path / "later.safetensors"))
    assert torch.equal(read_up, up) and torch.equal(read_down, down)


def test_bad_files(tmp_path):
    (tmp_path / "text.safetensors").write_text("no weights", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot read weights="):
        read_weights(str(tmp_path / "text.safetensors"))
    with pytest.raises(ValueError, match="cannot read weights="):
        read_weights(str(tmp_path))
    other = tmp_path / "other.safetensors"
    save_file({"q": torch.ones(2, 3)}, other)
    with pytest.raises(ValueError, match=r"hold q \[2, 3\], not up \[pairs, width\]"):
        read_weights(str(other))
    save_file({"up": torch.ones(2, 3), "down": torch.ones(2, 3)}, other)
    with pytest.raises(ValueError, match=r"hold down \[2, 3\], up \[2, 3\], not up"):
        read_weights(str(other))
    save_file({"up": torch.full((2, 3), torch.nan), "down": torch.ones(3, 2)}, other)
    with pytest.raises(ValueError, match="are not finite"):
        read_weights(str(other))


def test_bad_settings():
    with pytest.raises(ValueError, match=r"got factor=0.5; allowed is 1 \(no change\) or more"):
        Clex(factor=0.5)
    with pytest.raises(ValueError, match="got window_tokens=0; allowed is 1 or more, or none"):
        Clex(window_tokens=0)
    with pytest.raises(ValueError, match="got max_factor=0; allowed is 1 or more, or none"):
        Clex(max_factor=0)
    for other in ({"window_tokens": 64}, {"max_factor": 8}):
        with pytest.raises(ValueError, match="got factor=4 with window_tokens or max_factor"):
            Clex(factor=4, **other)


def test_given_frequencies_are_in_force_at_every_length():
    ids, model = some_ids(300), small_llama()
    frequencies = solve(default_frequencies(), 3.0, tuple(part.double() for part in some_network()))
    wanted = pairwise_logits(model, ids, distances=pair_distances(300), frequencies=frequencies)
    spec = f"clex(frequencies={frequencies.tolist()})"
    assert canonical(canonical(spec)) == canonical(spec)
    assert worst(read_logits(load(model, spec), ids, chunk_tokens=64), wanted) < 1e-5
    for bad in ((1.0, 0.0), (math.nan,), (math.inf,)):
        with pytest.raises(ValueError, match="allowed are numbers above 0, or none"):
            Clex(frequencies=bad)
    for other in ({"weights": "w"}, {"factor": 2.0}, {"window_tokens": 8}, {"max_factor": 2}):
        with pytest.raises(ValueError, match="got frequencies with other settings"):
            Clex(frequencies=(1.0, 0.5), **other)
    with pytest.raises(ValueError, match="frequencies are for 2 rotary pairs, but layer 0 of toy has 8"):
        Clex(frequencies=(1.0, 0.5)).check(one_model(one_layer(rope=one_rope())))


def test_models_that_it_cannot_serve_are_refused(tmp_path):
    with pytest.raises(ValueError, match="clex changes rotary positions, but no layer of toy"):
        Clex().check(one_model(one_layer()))
    with pytest.raises(ValueError, match="already scales its own"):
        load(stock_rope({"rope_type": "linear", "factor": 2.0}), "clex()")
    weights = saved(tmp_path / "w.safetensors", some_network(4))
    with pytest.raises(ValueError, match="are for 4 rotary pairs, but layer 0 of toy has 8"):
        Clex(weights=weights).check(one_model(one_layer(rope=one_rope())))
