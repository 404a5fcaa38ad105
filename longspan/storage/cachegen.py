"""CacheGen: keys and values quantised by the layer they stand in, and entropy-coded channel by channel, chunk by chunk.

Of head h of a layer in third i of the layers, an element x of token t and channel c is stored as an integer

    q[t, c] = round((x[t, c] - w[c] * anchor[g(t), c]) / (bins[i] * std[h]))

std[h] is the head's standard deviation about its channels' means; anchor[g] is the first token of the group of ten that t
is in, as the decoder will see it, and is itself stored with w = 0. The integers go to `longspan.storage.entropy`. A chunk can
be decoded alone, and every chunk of a text may be at another level.

Axis legend: B batch, K kv heads, S stored tokens, D head dim, C = B * K * D channels.

    data = encode_chunk(keys, values, level=LEVELS[2])     # lists of [B, K, S, D], one tensor each a layer
    keys, values = decode_chunk(data)

Paper: "CacheGen: Fast Context Loading for Language Model Applications" (2023).
*Differs from the paper*: bins are in standard deviations of each head; a table is shared by the channels it fits and
travels with the chunk, where the paper profiles one for each channel of a model ahead of time. Deltas are the paper's (w = 1,
anchors in 8 bits) only under deltas="paper"; "auto" fits w to each channel, gives anchors the bins of the rest, and leaves
both out of tensors that are smaller without: that is what neighbouring tokens' values, and keys before rotation, mostly are.
*Fails when*: chunks are short (about 5 bytes a channel and chunk are fixed cost, which tells under some 200 tokens), or outliers
widen a head's standard deviation so that its other channels fall into one bin.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from longspan.storage.entropy import Array, cost_bits, decode_block, encode_block
from longspan.storage.layout import (
    DTYPES,
    EIGHTHS,
    GROUP_TOKENS,
    HEADER,
    MAGIC,
    PAIR,
    TENSOR,
    VERSION,
    Layout,
    is_anchor,
)

Deltas = Literal["auto", "paper", "none"]

CHUNK_TOKENS = 1500  # the paper's
ANCHOR_BITS = 8  # the paper's, under deltas="paper"
_LENGTH = struct.Struct("<I")
_LEAST_STD = 1e-30  # what is smaller is 0, lest a bin of float32 be


@dataclass(frozen=True, kw_only=True)
class Level:
    """How coarse: bin sizes of the first, second and last third of the layers, in standard deviations of a head."""

    number: int
    key_bins: tuple[float, float, float]
    value_bins: tuple[float, float, float]

    def __post_init__(self) -> None:
        sizes = (*self.key_bins, *self.value_bins)
        if len(sizes) != 6 or not all(0 < size < math.inf for size in sizes) or not 0 <= self.number < 256:
            raise ValueError(
                f"got {self}; allowed are three bin sizes above 0 each, and a number from 0 to 255"
            )


def _scaled(number: int, scale: float) -> Level:
    bins = (0.5 * scale, scale, 1.5 * scale)
    return Level(number=number, key_bins=bins, value_bins=bins)


# From finest to coarsest; LEVELS[2] has the paper's default bins, 0.5, 1 and 1.5, and the others scale them.
LEVELS = tuple(_scaled(number, scale) for number, scale in enumerate((0.25, 0.5, 1.0, 1.5, 2.0)))


@dataclass(frozen=True, kw_only=True)
class ChunkInfo:
    """What an encoded chunk says of itself."""

    level: int
    dtype: torch.dtype
    layers: tuple[int, ...]
    num_elements: int
    header_bytes: int  # shapes, standard deviations and weights
    block_bytes: int  # coded integers with their tables
    with_anchors: int  # tensors that are stored as deltas


def third_of(layer: int, num_layers: int) -> int:
    """The third of the layers, 0 to 2, that the middle of a layer lies in."""
    return min(3 * (2 * layer + 1) // (2 * num_layers), 2)


def chunk_spans(num_tokens: int, chunk_tokens: int = CHUNK_TOKENS) -> list[tuple[int, int]]:
    """First and end token of each chunk; the last may be shorter."""
    return [(at, min(at + chunk_tokens, num_tokens)) for at in range(0, num_tokens, chunk_tokens)]


def encode_chunk(
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    level: Level = LEVELS[2],
    layers: Sequence[int] | None = None,
    num_layers: int | None = None,
    deltas: Deltas = "auto",
) -> bytes:
    """Some tokens' keys and values as bytes.

    Args:
        keys: `[B, K, S, D]` each; tensors of one layer that keep different numbers of tokens are entries of their own.
        values: `[B, K, S, D']`, one for each of `keys`.
        layers: the layer of each entry; default 0, 1, 2, ...
        num_layers: of the model, for its thirds; default one more than the last of `layers`.
        deltas: "auto" stores deltas against anchors where that is smaller, "paper" always as the paper does, "none" never.

    Raises:
        ValueError: shapes that do not fit, no tokens or too many for a chunk, or values that are not finite.
    """
    places = tuple(range(len(keys))) if layers is None else tuple(layers)
    _check(keys, values, places, deltas)
    depth = num_layers or max(places) + 1
    head = [HEADER.pack(MAGIC, VERSION, level.number, DTYPES.index(keys[0].dtype), len(keys))]
    planes: list[Array] = []
    for layer, key, value in zip(places, keys, values, strict=True):
        head.append(PAIR.pack(layer, key.shape[1], key.shape[0], key.shape[2]))
        for bins, tensor in ((level.key_bins, key), (level.value_bins, value)):
            facts, made = _quantise(tensor, bins[third_of(layer, depth)], deltas)
            head.append(facts)
            planes.extend(made)
    Layout(b"".join(head))  # refuses what the decoder would refuse
    groups = _by_length([plane.shape[1] for plane in planes])
    blocks = [encode_block(np.concatenate([planes[i] for i in members])) for _, members in groups]
    return b"".join(head + [_LENGTH.pack(len(block)) + block for block in blocks])


def decode_chunk(
    data: bytes | memoryview, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values as `encode_chunk` was given them, each element within half a bin of its own.

    Args:
        dtype: of the tensors; default the one they had.

    Raises:
        ValueError: the bytes were altered or cut short, where that shows; else other values come out.
    """
    layout = Layout(data)
    shapes = [shape for tensor in layout.tensors for shape in tensor.plane_shapes]
    planes: list[Array] = [np.empty(0)] * len(shapes)
    for length, members in _by_length([tokens for _, tokens in shapes]):
        channels = [shapes[i][0] for i in members]
        block = layout.reader.take(layout.reader.unpack(_LENGTH)[0])
        rows = decode_block(block, sum(channels), length)
        for i, part in zip(members, np.split(rows, np.cumsum(channels)[:-1]), strict=True):
            planes[i] = part
    layout.reader.finish()
    parts = iter(planes)
    made = [
        tensor.restore([next(parts) for _ in tensor.plane_shapes]).to(device, dtype or layout.dtype)
        for tensor in layout.tensors
    ]
    return made[0::2], made[1::2]


def chunk_info(data: bytes | memoryview) -> ChunkInfo:
    """What a chunk holds, read from its header alone.

    Raises:
        ValueError: it is no chunk, or its header is damaged.
    """
    layout = Layout(data)
    return ChunkInfo(
        level=layout.level,
        dtype=layout.dtype,
        layers=tuple(layout.layers),
        num_elements=sum(tensor.num_elements for tensor in layout.tensors),
        header_bytes=layout.reader.at,
        block_bytes=len(data) - layout.reader.at,
        with_anchors=sum(tensor.weights is not None for tensor in layout.tensors),
    )


def head_std(tensor: Tensor) -> Tensor:
    """The unit of a head's bins, float32 `[B, K]`: its standard deviation about its channels' means. A head that stands still,
    or nearly, is measured by its size instead."""
    x = tensor.detach().double()
    std = (x - x.mean(dim=2, keepdim=True)).square().mean(dim=(2, 3)).sqrt()
    size = x.square().mean(dim=(2, 3)).sqrt()
    unit = torch.maximum(std, size / 64).float()
    return torch.where(unit > _LEAST_STD, unit, 1.0)


def _check(keys: Sequence[Tensor], values: Sequence[Tensor], places: Sequence[int], deltas: str) -> None:
    if not keys or len(keys) != len(values) or len(keys) != len(places):
        raise ValueError(
            f"got {len(keys)} keys, {len(values)} values and {len(places)} layers; one of each is wanted for each entry"
        )
    if deltas not in ("auto", "paper", "none"):
        raise ValueError(f"got deltas={deltas!r}; allowed are auto, paper and none")
    for key, value in zip(keys, values, strict=True):
        if key.dim() != 4 or key.shape[:3] != value.shape[:3] or not (key.numel() and value.numel()):
            raise ValueError(
                f"got keys of shape {tuple(key.shape)} and values of shape {tuple(value.shape)}; "
                "both must be [B, K, S, D] with the same B, K and S, and hold a token"
            )
    if not all(0 <= place < 2**16 for place in places):
        raise ValueError(f"got the layers {list(places)}; allowed are 0 to 65535")
    kinds = {tensor.dtype for tensor in (*keys, *values)}
    if len(kinds) > 1 or not kinds <= set(DTYPES):
        raise ValueError(f"got tensors of {kinds}; one of float32, bfloat16 and float16 is allowed for all")
    if not all(bool(tensor.isfinite().all()) for tensor in (*keys, *values)):
        raise ValueError(
            "got keys or values that are not finite; allowed are finite ones, check the model's dtype"
        )


def _quantise(tensor: Tensor, bins: float, deltas: Deltas) -> tuple[bytes, list[Array]]:
    """A tensor's part of the header, and its planes of integers `[C, tokens]`: all, or its anchors and the rest."""
    B, K, S, D = tensor.shape
    x = tensor.detach().float().cpu()
    sizes = (bins * head_std(x)).view(B, K, 1, 1)
    plain = [_plane(x / sizes)]
    if deltas != "none":
        anchor_sizes = sizes
        if deltas == "paper":
            most = x.abs().amax(dim=(2, 3), keepdim=True)
            anchor_sizes = torch.minimum(sizes, (most / (2 ** (ANCHOR_BITS - 1) - 1)).where(most > 0, sizes))
        first = is_anchor(S)
        held = torch.round(x[:, :, first] / anchor_sizes)
        near = (held * anchor_sizes)[:, :, (torch.arange(S) // GROUP_TOKENS)[~first]]
        rest = x[:, :, ~first]
        weights = x.new_full((B, K, 1, D), EIGHTHS) if deltas == "paper" else _fit(near, rest)
        planes = [_plane(held), _plane((rest - weights / EIGHTHS * near) / sizes)][: 2 if S > 1 else 1]
        extra = 32 * B * K + 8 * weights.numel()
        if deltas == "paper" or sum(cost_bits(p) for p in planes) + extra < cost_bits(plain[0]):
            facts = (sizes.numpy(), anchor_sizes.numpy())
            packed = b"".join(fact.astype("<f4").tobytes() for fact in facts)
            return TENSOR.pack(D, 1) + packed + weights.numpy().astype(np.uint8).tobytes(), planes
    return TENSOR.pack(D, 0) + sizes.numpy().astype("<f4").tobytes(), plain


def _fit(near: Tensor, rest: Tensor) -> Tensor:
    """Each channel's weight of the anchor that leaves the least variance, in eighths, `[B, K, 1, D]`."""
    if not rest.shape[2]:
        return near.new_zeros(*near.shape[:2], 1, near.shape[3])
    about = near - near.mean(dim=2, keepdim=True)
    power = about.square().mean(dim=2, keepdim=True).clamp(min=1e-30)
    slope = (about * rest).mean(dim=2, keepdim=True) / power
    return (slope * EIGHTHS).round().clamp(0, EIGHTHS)


def _plane(x: Tensor) -> Array:
    """Rounded `[B, K, T, D]` as integers `[C, T]`."""
    B, K, T, D = x.shape
    return torch.round(x).transpose(2, 3).reshape(B * K * D, T).to(torch.int64).numpy()


def _by_length(lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The planes that share a block, those of equally many tokens: the length and their numbers, the shortest first."""
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        groups.setdefault(length, []).append(i)
    return sorted(groups.items())
