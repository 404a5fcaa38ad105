"""CLEX: rows of the trained window at positions and frequencies of a longer one, drawn anew for each row, and a small network,
trained with the model, that says how frequencies flow from one length to the next.

Equation: for a row of L tokens (the window), with t a whole number, uniform in 1 .. G, G = L' / L rounded up for a target
of L' tokens,

    theta' = exp z(t),      dz/dt = SiLU((z + n(t)) W_up) W_down + dn/dt,      z(1) = ln theta
    positions: 0, t L - 1 and L - 2 of those between, drawn without repetition, in order

(the method clex says what n is, and how it is solved). W_up, W_down are the scheme's own parameters; W_down starts at 0,
which is ntk at the factor 2t - 1, and t = 1 is the model as it was. The trained model is run at t = G.

Paper: CLEX: Continuous Length Extrapolation for Large Language Models (2023).

Differs from the paper: equation, positions and first weights are those of the authors' code, as the paper's text could not be
checked here. t is drawn for each row, there for each forward. Rows are of the trained window; the authors also train on longer
ones, with positions between the whole numbers. The last position is L' - 1 where t L is beyond the target.

Fails when: as pose does. The exported spec has the frequencies of the target at every length; those of each length, as in the
paper, come with the method's weights='.../scheme.safetensors'.

    longspan train extend reference --scheme 'clex()' --length 16384 --text books/ --out run/
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from longspan.methods.positions.clex import Clex as ClexMethod
from longspan.methods.positions.clex import solve
from longspan.model_info import Rope
from longspan.spec import canonical
from longspan.training.scheme import Scheme

CARD = {
    "title": "CLEX: Continuous Length Extrapolation for Large Language Models",
    "year": 2023,
    "paper_id": 112,
    "trains": "on rows of the trained window, with a length, positions within it and learned frequencies for each",
}


class FrequencyFlow(nn.Module):
    """The network of CLEX: `up` `[d/2, lambda d]` and `down` `[lambda d, d/2]`, float32."""

    def __init__(self, pairs: int, amplification: int) -> None:
        super().__init__()
        width = amplification * 2 * pairs
        start = torch.empty(pairs, width).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
        self.up = nn.Parameter(start / math.sqrt(width))
        self.down = nn.Parameter(torch.zeros(width, pairs))

    def forward(self, inv_freq: torch.Tensor, factor: float) -> torch.Tensor:
        """Frequencies at `factor`, with gradients."""
        return solve(inv_freq, factor, (self.up, self.down))


@dataclass(frozen=True, kw_only=True)
class Clex(Scheme):
    """Settings of CLEX."""

    amplification: int = 1  # lambda, width of the network over rotary dims; the authors' code
    _flow: FrequencyFlow | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.amplification < 1:
            raise ValueError(f"got amplification={self.amplification}; allowed is 1 or more (the authors: 1)")

    def row_tokens(self, window_tokens: int, target_tokens: int) -> int:
        """The trained window."""
        return window_tokens

    def positions(self, num_tokens: int, target_tokens: int, rng: np.random.Generator) -> np.ndarray:
        """int64 `[num_tokens]`, spread over t windows."""
        last = min(_draw_factor(num_tokens, target_tokens, rng) * num_tokens, target_tokens) - 1
        if num_tokens < 3 or last < num_tokens:
            return np.arange(num_tokens, dtype=np.int64)
        between = 1 + np.sort(rng.choice(last - 1, num_tokens - 2, replace=False, shuffle=False))
        return np.concatenate([[0], between, [last]]).astype(np.int64)

    def rope(self, rope: Rope, target_tokens: int, rng: np.random.Generator) -> Rope:
        """Frequencies at the t of the row's positions: it is the first thing drawn there too."""
        factor = _draw_factor(rope.window_tokens, target_tokens, rng)
        return rope if factor == 1 else replace(rope, inv_freq=self._at(rope, factor))

    def module(self, rope: Rope) -> nn.Module | None:
        """The network; `rope` and `spec` use it from then on."""
        pairs = rope.rotary_dims // 2
        if self._flow is None or self._flow.up.shape[0] != pairs:
            object.__setattr__(self, "_flow", FrequencyFlow(pairs, self.amplification))
        return self._flow

    def spec(self, rope: Rope, target_tokens: int) -> str:
        """The method with the frequencies of the target's t: asked for before a file of the weights is there to be named."""
        with torch.no_grad():
            found = self._at(rope, -(-target_tokens // rope.window_tokens))
        return canonical(ClexMethod(frequencies=tuple(float(f"{value:.9g}") for value in found.tolist())))

    def _at(self, rope: Rope, factor: int) -> torch.Tensor:
        if self._flow is None:
            return solve(rope.inv_freq, factor, None)
        found: torch.Tensor = self._flow(rope.inv_freq.to(self._flow.up.device), factor)
        return found


def _draw_factor(window_tokens: int, target_tokens: int, rng: np.random.Generator) -> int:
    return int(rng.integers(1, -(-target_tokens // window_tokens) + 1))
