"""Schemes that train under the frequencies of one `Positions` method, given as a spec."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from longspan.model_info import LayerInfo, Rope
from longspan.roles import Positions
from longspan.spec import canonical, resolve
from longspan.training.scheme import Scheme

_HOW = (
    'give one method that sets frequencies, such as positions="yarn(factor=4)", or none for the model\'s own'
)
_LATE = 2**20  # a position beyond every window, to see whether a method scales logits there


@dataclass(frozen=True, kw_only=True)
class FrequencyScheme(Scheme):
    """A scheme that trains under the same frequencies in every row."""

    positions_: str = ""  # spec of the frequencies trained under; none for the model's own

    def __post_init__(self) -> None:
        check_frequencies(self.positions_)

    def rope(self, rope: Rope, target_tokens: int, rng: np.random.Generator) -> Rope:
        """The method's frequencies."""
        return scaled_rope(self.positions_, rope)

    def spec(self, rope: Rope, target_tokens: int) -> str:
        """The method trained under."""
        return frequency_spec(self.positions_)


def check_frequencies(spec: str) -> None:
    """Raise ValueError unless `spec` is empty or one method that only changes rotary frequencies."""
    if not spec.strip():
        return
    methods = resolve(spec)
    if len(methods) != 1:
        raise ValueError(
            f"positions={spec!r} has {len(methods)} methods, and positions have one owner; {_HOW}"
        )
    scoped = methods[0]
    method = scoped.method
    if not isinstance(method, Positions) or method.claims() != frozenset({"Positions"}):
        raise ValueError(f"positions={spec!r} does not set rotary frequencies; {_HOW}")
    if scoped.scope.layers is not None:
        raise ValueError(f"positions={spec!r} is scoped, and training changes all layers alike; {_HOW}")
    if not _only_frequencies(method):
        raise ValueError(
            f"positions={spec!r} does more than set frequencies once (it maps positions, scales logits, or follows the "
            f"text's length), which stock attention cannot be trained with; {_HOW}"
        )


def _only_frequencies(method: Positions) -> bool:
    """No map of positions, no factor on the logits, no growth with the text: tried on a layer of a usual model."""
    rope = Rope(
        inv_freq=1e4 ** -(torch.arange(0, 64, 2) / 64),
        scaling=1.0,
        theta=1e4,
        window_tokens=4096,
        rotary_dims=64,
    )
    layer = LayerInfo(
        index=_LATE,
        num_heads=1,
        num_kv_heads=1,
        head_dim=64,
        scale=0.125,
        rope=rope,
        sliding_window_tokens=None,
    )
    scale = method.logit_scale(torch.tensor([[_LATE]]), layer)
    return scale is None and not method.bands(layer) and method.rope_at(rope, _LATE) is None


@lru_cache(maxsize=16)
def scaled_rope(spec: str, rope: Rope) -> Rope:
    """`rope` under the method of `spec`; made once for each `rope`, which training passes for every row."""
    if not spec.strip():
        return rope
    method = resolve(spec)[0].method
    assert isinstance(method, Positions), "checked when the scheme was made"
    return method.rope(rope)


def frequency_spec(spec: str) -> str:
    """The one text of the spec; "dense" for none."""
    return canonical(spec)
