"""Rows in full length, under frequencies of a position method: what most published recipes come down to.

Equation: a row of L' tokens (the target) at positions 0 .. L' - 1, rotated with theta' of the method that `positions` names;
next-token loss.

Paper: Extending Context Window of Large Language Models via Position Interpolation (2023), with positions="pi(factor=s)"; with
"yarn(factor=s)" it is YaRN's recipe and, in one step to the target, UltraLong's; with "abf(theta=b)" continual training
with a raised base (Effective Long-Context Scaling); with "ntk(factor=s)", "power_basis()" or "truncated_basis()" rows of the
Controlled Study and of Giraffe; with the embeddings trained beside LoRA, the recipe of Extending Llama-3's Context
Ten-Fold Overnight.

Differs from the papers: data, number of steps and learning rate are the user's, the same for every scheme.

Fails when: memory or time do not allow rows of the target's length; pose and e2_llm train on the window's.

    longspan train extend reference --scheme 'full(positions="yarn(factor=4)")' --length 16384 --text books/ --out run/
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.training.schemes._frequencies import FrequencyScheme

CARD = {
    "title": "Extending Context Window of Large Language Models via Position Interpolation",
    "year": 2023,
    "paper_id": None,
    "trains": "on rows of the target's length, all positions in order",
}


@dataclass(frozen=True, kw_only=True)
class Full(FrequencyScheme):
    """Settings of training in full length."""
