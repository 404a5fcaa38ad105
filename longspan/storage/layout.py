"""The bytes of an encoded chunk in front of its coded integers: shapes, bin sizes and weights; read with every bound checked.

Little-endian: magic, version, level, dtype and number of entries; for each entry its layer, K, B and S; for its keys and
then its values D, whether there are anchors, B * K bin sizes and, with anchors, their B * K bin sizes and C weights in
eighths. Behind that stand the blocks of `longspan.storage.entropy`, each behind its length: one for all planes that have equally
many tokens, the fewest first.

Axis legend: B batch, K kv heads, S stored tokens, D head dim, C = B * K * D channels.
"""

from __future__ import annotations

import struct

import numpy as np
import torch
from torch import Tensor

from longspan.storage.entropy import MAX_SYMBOLS, Array, ByteReader, Damaged, steps_of

GROUP_TOKENS = 10  # the paper's
EIGHTHS = 8  # weights are 0, 1/8, ..., 1
MAGIC, VERSION = b"LSKV", 1
HEADER = struct.Struct("<4sBBBH")  # magic, version, level, dtype, entries
PAIR = struct.Struct("<HHII")  # layer, heads, batch, tokens
TENSOR = struct.Struct("<HB")  # head dim, with anchors
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_STEPS = 2**20  # of the decoder over a chunk: seconds; a real chunk takes a few thousand


def is_anchor(num_tokens: int) -> Tensor:
    """Which tokens are the first of their group, bool `[S]`."""
    return torch.arange(num_tokens) % GROUP_TOKENS == 0


class Stored:
    """A tensor as its part of the header has it: shape `[B, K, S, D]`, bin sizes `[B, K]`, and of one with anchors their bin
    sizes `[B, K]` and the channels' weights `[B, K, D]`."""

    def __init__(self, reader: ByteReader, B: int, K: int, S: int) -> None:
        D, anchored = reader.unpack(TENSOR)
        if not D or anchored > 1:
            raise Damaged(f"a tensor of the chunk has head dim {D}; fetch or encode it again")
        self.shape = (B, K, S, D)
        self.sizes = self._bin_sizes(reader)
        self.anchor_sizes = self.weights = None
        if anchored:
            self.anchor_sizes = self._bin_sizes(reader)
            eighths = reader.array("u1", B * K * D).astype(np.float32)
            if eighths.max() > EIGHTHS:
                raise Damaged("a tensor of the chunk has a weight above 1; fetch or encode it again")
            self.weights = torch.from_numpy(eighths / EIGHTHS).view(B, K, 1, D)

    def _bin_sizes(self, reader: ByteReader) -> Tensor:
        B, K = self.shape[:2]
        sizes = reader.array("<f4", B * K).astype(np.float32)
        if not ((sizes > 0) & (sizes < np.inf)).all():
            raise Damaged("a tensor of the chunk has a bin size that is none; fetch or encode it again")
        return torch.from_numpy(sizes).view(B, K, 1, 1)

    @property
    def num_elements(self) -> int:
        B, K, S, D = self.shape
        return B * K * S * D

    @property
    def plane_shapes(self) -> list[tuple[int, int]]:
        """Channels and tokens of its anchors and of the rest, as far as there are any."""
        B, K, S, D = self.shape
        anchors = -(-S // GROUP_TOKENS) if self.weights is not None else 0
        return [(B * K * D, tokens) for tokens in (anchors, S - anchors) if tokens]

    def restore(self, planes: list[Array]) -> Tensor:
        B, K, S, D = self.shape
        parts = [torch.from_numpy(plane).view(B, K, D, -1).transpose(2, 3).float() for plane in planes]
        if self.weights is None or self.anchor_sizes is None:
            return parts[0] * self.sizes
        anchors = parts[0] * self.anchor_sizes
        out = torch.empty(self.shape)
        first = is_anchor(S)
        out[:, :, first] = anchors
        if len(parts) == 2:
            of = (torch.arange(S) // GROUP_TOKENS)[~first]
            out[:, :, ~first] = self.weights * anchors[:, :, of] + parts[1] * self.sizes
        return out


class Layout:
    """A chunk's header, read and checked; `reader` stands behind it."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.reader = ByteReader(data, "chunk")
        magic, version, self.level, dtype, num_pairs = self.reader.unpack(HEADER)
        if magic != MAGIC or version != VERSION:
            raise Damaged(
                f"got bytes that begin with {bytes(data[:5])!r}; a chunk of encode_chunk of this version is wanted"
            )
        if dtype >= len(DTYPES) or not num_pairs:
            raise Damaged(f"the chunk has dtype {dtype} and {num_pairs} entries; fetch or encode it again")
        self.dtype = DTYPES[dtype]
        self.tensors: list[Stored] = []
        self.layers: list[int] = []
        for _ in range(num_pairs):
            layer, K, B, S = self.reader.unpack(PAIR)
            if not (B and K and S):
                raise Damaged(f"an entry of the chunk has shape [{B}, {K}, {S}]; fetch or encode it again")
            self.layers.append(layer)
            self.tensors += [Stored(self.reader, B, K, S) for _ in range(2)]
        totals: dict[int, int] = {}
        for channels, tokens in (shape for tensor in self.tensors for shape in tensor.plane_shapes):
            totals[tokens] = totals.get(tokens, 0) + channels
        steps = sum(steps_of(channels, tokens) for tokens, channels in totals.items())
        if steps > _MAX_STEPS or sum(t * c for t, c in totals.items()) > MAX_SYMBOLS:
            raise Damaged(
                f"the chunk says it holds {max(totals):,} tokens; encode fewer tokens in a chunk, or fetch it again"
            )
