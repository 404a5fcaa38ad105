"""Full-length rows: positions in order, frequencies and spec of the method named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longspan.errors import SpecError
from longspan.model_info import Rope
from longspan.spec import resolve
from longspan.training.registry import resolve_scheme

ROPE = Rope(
    inv_freq=1e4 ** -(torch.arange(0, 16, 2) / 16), scaling=1.0, theta=1e4, window_tokens=64, rotary_dims=16
)


@pytest.mark.parametrize(
    "spec",
    ["pi(factor=4.0)", "ntk(factor=6.0)", "yarn(factor=4.0)", "abf()", "power_basis()", "truncated_basis()"],
)
@pytest.mark.parametrize("name", ["full", "pose"])
def test_frequencies_and_spec_are_the_methods(name: str, spec: str) -> None:
    scheme = resolve_scheme(f'{name}(positions="{spec}")')
    wanted = resolve(spec)[0].method.rope(ROPE)
    found = scheme.rope(ROPE, 256, np.random.default_rng(0))
    assert torch.equal(found.inv_freq, wanted.inv_freq)
    assert found.scaling == wanted.scaling
    assert found is scheme.rope(ROPE, 256, np.random.default_rng(1))
    assert scheme.spec(ROPE, 256).removesuffix("()") == spec.removesuffix("()")


def test_rows_are_in_full_length_and_in_order() -> None:
    scheme = resolve_scheme("full")
    assert scheme.row_tokens(64, 256) == 256
    positions = scheme.positions(256, 256, np.random.default_rng(0))
    assert positions.dtype == np.int64
    assert positions.tolist() == list(range(256))
    assert scheme.rope(ROPE, 256, np.random.default_rng(0)) is ROPE
    assert scheme.spec(ROPE, 256) == "dense"
    assert scheme.module(ROPE) is None
    assert scheme.attention() is None


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ("yarn(factor=0.5)", "got factor=0.5; allowed is 1"),
        ("yarn(factor=4) + pi(factor=4)", "has 2 methods"),
        ("on(layers=0, pi(factor=4))", "is scoped"),
        ("snapkv()", "does not set rotary frequencies"),
        ("entropy_abf()", "does more than set frequencies once"),
        ("dynamic_ntk()", "does more than set frequencies once"),
        ("self_extend()", "does more than set frequencies once"),
        ("yarm(factor=4)", "there is no method 'yarm'; did you mean 'yarn'"),
    ],
)
@pytest.mark.parametrize("name", ["full", "pose"])
def test_what_cannot_be_trained_under_is_refused(name: str, positions: str, message: str) -> None:
    with pytest.raises(SpecError, match=f"{name}: ") as caught:
        resolve_scheme(f'{name}(positions="{positions}")')
    assert message in str(caught.value)
