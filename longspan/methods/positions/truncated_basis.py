"""Truncated basis: keep the frequencies that turn fully within the trained window, stop or unify the others.

Equation: theta_i' = theta_i        where theta_i >= b
                     rho            where a < theta_i < b
                     0              where theta_i <= a

with b = 2 pi / L (L the trained window: one full turn in it), a = b / 8 and rho = b / 16. The model has seen
every angle of the frequencies that stay, so longer texts bring it no new ones; rho, slow and shared, still
tells far from near.

Paper: Giraffe: Adventures in Expanding Context Lengths in LLMs (2023).

Differs from the paper: nothing in the formula; a and rho as fractions of b are the authors' code's. The paper
fine-tunes LLaMA-13B with it, on RedPajama documents of 4,096 tokens, then on Vicuna's instructions, which is
up to you: give the fine-tuned model the settings it was tuned with.

Fails when: the model is not fine-tuned and relies on the frequencies that change: texts within the window are
read worse, too. The paper itself finds good perplexity, and worse retrieval than linear interpolation.

    model = longspan.load("reference", methods="truncated_basis()")
    model.read(text_of_8192_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from longspan.methods.positions._scaling import check_rotary, check_window
from longspan.roles import ModelInfo, Positions, Rope

CARD = {
    "title": "Giraffe: Adventures in Expanding Context Lengths in LLMs",
    "year": 2023,
    "paper_id": 58,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "none",
    "exact": "where no frequency turns less than once in window_tokens",
    "frees": "no",
    "needs": [
        "rotary positions that the model does not scale itself",
        "fine-tuning with these frequencies, for all they are worth (the paper: on texts of 4,096 tokens)",
    ],
    "claim": {
        "text": "kept to angles that it has seen, the model finds a hidden fact at twice its window, where as it is "
        "it fails (the paper: after fine-tuning; here without)",
        "spec": "truncated_basis()",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "against": "dense",
        "margin": 0.5,
    },
    "tolerances": {},
    "example": "truncated_basis(window_tokens=256)",
    "identity": "truncated_basis(window_tokens=2000000)",
}


@dataclass(frozen=True, kw_only=True)
class TruncatedBasis(Positions):
    """Settings of the truncated basis."""

    window_tokens: int | None = None  # L, b is one turn in it; by default the trained window
    zero_below: float = 8.0  # b / a: so many times slower than b, frequencies stop; the authors' code
    rho_below: float = 16.0  # b / rho, how much slower than b those between a and b turn; the authors' code

    def __post_init__(self) -> None:
        check_window(self.window_tokens)
        for name in ("zero_below", "rho_below"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 1):
                raise ValueError(
                    f"got {name}={value:g}; it divides the cutoff frequency, and allowed is 1 or more "
                    "(8 and 16 in the authors' code)"
                )

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions."""
        check_rotary("truncated_basis", model)

    def rope(self, rope: Rope) -> Rope:
        """Fast frequencies as they are, slower ones at rho, the slowest at zero."""
        cutoff = 2 * math.pi / (self.window_tokens or rope.window_tokens)
        kept = rope.inv_freq >= cutoff
        if bool(kept.all()):
            return rope
        slow = (rope.inv_freq > cutoff / self.zero_below) * (cutoff / self.rho_below)
        return replace(rope, inv_freq=rope.inv_freq.where(kept, slow))
