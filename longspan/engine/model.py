"""A loaded model, and a model under a spec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from longspan.engine.context import Context
from longspan.engine.graphs import StepGraphs
from longspan.engine.inspect import attention_outputs, check_parity, inspect_model, layers_without_rotary
from longspan.engine.plan import Plan, build_plan
from longspan.engine.progress import Progress
from longspan.engine.prompt import text_chunks
from longspan.engine.reader import ModelReader, rechunk
from longspan.engine.seam import Seam
from longspan.engine.usage import Clock
from longspan.errors import UserInputError
from longspan.model_info import ModelInfo
from longspan.spec import Spec, resolve


class LoadedModel:
    """Weights, tokenizer and seam, shared by every spec that runs on them."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        stock = attention_outputs(model, lambda ids: model(input_ids=ids, use_cache=False))
        self.info: ModelInfo = inspect_model(model, name)
        self.graphs = StepGraphs(model) if self.info.device.type == "cuda" else None
        self.seam = Seam.of(model)
        self.seam.attach()
        self._stock = stock
        self._pre_rotary_checked: frozenset[int] = frozenset()
        dense = build_plan(resolve(None), self.info)
        try:
            check_parity(model, stock, dense, name)
            self._unrotated = layers_without_rotary(model, dense)
        except ValueError:
            self.seam.detach()
            raise

    def plan(self, methods: Spec) -> Plan:
        """Compile a spec, checking once a layer that keys can be kept before rotation where it needs that."""
        plan = build_plan(resolve(methods), self.info)
        moved = [layer.info.index for layer in plan.layers if layer.new_rope or layer.pre_rotary]
        wrong = sorted(self._unrotated & set(moved))
        if wrong:
            raise UserInputError(
                f"{plan.spec} changes rotary positions, but layer {wrong[0]} of {self.name} has none; "
                "leave such layers out with on(layers=..., method)"
            )
        pre_rotary = {layer.info.index for layer in plan.layers if layer.pre_rotary}
        if not pre_rotary <= self._pre_rotary_checked:
            check_parity(self.model, self._stock, _dense_like(plan, self.info), self.name)
            self._pre_rotary_checked |= pre_rotary
        return plan


def _dense_like(plan: Plan, info: ModelInfo) -> Plan:
    """A dense plan that keeps keys before rotation in the same layers."""
    dense = build_plan(resolve(None), info)
    layers = tuple(
        replace(plain, pre_rotary=wanted.pre_rotary)
        for plain, wanted in zip(dense.layers, plan.layers, strict=True)
    )
    return replace(dense, layers=layers)


class SpanModel:
    """A causal language model under a spec: `read` a text, then `ask`."""

    def __init__(self, loaded: LoadedModel, methods: Spec = None, *, chunk_tokens: int | None = None) -> None:
        self.loaded = loaded
        self.plan = loaded.plan(methods)
        self.chunk_tokens = chunk_tokens
        if chunk_tokens is not None and not (isinstance(chunk_tokens, int) and chunk_tokens >= 1):
            raise UserInputError(
                f"got chunk_tokens={chunk_tokens!r}; allowed is 1 or more (the default is 1024 on a CPU)"
            )

    @property
    def name(self) -> str:
        return self.loaded.name

    @property
    def spec(self) -> str:
        return self.plan.spec

    @property
    def tokenizer(self) -> Any:
        return self.loaded.tokenizer

    @property
    def info(self) -> ModelInfo:
        return self.loaded.info

    @property
    def window_tokens(self) -> int:
        """Context length the model was trained for."""
        return self.info.window_tokens

    @property
    def hf_model(self) -> PreTrainedModel:
        return self.loaded.model

    def with_methods(self, methods: Spec) -> SpanModel:
        """The same weights under another spec."""
        return SpanModel(self.loaded, methods, chunk_tokens=self.chunk_tokens)

    def detach(self) -> None:
        """Give the Hugging Face model back as it was."""
        self.loaded.seam.detach()

    def reader(
        self, on_progress: Callable[[int], None] | None = None, *, chunk_tokens: int | None = None
    ) -> ModelReader:
        """The driver that `Reading` methods use; `chunk_tokens` instead of this model's own."""
        return ModelReader(
            self.hf_model,
            self.info,
            self.plan,
            graphs=self.loaded.graphs,
            chunk_tokens=chunk_tokens or self.chunk_tokens,
            on_progress=on_progress,
        )

    def read(
        self,
        text: str | Tensor | Iterable[str] | Iterable[int],
        *,
        progress: bool | Callable[[int], None] | None = None,
    ) -> Context:
        """Read a text once; questions then share it.

        Args:
            text: a str, token ids (a sequence of int or an int tensor `[S]`), or an iterator of str (a stream).
            progress: show a bar; by default on a terminal, once reading has taken two seconds. Or a function that is
                told the number of tokens read, after each chunk.

        Raises:
            UserInputError: the text is empty or no text.
        """
        clock = Clock()
        pieces, num_tokens = text_chunks(
            self.tokenizer, text, self.hf_model.get_input_embeddings().num_embeddings
        )
        show = False if callable(progress) else progress
        with Progress(num_tokens, label=self.spec, show=show) as bar, clock.measure("read"):
            reader = self.reader(progress if callable(progress) else bar.update)
            run = self.plan.reading.read(reader, pieces, num_tokens)
        return Context(self, run, clock.seconds)

    def logits(self, ids: Tensor, *, chunk_tokens: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Logits of every token of a text while it is read under the spec: `(start, float32 [T, V])` chunk by chunk.

        Methods that act after reading have no effect here. Raises UserInputError for specs with a Reading method.
        """
        if self.plan.reading_name is not None:
            raise UserInputError(
                f"{self.spec} reads a text in an order of its own, so its tokens have no running logits"
            )
        reader = self.reader(chunk_tokens=chunk_tokens)
        run = reader.new_run(num_tokens=len(ids))
        for chunk in rechunk([ids], reader.chunk_tokens):
            start = run.seen
            yield start, reader.all_logits(run, chunk)
