"""Checks that the methods of this family share."""

from __future__ import annotations

import math

from longspan.roles import ModelInfo


def check_factor(factor: float) -> None:
    """Raise ValueError unless `factor` is a finite number of 1 or more."""
    if not (math.isfinite(factor) and factor >= 1):
        raise ValueError(
            f"got factor={factor:g}; allowed is 1 (no change) or more: "
            "factor=2 is for texts of twice the trained window"
        )


def check_rotary(name: str, model: ModelInfo) -> None:
    """Raise ValueError where no layer that methods may change has a rotary embedding."""
    if all(layer.rope is None for layer in model.open_layers):
        raise ValueError(
            f"{name} changes rotary positions, but no layer of {model.name} that methods may change has any; "
            "use a model with rotary positions, such as Llama, Qwen or Mistral"
        )
