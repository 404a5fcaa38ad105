"""Clusters of keys: K-means of every head at once, scores of the clusters, and the tokens of those that are chosen.

For a context that many questions share, as in Squeezed Attention: the keys are clustered once, a question is compared with
the centroids, and the tokens of the best clusters are visited.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.ops.estimate.pages import Reduce, page_scores

DISTANCES_AT_ONCE = 2**27  # 512 MiB of float32; keys are assigned in slices of that size
SAMPLE_PER_CENTROID = 16  # keys among which a first centroid is drawn


@dataclass(frozen=True, kw_only=True)
class Centroids:
    """Clusters of the keys of every kv head.

    Args:
        means_BKCD: centroids, in the dtype of the keys; that of an empty cluster is a key or a former mean.
        order_BKS: int32, places of the tokens, those of a cluster side by side, ascending within it.
        starts_BKC: int32 `[B, K, C + 1]`: cluster c holds `order[starts[c] : starts[c + 1]]`.
    """

    means_BKCD: Tensor
    order_BKS: Tensor
    starts_BKC: Tensor


def k_means(keys_BKSD: Tensor, num_centroids: int, *, iterations: int = 8, seed: int = 0) -> Centroids:
    """Cluster the keys of every kv head by Euclidean distance, in float32, all heads at once on their device.

    First centroids are drawn from evenly spaced keys, each with a chance that grows with the square of its distance to
    those drawn before. On a GPU sums are taken in no fixed order, so that the last bits may differ between runs.

    Args:
        keys_BKSD: keys.
        num_centroids: 1 to S.
        iterations: Lloyd iterations, 0 or more.
        seed: of the first draw.

    Raises:
        ValueError: for shapes or sizes that do not fit.
    """
    if keys_BKSD.dim() != 4 or not 1 <= num_centroids <= keys_BKSD.shape[2]:
        raise ValueError(
            f"got keys {list(keys_BKSD.shape)} and num_centroids={num_centroids}; allowed are [B, K, S, D] and 1 to S"
        )
    if iterations < 0:
        raise ValueError(f"got iterations={iterations}; allowed is 0 or more")
    B, K, S, D = keys_BKSD.shape
    keys = keys_BKSD.flatten(0, 1)
    means = _first_means(keys, num_centroids, seed)
    for _ in range(iterations):
        cluster = _nearest(keys, means)
        sums = torch.zeros_like(means)
        for start in range(0, S, _slice(keys, num_centroids)):
            part = slice(start, start + _slice(keys, num_centroids))
            sums.scatter_add_(1, cluster[:, part, None].expand(-1, -1, D), keys[:, part].float())
        counts = means.new_zeros(means.shape[:2]).scatter_add_(1, cluster, means.new_ones(cluster.shape))
        means = torch.where(counts[..., None] > 0, sums / counts.clamp(min=1)[..., None], means)
    cluster = _nearest(keys, means)
    ordered, order = cluster.sort(dim=-1, stable=True)
    bounds = torch.arange(num_centroids + 1, device=keys.device).expand(B * K, -1).contiguous()
    starts = torch.searchsorted(ordered, bounds, out_int32=True)
    return Centroids(
        means_BKCD=means.to(keys_BKSD.dtype).unflatten(0, (B, K)),
        order_BKS=order.to(torch.int32).unflatten(0, (B, K)),
        starts_BKC=starts.unflatten(0, (B, K)),
    )


def centroid_scores(
    q_BHTD: Tensor,
    centroids: Centroids,
    *,
    scale: float = 1.0,
    reduce: Reduce = "max",
    per_head: bool = False,
    count_tokens: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Scores of clusters: scale times q . centroid.

    Args:
        q_BHTD: queries, in the dtype of the centroids.
        centroids: clusters.
        scale, reduce, per_head, backend: as of `page_scores`, a cluster for a page.
        count_tokens: add the logarithm of a cluster's size, so that a softmax over clusters is what their tokens would
            get if each stood at the centroid. Empty clusters then score -inf.

    Returns:
        float32 `[B, K, C]`, or `[B, H, C]` per head.
    """
    scores = page_scores(
        q_BHTD,
        centroids.means_BKCD,
        kind="mean",
        scale=scale,
        reduce=reduce,
        per_head=per_head,
        backend=backend,
    )
    if not count_tokens:
        return scores
    sizes = centroids.starts_BKC.diff(dim=-1).float().log()
    groups = scores.shape[1] // sizes.shape[1]
    return scores + sizes.repeat_interleave(groups, dim=1, output_size=scores.shape[1])


def tokens_of(centroids: Centroids, chosen_BKn: Tensor, max_tokens: int) -> Tensor:
    """The tokens of chosen clusters, as `gather_decode` takes them.

    Args:
        centroids: clusters.
        chosen_BKn: int32 `[B, K, n]`, distinct; entries below 0 choose nothing (as `top_k` and `top_p` give them).
        max_tokens: length of the result; what does not fit is left out, last chosen first.

    Returns:
        int32 `[B, K, max_tokens]`, -1 behind the last.

    Raises:
        ValueError: for shapes or sizes that do not fit.
    """
    if chosen_BKn.dim() != 3 or chosen_BKn.shape[:2] != centroids.order_BKS.shape[:2] or max_tokens < 1:
        raise ValueError(
            f"got chosen {list(chosen_BKn.shape)} and max_tokens={max_tokens}; allowed are "
            f"{[*centroids.order_BKS.shape[:2]]} and one more dimension, and 1 or more"
        )
    starts = centroids.starts_BKC.long()
    at = chosen_BKn.clamp(min=0).long()
    begin = starts.gather(-1, at)
    sizes = torch.where(chosen_BKn >= 0, starts.gather(-1, at + 1) - begin, 0)
    ends = sizes.cumsum(-1)
    slot = torch.arange(max_tokens, device=ends.device).expand(*ends.shape[:2], -1).contiguous()
    which = torch.searchsorted(ends, slot, right=True).clamp(max=ends.shape[-1] - 1)
    place = begin.gather(-1, which) + slot - (ends - sizes).gather(-1, which)
    tokens = centroids.order_BKS.gather(-1, place.clamp(max=centroids.order_BKS.shape[-1] - 1))
    return torch.where(slot < ends[..., -1:], tokens, -1)


def _first_means(keys_NSD: Tensor, num_centroids: int, seed: int) -> Tensor:
    """Keys drawn far from each other, float32 `[N, C, D]`."""
    N, S, D = keys_NSD.shape
    size = min(S, num_centroids * SAMPLE_PER_CENTROID)
    sample = keys_NSD[:, torch.arange(size, device=keys_NSD.device) * S // size].float()
    generator = torch.Generator(keys_NSD.device).manual_seed(seed)
    means = sample.new_empty(N, num_centroids, D)
    distance = sample.new_ones(N, size)
    for i in range(num_centroids):
        noise = torch.rand(N, size, device=sample.device, generator=generator).clamp(1e-20, 1 - 1e-7)
        # The highest of log weight + Gumbel noise is a draw in proportion to the weights, without a sum or a host copy.
        best = (distance.clamp(min=1e-30).log() - (-noise.log()).log()).argmax(-1)
        means[:, i] = sample.gather(1, best[:, None, None].expand(-1, 1, D))[:, 0]
        new = (sample - means[:, i : i + 1]).square().sum(-1)
        distance = new if i == 0 else torch.minimum(distance, new)
    return means


def _nearest(keys_NSD: Tensor, means_NCD: Tensor) -> Tensor:
    """Cluster of every key, int64 `[N, S]`; the first of equally near ones."""
    half = means_NCD.square().sum(-1)[:, None] / 2
    size = _slice(keys_NSD, means_NCD.shape[1])
    found = [
        (part.float() @ means_NCD.transpose(-1, -2) - half).argmax(-1) for part in keys_NSD.split(size, dim=1)
    ]
    return torch.cat(found, dim=1)


def _slice(keys_NSD: Tensor, num_centroids: int) -> int:
    return max(1, DISTANCES_AT_ONCE // (keys_NSD.shape[0] * max(num_centroids, keys_NSD.shape[2])))
