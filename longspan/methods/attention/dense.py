"""The model's own attention: every query visits every key.

Equation: softmax(q k^T / sqrt(D)) v over all earlier tokens.

Paper: Attention Is All You Need (2017).

Differs from the paper: nothing; this is the baseline that the other methods are measured against.

Fails when: the text is longer than the window the model was trained on; time grows with the square of the length.

    model = longspan.load("reference", methods="dense")
    model.read(text).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.roles import Method

CARD = {
    "title": "Attention Is All You Need",
    "year": 2017,
    "paper_id": None,
    "family": "attention",
    "roles": [],
    "phase": "both",
    "training": "none",
    "exact": True,
    "frees": "no",
    "needs": [],
    "claim": {
        "text": "within the window it was trained on, the model finds a hidden fact anywhere",
        "spec": "dense",
        "task": "niah_single_1",
        "length_tokens": 4096,
        "against": "dense",
        "at_least": 0.95,
    },
    "example": "dense",
    "identity": "dense",
    "tolerances": {},
}


@dataclass(frozen=True, kw_only=True)
class Dense(Method):
    """Changes nothing, so it combines with everything."""
