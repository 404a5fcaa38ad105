"""Which methods work beside each other: pairs of specs compiled and run on a small random model.

A pair is a method that expresses distance and one that does something else. Either its plan refuses it, in one sentence, or it
obeys laws that say what composing means; the page `docs/pairs.md` is written from what happened, and tests repeat it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from longspan._syntax import format_value
from longspan.card import Card, all_cards
from longspan.engine.api import load
from longspan.engine.model import SpanModel
from longspan.engine.plan import yielding_setting
from longspan.roles import Reading
from longspan.spec import ScopedMethod, canonical, resolve

__all__ = ["Outcome", "PairChecker", "all_outcomes", "pairs", "small_model"]

TEXT_TOKENS, QUESTION_TOKENS = 300, 9
WHOLE, USUAL, PIECES = 512, 100, 64
"""Tokens of a chunk: the text at once, as it is read by default here, and for comparison."""
SAME, DIFFERENT = 1e-4, 1e-3
"""Most that two logits may differ by to be equal, and least to be another's; they go up to about 0.5."""
ROW = "ROW"
LAWS = {
    "first": "with the positions method at its identity, the pair equals the partner alone",
    "second": "with the partner at its identity, the pair equals the positions method alone",
    "handed on": "what a partner that reads in an order of its own hands on is read as the positions method alone reads it",
    "both act": "the pair differs from each of the two alone, in its logits or in the tokens that it keeps; from the partner "
    "only where it hands on enough for the positions method to change anything",
    "chunks": "a text read in chunks equals one read at once",
    "asking": "a question leaves the context as it was: asked again behind another one it gets the same logits, bit for bit",
}
CHUNKS, ROTATION = "chunked_reading", "keys_before_rotation"
"""Under `tolerances` of a card: other chunks make other choices; keys that are kept before rotation do. The first excuses
from `chunks`. With the second, `first` is held to the partner alone over keys that are kept so."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a pair.

    Args:
        first: the positions method's name.
        second: its partner's.
        spec: what was run: both examples, changed by `setting` where they are refused as they are.
        refused: why the plan does not take the examples together; None where it does.
        setting: what was changed then, such as `evict=false in lm_infinite`; None where nothing could be.
        broken: the laws that do not hold.
    """

    first: str
    second: str
    spec: str
    refused: str | None = None
    setting: str | None = None
    broken: tuple[str, ...] = ()

    @property
    def cell(self) -> str:
        """The word for it in a table."""
        if self.broken:
            return f"**breaks** {', '.join(self.broken)}"
        if self.refused is None:
            return "works"
        return "refused" if self.setting is None else f"with `{self.setting.split(' in ')[0]}`"

    @property
    def sentence(self) -> str | None:
        """Why the plan refuses it, with `ROW` for the positions method."""
        return None if self.refused is None else re.sub(rf"\b{self.first}\b", ROW, self.refused)


class _Part(NamedTuple):
    """One method of a pair: acting on a short text, and not."""

    acting: ScopedMethod
    idle: ScopedMethod


class _Read(NamedTuple):
    """What became of a text: logits `[V]` behind a question, the texts `[B, n]` that the question followed, one but where
    parts are read side by side, tokens kept, and whether keys are kept before rotation."""

    logits: Tensor
    texts: Tensor
    kept_tokens: float
    pre_rotary: bool
    reading: Reading


class PairChecker:
    """Runs pairs on one small model, every spec and every pair once."""

    def __init__(self) -> None:
        self.model = small_model()
        draw = torch.Generator().manual_seed(1)
        num_words = self.model.hf_model.get_input_embeddings().num_embeddings
        self.text, self.question, self.other = (
            torch.randint(3, num_words, (count,), generator=draw)
            for count in (TEXT_TOKENS, QUESTION_TOKENS, 5)
        )
        self._known: dict[tuple[object, ...], _Read] = {}
        self._outcomes: dict[tuple[str, str], Outcome] = {}

    def outcome(self, first: Card, second: Card) -> Outcome:
        """Compile a pair and, where the plan takes it, hold it to `LAWS`."""
        key = first.name, second.name
        if key not in self._outcomes:
            self._outcomes[key] = self._outcome(first, second)
        return self._outcomes[key]

    def _outcome(self, first: Card, second: Card) -> Outcome:
        one, two = _part(first), _part(second)
        spec = canonical((one.acting, two.acting))
        refused = self._refusal(spec)
        setting = None
        if refused is not None:
            changed = _yielding(one, two)
            if changed is None or self._refusal(canonical((changed[0].acting, changed[1].acting))):
                return Outcome(first=first.name, second=second.name, spec=spec, refused=refused)
            one, two, setting = changed
            spec = canonical((one.acting, two.acting))
        return Outcome(
            first=first.name,
            second=second.name,
            spec=spec,
            refused=refused,
            setting=setting,
            broken=tuple(self._broken(one, two, {*first.tolerances, *second.tolerances})),
        )

    def _refusal(self, spec: str) -> str | None:
        try:
            self.model.with_methods(spec)
        except ValueError as error:
            return str(error)
        return None

    def _broken(self, one: _Part, two: _Part, tolerances: set[str]) -> Iterator[str]:
        spec = canonical((one.acting, two.acting))
        pair = self._read(spec)
        first, second = (self._read(canonical((part.acting,))) for part in (one, two))
        idle_first = self._read(canonical((one.idle, two.acting)))
        idle_second = self._read(canonical((one.acting, two.idle)))
        if not _same(idle_first, second) and not (
            ROTATION in tolerances
            and idle_first.pre_rotary > second.pre_rotary
            and _same(idle_first, self._read(canonical((two.acting,)), before_rotation=True))
        ):
            yield "first"
        alike = torch.equal(idle_second.texts, first.texts)
        if not (_same(idle_second, first) if alike else self._handed_on(idle_second, one)):
            yield "second"
        handed = not torch.equal(pair.texts, first.texts)
        if handed and not self._handed_on(pair, one):
            yield "handed on"
        if not (
            _other(pair, first) and (_other(pair, second) or (handed and self._is_idle(one, pair.texts)))
        ):
            yield "both act"
        whole = pair if CHUNKS in tolerances else self._read(spec, chunk_tokens=WHOLE)
        if CHUNKS not in tolerances and not _same(self._read(spec, chunk_tokens=PIECES), whole):
            yield "chunks"
        if not self._asks_alike(spec):
            yield "asking"

    def _handed_on(self, pair: _Read, one: _Part) -> bool:
        """Whether the texts that a question follows are read as the positions method alone reads them."""
        alone = torch.stack([self._read(canonical((one.acting,)), ids=text).logits for text in pair.texts])
        return torch.allclose(pair.reading.combine(alone)[0], pair.logits, atol=SAME, rtol=SAME)

    def _is_idle(self, one: _Part, texts: Tensor) -> bool:
        """Whether the positions method changes nothing in texts that are so short."""
        return not any(
            _other(self._read(canonical((one.acting,)), ids=text), self._read("dense", ids=text))
            for text in texts
        )

    def _read(
        self,
        spec: str,
        *,
        chunk_tokens: int = USUAL,
        ids: Tensor | None = None,
        before_rotation: bool = False,
    ) -> _Read:
        text = self.text if ids is None else ids
        key = (spec, chunk_tokens, before_rotation, tuple(text.tolist()))
        if key not in self._known:
            self._known[key] = self._read_once(spec, chunk_tokens, text, before_rotation)
        return self._known[key]

    def _read_once(self, spec: str, chunk_tokens: int, text: Tensor, before_rotation: bool) -> _Read:
        model = SpanModel(self.model.loaded, spec, chunk_tokens=chunk_tokens)
        if before_rotation:
            layers = tuple(replace(layer, pre_rotary=True) for layer in model.plan.layers)
            model.plan = replace(model.plan, layers=layers)
        context = model.read(text, progress=False)
        logits, texts = self._behind(model, context.run, self.question)
        return _Read(
            logits=logits,
            texts=texts,
            kept_tokens=context.kept_tokens,
            pre_rotary=model.plan.pre_rotary,
            reading=model.plan.reading,
        )

    def _asks_alike(self, spec: str) -> bool:
        """Whether a question behind another one is as if it were the first, and nothing more is held."""
        model = SpanModel(self.model.loaded, spec, chunk_tokens=USUAL)
        context = model.read(self.text, progress=False)
        held = context.kv_bytes
        self._behind(model, context.run, self.other)
        again, _ = self._behind(model, context.run, self.question)
        return torch.equal(again, self._read(spec).logits) and context.kv_bytes == held

    def _behind(self, model: SpanModel, run: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[V]` behind a question, and the texts `[B, n]` that it followed."""
        reader = model.reader()
        branch = reader.open_question(run, ids)
        texts = branch.ids.view(branch.num_rows, -1)
        logits = reader.advance(branch, ids)
        assert logits is not None
        branch.give_back(run)
        return logits[0], texts


def pairs() -> list[tuple[Card, Card]]:
    """Every method of the family `positions` that expresses distance with every method that does something else."""
    cards = all_cards().values()
    rows = [card for card in cards if card.family == "positions" and "Positions" in card.roles]
    columns = [card for card in cards if card not in rows and card.roles]
    return [(row, column) for row in rows for column in columns]


def all_outcomes() -> list[Outcome]:
    """What becomes of every pair."""
    checker = PairChecker()
    return [checker.outcome(first, second) for first, second in pairs()]


def small_model() -> SpanModel:
    """A random Llama of 2 layers, 4 query and 2 kv heads, with a window of 256 tokens; peaked attention."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                intermediate_size=96,
                vocab_size=500,
                max_position_embeddings=256,
            )
        ).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 8
            layer.self_attn.k_proj.weight *= 8
    return load(model)


def _part(card: Card) -> _Part:
    (acting,), (idle,) = resolve(card.example), resolve(card.identity)
    return _Part(acting, idle)


def _yielding(one: _Part, two: _Part) -> tuple[_Part, _Part, str] | None:
    """Both parts, one of them with the setting that leaves a role to the other, and its name; None where there is none."""
    for part, other in ((one, two), (two, one)):
        if found := yielding_setting(part.acting.method, other.acting.method):
            name, value = found
            changed = _Part(*(replace(s, method=replace(s.method, **{name: value})) for s in part))
            said = f"{name}={format_value(value)} in {part.acting.name}"
            return (changed, other, said) if part is one else (other, changed, said)
    return None


def _same_answer(got: _Read, wanted: _Read) -> bool:
    return torch.allclose(got.logits, wanted.logits, atol=SAME, rtol=SAME)


def _same(got: _Read, wanted: _Read) -> bool:
    return _same_answer(got, wanted) and got.kept_tokens == wanted.kept_tokens


def _other(got: _Read, alone: _Read) -> bool:
    return float((got.logits - alone.logits).abs().max()) > DIFFERENT or got.kept_tokens != alone.kept_tokens
