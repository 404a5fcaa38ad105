"""Trains kernels, layer by layer, the model frozen: attention over the slots shall give what it gives over the whole past."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.engine.model import SpanModel
from longspan.methods.cache.lococo.mixing import NAMES, LayerKernels, check_shares, compress, start_kernels
from longspan.model_info import LayerInfo
from longspan.roles import Step


@dataclass(frozen=True, kw_only=True)
class Training:
    """How kernels are trained.

    Args:
        slots: numbers of slots to train for, one after the other.
        chunk_tokens: tokens that are read between two compressions.
        heavy: share of the slots that stay as they are.
        local: share of them that holds the latest tokens, among these.
        rank: channels between keys and values and the slots.
        width: tokens that the convolution sees, odd; the paper's code.
        rounds: passes over the text.
        learning_rate: of Adam, at the first step; it falls to 0 in a straight line.
        queries: of the next chunk, drawn for each step.
        seed: of these and of the first weights.
    """

    slots: tuple[int, ...] = (128, 512)
    chunk_tokens: int = 512
    heavy: float = 0.5
    local: float = 0.25
    rank: int = 16
    width: int = 21
    rounds: int = 4
    learning_rate: float = 1e-2
    queries: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.slots or min(self.slots) < 2:
            raise ValueError(f"got slots={list(self.slots)}; allowed are numbers of 2 or more, such as 128")
        for name in ("chunk_tokens", "rank", "rounds", "queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name}={getattr(self, name)}; allowed is 1 or more")
        if self.width < 1 or self.width % 2 == 0:
            raise ValueError(f"got width={self.width}; allowed are odd numbers, such as 21")
        check_shares(self.heavy, self.local)


@dataclass(frozen=True, kw_only=True)
class Attended:
    """What one layer of the model as it is does with a text: queries `[H, S, D]` and keys `[K, S, D]`, rotated, values, and the
    outputs `[H, S, D]` of attention over the whole past."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    outputs: Tensor
    scale: float


def attended(model: SpanModel, ids: Tensor) -> dict[int, Attended]:
    """Each open layer over one text `[S]`, under a spec that changes nothing."""
    reader = model.reader(chunk_tokens=len(ids))
    run, found = reader.new_run(num_tokens=len(ids)), {}
    open_layers = {layer.index: layer for layer in model.info.open_layers}

    def watch(index: int, step: Step) -> None:
        if index in open_layers:
            queries, keys, values = (
                x[0].float().clone() for x in (step.queries, step.store.keys, step.store.values)
            )
            found[index] = _with_outputs(queries, keys, values, open_layers[index])

    reader.watch(run, watch)
    reader.prefill(run, [ids])
    return found


def _with_outputs(queries: Tensor, keys: Tensor, values: Tensor, layer: LayerInfo) -> Attended:
    groups = layer.num_groups
    outputs = torch.nn.functional.scaled_dot_product_attention(
        queries[None],
        keys.repeat_interleave(groups, dim=0)[None],
        values.repeat_interleave(groups, dim=0)[None],
        is_causal=True,
        scale=layer.scale,
    )[0]
    return Attended(queries=queries, keys=keys, values=values, outputs=outputs, scale=layer.scale)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs `[H, T, D]`, and attention `[K, S]` that each key gets of all queries `[H, T, D]`; `hidden` `[T, S]`."""
    heads = len(keys)
    logits = queries.unflatten(0, (heads, -1)) @ keys[:, None].mT * scale
    weights = logits.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return (weights @ values[:, None]).flatten(0, 1), weights.sum(dim=(1, 2))


def errors(
    text: Attended,
    kernels: LayerKernels | None,
    how: Training,
    slots: int,
    *,
    draw: Callable[[int], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Chunk by chunk, the squared error of the next chunk's outputs over slots, over their squared size.

    draw: which of so many queries to look at; all where it is None. What earlier chunks left is given, not trained.
    """
    keys, values = text.keys[:, :0], text.values[:, :0]
    num_tokens, size = text.keys.shape[1], how.chunk_tokens
    for start in range(0, num_tokens - size, size):
        stop, after = start + size, min(start + 2 * size, num_tokens)
        keys, values = (
            torch.cat((old.detach(), new[:, start:stop]), dim=1)
            for old, new in ((keys, text.keys), (values, text.values))
        )
        if keys.shape[1] > slots:
            with torch.no_grad():
                received = attend(text.queries[:, start:stop], keys, values, _hidden(size, keys), text.scale)[
                    1
                ]
            _, keys, values = compress(
                keys, values, received, kernels, slots=slots, heavy=how.heavy, local=how.local
            )
        drawn = torch.arange(after - stop) if draw is None else draw(after - stop)
        drawn = drawn.to(keys.device)
        seen = [
            torch.cat((x, y[:, stop:after]), dim=1) for x, y in ((keys, text.keys), (values, text.values))
        ]
        hidden = _hidden(after - stop, seen[0])[drawn]
        made = attend(text.queries[:, stop:after][:, drawn], seen[0], seen[1], hidden, text.scale)[0]
        wanted = text.outputs[:, stop:after][:, drawn]
        yield (made - wanted).square().mean() / wanted.square().mean()


def _hidden(num_queries: int, keys: Tensor) -> Tensor:
    """`[T, S]`: keys that the last T tokens, which are among them, do not see."""
    num_tokens = keys.shape[1]
    at = torch.arange(num_tokens, device=keys.device)
    return at[None] > at[num_tokens - num_queries :, None]


def train_kernels(
    model: SpanModel,
    rows: Tensor,
    how: Training,
    *,
    on_row: Callable[[float], None] | None = None,
) -> dict[int, LayerKernels]:
    """Kernels of each open layer, trained on texts `[n, S]`; `on_row` is told the mean error of each text, as it is trained on."""
    device = model.info.device
    made = {
        layer.index: start_kernels(
            layer.num_kv_heads, layer.head_dim, rank=how.rank, width=how.width, seed=how.seed + layer.index
        ).to(device)
        for layer in model.info.open_layers
    }
    for layer in made.values():
        for name in NAMES:
            getattr(layer, name).requires_grad_(True)
    optimisers = {
        index: torch.optim.Adam([getattr(layer, name) for name in NAMES], lr=how.learning_rate)
        for index, layer in made.items()
    }
    make, steps = torch.Generator().manual_seed(how.seed), how.rounds * len(rows)

    def draw(count: int) -> Tensor:
        return torch.randint(count, (how.queries,), generator=make)

    for step in range(steps):
        found, losses = attended(model, rows[step % len(rows)]), []
        slots = how.slots[(step + step // len(rows)) % len(how.slots)]
        for index, text in found.items():
            optimiser = optimisers[index]
            for group in optimiser.param_groups:
                group["lr"] = how.learning_rate * (1 - step / steps)
            for loss in errors(text, made[index], how, slots, draw=draw):
                losses.append(float(loss.detach()))
                if loss.requires_grad:
                    optimiser.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_([getattr(made[index], name) for name in NAMES], 1.0)
                    optimiser.step()
        if on_row is not None:
            on_row(sum(losses) / len(losses))
    return {
        index: LayerKernels(**{name: getattr(layer, name).detach() for name in NAMES})
        for index, layer in made.items()
    }
