"""LLaDA's Monte-Carlo bound on a text's negative log-likelihood.

    -log p(text) <= E_l [ L / l * sum over l masked tokens of -log p(token | the text as masked) ],   l ~ U{1, ..., L}

with exactly l of the L tokens masked, which varies less than masking each with probability t. The draws of l are spread evenly over
1 to L, and seeds decide them, so a text's figure is the same wherever it is computed. Of a part of the text, each draw gives the
mean over its masked tokens there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.training.diffusion.denoiser import Denoiser
from longspan.training.diffusion.objective import masked_losses


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Draws of an upper bound on the negative log-likelihood of B texts, K draws each, T tokens.

    losses: float64 `[B, K, T]`, -log p of each masked token, 0 elsewhere. masked: bool `[B, K, T]`.
    """

    losses: Tensor
    masked: Tensor

    def rows(self, start: int = 0) -> Tensor:
        """Nats a token of each text over places from `start` on, float64 `[B]`; draws without a mask there do not count."""
        counts = self.masked[..., start:].sum(-1)
        means = self.losses[..., start:].sum(-1) / counts.clamp(min=1)
        return means.sum(1) / (counts > 0).sum(1)

    def mean(self, start: int = 0) -> float:
        """The same, of all texts together."""
        return float(self.rows(start).mean())


@torch.no_grad()
def bound(
    denoiser: Denoiser, ids: Tensor, *, samples: int = 8, seed: int = 0, batch_tokens: int = 262_144
) -> Bound:
    """The bound of texts `ids`, int64 `[B, T]`, whose first token is given. samples: draws of l for each text, K."""
    B, T = ids.shape
    masked = _draws(B, T, samples, seed)
    targets = ids.cpu().repeat_interleave(samples, 0)
    found = torch.zeros(B * samples, T, dtype=torch.float64)
    rows = max(1, batch_tokens // T)
    for first in range(0, len(found), rows):
        part = slice(first, first + rows)
        places = masked[part].flatten().nonzero()[:, 0]
        given = targets[part].masked_fill(masked[part], denoiser.mask_id).to(denoiser.device)
        wanted = targets[part].flatten()[places].to(denoiser.device)
        with denoiser.computing():
            hidden = denoiser.hidden_at(given, places.to(denoiser.device))
            losses = masked_losses(hidden, denoiser.head, wanted)
        found[part].view(-1)[places] = losses.double().cpu()
    return Bound(losses=found.view(B, samples, T), masked=masked.view(B, samples, T))


def _draws(texts: int, tokens: int, samples: int, seed: int) -> Tensor:
    """Which places are masked, bool `[texts * samples, tokens]`; never the first."""
    free = tokens - 1
    masked = torch.zeros(texts * samples, tokens, dtype=torch.bool)
    for text in range(texts):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + text)
        for sample in range(samples):
            part = (sample + float(torch.rand((), generator=generator))) / samples
            count = min(free, 1 + int(part * free))
            masked[text * samples + sample, 1 + torch.randperm(free, generator=generator)[:count]] = True
    return masked
