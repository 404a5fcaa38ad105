"""Fewer channels: old tokens are held as low-rank latents, made and unmade by factors learned once per model.

Keys before rotation and values of all kv heads of a layer, C channels, shrink to r,

    c = k A  [S, r],     k ~ c B,     A [C, r], B [r, C],

and the last `window_tokens` tokens stay as they are beside them (the bi-branch cache). A and B begin as the leading
singular vectors of keys of a calibration text, from where each layer's can be trained with Adam to make its keys again,
|k - q(k A) B|^2, where q is the rounding of latents that are also quantised. Values likewise. A text is read in full
precision; its tokens shrink at its end, later ones 32 at a time as the window moves on.

Paper: CSKV: Training-Efficient Channel Shrinking for KV Cache in Long-Context Scenarios (2024).

Differs from the paper: the latent is made of the key instead of the layer's input, which costs no accuracy: of all
latents of the input the best for this loss is a projection of the key. The loss is the paper's, on the outputs of the
key and value projections. The paper starts from the weights, decomposed and scaled by activations; the singular vectors
of the keys themselves are already the loss's optimum over the calibration text, and steps of training lower the error on
other text by nothing (by less than 1 % with latents in 4 bits, on the reference model), so that none are made unless
asked for. Where they are, several ranks are trained at once, so that one file serves every smaller rank. Values may have
another rank; latents are quantised as `kivi` does whole keys. `factors="text"` takes the singular vectors of each text's
own keys and values instead, held with the text: no file, no training.

Fails when: a text is unlike the calibration text, or what is asked for lies in few unusual tokens: both are where the
latents are worst. Small models have few channels to spare: of the reference model's 128 a layer, the paper's 0.2 finds
no needle (one in five with `factors="text"`). While reading everything is held in full precision. The factors are part of
the model and not counted in `kv_bytes` (those of a text are). A row with padding before it is cut into groups of
quantised latents elsewhere than alone.

    model = longspan.load("reference", methods="cskv(rank=0.5, bits=4)")
    context = model.read(text)
    context.ask("Who keeps the lantern?"), context.kv_bytes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from longspan.low_rank import resolve_rank, right_factors, to_heads, to_matrix
from longspan.methods._asset import check_made_for
from longspan.methods.cache.cskv.factors import Factors, load_factors, save_factors
from longspan.ops.quantised_decode import QuantisedKV, dequantise, quantise
from longspan.roles import Codec, Coded, Event, Held, LayerInfo, ModelInfo

__all__ = ["CARD", "CSKV", "Factors", "load_factors", "save_factors"]

CARD = {
    "title": "CSKV: Training-Efficient Channel Shrinking for KV Cache in Long-Context Scenarios",
    "year": 2024,
    "paper_id": 70,
    "family": "cache",
    "roles": ["Codec"],
    "phase": "both",
    "training": "calibration",
    "exact": "at rank=1.0 and 16 bits",
    "frees": "frees",
    "needs": [
        "factors of the model, made once by python -m longspan.methods.cache.cskv MODEL TEXT OUT.safetensors; those of "
        "the reference model are bundled"
    ],
    "claim": {
        "text": "with latents of half the channels in 4 bits, a tenth of the bytes, a needle is found as with the full cache",
        "spec": "cskv(rank=0.5, bits=4)",
        "task": "niah_single_2",
        "length_tokens": 2048,
        "against": "dense",
        "margin": -0.1,
    },
    "shares": {
        0.5: "cskv(rank=0.5)",
        0.25: "cskv(rank=0.25)",
        0.125: "cskv(rank=0.5, bits=4)",
        0.06: "cskv(rank=0.15, bits=4)",
    },
    "tolerances": {},
    "example": "cskv(rank=0.25, window_tokens=16, factors=text)",
    "identity": "cskv(rank=1.0)",
}

BUNDLED = Path(__file__).with_name("reference.safetensors")
GROUP_TOKENS = (
    32  # tokens that shrink at once after a text, and share the scales of quantised keys; the paper's window
)
PACKED = (
    "latent_"  # before the names of quantised latents, which are not keys and values that attention can take
)
HOW = (
    "make them with `python -m longspan.methods.cache.cskv MODEL TEXT OUT.safetensors` and pass "
    "factors=OUT.safetensors, or factors=text to take the singular vectors of each text"
)


@dataclass(frozen=True, kw_only=True)
class CSKV(Codec):
    """Latents of old tokens, and a window as it is; see the module."""

    rank: float = 0.2  # share of the channels that latents have; the paper's 80 % compression
    value_rank: float | None = None  # of values, if another; the authors train 0.75 beside 0.25 for keys
    window_tokens: int = 32  # latest tokens in full precision, at least; the paper's
    bits: Literal[16, 8, 4] = 16  # of latents; the paper's 95 % compression has 4
    factors: str | None = None  # file of factors, or text; by default the reference model's, bundled

    def __post_init__(self) -> None:
        for name, rank in self._shares.items():
            if not 0 < rank <= 1:
                name = "value_rank" if name == "values" and self.value_rank is not None else "rank"
                raise ValueError(
                    f"got {name}={rank:g}; allowed is a share of the channels above 0 and up to 1, such as 0.2"
                )
        if self.bits < 16 and self._shares["keys"] != self._shares["values"]:
            raise ValueError(
                f"got rank={self.rank:g}, value_rank={self.value_rank:g} and bits={self.bits}; keys and values are quantised "
                "together, so leave value_rank out or set bits=16"
            )
        if self.window_tokens < 0:
            raise ValueError(f"got window_tokens={self.window_tokens}; allowed is 0 or more, such as 32")

    def check(self, model: ModelInfo) -> None:
        """Raise ValueError where the factors are missing, another model's, or of too small a rank."""
        if not self._needs_file:
            return
        if self.factors is None and not BUNDLED.is_file():
            raise ValueError(f"there are no factors for {model.name}; {HOW}")
        found = self._loaded
        check_made_for(model, "factors", self.factors, found.model, found.fingerprints, HOW)
        for layer in model.open_layers:
            channels = layer.num_kv_heads * layer.head_dim
            for name, rank in self._shares.items():
                wide, most = found.shape(layer.index, name)
                if wide != channels:
                    raise ValueError(
                        f"{self.factors} has no factors that fit layer {layer.index} of {model.name}; {HOW}"
                    )
                if rank < 1 and round(rank * channels) > most:
                    raise ValueError(
                        f"got a rank of {rank:g} for {name}; the factors serve up to {most / channels:g}, so give no more, or "
                        "make others with a larger --rank and --value-rank"
                    )

    def needs_pre_rotary(self) -> bool:
        return True

    def code(self, held: Sequence[Held], *, event: Event) -> list[Coded | None]:
        return [self._code(h, event) for h in held]

    def decode(
        self, layer: LayerInfo, tokens: Mapping[str, Tensor], shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        if self.bits == 16:
            latents = tokens["keys"], tokens["values"]
        else:
            packed = {name.removeprefix(PACKED): x for name, x in tokens.items()}
            latents = dequantise(
                QuantisedKV(**packed, key_bits=self.bits, value_bits=self.bits, dtype=torch.float32)
            )
        made = []
        for name, latent in zip(("keys", "values"), latents, strict=True):
            up = shared[name].to(latent.dtype) if name in shared else self._factor(layer, name, "up", latent)
            x = latent[:, 0] if up is None else latent[:, 0] @ up
            made.append(to_heads(x, x.shape[2] // layer.head_dim))
        return made[0], made[1]

    def _code(self, h: Held, event: Event) -> Coded | None:
        store = h.store
        num_tokens = store.num_tokens - self.window_tokens
        if event == "token" or self.bits < 16:
            num_tokens -= num_tokens % GROUP_TOKENS
        whole = self.bits == 16 and min(self._shares.values()) == 1.0
        if event == "chunk" or num_tokens <= 0 or whole:
            return None
        parts = {"keys": store.keys, "values": store.values}
        matrices = {name: to_matrix(x, store.positions) for name, x in parts.items()}
        if self.factors == "text" and any(
            store.num_tokens < resolve_rank(share, matrices[name].shape[2])
            for name, share in self._shares.items()
            if share < 1.0 and name not in h.state
        ):
            return None  # too few tokens for so many directions; more will come
        shared: dict[str, Tensor] = {}
        latents = {}
        for name, matrix in matrices.items():
            if self.factors == "text" and self._shares[name] < 1.0:
                if name not in h.state:
                    wanted = right_factors(matrix, resolve_rank(self._shares[name], matrix.shape[2]))
                    h.state[name] = wanted.to(store.keys.dtype)
                shared[name] = h.state[name]
                down: Tensor | None = h.state[name].mT.float()
            else:
                down = self._factor(h.layer, name, "down", matrix)
                self._check_channels(h, matrix, down)
            old = matrix[:, :num_tokens]
            latents[name] = (old if down is None else old @ down)[:, None].to(store.keys.dtype)
        if self.bits == 16:
            return Coded(num_tokens=num_tokens, tokens=latents, shared=shared)
        packed = quantise(
            latents["keys"],
            latents["values"],
            key_bits=self.bits,
            value_bits=self.bits,
            group_tokens=GROUP_TOKENS,
        )
        tokens = {f"{PACKED}{name}": x for name, x in packed.tensors().items()}
        return Coded(num_tokens=num_tokens, tokens=tokens, shared=shared)

    @property
    def _shares(self) -> dict[str, float]:
        return {"keys": self.rank, "values": self.rank if self.value_rank is None else self.value_rank}

    @property
    def _needs_file(self) -> bool:
        return self.factors != "text" and min(self._shares.values()) < 1.0

    @cached_property
    def _loaded(self) -> Factors:
        return load_factors(BUNDLED if self.factors is None else self.factors)

    @cached_property
    def _moved(self) -> dict[tuple[str, torch.device, torch.dtype], Tensor]:
        return {}

    def _factor(
        self, layer: LayerInfo, name: str, part: Literal["down", "up"], like: Tensor
    ) -> Tensor | None:
        """A factor of the file, `[C, r]` or `[r, C]`, where and as `like` is; None where latents are the channels."""
        if self._shares[name] == 1.0:
            return None
        full = f"{layer.index}.{name}.{part}"
        key = (full, like.device, like.dtype)
        if key not in self._moved:
            found = self._loaded.tensors[full]
            rank = resolve_rank(self._shares[name], max(found.shape))
            found = found[:, :rank] if part == "down" else found[:rank]
            self._moved[key] = found.to(like.device, like.dtype)
        return self._moved[key]

    def _check_channels(self, h: Held, matrix: Tensor, down: Tensor | None) -> None:
        if down is not None and down.shape[0] != matrix.shape[2]:
            raise ValueError(
                f"cskv's factors take the {h.layer.num_kv_heads} kv heads of a layer together, but another method stores "
                f"{len(h.store.heads)} of them apart; use factors=text, or leave that method out"
            )
