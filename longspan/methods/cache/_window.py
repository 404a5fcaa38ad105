"""The last queries that a layer saw, remembered over chunks, for methods that let them look back once a text is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from longspan.roles import Step


def remember_last(step: Step, num_tokens: int) -> None:
    """Keep the last `num_tokens` queries `[B, h, n, D]` and their positions `[B, n]` as `queries` and `positions` of the state."""
    for name, new, dim in (("queries", step.queries, 2), ("positions", step.query_positions, 1)):
        last = new.narrow(dim, max(0, new.shape[dim] - num_tokens), min(num_tokens, new.shape[dim]))
        if name in step.state and last.shape[dim] < num_tokens:
            last = torch.cat((step.state[name], last), dim)
            last = last.narrow(dim, max(0, last.shape[dim] - num_tokens), min(num_tokens, last.shape[dim]))
        step.state[name] = last.detach().clone()  # not a view, which would keep the whole chunk alive
