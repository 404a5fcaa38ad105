"""Power basis: slow frequencies down, by a power of their place, the slow ones more than the fast ones.

Equation: theta_i' = theta_i * (1 - 2 i / d)^k for i = 0 .. d/2 - 1, with k = `power` and d rotary dims. The
fastest frequency stays, the one in the middle is multiplied by 2^-k, the slowest by (2 / d)^k: far tokens
come closer together, and the model has less to extrapolate where it never saw a full turn.

Paper: Giraffe: Adventures in Expanding Context Lengths in LLMs (2023).

Differs from the paper: nothing; i counts from 0, as in the authors' code, so that no frequency becomes 0. The
paper fine-tunes LLaMA-13B with it, on RedPajama documents of 4,096 tokens, then on Vicuna's instructions,
which is up to you: give the fine-tuned model the power it was tuned with.

Which power for which length: the paper's 0.5 serves the reference model up to twice its window without any
training, 1 up to four times.

Fails when: the power is too low for the length, or far from 0 without fine-tuning: unlike ntk, it also slows
frequencies that turn many times within the window, and near tokens lose their places. The paper finds it the
best of its bases on shorter texts, and the first to fall as they grow.

    model = longspan.load("reference", methods="power_basis(power=0.5)")
    model.read(text_of_8192_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from longspan.methods.positions._scaling import check_rotary, check_several
from longspan.roles import ModelInfo, Positions, Rope

CARD = {
    "title": "Giraffe: Adventures in Expanding Context Lengths in LLMs",
    "year": 2023,
    "paper_id": 58,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "none",
    "exact": "at power=0 only",
    "frees": "no",
    "needs": [
        "rotary positions that the model does not scale itself",
        "fine-tuning for powers far from 0 (the paper: LLaMA-13B on texts of 4,096 tokens)",
    ],
    "claim": {
        "text": "with slow frequencies slowed further the model finds a hidden fact at twice its window, where as "
        "it is it fails (the paper: after fine-tuning; here without)",
        "spec": "power_basis()",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "reach": {
            16384: "power_basis(power=1)",
            32768: "power_basis(power=1)",
            65536: "power_basis(power=1)",
        },
        "against": "dense",
        "margin": 0.5,
    },
    "tolerances": {},
    "example": "power_basis()",
    "identity": "power_basis(power=0)",
}
MAX_POWER = 10.0  # slows the slowest frequency of a head of 128 dims by 64^10


@dataclass(frozen=True, kw_only=True)
class PowerBasis(Positions):
    """Settings of the power basis."""

    power: float = 0.5  # k, the authors' experiments

    def __post_init__(self) -> None:
        if not 0 <= self.power <= MAX_POWER:
            raise ValueError(
                f"got power={self.power:g}; allowed is 0 (no change) to {MAX_POWER:g}, such as power=0.5"
            )

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions."""
        check_rotary("power_basis", model)
        check_several("power_basis", model)

    def rope(self, rope: Rope) -> Rope:
        """Each frequency times a power of its place."""
        if self.power == 0:
            return rope
        place = torch.arange(0, rope.rotary_dims, 2, device=rope.inv_freq.device) / rope.rotary_dims
        return replace(rope, inv_freq=rope.inv_freq * (1 - place) ** self.power)
