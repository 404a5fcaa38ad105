"""NoCha's claims in one answer: both verdicts of a pair must be right.

Paper: Karpinska et al., *One Thousand and One Pairs: A "novel" challenge for long-context language models*, 2024.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["both_claims"]

NUM_CLAIMS = 2


def both_claims(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """1.0 if the two verdicts of the answer are the references, in their order; "claims": the part of them that is right.

    Verdicts stand in <answer>TRUE</answer>, one for each claim; without the tag, the last two of "true" and "false" count.

    Args:
        references: the verdict on the first claim, and on the second.
    """
    if len(references) != NUM_CLAIMS:
        raise ValueError(f"got {len(references)} references; a pair of claims has {NUM_CLAIMS} verdicts")
    tagged = re.findall(r"<answer>\s*(true|false)\b", prediction, re.IGNORECASE)
    found = tagged or re.findall(r"\b(true|false)\b", prediction, re.IGNORECASE)
    verdicts = [word.lower() for word in found[-NUM_CLAIMS:]]
    right = [one == other.strip().lower() for one, other in zip(verdicts, references, strict=False)]
    return {
        "score": float(len(verdicts) == NUM_CLAIMS and all(right)),
        "claims": sum(right) / NUM_CLAIMS if len(verdicts) == NUM_CLAIMS else 0.0,
    }
