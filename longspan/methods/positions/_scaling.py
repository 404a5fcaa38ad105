"""Checks that the methods of this family share."""

from __future__ import annotations

from longspan.roles import ModelInfo

MAX_FACTOR = 1e6  # powers of more do not fit a float


def check_factor(factor: float) -> None:
    """Raise ValueError unless `factor` is a number from 1 to `MAX_FACTOR`."""
    if not 1 <= factor <= MAX_FACTOR:
        raise ValueError(
            f"got factor={factor:g}; allowed is 1 (no change) or more, up to {MAX_FACTOR:,.0f}: "
            "factor=2 is for texts of twice the trained window"
        )


def check_rotary(name: str, model: ModelInfo) -> None:
    """Raise ValueError where no layer that methods may change has a rotary embedding."""
    if all(layer.rope is None for layer in model.open_layers):
        raise ValueError(
            f"{name} changes rotary positions, but no layer of {model.name} that methods may change has any; "
            "use a model with rotary positions, such as Llama, Qwen or Mistral"
        )
