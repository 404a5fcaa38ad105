"""The readable twin: index the pages on the host, then copy."""

from __future__ import annotations

import torch
from torch import Tensor


def naive_fetch(pages: Tensor, index_BKN: Tensor, num_held: int) -> tuple[Tensor, Tensor]:
    """Keys and values `[B, K, N * page_tokens, D]` on the index's device, of pages `[B, K, P, 2, page_tokens, D]` in host
    memory; zeros for entries outside `[0, num_held)`. Waits for the index."""
    B, K, _, _, _, D = pages.shape
    index = index_BKN.cpu().long()
    inside = (index >= 0) & (index < num_held)
    batch, head = torch.arange(B)[:, None, None], torch.arange(K)[None, :, None]
    taken = pages[batch, head, torch.where(inside, index, 0)]
    taken = torch.where(inside[..., None, None, None], taken, 0).to(index_BKN.device)
    keys, values = taken.unbind(dim=3)
    return keys.reshape(B, K, -1, D), values.reshape(B, K, -1, D)
