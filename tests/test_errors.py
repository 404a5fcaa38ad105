"""Nearest names."""

from __future__ import annotations

import pytest

from longspan.errors import CardError, SpecError, UnsupportedLayerError, UserInputError, did_you_mean


@pytest.mark.parametrize(
    ("name", "choices", "expected"),
    [
        ("snapk", ["snapkv", "yarn"], "did you mean 'snapkv'?"),
        ("SNAPKV", ["snapkv", "yarn"], "did you mean 'snapkv'?"),
        ("self-extend", ["self_extend", "yarn"], "did you mean 'self_extend'?"),
        ("laye", ["layer", "layers"], "did you mean 'layer' or 'layers'?"),
        ("zzz", ["b", "a"], "allowed are 'a', 'b'"),
        ("zzz", [f"name{index}" for index in range(20)], "allowed are 20 names"),
        ("zzz", [], "none is allowed here"),
    ],
)
def test_did_you_mean(name: str, choices: list[str], expected: str) -> None:
    assert did_you_mean(name, choices) == expected


def test_all_are_value_errors() -> None:
    for error in (CardError, SpecError, UnsupportedLayerError, UserInputError):
        assert issubclass(error, ValueError)
