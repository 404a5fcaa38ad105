"""The contract of a scheme: what training shows a model of positions, so that it reads texts longer than its window.

One file in `schemes/` is one scheme: a literal `CARD` and one public frozen keyword-only dataclass derived from `Scheme`,
whose fields are the settings of its spec, such as `pose(positions="yarn(factor=4)")`. A setting that has the name of
a method below is a field with an underscore behind it; specs write it without.

Axis legend: T tokens of a row, D rotary dims.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longspan.model_info import Rope

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What training shows a model of positions. The defaults are those of rows in full length under the model's own
    frequencies. Wrong settings raise ValueError in `__post_init__`.

    `positions` and `rope` are called once a row, with two generators in the same state: whatever both draw first is the same
    for both. Seed, step and row alone decide that state, so a resumed run draws what an unbroken one would have.
    """

    def row_tokens(self, window_tokens: int, target_tokens: int) -> int:
        """T of a training row: the target (full length) or the trained window.

        Raises:
            ValueError: these settings cannot reach the target; the sentence says what can.
        """
        return target_tokens

    def positions(self, num_tokens: int, target_tokens: int, rng: np.random.Generator) -> np.ndarray:
        """Positions of a row's tokens, int64 `[num_tokens]`, increasing, below `target_tokens`."""
        return np.arange(num_tokens, dtype=np.int64)

    def rope(self, rope: Rope, target_tokens: int, rng: np.random.Generator) -> Rope:
        """Frequencies that the row is rotated with, made of the model's own `rope`; they may carry gradients."""
        return rope

    def module(self, rope: Rope) -> nn.Module | None:
        """Parameters of the scheme itself, or None. They are trained with the model's and saved beside it as
        `scheme.safetensors`. Asked for once a run, before any row: keep the module on the instance; `rope` and `spec` then go by its
        weights of the moment. It is moved to the device of `rope.inv_freq`."""
        return None

    def attention(self) -> str | None:
        """Name of the attention function, in transformers' `AttentionInterface`, that the model uses while it is trained;
        None for the model's own. Register it before returning its name."""
        return None

    def spec(self, rope: Rope, target_tokens: int) -> str:
        """The method spec that the trained model is run with at `target_tokens`, of one method that sets frequencies; "dense"
        for the model's own. `rope` is the base model's.

        Export writes the frequencies into the config where transformers has their type. Asked for before `module`, too: the
        spec of the untrained scheme must serve the model and reach the target."""
        return "dense"
