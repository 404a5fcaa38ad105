"""Checks and formulas that the methods of this family share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from longspan.roles import ModelInfo, Rope

if TYPE_CHECKING:
    from torch import Tensor

MAX_FACTOR = 1e6  # powers of more do not fit a float
MAX_THETA = 1e30  # powers of more do not fit a float32, and frequencies would be 0


def check_factor(factor: float) -> None:
    """Raise ValueError unless `factor` is a number from 1 to `MAX_FACTOR`."""
    if not 1 <= factor <= MAX_FACTOR:
        raise ValueError(
            f"got factor={factor:g}; allowed is 1 (no change) or more, up to {MAX_FACTOR:,.0f}: "
            "factor=2 is for texts of twice the trained window"
        )


def check_rotary(name: str, model: ModelInfo) -> None:
    """Raise ValueError where no layer that methods may change has a rotary embedding."""
    if model.learned_positions:
        raise ValueError(
            f"{name} changes rotary positions, but {model.name} takes positions from a learned table; use a method for "
            "such tables: pi, grouped_positions, recurrent_positions or parallel_windows"
        )
    if all(layer.rope is None for layer in model.open_layers):
        raise ValueError(
            f"{name} changes rotary positions, but no layer of {model.name} that methods may change has any; "
            "use a model with rotary positions, such as Llama, Qwen or Mistral"
        )


def check_positions(name: str, model: ModelInfo) -> None:
    """Raise ValueError where the model has neither rotary positions nor a learned table of positions."""
    if not model.learned_positions:
        check_rotary(name, model)


def check_several(name: str, model: ModelInfo) -> None:
    """Raise ValueError where a layer has a single frequency, which a method that keeps the fastest cannot change."""
    for layer in model.open_layers:
        if layer.rope is not None and layer.rope.rotary_dims < 4:
            raise ValueError(
                f"{name} keeps the fastest frequency and changes the others, but layer {layer.index} of {model.name} has "
                "one alone; use pi, which changes all, or a method that maps positions, such as self_extend"
            )


def check_window(window_tokens: int | None, *, least: int = 1) -> None:
    """Raise ValueError where a given window has fewer than `least` tokens; None stands for the trained one."""
    if window_tokens is not None and window_tokens < least:
        raise ValueError(
            f"got window_tokens={window_tokens}; allowed is {least} or more, or none for the trained window"
        )


def check_theta(theta: float | None) -> None:
    """Raise ValueError unless `theta` is None or may be a rotary base."""
    if theta is not None and not 1 < theta <= MAX_THETA:
        raise ValueError(
            f"got theta={theta:g}; give a base above the model's own, such as theta=500000, up to {MAX_THETA:g}"
        )


def check_raised(name: str, theta: float | None, model: ModelInfo) -> None:
    """Raise ValueError where `theta` would lower the rotary base of a layer."""
    for layer in model.open_layers:
        if theta is not None and layer.rope is not None and theta < layer.rope.theta:
            raise ValueError(
                f"{name} raises the rotary base: got theta={theta:g}, but {model.name} has "
                f"{layer.rope.theta:g} in layer {layer.index}; give theta={layer.rope.theta:g} or more, "
                "or theta=none to keep it"
            )


def raised(rope: Rope, theta: float | None) -> Rope:
    """The embedding with another base; the same object where that changes nothing."""
    return rope if theta is None or theta == rope.theta else rope.with_theta(theta)


def log_scale(positions: Tensor, window_tokens: int) -> Tensor:
    """max(1, log(position + 1) / log(window)), float32: keeps the entropy of attention over a window's keys."""
    return ((positions + 1).float().log() / math.log(window_tokens)).clamp(min=1.0)


def yarn_scale(positions: Tensor, window_tokens: int) -> Tensor:
    """(0.1 ln(max(1, (position + 1) / window)) + 1)^2, float32: YaRN's factor on the logits."""
    return (0.1 * ((positions + 1).float() / window_tokens).clamp(min=1.0).log() + 1).square()
