"""LLaDA's objective: tokens of a row are masked independently with probability t, and the masked ones are predicted.

    loss = E_t [ 1 / (t n) * sum over masked tokens of -log p(token | the row as masked) ],   t ~ U(0, 1]

with n the tokens of the row that may be masked: all of a text (pre-training), the answers of a task (fine-tuning).

Axis legend: B rows, T tokens of a row, M masked tokens of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOSS_TOKENS = 16_384


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """Rows with masks. given: int64 `[B, T]`. places: int64 `[M]`, of masked tokens in the flat rows; targets: int64 `[M]`, the
    tokens that stood there. weights: float32 `[M]`, 1 / (t n) of each one's row."""

    given: Tensor
    places: Tensor
    targets: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Corrupted:
        """The same on a device."""
        given, places, targets, weights = (
            to_device(part, device) for part in (self.given, self.places, self.targets, self.weights)
        )
        return Corrupted(given=given, places=places, targets=targets, weights=weights)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device; the host does not wait for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def draw_rates(rows: int, generator: torch.Generator, *, least: float) -> Tensor:
    """t of each row, float32 `[rows]` in [least, 1]: each uniform, together spread evenly, so that steps differ less."""
    strata = torch.randperm(rows, generator=generator) + torch.rand(rows, generator=generator)
    return (1 - strata / rows).clamp(min=least)


def corrupt(
    ids: Tensor, allowed: Tensor, rates: Tensor, *, mask_id: int, generator: torch.Generator
) -> Corrupted:
    """Mask each allowed token with its row's probability.

    Args:
        ids: int64 `[B, T]`. allowed: bool `[B, T]`; the first token of a row never is. rates: t, float32 `[B]`.
    """
    allowed = allowed & (ids != mask_id)
    allowed[:, 0] = False
    masked = allowed & (torch.rand(ids.shape, generator=generator) < rates[:, None])
    places = masked.flatten().nonzero()[:, 0]
    row_weights = 1 / (rates * allowed.sum(1).clamp(min=1))
    return Corrupted(
        given=ids.masked_fill(masked, mask_id),
        places=places,
        targets=ids.flatten()[places],
        weights=row_weights[places // ids.shape[1]],
    )


def masked_losses(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """-log p of each target, float32 `[M]`, from the hidden states `[M, hidden]` that predict them.

    In pieces that are computed again in backward, so that logits are never held for all tokens.
    """
    if not len(targets):
        return hidden.sum(-1).float()  # empty, and still part of the graph
    pieces = zip(hidden.split(LOSS_TOKENS), targets.split(LOSS_TOKENS), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_losses(part, head, wanted) for part, wanted in pieces])
    return torch.cat(
        [checkpoint(_losses, part, head, wanted, use_reentrant=False) for part, wanted in pieces]
    )


def _losses(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).float(), targets, reduction="none")
