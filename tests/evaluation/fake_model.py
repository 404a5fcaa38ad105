"""A model that answers with the text it still holds: dense holds all, "tail" the last quarter. No weights at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

_PIECE = re.compile(r"\s*\S+|\s+")


class WordTokenizer:
    """One token a word, with the white space before it."""

    bos_token_id = 1

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Ids from 2 on, by the word's bytes."""
        return [2 + sum(piece.encode()) % 98 for piece in _PIECE.findall(text)]


class FakeContext:
    def __init__(self, model: FakeModel, text: str) -> None:
        self.model = model
        self.words = _PIECE.findall(text)
        self.held = self.words if model.spec != "tail" else self.words[-len(self.words) // 4 :]
        self.kv_bytes = 100 * len(self.held)
        self.usage = SimpleNamespace(seconds={"read": 0.5}, backends=[])

    def ask(self, question: str, *, answer_prefix: str, max_new_tokens: int, sources: bool) -> Any:
        assert not sources
        self.model.questions.append((self.model.spec, question))
        usage = SimpleNamespace(
            prompt_tokens=len(question.split()),
            cached_tokens=len(self.words),
            generated_tokens=4,
            kv_bytes=self.kv_bytes,
            peak_kv_bytes=100 * len(self.words),
            backends=[{"op": "attend", "backend": "slices", "calls": 1, "not": {}}],
            seconds={"prefill": 0.25, "decode": 0.5},
        )
        return SimpleNamespace(text="".join(self.held), usage=usage)


class FakeModel:
    """Has the surface of `longspan.engine.model.SpanModel` that the benchmark uses.

    Specs: "dense"; "tail"; "short" refuses texts beyond 700 words; "huge" is out of memory; "broken" has a bug;
    "unknown" cannot be made.
    """

    name = "fake"

    def __init__(self, spec: str = "dense", shared: FakeModel | None = None) -> None:
        self.spec = spec
        self.tokenizer = shared.tokenizer if shared else WordTokenizer()
        self.questions: list[tuple[str, str]] = shared.questions if shared else []
        self.info = SimpleNamespace(fingerprint="f00d", device=torch.device("cpu"), dtype=torch.float32)

    def with_methods(self, spec: str) -> FakeModel:
        if spec == "unknown":
            raise ValueError("unknown cannot serve this model; use another")
        return FakeModel(spec, self)

    def read(self, text: str, *, progress: bool | None) -> FakeContext:
        assert progress is False
        if self.spec == "short" and len(text.split()) > 700:
            raise ValueError("short reads at most 700 words; split the text")
        if self.spec == "huge":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        if self.spec == "broken":
            raise RuntimeError("shape mismatch")
        return FakeContext(self, text)

    def logits(self, ids: torch.Tensor, *, chunk_tokens: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Always sure, with odds of 3 to 1 in favour of the token that comes next in the first half of the text."""
        half = len(ids) // 2
        for start in range(0, len(ids), chunk_tokens):
            stop = min(start + chunk_tokens, len(ids))
            logits = torch.zeros(stop - start, 100)
            for place in range(start, min(stop, half - 1)):
                logits[place - start, ids[place + 1]] = torch.tensor(297.0).log()
            yield start, logits
