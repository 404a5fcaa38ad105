"""From keys and values of slots and new tokens to those of the slots alone: which stay, and how the rest is blended.

All of one layer, of one text: K kv heads, S slots and tokens in their order, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("down", "conv", "bias", "slots", "share")


@dataclass(frozen=True, kw_only=True)
class LayerKernels:
    """The trained part of one layer, each head its own.

    Args:
        down: `[K, 2D, R]`, keys and values side by side to R channels.
        conv: `[K, R, R, W]`, the convolution over the sequence, W odd.
        bias: `[K, R]`.
        slots: `[K, P, R]`, the weights that make a slot's logits of the R channels, at P places from the first slot to the
            last; those between are interpolated, so that they serve any number of slots.
        share: `[K]`, how much of a slot is blended; the rest is its own token.
    """

    down: Tensor
    conv: Tensor
    bias: Tensor
    slots: Tensor
    share: Tensor

    def to(self, device: torch.device) -> LayerKernels:
        """In float32, on a device."""
        return LayerKernels(**{name: getattr(self, name).to(device, torch.float32) for name in NAMES})


def check_shares(heavy: float, local: float) -> None:
    """Raise ValueError where slots cannot be shared out so."""
    if not 0 <= local <= heavy < 1:
        raise ValueError(
            f"got heavy={heavy:g}, local={local:g}; allowed are shares of the slots with 0 <= local <= heavy < 1, such as 0.5 and 0.25"
        )


def start_kernels(
    num_kv_heads: int, head_dim: int, *, rank: int, width: int, places: int = 16, seed: int = 0
) -> LayerKernels:
    """Before training: all weights of a slot are equal, and half of it is blended."""
    make = torch.Generator().manual_seed(seed)
    return LayerKernels(
        down=torch.randn(num_kv_heads, 2 * head_dim, rank, generator=make) / (2 * head_dim) ** 0.5,
        conv=torch.randn(num_kv_heads, rank, rank, width, generator=make) / (rank * width) ** 0.5,
        bias=torch.zeros(num_kv_heads, rank),
        slots=torch.zeros(num_kv_heads, places, rank),
        share=torch.full((num_kv_heads,), 0.5),
    )


def choose(received: Tensor, slots: int, heavy: int, local: int) -> tuple[Tensor, Tensor]:
    """Places `[K, heavy]` that stay as they are and `[K, slots - heavy]` that blends stand at, both ascending.

    received: `[K, S]`, attention that each got; the last `local` stay whatever they got.
    """
    ranked = received.clone()
    if local:
        ranked[:, -local:] = torch.inf
    order = ranked.topk(slots, dim=1).indices
    return order[:, :heavy].sort(dim=1).values, order[:, heavy:].sort(dim=1).values


def slot_weights(features: Tensor, anchors: Tensor, kernels: LayerKernels | None) -> Tensor:
    """Weights `[K, m, N]` by which each of m slots blends N keys and values; each row sums to 1.

    Args:
        features: `[K, N, 2D]`, keys and values side by side.
        anchors: `[K, m]`, the slots' own tokens among them.
        kernels: None for equal weights and a share of a half.
    """
    heads, num_tokens, _ = features.shape
    own = features.new_zeros(heads, anchors.shape[1], num_tokens).scatter_(2, anchors[..., None], 1.0)
    if kernels is None:
        return own / 2 + 0.5 / num_tokens
    channels = (features @ kernels.down).mT.reshape(1, -1, num_tokens)
    width = kernels.conv.shape[-1]
    seen = F.conv1d(
        channels, kernels.conv.flatten(0, 1), kernels.bias.flatten(), padding=width // 2, groups=heads
    )
    slots = F.interpolate(kernels.slots.mT, anchors.shape[1], mode="linear", align_corners=True).mT
    logits = slots @ seen.view(heads, -1, num_tokens).relu()
    share = kernels.share[:, None, None]
    return own * (1 - share) + logits.softmax(dim=2) * share


def compress(
    keys: Tensor,
    values: Tensor,
    received: Tensor,
    kernels: LayerKernels | None,
    *,
    slots: int,
    heavy: float,
    local: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Places `[K, slots]` and the keys and values `[K, slots, D]` that stand there from now on.

    Args:
        keys, values: float32 `[K, S, D]`, keys rotated.
        received: `[K, S]`.
        slots: fewer than S.
        heavy: share of them that stay as they are.
        local: share of them that are the latest, among these.
    """
    stay, anchors = choose(received, slots, slots - max(1, int(slots * (1 - heavy))), int(slots * local))
    places = torch.cat((stay, anchors), dim=1)
    rest = torch.ones_like(received, dtype=torch.bool).scatter_(1, stay, False)
    others = rest.nonzero()[:, 1].view(len(keys), -1)
    rank = rest.cumsum(dim=1) - 1  # a place among all, as one among the rest
    pair = torch.cat((keys, values), dim=2)
    features = _at(pair, others)
    weights = slot_weights(features, rank.gather(1, anchors), kernels)
    made = torch.cat((_at(pair, stay), weights @ features), dim=1)
    places, order = places.sort(dim=1)
    new_keys, new_values = _at(made, order).chunk(2, dim=2)
    return places, new_keys, new_values


def _at(x: Tensor, places: Tensor) -> Tensor:
    """`[K, n, C]` of `[K, S, C]`, at places `[K, n]`."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
