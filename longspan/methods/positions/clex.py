"""CLEX: frequencies flow with the length, along a differential equation whose right side is a small trained network.

Equation: with z(t) the logs of the frequencies at t times the trained window, z(1) = ln theta, d rotary dims and pairs
i = 0 .. d/2 - 1,

    dz/dt = g(z, t) = SiLU((z + n(t)) W_up) W_down + dn/dt
    n_i(t) = ln theta_i - 2i/(d - 2) * ln(2t - 1),      dn_i/dt = -4i / ((d - 2) (2t - 1))

W_up `[d/2, lambda d]`, W_down `[lambda d, d/2]`, lambda the amplification. dn/dt is the fixed part that training starts
from: W_down is 0 at first, and z = n is then ntk at the factor 2t - 1. The frequencies in force are exp z(t).

A text of S tokens gets the smallest whole t with t L >= S, L the trained window, and all keys, new and old, turn with
the frequencies of the length so far: they are stored before rotation. With `factor`, or with `frequencies` as training
exports them, they are the same at every length, and keys are stored rotated.

Paper: CLEX: Continuous Length Extrapolation for Large Language Models (2023).

Differs from the paper: the equation is that of the authors' code, as the paper's text could not be checked here; there,
too, whole t are used, and n(t) is part of what the network sees. Solved by the classical fourth-order method in 8 equal
steps of ln t for what the network adds to n, which is known in closed form; the authors take steps of 0.01 in t over
the whole of g. The activation is SiLU; their code also knows tanh.

Fails when: the model was not trained with these weights (`longspan train` with the scheme clex makes both), t goes past
those trained on, or a long text is read in chunks of which the first are read with a smaller t, as training never does:
give `factor` then. Following the length costs each step a rotation of all keys, as in dynamic_ntk.

    model = longspan.load("run/model", methods="clex(weights='run/model/scheme.safetensors', factor=4)")
    model.read(text_of_16384_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from longspan.methods.positions._scaling import check_factor, check_rotary, check_several
from longspan.roles import ModelInfo, Positions, Rope

CARD = {
    "title": "CLEX: Continuous Length Extrapolation for Large Language Models",
    "year": 2023,
    "paper_id": 112,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "required",
    "exact": "at factor=1, and within the trained window where it follows the length",
    "frees": "no",
    "needs": [
        "rotary positions that the model does not scale itself",
        "a model trained with the scheme clex, and the weights or frequencies saved beside it",
    ],
    "claim": {},
    "tolerances": {
        "chunked_reading": "a chunk is read with the frequencies of its own end, so other chunks are read with others, "
        "which changes the logits of random weights by up to 0.07 (of 0.48)",
        "left_padding": "a batch has the frequencies of its longest row, which are slower than a shorter row has alone and "
        "change its logits under random weights by up to 0.18 (of 0.62); the longest row's are equal",
    },
    "example": "clex(window_tokens=128)",
    "identity": "clex(factor=1)",
}
# Twice as many change a frequency by 1 in 10^5 where the network moves it e-fold up to t = 16.
STEPS = 8  # of the solver
HOW = "give the scheme.safetensors or frequencies that `longspan train` saved beside the model"

Network = tuple[Tensor, Tensor]  # W_up `[d/2, lambda d]` and W_down `[lambda d, d/2]`


@dataclass(frozen=True, kw_only=True)
class Clex(Positions):
    """Settings of CLEX."""

    weights: str = ""  # file of the trained network; by default the untrained one, which is ntk(factor=2t-1)
    factor: float | None = None  # t, the same at every length; by default it follows the text's length
    window_tokens: int | None = None  # L, up to which nothing changes; by default the model's
    max_factor: int | None = None  # largest t; longer texts stay there (the authors: the largest trained)
    frequencies: tuple[float, ...] = ()  # exp z(t) itself, in place of all others; from training's export

    def __post_init__(self) -> None:
        follows = self.window_tokens is not None or self.max_factor is not None
        if self.factor is not None:
            check_factor(self.factor)
            if follows:
                raise ValueError(
                    f"got factor={self.factor:g} with window_tokens or max_factor, which are for a factor that follows the "
                    "text's length; leave out factor, or both others"
                )
        for name in ("window_tokens", "max_factor"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"got {name}={value}; allowed is 1 or more, or none")
        if self.frequencies and (self.weights or self.factor is not None or follows):
            raise ValueError(
                "got frequencies with other settings, which they make needless; leave out either"
            )
        if not all(0 < value < math.inf for value in self.frequencies):
            raise ValueError(
                f"got frequencies={list(self.frequencies)}; allowed are numbers above 0, or none"
            )

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions, and weights that are another model's."""
        check_rotary("clex", model)
        check_several("clex", model)
        pairs = len(self.frequencies) if self._network is None else self._network[0].shape[0]
        for layer in model.open_layers if pairs else ():
            if layer.rope is not None and layer.rope.rotary_dims != 2 * pairs:
                what = f"weights={self.weights!r}" if self.weights else "frequencies"
                raise ValueError(
                    f"{what} are for {pairs} rotary pairs, but layer {layer.index} of {model.name} has "
                    f"{layer.rope.rotary_dims // 2}; {HOW}"
                )

    def rope(self, rope: Rope) -> Rope:
        """The frequencies at `factor`; the model's own where they follow the length."""
        if self.frequencies:
            return replace(rope, inv_freq=rope.inv_freq.new_tensor(self.frequencies))
        return rope if self.factor is None else self._at(rope, self.factor)

    def rope_at(self, rope: Rope, num_tokens: int) -> Rope | None:
        """The frequencies of the smallest whole t that covers so many tokens."""
        if self.factor is not None or self.frequencies:
            return None
        factor = -(-num_tokens // (self.window_tokens or rope.window_tokens))
        return self._at(rope, factor if self.max_factor is None else min(factor, self.max_factor))

    def _at(self, rope: Rope, factor: float) -> Rope:
        if factor <= 1:
            return rope
        return replace(rope, inv_freq=_solved(rope.inv_freq, float(factor), self._network))

    @cached_property
    def _network(self) -> Network | None:
        return read_weights(self.weights) if self.weights else None


def solve(inv_freq: Tensor, factor: float, network: Network | None) -> Tensor:
    """Frequencies `[d/2]` at `factor` times the trained window, from those at 1; None is the untrained network.

    Gradients reach the network: they go through every step of the solver.
    """
    start, pairs = inv_freq.log(), inv_freq.shape[0]
    share = torch.arange(pairs, device=inv_freq.device, dtype=inv_freq.dtype) / max(
        pairs - 1, 1
    )  # 2i/(d - 2)

    def known(log_t: Tensor) -> Tensor:
        return start - share * (2 * log_t.exp() - 1).log()

    end = torch.tensor(factor, device=inv_freq.device, dtype=inv_freq.dtype).log()
    if network is None:
        return known(end).exp()
    up, down = network

    def speed(log_t: Tensor, added: Tensor) -> Tensor:  # d(z - n) / d ln t
        return log_t.exp() * (F.silu((2 * known(log_t) + added) @ up) @ down)

    added, step = torch.zeros_like(start), end / STEPS
    for number in range(STEPS):
        at = number * step
        first = speed(at, added)
        second = speed(at + step / 2, added + step / 2 * first)
        third = speed(at + step / 2, added + step / 2 * second)
        fourth = speed(at + step, added + step * third)
        added = added + step / 6 * (first + 2 * second + 2 * third + fourth)
    return (known(end) + added).exp()


@lru_cache(maxsize=32)
def _solved(inv_freq: Tensor, factor: float, network: Network | None) -> Tensor:
    """One tensor for all layers of a step, so that tables made of it are shared; tensors are told apart by identity."""
    device = inv_freq.device
    with torch.no_grad():
        return solve(inv_freq, factor, network and (network[0].to(device), network[1].to(device)))


def read_weights(path: str) -> Network:
    """The network of a `scheme.safetensors`, float32.

    Raises:
        ValueError: there is no such file, or it holds no network of CLEX.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read weights={path!r} ({error}); {HOW}") from error
    up, down = found.get("up"), found.get("down")
    if up is None or down is None or up.dim() != 2 or up.shape != down.mT.shape:
        listed = (
            ", ".join(f"{name} {list(value.shape)}" for name, value in sorted(found.items())) or "nothing"
        )
        raise ValueError(
            f"weights={path!r} hold {listed}, not up [pairs, width] and down [width, pairs]; {HOW}"
        )
    if not (up.isfinite().all() and down.isfinite().all()):
        raise ValueError(f"weights={path!r} are not finite; {HOW}")
    return up.float(), down.float()
