"""A step of decoding on a GPU, recorded: CUDA graphs of all that lies before, between and behind the attention of the layers.

At one token a step Python launches the small kernels of a model more slowly than a GPU runs them. Norms, projections and
MLPs do the same at every step, whatever is held and whatever methods do about it, so they are recorded once for a model
and replayed, one launch a layer. Attention, where methods act, runs between as it always does.

A forward that cannot be recorded, since it reads values off the GPU or somebody hooks into it, runs as it is;
`usage.backends` says under "step" which of the two ran, and why.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longspan.engine.attention import NewTokens, attend_layer
from longspan.engine.run import Run
from longspan.engine.seam import SpanCache, is_own_hook
from longspan.errors import first_sentence
from longspan.ops.backend import choose

WARM_STEPS = 2  # as they are, before one is recorded: short answers are not worth it
MOST_RECORDINGS = 8
ELSEWHERE = 977  # tokens further on, where a step must do the same

State: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Where one layer's attention belongs: its inputs as the graph before leaves them, its output where the graph behind
    takes it.

    Args:
        new: queries, keys and values of the new token one behind the other along the heads, `[B, H + 2 K, 1, D]`.
        out: `[B, 1, H, D]`.
    """

    index: int
    new: Tensor
    num_kv_heads: int
    scale: float
    out: Tensor

    def attend(self, run: Run, positions: Tensor, first: int) -> None:
        """Attention of this layer for the run's next token; methods may keep what they are given, so it is copied."""
        kv = self.num_kv_heads
        queries, keys, values = self.new.clone().split((self.new.shape[1] - 2 * kv, kv, kv), dim=1)
        new = NewTokens(
            queries=queries,
            keys=keys,
            values=values,
            positions=positions,
            first=first,
            padded=False,
            scale=self.scale,
        )
        self.out.copy_(attend_layer(run, self.index, new).transpose(1, 2))


@dataclass(eq=False)
class Recording:
    """One step of one model for so many rows: `graphs[i]` runs before `gaps[i]`, one more behind the last.

    Args:
        kept: what the step was recorded under, which must outlive it.
    """

    ids: Tensor
    positions: Tensor
    kept: Any
    graphs: list[torch.cuda.CUDAGraph] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    logits: Tensor | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, run: Run, rows: int) -> Recording:
        """Record a step; nothing of it runs, and the run is only asked for its plan.

        Raises:
            RuntimeError: the model's forward cannot be recorded.
        """
        with torch.inference_mode(False):  # buffers are written by steps of any mode
            ids = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
            self = cls(ids, torch.zeros_like(ids), run.plan)
        nobody = Run(plan=run.plan, chunk_tokens=run.chunk_tokens, seen=run.seen)
        stream, pool = torch.cuda.Stream(model.device), torch.cuda.graph_pool_handle()

        def start() -> None:
            self.graphs.append(torch.cuda.CUDAGraph())
            self.graphs[-1].capture_begin(pool, capture_error_mode="thread_local")

        def cut(index: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
            new = torch.cat((queries, keys, values), dim=1)
            self.graphs[-1].capture_end()
            gap = Gap(index=index, new=new, num_kv_heads=keys.shape[1], scale=scale, out=_room(queries))
            self.gaps.append(gap)
            start()
            return gap.out

        stream.wait_stream(torch.cuda.current_stream(model.device))
        with torch.no_grad(), torch.cuda.stream(stream):
            # also for libraries to get their workspace for this stream
            if depends_on_length(model, nobody, self.ids, self.positions):
                raise RuntimeError("it depends on how much was read before")
            torch.cuda.synchronize(model.device)
            gc.collect()  # what is freed meanwhile could not be recorded
            start()
            try:
                self.logits = _forward(model, nobody, self.ids, self.positions, cut)
            finally:
                _end(self.graphs[-1], failed=self.logits is None)
        torch.cuda.current_stream(model.device).wait_stream(stream)
        return self

    def replay(self, run: Run, ids: Tensor, positions: Tensor) -> Tensor:
        """The run's next token: ids and positions `[B, 1]`; logits `[B, 1, V]`, float32 and the caller's own."""
        assert self.logits is not None
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        first = run.seen
        for graph, gap in zip(self.graphs, self.gaps, strict=False):
            graph.replay()
            gap.attend(run, positions, first)
        self.graphs[-1].replay()
        return self.logits.to(torch.float32, copy=True)


def _forward(
    model: PreTrainedModel, nobody: Run, ids: Tensor, positions: Tensor, cut: Callable[..., Tensor]
) -> Tensor:
    """Logits of a step in which `cut` stands in for attention."""
    nobody.cut = cut
    logits: Tensor = model(
        input_ids=ids,
        position_ids=positions,
        past_key_values=SpanCache(nobody),
        use_cache=True,
        logits_to_keep=1,
    ).logits
    return logits


def depends_on_length(model: PreTrainedModel, nobody: Run, ids: Tensor, positions: Tensor) -> bool:
    """Whether a step does more with the number of tokens seen than its attention, which no recording would follow."""

    def step() -> Tensor:
        return _forward(model, nobody, ids, positions, lambda _, queries, *others: _room(queries))

    here = step()
    nobody.seen += ELSEWHERE
    there = step()
    nobody.seen -= ELSEWHERE
    return not torch.allclose(here, there, rtol=0.0, atol=0.01 * float(here.abs().max()), equal_nan=True)


def _room(queries: Tensor) -> Tensor:
    """Where attention's output goes, `[B, T, H, D]`."""
    with torch.inference_mode(False):
        return torch.zeros_like(queries.transpose(1, 2), memory_format=torch.contiguous_format)


def _end(graph: torch.cuda.CUDAGraph, *, failed: bool) -> None:
    """End a recording; one that failed has said why before."""
    try:
        graph.capture_end()
    except RuntimeError:
        if not failed:
            raise


class StepGraphs:
    """The recorded steps of one model, shared by all that decode with it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._lock = Lock()
        self._steps = 0
        self._state: State | None = None
        self._stream: int | None = None
        self._recorded: dict[Any, Recording | str] = {}

    def step(self, run: Run, ids: Tensor, positions: Tensor) -> Tensor | None:
        """Logits `[B, 1, V]` (float32) of the run's next token; None where it must be run as it is.

        Args:
            ids, positions: `[B, 1]`, on the model's device.
        """
        with self._lock:
            recording = self._recording(run, len(ids))
            reason = recording if isinstance(recording, str) else None
            choose("step", {"graphs": reason, "forward": None})
            return None if isinstance(recording, str) else recording.replay(run, ids, positions)

    def _recording(self, run: Run, rows: int) -> Recording | str:
        """What serves the step, or why nothing does."""
        if torch.is_autocast_enabled("cuda"):
            return "autocast is on"
        stream = torch.cuda.current_stream(self.model.device).cuda_stream
        if self._stream not in (None, stream):
            return "another stream is used than before"
        if run.graphs_state is None or run.graphs_state is not self._state:  # looked at once a run
            state = model_state(self.model)
            if isinstance(state, str):
                return state
            if state != self._state:
                self._forget()
                self._state = state
            run.graphs_state = self._state
        self._steps += 1
        if self._steps <= WARM_STEPS:
            return "the first steps are not recorded"
        key = rows, *(layer.rotation for layer in run.plan.layers)
        if key not in self._recorded:
            if len(self._recorded) >= MOST_RECORDINGS:
                self._forget()
            self._stream = stream
            try:
                self._recorded[key] = Recording.of(self.model, run, rows)
            except RuntimeError as error:
                why = f"{type(self.model).__name__} cannot be recorded: {first_sentence(error)}"
                self._recorded[key] = why
        return self._recorded[key]

    def _forget(self) -> None:
        if self._recorded:
            torch.cuda.synchronize(self.model.device)
        self._recorded.clear()
        self._stream = None


def model_state(model: nn.Module) -> State | str:
    """Where the weights of a model lie, which a recorded step depends on; or why none can be recorded."""
    if model.training:
        return "the model is being trained"
    for module in model.modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if not all(map(is_own_hook, hooks)):
            return f"a {type(module).__name__} has a hook"
        if "forward" in vars(module):
            return f"the forward of a {type(module).__name__} was replaced"
    tensors = [*model.parameters(), *model.buffers()]
    devices = {x.device for x in tensors}
    if len(devices) > 1 or not tensors or not tensors[0].is_cuda:
        return f"the weights are on {', '.join(sorted(map(str, devices)))}"
    return tuple(x.data_ptr() for x in tensors)
