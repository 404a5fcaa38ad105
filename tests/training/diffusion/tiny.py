"""A tiny denoiser."""

from __future__ import annotations

from typing import Any

from longspan.training.diffusion.denoiser import Denoiser, load_causal, make_denoiser
from tests.models import word_tokenizer
from tests.training.tiny import tiny_model


def tiny_denoiser(*, shift: bool = True, **model: Any) -> Denoiser:
    return make_denoiser(load_causal(tiny_model(**model), tokenizer=word_tokenizer()), shift=shift)
