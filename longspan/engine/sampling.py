"""Choosing the next token: greedy, or nucleus sampling by transformers' own logits processors."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from longspan.errors import UserInputError


class Sampler:
    """Settings are checked here. `next` takes logits `[V]`."""

    def __init__(self, *, temperature: float, top_p: float, seed: int, max_new_tokens: int) -> None:
        for name, value, least in (("max_new_tokens", max_new_tokens, 1), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise UserInputError(f"got {name}={value!r}; allowed is a whole number of {least} or more")
        if not 0 <= temperature < math.inf:
            raise UserInputError(f"got temperature={temperature}; allowed is 0 (greedy) or more")
        if not 0 < top_p <= 1:
            raise UserInputError(f"got top_p={top_p}; allowed is above 0 and up to 1")
        self.max_new_tokens = max_new_tokens
        self.greedy = temperature == 0
        self.warpers = LogitsProcessorList()
        if not self.greedy:
            self.warpers.append(TemperatureLogitsWarper(temperature))
            if top_p < 1:
                self.warpers.append(TopPLogitsWarper(top_p))
        self.generator = torch.Generator().manual_seed(seed)

    def next(self, logits: Tensor) -> int:
        if self.greedy:
            return int(logits.argmax())
        warped = self.warpers(torch.zeros(1, 1, dtype=torch.long), logits[None].cpu())
        return int(torch.multinomial(torch.softmax(warped[0], -1), 1, generator=self.generator))
