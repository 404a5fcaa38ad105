"""LongRecipe: rows whose segments keep their inner order and stand apart by many drawn skips, up to the target.

Equation: a row of T tokens is cut into n segments; with L' the target, one slot for each is drawn without repetition from
0 .. L' - T + n - 1, in order, the first put at 0, and

    position of token i in segment k = i + slot_k - k          for i >= l
                                       i                       for i < l,      l uniform in 1 .. ceil(T / 2)

so every way of sharing the L' - T left-out positions among the gaps is as likely as another. Unlike pose, which skips once, a
row shows many distances at once; unlike positions drawn for each token, neighbours within a segment stay neighbours.
Frequencies as in `full`.

Paper: LongRecipe: Recipe for Efficient Long Context Generalization in Large Language Models (2024).

Differs from the paper: segments are the authors' sentences there, cut at their tokens; a scheme sees positions alone, so cuts
are drawn, as many as sentences of `segment_tokens` would have. Drawing of slots and the first l tokens in order are those of
the authors' code. Their rows are 0.3 of the target, more than the window (`share`). Impactful token analysis is left out: it
chooses which sentences of a text are kept, by a trained model's logits in the paper, and a scheme does not choose text. So are
replay of pretraining data and the merge with the base model at the end.

Fails when: as pose does: a row never holds more tokens than it has, however far apart they stand.

    longspan train extend reference --scheme 'long_recipe(positions="ntk(factor=8)")' --length 16384 --text books/ --out run/
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longspan.training.schemes._frequencies import FrequencyScheme

CARD = {
    "title": "LongRecipe: Recipe for Efficient Long Context Generalization in Large Language Models",
    "year": 2024,
    "paper_id": 265,
    "trains": "on rows of the trained window, with a skip of positions behind every segment",
}


@dataclass(frozen=True, kw_only=True)
class LongRecipe(FrequencyScheme):
    """Settings of LongRecipe."""

    segment_tokens: int = 24  # mean length of a segment; ours: about a sentence of English
    share: float | None = (
        None  # T over the target, at least the window (paper: 0.3); none for the window itself
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segment_tokens < 1:
            raise ValueError(
                f"got segment_tokens={self.segment_tokens}; allowed is 1 or more, such as 24, about a sentence"
            )
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(
                f"got share={self.share:g}; allowed is above 0 up to 1 (the paper: 0.3), or none"
            )

    def row_tokens(self, window_tokens: int, target_tokens: int) -> int:
        """The trained window, or `share` of the target where that is more."""
        return window_tokens if self.share is None else max(window_tokens, round(self.share * target_tokens))

    def positions(self, num_tokens: int, target_tokens: int, rng: np.random.Generator) -> np.ndarray:
        """int64 `[num_tokens]`, increasing by 1 but for a skip behind each segment."""
        first = int(rng.integers(1, (num_tokens + 1) // 2 + 1))
        count = max(1, round(num_tokens / self.segment_tokens))
        cuts = 1 + np.sort(rng.choice(num_tokens - 1, count - 1, replace=False, shuffle=False))
        slots = np.sort(rng.choice(target_tokens - num_tokens + count, count, replace=False, shuffle=False))
        slots[0] = 0
        places = np.arange(num_tokens, dtype=np.int64)
        segments = np.searchsorted(cuts, places, side="right")
        places += (slots - np.arange(count))[segments]
        places[:first] = np.arange(first)
        return places
