"""Drives the model over tokens: chunked reading, questions, decoding. What `Reading` and `Steering` methods may use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longspan.engine.graphs import StepGraphs
from longspan.engine.plan import Plan
from longspan.engine.run import Run, StopForward
from longspan.engine.seam import SpanCache, cos_and_sin
from longspan.engine.store import spare_tokens
from longspan.errors import UserInputError
from longspan.model_info import ModelInfo
from longspan.ops.backend import watch_backends
from longspan.ops.rotary import rotate
from longspan.roles import Held, Method, Steering, Step, Storage

CHUNK_TOKENS = {"cpu": 1024, "cuda": 8192}


def rechunk(pieces: Iterable[Tensor], chunk_tokens: int) -> Iterator[Tensor]:
    """Cut a stream of id tensors `[n]` into `[chunk_tokens]` and a rest, however it came."""
    held: list[Tensor] = []
    count = 0
    for piece in pieces:
        while count + len(piece) >= chunk_tokens:
            take = chunk_tokens - count
            yield torch.cat([*held, piece[:take]])
            piece, held, count = piece[take:], [], 0
        if len(piece):
            held.append(piece)
            count += len(piece)
    if held:
        yield torch.cat(held)


class ModelReader:
    """`Reader` over one attached model and one plan.

    Args:
        graphs: recorded steps of decoding; None runs each as it is.
        chunk_tokens: tokens per forward while reading; the peak memory of reading grows with it.
        on_progress: called with the number of tokens read, after each chunk.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        info: ModelInfo,
        plan: Plan,
        *,
        graphs: StepGraphs | None = None,
        chunk_tokens: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.info, self.plan, self.graphs = model, info, plan, graphs
        self.chunk_tokens = chunk_tokens or CHUNK_TOKENS.get(info.device.type, 1024)
        self.on_progress = on_progress

    def new_run(self, *, num_tokens: int | None = None) -> Run:
        """An empty run; `num_tokens` reserves room where the length is known and nothing will be dropped."""
        run = Run(plan=self.plan, chunk_tokens=self.chunk_tokens)
        drops = any(layer.storage is not None for layer in self.plan.layers)
        run.reserve_tokens = 0 if num_tokens is None or drops else num_tokens + spare_tokens(num_tokens)
        return run

    def fork(self, run: Run) -> Run:
        return run.fork()

    def give_back(self, branch: Run, run: Run) -> None:
        branch.give_back(run)

    def watch(self, run: Run, watcher: Callable[[int, Step], None]) -> None:
        run.watchers.append(watcher)

    def held(self, run: Run, method: Method) -> list[Held]:
        """What every open layer holds for `method`; see `Reader`."""
        return run.held(method, [layer.index for layer in self.info.open_layers])

    def keep(
        self,
        run: Run,
        kept: Sequence[Tensor | None],
        blended: Sequence[tuple[Tensor, Tensor] | None] | None = None,
        *,
        last: bool = True,
    ) -> None:
        """Free all but these places of what `held` showed, and code the rest; see `Reader`."""
        layers = [layer.index for layer in self.info.open_layers]
        run.keep(layers, kept, blended)
        if last:
            run.code_text()
        for index in layers:
            for slab in run.layers[index].slabs:
                slab.fit()

    def open_question(self, run: Run, question_ids: Tensor) -> Run:
        """The run that a question `[T]` is then read into: opened by the plan's reading, with what its steering methods
        measure beforehand. `run` stays as it is."""
        branch: Run = self.plan.reading.ask(self, run, question_ids)
        branch.ask_states = {
            number: scoped.method.prepare(self, branch, question_ids)
            for number, scoped in enumerate(self.plan.methods)
            if isinstance(scoped.method, Steering)
        }
        branch.recall()
        return branch

    @torch.no_grad()
    def prefill(self, run: Run, ids: Iterable[Tensor], *, stop_after_layer: int | None = None) -> Run:
        """Read chunks of ids into the run and close it; see `Reader`."""
        run.phase = "prefill"
        for chunk in rechunk(ids, self.chunk_tokens):
            self._forward(run, chunk, stop_after_layer, want_logits=False)
            if self.on_progress is not None:
                self.on_progress(run.seen)
        run.finish_reading()
        return run

    def prefill_rows(self, run: Run, rows: Tensor) -> Run:
        """Read texts `[B, T]` side by side; see `Reader`."""
        for piece in rows.split(max(1, self.chunk_tokens // len(rows)), dim=1):
            self._forward(run, piece, None, want_logits=False)
            if self.on_progress is not None:
                self.on_progress(run.seen * len(rows))
        run.token_ids = [rows.flatten().cpu()]
        run.finish_reading()
        return run

    @torch.no_grad()
    def put(self, run: Run, keys: Sequence[Tensor], values: Sequence[Tensor], positions: Tensor) -> None:
        """Append slots that stand for no token of their own; see `Reader`.

        Raises:
            UserInputError: the plan has a storage method, which has seen nothing of these slots.
        """
        for scoped in self.plan.methods:
            if isinstance(scoped.method, Storage):
                raise UserInputError(
                    f"{scoped.name} chooses among tokens that it saw being read, and {self.plan.reading_name} puts keys and "
                    "values in their place; leave one of them out"
                )
        at = positions.to(self.info.device)
        first, last = int(at[0]), int(at[-1])
        contiguous = bool((at == torch.arange(first, first + len(at), device=at.device)).all())
        for plan, store, k, v in zip(self.plan.layers, run.layers, keys, values, strict=True):
            k, v = k.to(self.info.device), v.to(self.info.device)
            if plan.info.rope is not None and not plan.pre_rotary:
                k = rotate(k, *cos_and_sin(plan.info.rope, at, k.dtype))
            for slab in store.slabs:
                own_k, own_v = (x[list(slab.heads)][None].to(self.info.dtype) for x in (k, v))
                slab.append(own_k, own_v, at[None], first=first if contiguous else None)
        # Behind the vocabulary, so that no answer counts as copied from here.
        no_token = self.model.get_input_embeddings().num_embeddings
        run.token_ids.append(torch.full((max(0, last + 1 - run.seen),), no_token))
        run.seen = max(run.seen, last + 1)
        run.peak_bytes = max(run.peak_bytes, run.kv_bytes)

    def advance(self, run: Run, ids: Tensor, *, stop_after_layer: int | None = None) -> Tensor | None:
        """Append tokens `[T]`, to every row of the run; logits `[1, V]` of the last, or None when stopped early. The first of them
        behind a text bring back what a lower tier holds."""
        logits = self._forward(run, ids, stop_after_layer, want_logits=True)
        if run.recalling:
            run.end_recall()
        return None if logits is None else self.plan.reading.combine(logits[:, -1])

    def all_logits(self, run: Run, ids: Tensor) -> Tensor:
        """Append tokens `[T]` of a text; logits `[T, V]` of each."""
        logits = self._forward(run, ids, None, want_logits=True, keep_all=True)
        assert logits is not None
        return logits[0]

    def layer_logits(self, run: Run, layer: int) -> Tensor:
        """Attention logits `[H, tokens seen]` of the last token at the layer where `advance` stopped; see `Reader`."""
        return run.last_logits(layer)

    @torch.no_grad()
    def _forward(
        self,
        run: Run,
        ids: Tensor,
        stop_after_layer: int | None,
        *,
        want_logits: bool,
        keep_all: bool = False,
    ) -> Tensor | None:
        """Append tokens `[T]` to every row, or `[B, T]`; logits `[B, T or 1, V]`."""
        if ids.dim() == 1:
            run.token_ids.append(ids.cpu())
            ids = ids.expand(run.num_rows, -1)
        ids = ids.to(self.info.device)
        at = torch.arange(run.seen, run.seen + ids.shape[1], device=ids.device).expand(ids.shape)
        run.stop_after_layer = stop_after_layer
        inputs = {
            "input_ids": ids,
            "position_ids": at,
            "past_key_values": SpanCache(run),
            "use_cache": True,
        }
        watch = None if stop_after_layer is None else _keep_last_query(run, stop_after_layer)
        if watch is not None:
            run.watchers.append(watch)
        try:
            with watch_backends() as seen:
                if self.graphs is not None and want_logits and ids.shape[1] == 1 and not (keep_all or watch):
                    logits = self.graphs.step(run, ids, at)
                    if logits is not None:
                        return logits
                if want_logits:
                    return self.model(**inputs, logits_to_keep=0 if keep_all else 1).logits.float()
                self.model.get_decoder()(**inputs)
        except StopForward:
            pass
        finally:
            run.backends.update(seen)
            if watch is not None:
                run.watchers.remove(watch)
        return None


def _keep_last_query(run: Run, layer: int) -> Callable[[int, Step], None]:
    def observe(index: int, step: Step) -> None:
        if index == layer:
            run.last_queries[layer, step.store.heads] = (
                step.queries[:, :, -1:],
                step.query_positions[:, -1:],
            )

    return observe
