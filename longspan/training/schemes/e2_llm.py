"""E2-LLM: rows of the trained window under a scale and an offset of positions drawn anew for each, one training for all lengths.

Equation: for a row of R tokens (the window), with g uniform in 1 .. G and t uniform in 0 .. (g - 1) R,

    theta' = theta / g,    position of token i = i        for i < 4
                                                 i + t    for i >= 4

where G = L' / R, rounded up, for a target of L' tokens. Run with linear interpolation by s = L' / R: the model has seen
positions as dense as that, at all offsets that interpolation brings into the trained range.

Paper: E^2-LLM: Efficient and Extreme Length Extension of Large Language Models (2024).

Differs from the paper: perhaps in the bound on t, of which its text could not be checked here: ours keeps every
interpolated position of the row within the trained range, whatever g. The first four tokens keep their positions, as
attention leans on them, and g is a whole number with even chances; the paper's largest, about 20, is for 80K from 4K.

Fails when: as pose does, and where much of the training goes to densities that are not needed: one length is better
served by pose or full with its own factor.

    longspan train extend reference --scheme 'e2_llm()' --length 16384 --text books/ --out run/
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from longspan.model_info import Rope
from longspan.training.scheme import Scheme

CARD = {
    "title": "E^2-LLM: Efficient and Extreme Length Extension of Large Language Models",
    "year": 2024,
    "paper_id": 64,
    "trains": "on rows of the trained window, with a density and an offset of positions drawn for each",
}


@dataclass(frozen=True, kw_only=True)
class E2Llm(Scheme):
    """Settings of E2-LLM."""

    max_scale: int | None = None  # G; by default the target over the window, rounded up
    fixed_tokens: int = 4  # first tokens that no offset moves; the paper's

    def __post_init__(self) -> None:
        if self.max_scale is not None and self.max_scale < 2:
            raise ValueError(
                f"got max_scale={self.max_scale}; allowed is 2 or more, or none for the target's own"
            )
        if self.fixed_tokens < 0:
            raise ValueError(f"got fixed_tokens={self.fixed_tokens}; allowed is 0 or more (the paper: 4)")

    def row_tokens(self, window_tokens: int, target_tokens: int) -> int:
        """The trained window."""
        needed = -(-target_tokens // window_tokens)
        if self.max_scale is not None and self.max_scale < needed:
            raise ValueError(
                f"e2_llm(max_scale={self.max_scale}) reaches {self.max_scale * window_tokens:,} tokens, and the target "
                f"is {target_tokens:,}; give max_scale={needed} or more, or leave it out"
            )
        return window_tokens

    def positions(self, num_tokens: int, target_tokens: int, rng: np.random.Generator) -> np.ndarray:
        """int64 `[num_tokens]`, moved by t behind the fixed tokens."""
        scale = self._draw_scale(num_tokens, target_tokens, rng)
        farthest = min((scale - 1) * num_tokens, target_tokens - num_tokens)
        places = np.arange(num_tokens, dtype=np.int64)
        places[self.fixed_tokens :] += int(rng.integers(0, farthest + 1))
        return places

    def rope(self, rope: Rope, target_tokens: int, rng: np.random.Generator) -> Rope:
        """Frequencies over the same g as the row's positions: it is the first thing drawn there too."""
        scale = self._draw_scale(rope.window_tokens, target_tokens, rng)
        return rope if scale == 1 else replace(rope, inv_freq=rope.inv_freq / scale)

    def spec(self, rope: Rope, target_tokens: int) -> str:
        """Linear interpolation by the target over the window."""
        return f"pi(factor={target_tokens / rope.window_tokens!r})"

    def _draw_scale(self, window_tokens: int, target_tokens: int, rng: np.random.Generator) -> int:
        largest = self.max_scale or -(-target_tokens // window_tokens)
        return int(rng.integers(1, largest + 1))
