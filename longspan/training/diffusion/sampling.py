"""LLaDA's reverse process: a block of masks becomes tokens, the surest first.

At every step all masks are predicted; the predictions of highest probability stay, the others are masked again ("low-confidence
remasking"). The last step leaves none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.errors import UserInputError
from longspan.training.diffusion.denoiser import Denoiser


@torch.no_grad()
def fill(
    denoiser: Denoiser, prompts: Tensor, *, block_tokens: int, steps: int, batch_tokens: int = 524_288
) -> Tensor:
    """Tokens of a block behind each prompt, int64 `[B, block_tokens]`; greedy, so the same prompts give the same.

    Args:
        prompts: int64 `[B, P]`, all of one length. steps: of the reverse process; block_tokens gives one token a step.
        batch_tokens: most tokens of one forward.

    Raises:
        ValueError: the steps are not from 1 to `block_tokens`, or the prompts have no token.
    """
    if not 1 <= steps <= block_tokens:
        raise UserInputError(
            f"got {steps} steps for a block of {block_tokens} tokens; allowed are 1 to {block_tokens}"
        )
    if prompts.shape[1] == 0:
        raise UserInputError("got prompts without a token; a block stands behind at least one")
    rows = max(1, batch_tokens // (prompts.shape[1] + block_tokens))
    parts = -(-len(prompts) // rows)
    return torch.cat([_fill(denoiser, part, block_tokens, steps) for part in prompts.chunk(parts)])


def _fill(denoiser: Denoiser, prompts: Tensor, block: int, steps: int) -> Tensor:
    rows, start = prompts.shape
    masks = torch.full((rows, block), denoiser.mask_id, dtype=torch.int64)
    ids = torch.cat([prompts.cpu(), masks], dim=1).to(denoiser.device)
    length = start + block
    places = torch.arange(start, length, device=ids.device) + length * torch.arange(
        rows, device=ids.device
    ).unsqueeze(1)
    for step in range(steps):
        count = block // steps + (step < block % steps)
        chances = denoiser.logits_at(ids, places.flatten()).softmax(-1).view(rows, block, -1)
        surest, tokens = chances.max(-1)
        surest = surest.masked_fill(ids[:, start:] != denoiser.mask_id, -1.0)
        chosen = surest.topk(count, dim=1).indices
        ids[:, start:].scatter_(1, chosen, tokens.gather(1, chosen))
    return ids[:, start:].cpu()
