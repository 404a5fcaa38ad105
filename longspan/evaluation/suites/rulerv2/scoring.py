"""What RULERv2 makes of an answer: thoughts and what stands before "Answer:" are dropped, then soft matches."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import soft_match_all, soft_match_part, soft_match_two_steps
from longspan.evaluation.task import Sample

__all__ = ["copied", "copied_last", "copied_or_answered", "random_letter"]


def _final(prediction: str) -> str:
    """What follows the last "</think>", and in it the last "Answer:"."""
    return prediction.rsplit("</think>", 1)[-1].rsplit("Answer:", 1)[-1].strip()


def copied(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Mean over the references: 1 where it stands in the answer, else 1 - word error rate. Official match type "all"."""
    return soft_match_all(_final(prediction), references, details)


def copied_last(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """`copied` of the last paragraph alone. Official match type "2steps"."""
    return soft_match_two_steps(_final(prediction), references, details)


def copied_or_answered(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Best of the references, documents copied into the answer dropped. Official match type "part"."""
    return soft_match_part(_final(prediction), references, details)


def random_letter(rng: random.Random, sample: Sample) -> str:
    """A choice made without having seen the question."""
    return rf"\boxed{{{rng.choice('ABCD')}}}"
