"""The user's objects: a model with methods, a context that was read, an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longspan.engine.inspect import attention_outputs, check_parity, inspect_model, layers_without_rotary
from longspan.engine.plan import Plan, build_plan
from longspan.engine.progress import Progress
from longspan.engine.prompt import Prompt, encode, starts_with_bos, text_pieces
from longspan.engine.reader import Clock, ModelReader, rechunk
from longspan.engine.run import Run
from longspan.engine.sampling import Sampler
from longspan.engine.seam import Seam
from longspan.engine.sources import Source, Tracer
from longspan.errors import UserInputError
from longspan.roles import ModelInfo
from longspan.spec import Spec, resolve

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What reading or asking cost. Bytes are measured from storage; `seconds` has the phases read, prefill, decode."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    kv_bytes: int
    peak_kv_bytes: int
    seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer, the sentences of the context it was copied from (best first), and what it cost."""

    text: str
    sources: tuple[Source, ...]
    usage: Usage
    token_ids: tuple[int, ...]


class LoadedModel:
    """Weights, tokenizer and seam, shared by every spec that runs on them."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        model.eval()
        stock = attention_outputs(model, lambda ids: model(input_ids=ids, use_cache=False))
        self.info: ModelInfo = inspect_model(model, name)
        self.seam = Seam.of(model)
        self.seam.attach()
        self._stock = stock
        self._pre_rotary_checked = False
        dense = build_plan(resolve(None), self.info)
        try:
            check_parity(model, stock, dense, name)
            self._unrotated = layers_without_rotary(model, dense)
        except ValueError:
            self.seam.detach()
            raise

    def plan(self, methods: Spec) -> Plan:
        """Compile a spec, checking once that keys can be kept before rotation where it needs that."""
        plan = build_plan(resolve(methods), self.info)
        moved = [layer.info.index for layer in plan.layers if layer.new_rope or layer.pre_rotary]
        wrong = sorted(self._unrotated & set(moved))
        if wrong:
            raise UserInputError(
                f"{plan.spec} changes rotary positions, but layer {wrong[0]} of {self.name} has none; "
                "leave such layers out with on(layers=..., method)"
            )
        if plan.pre_rotary and not self._pre_rotary_checked:
            check_parity(self.model, self._stock, dense_like(plan, self.info), self.name)
            self._pre_rotary_checked = True
        return plan


def dense_like(plan: Plan, info: ModelInfo) -> Plan:
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
        if chunk_tokens is not None and chunk_tokens < 1:
            raise UserInputError(
                f"got chunk_tokens={chunk_tokens}; allowed is 1 or more (the default is 1024 on a CPU)"
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

    def reader(self, on_progress: Callable[[int], None] | None = None) -> ModelReader:
        """The driver that `Reading` methods use."""
        return ModelReader(
            self.hf_model,
            self.info,
            self.plan,
            chunk_tokens=self.chunk_tokens,
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
        pieces, num_tokens = self._tokens(text)
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
        reader = ModelReader(
            self.hf_model, self.info, self.plan, chunk_tokens=chunk_tokens or self.chunk_tokens
        )
        run = reader.new_run(num_tokens=len(ids))
        for chunk in rechunk([ids], reader.chunk_tokens):
            start = run.seen
            yield start, reader.all_logits(run, chunk)

    def _tokens(self, text: Any) -> tuple[Iterator[Tensor], int | None]:
        if self.tokenizer is None and isinstance(text, str):
            raise UserInputError("this model has no tokenizer; give token ids, or load it with tokenizer=...")
        if isinstance(text, str):
            ids = self._with_head(encode(self.tokenizer, text)) if text.strip() else torch.zeros(0)
            if not len(ids):
                raise UserInputError("the text is empty; give a text with at least one word")
            return iter([ids]), len(ids)
        if isinstance(text, Tensor) or (isinstance(text, list | tuple) and text and isinstance(text[0], int)):
            ids = torch.as_tensor(text).reshape(-1)
            if not len(ids) or ids.is_floating_point():
                raise UserInputError(
                    f"got token ids of shape {tuple(ids.shape)} and type {ids.dtype}; give at least one integer id"
                )
            return iter([ids.long()]), len(ids)
        if isinstance(text, Iterable) and not isinstance(text, bytes):
            return self._stream(text), None
        raise UserInputError(
            f"got a {type(text).__name__}; read takes a str, token ids, or an iterator of str"
        )

    def _stream(self, pieces: Iterable[str]) -> Iterator[Tensor]:
        first = True
        for piece in text_pieces(pieces):
            ids = encode(self.tokenizer, piece)
            yield self._with_head(ids) if first else ids
            first = False
        if first:
            raise UserInputError("the stream held no text; give at least one word")

    def _with_head(self, ids: Tensor) -> Tensor:
        """A context's first ids: bos where the model wants one, then what its template puts before a user's text."""
        head = [torch.tensor([self.tokenizer.bos_token_id])] if starts_with_bos(self.tokenizer) else []
        before = Prompt.of(self.tokenizer).before
        if before:
            head.append(encode(self.tokenizer, before))
        return torch.cat([*head, ids])


@dataclass(eq=False)
class Context:
    """A text as a model holds it. Asking never changes it; `read` gives a longer one and leaves this as it is."""

    model: SpanModel
    run: Run
    read_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens read."""
        return self.run.seen

    @property
    def kept_tokens(self) -> float:
        """Tokens held, averaged over kv heads and layers."""
        return self.run.kept_tokens

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys, values and positions held, measured from their storage (spare room for a question included)."""
        return self.run.kv_bytes

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.num_tokens,
            cached_tokens=0,
            generated_tokens=0,
            kv_bytes=self.kv_bytes,
            peak_kv_bytes=self.run.peak_bytes,
            seconds=dict(self.read_seconds),
        )

    def read(self, text: str) -> Context:
        """This context followed by more text, as a new context."""
        if not text:
            raise UserInputError("the text is empty; give a text with at least one word")
        clock, reader = Clock(), self.model.reader()
        with clock.measure("read"):
            chunks = rechunk([encode(self.model.tokenizer, text)], reader.chunk_tokens)
            branch = self.model.plan.reading.extend(reader, self.run, chunks)
        return Context(self.model, branch, clock.seconds)

    def ask(
        self,
        question: str,
        *,
        answer_prefix: str = "",
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        sources: bool = True,
    ) -> Answer:
        """Answer a question about the context.

        Args:
            question: with a chat template it becomes the user's message behind the context; without, it follows as given.
            answer_prefix: words the answer must begin with (they are not part of the result).
            temperature: 0 takes the likeliest token each time.
            sources: also name the sentences the answer was copied from.

        Raises:
            UserInputError: an empty question, or settings out of range.
        """
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise UserInputError("this model has no tokenizer; load it with tokenizer=... to ask questions")
        if not question.strip():
            raise UserInputError("the question is empty; write one")
        asked = encode(tokenizer, Prompt.of(tokenizer).question(question, answer_prefix))
        if len(asked) >= self.model.window_tokens:
            raise UserInputError(
                f"the question has {len(asked)} tokens, the model's window is {self.model.window_tokens}; "
                "ask a shorter one, or put the long part into the text that is read"
            )
        sampler = Sampler(temperature=temperature, top_p=top_p, seed=seed, max_new_tokens=max_new_tokens)
        stops = stop_ids(self.model)
        token_ids, usage, found = self._generate(asked, sampler, stops, trace=sources)
        text = tokenizer.decode(token_ids, skip_special_tokens=True).strip()
        return Answer(text=text, sources=found, usage=usage, token_ids=tuple(token_ids))

    def _generate(
        self, asked: Tensor, sampler: Sampler, stops: frozenset[int], *, trace: bool
    ) -> tuple[list[int], Usage, tuple[Source, ...]]:
        clock, reader = Clock(), self.model.reader()
        with clock.measure("prefill"):
            branch, logits, tracer = self._open_branch(reader, asked, trace)
        tokens: list[int] = []
        with clock.measure("decode"):
            while True:
                token = sampler.next(logits[0])
                if tracer is not None:
                    tracer.settle(token)
                if token in stops:
                    break
                tokens.append(token)
                if len(tokens) >= sampler.max_new_tokens:
                    break
                following = reader.advance(branch, torch.tensor([token]))
                assert following is not None
                logits = following
        usage = Usage(
            prompt_tokens=len(asked),
            cached_tokens=self.num_tokens,
            generated_tokens=len(tokens),
            kv_bytes=self.kv_bytes,
            peak_kv_bytes=max(branch.peak_bytes, self.run.peak_bytes),
            seconds=clock.seconds,
        )
        if len(branch.layers) == len(self.run.layers):
            branch.give_back(self.run)
        found = () if tracer is None else tracer.sources(self.model.tokenizer)
        return tokens, usage, found

    def _open_branch(
        self, reader: ModelReader, asked: Tensor, trace: bool
    ) -> tuple[Run, Tensor, Tracer | None]:
        """Read the question, its last token apart, so that the answer's first token can be traced."""
        branch = reader.open_question(self.run, asked)
        tracer = Tracer(branch, self.run) if trace and len(asked) > 1 else None
        if tracer is not None:
            reader.advance(branch, asked[:-1])
            reader.watch(branch, tracer.observe)
        logits = reader.advance(branch, asked if tracer is None else asked[-1:])
        assert logits is not None
        return branch, logits, tracer

    def save(self, path: str | Path) -> None:
        """Write the context to a `.span` file (safetensors); `longspan.open_context` reads it back."""
        from longspan.engine.save import save_context

        save_context(self, path)


def stop_ids(model: SpanModel) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's eos and those of the generation config."""
    found = {model.tokenizer.eos_token_id}
    configured = getattr(model.hf_model.generation_config, "eos_token_id", None)
    found.update(configured if isinstance(configured, list) else [configured])
    stops = frozenset(int(token) for token in found if token is not None)
    if not stops:
        raise UserInputError(
            f"the tokenizer of {model.name} has no eos token, so no answer would ever end; set tokenizer.eos_token first"
        )
    return stops
