"""Keys are held in 8, 4 or 2 bits by channel, values by token, and the most recent tokens as they came.

The outliers of keys stand in a few channels, alike for all tokens, so a group of tokens shares a scale and a zero point in
each channel; those of values do not, so each token has a scale. With codes x of b bits

    key = (x + zero[channel, group]) * scale[channel, group]        value = (x - (2^b - 1) / 2) * scale[token]

(2^(b-1) instead for 4 and 8 bits). Groups are counted from the first token held, whole ones only, so that the last
`residual_tokens`, and up to a group more, are in full precision. While an answer grows, a group is coded whenever one is
full. A text attends to its own keys in full precision, and is coded when it has been read; `when=chunk` codes it chunk by
chunk, so that reading needs less memory, and later chunks attend to coded keys.

Paper: KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache (2024).

Differs from the paper: values have one symmetric scale for all channels of a token, where the paper has a scale and a zero
point for each 32 channels; with 4 and 2 bits the range of a scale is narrowed to where its squared error is least, so that
extremes are clipped, where the paper spans minimum and maximum; scales are bfloat16; keys and values leave full
precision together, and never less than `residual_tokens` are in it (the paper codes keys in steps of that size). This is
the layout of `longspan.ops.quantised_decode`, which on CUDA attends to the codes as they are held. Elsewhere, and for
steps of more than 16 tokens, keys and values of one layer at a time are made of them.

Fails when: a storage method drops tokens while an answer is generated (`when=always`): what stays is then decoded and coded
anew each time. A row with padding before it is cut into groups elsewhere than alone. The CUDA kernel wants
`group_tokens=64` or more for 2 bits of a head dim below 128; otherwise keys and values are made of the codes, and the
backends in an answer's usage say why.

    model = longspan.load("reference", methods="kivi(bits=4)")
    context = model.read(text)
    context.kv_bytes  # at 2K tokens a fifth of dense in float32; the latest tokens and the room for a question are whole
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from longspan.ops.quantised_decode import QuantisedKV, dequantise, quantise
from longspan.roles import Codec, Coded, Event, Held, KeyView, LayerInfo

CARD = {
    "title": "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
    "year": 2024,
    "paper_id": None,
    "family": "cache",
    "roles": ["Codec"],
    "phase": "read",
    "training": "none",
    "exact": "when residual_tokens covers the text",
    "frees": "frees",
    "needs": [],
    "claim": {
        "text": "with keys and values in 4 bits a needle is found nearly as often as in full precision",
        "spec": "kivi(bits=4)",
        "task": "niah_single_1",
        "length_tokens": 4096,
        "against": "dense",
        "margin": -0.1,
    },
    "shares": {
        0.5: "kivi(bits=8, group_tokens=128)",
        0.25: "kivi(bits=4, group_tokens=128)",
        0.125: "kivi(bits=2, group_tokens=128)",
    },
    "tolerances": {
        "left_padding": "groups are cut at other tokens of a row that has padding before it; errors stay within a step",
        "keys_before_rotation": "keys that are kept before rotation are coded so, and round to other numbers",
    },
    "example": "kivi(bits=2, residual_tokens=16)",
    "identity": "kivi(residual_tokens=4096)",
}

BITS = (8, 4, 2)
GROUPS = (32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class Kivi(Codec):
    """Holds old keys and values in few bits; see the module."""

    bits: Literal[8, 4, 2] = 2  # of keys, and of values unless said; the paper's title
    value_bits: Literal[8, 4, 2] | None = None  # of values; as keys
    group_tokens: Literal[32, 64, 128, 256] = 32  # share scales of keys; the paper's G
    residual_tokens: int = 128  # latest, in full precision; the paper's R
    when: Literal["read", "chunk"] = "read"  # chunk: also while reading, to save memory

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("bits", self.bits, BITS),
            ("value_bits", self.value_bits, (*BITS, None)),
            ("group_tokens", self.group_tokens, GROUPS),
            ("when", self.when, ("read", "chunk")),
        ):
            if value not in allowed:
                raise ValueError(
                    f"got {name}={value}; allowed are {', '.join(str(x) for x in allowed)}; set it to one of these"
                )
        if self.residual_tokens < 0:
            raise ValueError(
                f"got residual_tokens={self.residual_tokens}; allowed is 0 or more, such as residual_tokens=128"
            )

    def code(self, held: Sequence[Held], *, event: Event) -> list[Coded | None]:
        if event == "chunk" and self.when == "read":
            return [None] * len(held)
        return [self._code(h.store) for h in held]

    def _code(self, store: KeyView) -> Coded | None:
        """All whole groups before the latest tokens."""
        num_tokens = (store.num_tokens - self.residual_tokens) // self.group_tokens * self.group_tokens
        if num_tokens <= 0:
            return None
        keys, values = store.keys[:, :, :num_tokens], store.values[:, :, :num_tokens]
        if not store.filled:
            keys = _without_padding(keys, store.positions[:, :, :num_tokens] >= 0, self.group_tokens)
        made = quantise(
            keys,
            values,
            key_bits=self.bits,
            value_bits=self.value_bits or self.bits,
            group_tokens=self.group_tokens,
        )
        return Coded(num_tokens=num_tokens, tokens=made.tensors())

    def decode(
        self, layer: LayerInfo, tokens: Mapping[str, Tensor], shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        store = QuantisedKV(
            **tokens, key_bits=self.bits, value_bits=self.value_bits or self.bits, dtype=torch.float32
        )
        return dequantise(store)


def _without_padding(keys: Tensor, real: Tensor, group_tokens: int) -> Tensor:
    """Keys `[B, k, n, D]` with each place that holds nothing as the mean of its group, so that it widens no range."""
    parts, there = (x.unflatten(2, (-1, group_tokens)) for x in (keys, real[..., None]))
    total = torch.where(there, parts, 0.0).float().sum(3, keepdim=True)
    mean = total / there.sum(3, keepdim=True).clamp(min=1)
    return torch.where(there, parts, mean.to(keys.dtype)).flatten(2, 3)
