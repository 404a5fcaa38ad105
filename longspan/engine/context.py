"""A context that was read, the questions it is asked, and their answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longspan.engine.prefix import depends_on_cuts
from longspan.engine.prompt import Prompt, encode, text_chunks
from longspan.engine.reader import ModelReader, rechunk
from longspan.engine.run import Run
from longspan.engine.sampling import Sampler
from longspan.engine.sources import Source, Tracer
from longspan.engine.usage import Clock, Usage
from longspan.errors import UserInputError
from longspan.ops.backend import backend_rows

if TYPE_CHECKING:
    from pathlib import Path

    from longspan.engine.model import SpanModel


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer, the sentences of the context it was copied from (best first), and what it cost."""

    text: str
    sources: tuple[Source, ...]
    usage: Usage
    token_ids: tuple[int, ...]


@dataclass(eq=False)
class Context:
    """A text as a model holds it. Asking never changes it.

    `read` gives a longer context and leaves this one as it is; `append` makes this one longer; `fork` gives a second one of
    the same text, so that each can be appended to in its own way.

    Args:
        cached_tokens: tokens that came out of a `ContextStore` and were not read anew.
        whole: it is what reading its text in one go gives. False once more was read behind its end under methods for which
            that is not the same.
    """

    model: SpanModel
    run: Run
    read_seconds: dict[str, float] = field(default_factory=dict)
    cached_tokens: int = 0
    whole: bool = True

    @property
    def num_tokens(self) -> int:
        """Tokens read."""
        return len(self.run.ids)

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
            prompt_tokens=self.num_tokens - self.cached_tokens,
            cached_tokens=self.cached_tokens,
            generated_tokens=0,
            kv_bytes=self.kv_bytes,
            peak_kv_bytes=self.run.peak_bytes,
            seconds=dict(self.read_seconds),
            backends=backend_rows(self.run.backends),
        )

    def read(self, text: str | Tensor | Sequence[int]) -> Context:
        """This context followed by more text (a str, or token ids), as a new context; this one stays as it is. See `append`."""
        plan, reader, clock = self.model.plan, self.model.reader(), Clock()
        pieces = self._pieces(text)
        with clock.measure("read"):
            longer: Run = plan.reading.extend(reader, self.run, rechunk(pieces, reader.chunk_tokens))
        if plan.reading_name is None:  # it has moved, so the room that it took is not needed
            longer.give_back(self.run)
        return Context(self.model, longer, clock.seconds, whole=self.whole and not depends_on_cuts(plan))

    def append(self, text: str | Tensor | Sequence[int]) -> None:
        """Add more text (a str, or token ids) to this context itself, where `read` gives a new one.

        What it holds is grown in place while there is room behind it, and moved once where there is not. Contexts that were
        forked from it stay as they were. If reading fails, this context is what it was before.
        """
        plan, reader, clock = self.model.plan, self.model.reader(), Clock()
        chunks = rechunk(self._pieces(text), reader.chunk_tokens)
        with clock.measure("read"):
            if depends_on_cuts(plan):
                longer: Run = plan.reading.extend(reader, self.run, chunks)
            else:  # the same, without fitting the room to it
                longer = self.run.fork()
                for chunk in chunks:
                    reader.advance(longer, chunk)
        longer.peak_bytes = max(longer.peak_bytes, self.run.peak_bytes)
        self.run, self.whole = longer, self.whole and not depends_on_cuts(plan)
        for phase, seconds in clock.seconds.items():
            self.read_seconds[phase] = self.read_seconds.get(phase, 0.0) + seconds

    def fork(self) -> Context:
        """A second context of the same text, at once and without a copy; each may then be appended to, and the other never
        sees it.

        Both share their memory until one grows. The spare room behind the text goes to the fork: a short text is appended
        to it in place, and the first one moves what it holds when it is appended to.
        """
        return replace(self, run=self.run.fork(), read_seconds=dict(self.read_seconds))

    def _pieces(self, text: str | Tensor | Sequence[int]) -> Iterator[Tensor]:
        """Ids of a text that follows another."""
        if isinstance(text, str):
            if not text.strip():
                raise UserInputError("the text is empty; give a text with at least one word")
            return iter([encode(self.model.tokenizer, text)])
        if isinstance(text, Tensor | list | tuple):
            vocabulary = self.model.hf_model.get_input_embeddings().num_embeddings
            return text_chunks(self.model.tokenizer, text, vocabulary)[0]
        raise UserInputError(f"got a {type(text).__name__} where a text is needed; give a str or token ids")

    def with_turn(self, question: str, answer: str) -> Context:
        """This context followed by a question and the answer it was given, as a new context: further questions then follow
        in the same conversation.

        Args:
            question: what was asked.
            answer: what was answered, with its prefix.
        """
        return self.read(Prompt.of(self.model.tokenizer).turn(question, answer))

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
        if not isinstance(question, str):
            raise UserInputError(f"got a {type(question).__name__} as the question; give a str")
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
            backends=backend_rows(branch.backends),
        )
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
            branch.tracers.append(tracer.observe)
        logits = reader.advance(branch, asked if tracer is None else asked[-1:])
        assert logits is not None
        return branch, logits, tracer

    def save(self, path: str | Path, *, level: int | None = None) -> None:
        """Write the context to a `.span` file (safetensors), whole or not at all; `longspan.open_context` reads it back.

        Args:
            level: None keeps every bit; 0 (finest) to 4 (smallest) code keys and values as CacheGen does, at 2 to 6 times
                fewer bytes than 8-bit storage, and lose a little (docs/storage.md).
        """
        from longspan.engine.save import save_context

        save_context(self, path, level=level)


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
