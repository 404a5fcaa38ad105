"""PoSE, positional skip-wise training: rows of the trained window whose second part stands far behind the first.

Equation: a row of L tokens (the window) is cut behind its first l tokens, l uniform in 1 .. ceil(L / 2), and with L' the target

    position of token i = i          for i < l
                          i + u      for i >= l,      u uniform in 0 .. L' - L

so that distances up to the target are seen at the cost of the window. Frequencies as in `full`: the paper trains under
linear interpolation, NTK or YaRN.

Paper: PoSE: Efficient Context Window Extension of LLMs via Positional Skip-wise Training (2023).

Differs from the paper: the tokens of a row follow one another in the text (v_i = 0 in its terms); its code takes the second
part from further on in the document. l is drawn as there. The paper also tries more than two parts.

Fails when: the model must learn to attend over a text that is full of tokens: a row never holds more than the window.

    longspan train extend reference --scheme 'pose(positions="yarn(factor=4)")' --length 16384 --text books/ --out run/
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longspan.training.schemes._frequencies import FrequencyScheme

CARD = {
    "title": "PoSE: Efficient Context Window Extension of LLMs via Positional Skip-wise Training",
    "year": 2023,
    "paper_id": None,
    "trains": "on rows of the trained window, with one skip of positions in each",
}


@dataclass(frozen=True, kw_only=True)
class Pose(FrequencyScheme):
    """Settings of PoSE."""

    def row_tokens(self, window_tokens: int, target_tokens: int) -> int:
        """The trained window."""
        return window_tokens

    def positions(self, num_tokens: int, target_tokens: int, rng: np.random.Generator) -> np.ndarray:
        """int64 `[num_tokens]`, one skip behind the first part."""
        first = int(rng.integers(1, (num_tokens + 1) // 2 + 1))
        skip = int(rng.integers(0, target_tokens - num_tokens + 1))
        places = np.arange(num_tokens, dtype=np.int64)
        places[first:] += skip
        return places
