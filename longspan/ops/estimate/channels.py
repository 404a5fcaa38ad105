"""Scores of tokens from a few channels of queries and keys, as Double Sparsity takes them.

Few channels carry most of q . k. Their parts of the keys, `label_keys`, are stored beside the keys, `head_dim /
num_channels` times smaller, and

    q . k  ~  sum over the chosen channels of q_c k_c

is read from them alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.estimate.pages import Reduce, page_scores


def label_channels(keys_BKSD: Tensor, num_channels: int, *, q_BHTD: Tensor | None = None) -> Tensor:
    """The channels of every kv head that weigh most, by the mean size of what they add to a score.

    Args:
        keys_BKSD: keys to choose by; all batch items choose together.
        num_channels: 1 to D.
        q_BHTD: queries to choose by too: a channel weighs mean |k_c| times mean |q_c|; None: mean |k_c| alone.

    Returns:
        int32 `[K, num_channels]`, ascending.

    Raises:
        ValueError: for shapes or sizes that do not fit.
    """
    K, D = keys_BKSD.shape[1], keys_BKSD.shape[3]
    if not 1 <= num_channels <= D:
        raise ValueError(f"got num_channels={num_channels}; allowed is 1 to the head dimension, {D}")
    weight = keys_BKSD.abs().mean((0, 2), dtype=torch.float32)
    if q_BHTD is not None:
        if q_BHTD.dim() != 4 or q_BHTD.shape[1] % K or q_BHTD.shape[3] != D:
            raise ValueError(
                f"got q {list(q_BHTD.shape)} for keys {list(keys_BKSD.shape)}; allowed is [B, H, T, {D}] with H a multiple of {K}"
            )
        weight = weight * q_BHTD.abs().mean((0, 2), dtype=torch.float32).unflatten(0, (K, -1)).mean(1)
    return weight.topk(num_channels, dim=-1).indices.sort(dim=-1).values.to(torch.int32)


def label_keys(keys_BKSD: Tensor, channels_KC: Tensor) -> Tensor:
    """The chosen channels of keys, `[B, K, S, C]`, contiguous: what is stored beside the keys."""
    B, K, S = keys_BKSD.shape[:3]
    _check_channels(channels_KC, K)
    index = channels_KC.long()[None, :, None].expand(B, K, S, -1)
    return keys_BKSD.gather(-1, index)


def channel_scores(
    q_BHTD: Tensor,
    labels_BKSC: Tensor,
    channels_KC: Tensor,
    *,
    scale: float = 1.0,
    reduce: Reduce = "max",
    per_head: bool = False,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Scores of single tokens from the chosen channels.

    Args:
        q_BHTD: whole queries.
        labels_BKSC: from `label_keys`; dtype of q.
        channels_KC: from `label_channels`.
        scale, reduce, per_head, lengths, backend: as of `page_scores`, a token for a page.

    Returns:
        float32 `[B, K, S]`, or `[B, H, S]` per head.

    Raises:
        ValueError: for shapes, dtypes or settings that do not fit.
    """
    K = labels_BKSC.shape[1]
    _check_channels(channels_KC, K)
    B, H, T = q_BHTD.shape[:3]
    if H % K or channels_KC.shape[1] != labels_BKSC.shape[3]:
        raise ValueError(
            f"got q {list(q_BHTD.shape)}, labels {list(labels_BKSC.shape)}, channels {list(channels_KC.shape)}; "
            "allowed are [B, H, T, D], [B, K, S, C] and [K, C] with H a multiple of K"
        )
    index = channels_KC.long().repeat_interleave(H // K, dim=0, output_size=H)
    chosen = q_BHTD.gather(-1, index[None, :, None].expand(B, H, T, -1))
    return page_scores(
        chosen,
        labels_BKSC,
        kind="mean",
        scale=scale,
        reduce=reduce,
        per_head=per_head,
        lengths=lengths,
        backend=backend,
    )


def _check_channels(channels_KC: Tensor, K: int) -> None:
    if channels_KC.dim() != 2 or channels_KC.shape[0] != K or channels_KC.dtype != torch.int32:
        raise ValueError(
            f"got channels {list(channels_KC.shape)} of {channels_KC.dtype}; allowed is [{K}, C] of torch.int32, as "
            "label_channels gives them"
        )
