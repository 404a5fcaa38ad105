"""Makes factors: singular vectors of the keys and values of a calibration text, trained layer by layer on more of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.engine.model import SpanModel
from longspan.low_rank import right_factors, to_matrix
from longspan.ops.quantised_decode import dequantise, quantise

GROUP_TOKENS = 32  # of quantised keys, as at inference; the paper's window
RANK_SHARES = (
    1.0,
    0.75,
    0.5,
    0.25,
)  # of the largest rank; each step trains one, so that the first columns serve alone
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How factors are trained.

    Args:
        steps: Adam steps for each layer; 0 leaves the singular vectors as they are, the optimum without quantisation.
        learning_rate: at the first step; it falls to 0 in a straight line.
        batch_tokens: tokens of one step, whole groups of 32.
        bits: of the latents that the factors are trained for: 16 (as they are), 8 or 4.
        seed: of the batches.
    """

    steps: int = 0
    learning_rate: float = 1e-3
    batch_tokens: int = 2048
    bits: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_tokens < GROUP_TOKENS:
            raise ValueError(
                f"got steps={self.steps}, batch_tokens={self.batch_tokens}; steps must be 0 or more and batch_tokens "
                f"{GROUP_TOKENS} or more"
            )
        if self.bits not in (16, 8, 4):
            raise ValueError(f"got bits={self.bits}; allowed are 16, 8 and 4")


def collect(model: SpanModel, rows: Tensor) -> dict[int, Pair]:
    """Keys before rotation and values of each open layer over texts `[n, S]`: float32 `[n * S, C]` on the CPU.

    model: loaded with a spec that keeps keys before rotation and frees nothing, such as `cskv(rank=1.0)`.
    """
    found: dict[int, list[Pair]] = {layer.index: [] for layer in model.info.open_layers}
    for row in rows:
        run = model.reader().prefill(model.reader().new_run(num_tokens=len(row)), [row])
        for index, parts in found.items():
            (slab,) = run.layers[index].slabs
            parts.append(
                (
                    to_matrix(slab.keys, slab.positions)[0].cpu(),
                    to_matrix(slab.values, slab.positions)[0].cpu(),
                )
            )
    return {
        index: (torch.cat([keys for keys, _ in parts]), torch.cat([values for _, values in parts]))
        for index, parts in found.items()
    }


def singular_factors(x_NC: Tensor, rank: int) -> Pair:
    """`down [C, R]` and `up [R, C]` of the leading right singular vectors of a matrix."""
    up = right_factors(x_NC[None], rank)[0]
    return up.mT.contiguous(), up


def make_latents(keys_NC: Tensor, values_NC: Tensor, key_down: Tensor, value_down: Tensor, bits: int) -> Pair:
    """Latents `[N, r]` as they are read back; N whole groups where they are quantised."""
    keys, values = keys_NC @ key_down, values_NC @ value_down
    if bits == 16:
        return keys, values
    store = quantise(
        keys[None, None], values[None, None], key_bits=bits, value_bits=bits, group_tokens=GROUP_TOKENS
    )
    keys, values = dequantise(store)
    return keys[0, 0], values[0, 0]


def reconstruction_error(pair: Pair, factors: tuple[Pair, Pair], rank: int, bits: int) -> tuple[float, float]:
    """Squared error of keys and of values over their squared size, at the first `rank` latents."""
    whole = len(pair[0]) // GROUP_TOKENS * GROUP_TOKENS
    keys, values = pair[0][:whole], pair[1][:whole]
    (key_down, key_up), (value_down, value_up) = factors
    latents = make_latents(keys, values, key_down[:, :rank], value_down[:, :rank], bits)
    made = latents[0] @ key_up[:rank], latents[1] @ value_up[:rank]
    first, second = (
        float((m - x).square().sum() / x.square().sum()) for m, x in zip(made, (keys, values), strict=True)
    )
    return first, second


def train_layer(
    pair: Pair, start: tuple[Pair, Pair], how: Training, *, on_step: Callable[[float], None] | None = None
) -> tuple[Pair, Pair]:
    """Adam on `|x - q(x down) up|^2 / |x|^2`, keys and values apart, over groups of 32 tokens drawn from `pair` `[N, C]`.

    Rounding is passed straight through. Each step trains the first columns up to one of `RANK_SHARES`.
    """
    make = torch.Generator().manual_seed(how.seed)
    parameters = [x.clone().requires_grad_(True) for factors in start for x in factors]
    key_down, key_up, value_down, value_up = parameters
    optimiser = torch.optim.Adam(parameters, lr=how.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / max(how.steps, 1))
    groups = [x[: len(x) // GROUP_TOKENS * GROUP_TOKENS].unflatten(0, (-1, GROUP_TOKENS)) for x in pair]
    sizes = [float(x.square().mean()) for x in pair]
    for step in range(how.steps):
        share = RANK_SHARES[step % len(RANK_SHARES)]
        rank, value_rank = (max(1, round(share * down.shape[1])) for down in (key_down, value_down))
        drawn = torch.randint(len(groups[0]), (how.batch_tokens // GROUP_TOKENS,), generator=make)
        keys, values = (x[drawn].flatten(0, 1) for x in groups)
        plain = keys @ key_down[:, :rank], values @ value_down[:, :value_rank]
        with torch.no_grad():
            read = make_latents(keys, values, key_down[:, :rank], value_down[:, :value_rank], how.bits)
        latents = [x + (rounded - x).detach() for x, rounded in zip(plain, read, strict=True)]
        errors = [
            (latents[0] @ key_up[:rank] - keys).square().mean() / sizes[0],
            (latents[1] @ value_up[:value_rank] - values).square().mean() / sizes[1],
        ]
        loss = errors[0] + errors[1]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if on_step is not None:
            on_step(float(loss.detach()))
    done = [x.detach() for x in parameters]
    return (done[0], done[1]), (done[2], done[3])


def make_factors(
    pairs: dict[int, Pair],
    ranks: tuple[int, int],
    how: Training,
    *,
    on_layer: Callable[[int, Sequence[float]], None] | None = None,
) -> dict[str, Tensor]:
    """Factors of all layers in float16, by the names of `Factors.tensors`; `ranks` are those of keys and of values."""
    found: dict[str, Tensor] = {}
    for index, pair in pairs.items():
        losses: list[float] = []
        start = singular_factors(pair[0], ranks[0]), singular_factors(pair[1], ranks[1])
        trained = train_layer(pair, start, how, on_step=losses.append)
        for kind, (down, up) in zip(("keys", "values"), trained, strict=True):
            found[f"{index}.{kind}.down"], found[f"{index}.{kind}.up"] = down.half(), up.half()
        if on_layer is not None:
            on_layer(index, losses)
    return found
