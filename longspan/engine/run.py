"""One request's state: what each layer holds, what each method remembers, and what is forgotten again.

A run belongs to one context or one call of `generate`; nothing of it lives on the model's modules, so one attached model
serves many runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from longspan.engine.plan import LayerPlan, Plan
from longspan.engine.scored import ScoredSlab
from longspan.engine.store import SPARE_TOKENS, LayerStore, Slab
from longspan.model_info import LayerInfo
from longspan.ops.attend import Problem
from longspan.ops.backend import Choice
from longspan.roles import Codec, Event, Held, Phase, Step, Storage


def _kept_by_reading(plan: LayerPlan, event: Event) -> bool:
    """What stays of the layer's text is not decided yet."""
    return event == "read" and plan.storage is not None and plan.storage.keeps_itself()


class StopForward(Exception):
    """Raised inside a forward when the run wants no layer after the current one; caught by the reader."""


@dataclass(kw_only=True, eq=False)
class Run:
    """State of one request under one plan."""

    plan: Plan
    chunk_tokens: int
    layers: list[LayerStore] = field(default_factory=list)
    states: dict[tuple[int, int, int], dict[str, Any]] = field(default_factory=dict)
    seen: int = 0
    phase: Phase = "prefill"
    reserve_tokens: int = 0
    token_ids: list[Tensor] = field(default_factory=list)
    origin: Tensor | None = None
    stop_after_layer: int | None = None
    watchers: list[Callable[[int, Step], None]] = field(default_factory=list)
    tracers: list[Callable[[LayerInfo, Problem], None]] = field(default_factory=list)
    prompt_tokens: int | None = None
    last_queries: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor]] = field(default_factory=dict)
    ask_states: dict[int, dict[int, Any]] = field(default_factory=dict)
    peak_bytes: int = 0
    backends: Counter[Choice] = field(default_factory=Counter)
    recalling: bool = False
    cut: Callable[..., Tensor] | None = None  # stands in for attention while a step is recorded
    graphs_state: tuple[int, ...] | None = None  # of the model that its steps were seen to fit
    forward_positions: tuple[Tensor | None, Tensor | None, int, tuple[Tensor, int | None, bool]] | None = None

    def __post_init__(self) -> None:
        if not self.layers:
            for layer in self.plan.layers:
                heads = tuple(range(layer.info.num_kv_heads))
                groups = (heads,) if layer.storage is None else layer.storage.split(layer.info)
                self.layers.append(LayerStore([Slab(group) for group in groups]))
        for layer, store in zip(self.plan.layers, self.layers, strict=True):
            if layer.codec is not None:
                for slab in store.slabs:
                    slab.decoder = partial(layer.codec.decode, layer.info)

    @property
    def kv_bytes(self) -> int:
        """Bytes of all tensors' storage, spare room included; what layers share counts once."""
        found = {x.untyped_storage().data_ptr(): x for layer in self.layers for x in layer.tensors}
        return sum(x.untyped_storage().nbytes() for x in found.values())

    @property
    def archived_bytes(self) -> dict[str, int]:
        """Bytes of a lower tier, by its name, from which a question recalls what was dropped."""
        found: Counter[str] = Counter()
        for layer in self.layers:
            for slab in layer.slabs:
                if slab.archive is not None:
                    found[slab.archive.tier] += slab.archive.num_bytes
        return dict(found)

    @property
    def kept_tokens(self) -> float:
        """Tokens held, averaged over kv heads and layers that hold any."""
        kept = [layer.kept_tokens for layer in self.layers if layer.kept_tokens]
        return sum(kept) / max(len(kept), 1)

    @property
    def num_rows(self) -> int:
        """Rows of a batch that it holds: 1 but where a reading puts parts of a text side by side."""
        return next((len(x) for layer in self.layers for slab in layer.slabs for x in slab.tensors[:1]), 1)

    @property
    def own_tokens(self) -> int:
        """Of several rows, the tokens that each has for itself: in `ids` they stand row after row, then what all share."""
        return 0 if self.num_rows == 1 else (len(self.ids) - self.seen) // (self.num_rows - 1)

    @property
    def ids(self) -> Tensor:
        """Token ids seen so far, `[S]`; of several rows, see `own_tokens`."""
        if len(self.token_ids) > 1:
            self.token_ids = [torch.cat(self.token_ids)]
        return self.token_ids[0] if self.token_ids else torch.zeros(0, dtype=torch.long)

    def fork(self) -> Run:
        """A run that goes on from here and leaves this one as it is; shares tensors until one of them writes."""
        return Run(
            plan=self.plan,
            chunk_tokens=self.chunk_tokens,
            layers=[layer.fork() for layer in self.layers],
            states={key: dict(state) for key, state in self.states.items()},
            seen=self.seen,
            phase=self.phase,
            token_ids=list(self.token_ids),
            origin=self.origin,
            ask_states=self.ask_states,
        )

    def give_back(self, parent: Run) -> None:
        """End of a fork: hand the spare room of shared tensors back to the run it came from."""
        for layer, other in zip(self.layers, parent.layers, strict=True):
            layer.give_back(other)

    def state(self, layer: int, method: object, slab: int = 0) -> dict[str, Any]:
        """What `method` remembers for a layer and slab."""
        return self.states.setdefault((layer, self.plan.number(method), slab), {})

    def last_logits(self, index: int) -> Tensor:
        """Logits of the last query of row 0 at a layer, by position: `[H, tokens seen]`, -inf where nothing is held."""
        plan = self.plan.layers[index]
        parts: dict[int, Tensor] = {}
        for slab in self.layers[index].slabs:
            view = ScoredSlab(slab, plan.rotary(slab), plan.info.scale)
            logits = view.logits(*self.last_queries[index, slab.heads], 0, slab.num_tokens)[0, :, 0]
            at = slab.positions[0].repeat_interleave(logits.shape[0] // slab.positions.shape[1], dim=0)
            row = logits.new_full((logits.shape[0], self.seen + 1), -torch.inf)
            row.scatter_(1, torch.where(at < 0, self.seen, at), logits)
            parts.update(zip(slab.heads, row[:, : self.seen].split(plan.info.num_groups), strict=True))
        return torch.cat([parts[head] for head in sorted(parts)])

    # reading on

    def text_tokens(self, num_tokens: int) -> int:
        """How many of the next tokens still belong to the text that is read."""
        if self.phase == "decode" or self.prompt_tokens is None:
            return num_tokens
        return min(num_tokens, max(self.prompt_tokens - self.seen, 0))

    def finish_reading(self) -> None:
        """End of a text: methods that compact or code after reading do so, and spare room is given back."""
        if self.phase == "decode":
            return
        self.peak_bytes = max(self.peak_bytes, self.kv_bytes)
        for index in range(len(self.plan.layers)):
            self.settle(index, "read")
        self.settle_model("read")
        for layer in self.layers:
            for slab in layer.slabs:
                slab.fit()
        self.phase = "decode"

    def close_layer(self, index: int) -> None:
        """The text ends here, for one layer, while its last forward goes on."""
        self.settle(index, "read")
        for slab in self.layers[index].slabs:
            slab.fit()

    def recall(self) -> bool:
        """Before a question of a fork: whether there is something to bring back for it from a lower tier. Each layer then does so
        when it gets there, and forgets again right after."""
        tiered = any(layer.storage is not None and layer.storage.lower_tier() for layer in self.plan.layers)
        # Layers of other plans are not looked at: they may still be on their way from a file.
        self.recalling = tiered and any(
            slab.archive is not None for layer in self.layers for slab in layer.slabs
        )
        if self.recalling:
            self.phase = "prefill"
        return self.recalling

    def end_recall(self) -> None:
        """The question is read: from here on what it chose is all there is."""
        self.settle_model("read")
        self.recalling, self.phase = False, "decode"

    # forgetting

    def settle(self, index: int, event: Event) -> None:
        """Free what the layer's storage method no longer wants, and code the rest, where they decide layer by layer."""
        plan = self.plan.layers[index]
        later = plan.storage is not None and plan.storage.together() == "model" and event != "token"
        if plan.storage is not None and not later:
            self._compact(plan.storage, [index], event)
        if plan.codec is not None:
            later |= plan.codec.together() == "model" and event != "token"
            later |= plan.storage is not None and event == "chunk"
            if not later and not _kept_by_reading(plan, event):
                self._code(plan.codec, [index], event)

    def settle_model(self, event: Event) -> None:
        """The same for the methods that decide over all layers at once."""
        for storage, layers in self.plan.sharing("storage"):
            assert isinstance(storage, Storage)
            self._compact(storage, layers, event)
        for index, plan in enumerate(self.plan.layers):
            waited = plan.storage is not None and plan.storage.together() == "model"
            apart = plan.codec is not None and plan.codec.together() != "model"
            if waited and apart and not _kept_by_reading(plan, event):
                self._code(plan.codec, [index], event)
        for codec, layers in self.plan.sharing("codec"):
            assert isinstance(codec, Codec)
            if not any(_kept_by_reading(self.plan.layers[index], event) for index in layers):
                self._code(codec, layers, event)

    def code_text(self) -> None:
        """A reading has decided what stays of a text: code it."""
        for index, plan in enumerate(self.plan.layers):
            if plan.codec is not None and plan.codec.together() != "model":
                self._code(plan.codec, [index], "read")
        for codec, layers in self.plan.sharing("codec"):
            assert isinstance(codec, Codec)
            self._code(codec, layers, "read")

    def held(self, method: object, layers: Sequence[int], *, raw: bool = False) -> list[Held]:
        """What these layers hold, slab by slab, with what `method` remembers there; see `ScoredSlab`."""
        found = []
        for index in layers:
            plan = self.plan.layers[index]
            for number, slab in enumerate(self.layers[index].slabs):
                view = ScoredSlab(slab, plan.rotary(slab), plan.info.scale, raw=raw)
                found.append(Held(plan.info, view, self.state(index, method, number)))
        return found

    def keep(
        self,
        layers: Sequence[int],
        kept: Sequence[Tensor | None],
        blended: Sequence[tuple[Tensor, Tensor] | None] | None = None,
    ) -> None:
        """Free all but these places of what `held` showed; `blended` are keys and values to stand there."""
        slabs = [slab for index in layers for slab in self.layers[index].slabs]
        for slab, places, new in zip(slabs, kept, blended or [None] * len(kept), strict=True):
            if places is not None:
                slab.keep(places, new)

    def _compact(self, storage: Storage, layers: Sequence[int], event: Event) -> None:
        held = self.held(storage, layers)
        if not any(h.store.num_tokens for h in held):
            return
        kept = storage.compact_together(held, event=event)
        tier = storage.lower_tier()
        if tier is not None and event == "read" and not self.recalling:
            slabs = (slab for index in layers for slab in self.layers[index].slabs)
            for slab, places in zip(slabs, kept, strict=True):
                if places is not None:
                    slab.put_by(tier)
        self.keep(layers, kept)

    def _code(self, codec: Codec | None, layers: Sequence[int], event: Event) -> None:
        slabs = [slab for index in layers for slab in self.layers[index].slabs]
        assert codec is not None
        held = self.held(codec, layers, raw=True)
        if any(slab.raw_tokens for slab in slabs):
            for slab, coded in zip(slabs, codec.code(held, event=event), strict=True):
                if coded is not None:
                    slab.code(coded)
                    self.reserve_tokens = 0  # no room for a whole text as it comes

    def slide(self, index: int, num_guesses: int) -> None:
        """Free what a sliding-window layer can no longer see, not at every token, were the last guesses cropped."""
        window = self.plan.layers[index].info.sliding_window_tokens
        if window is None:
            return
        for slab in self.layers[index].slabs:
            extra = slab.num_tokens - window - num_guesses
            if extra > SPARE_TOKENS or (extra > 0 and self.phase == "prefill"):
                slab.drop_oldest(extra)

    def crop(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` tokens (rejected guesses of assisted decoding)."""
        for plan, layer in zip(self.plan.layers, self.layers, strict=True):
            for slab in layer.slabs:
                gone = num_tokens
                if plan.storage is not None or plan.info.sliding_window_tokens is not None:
                    latest = slab.positions.amax(dim=(1, 2), keepdim=True)
                    late = slab.positions > (latest - num_tokens).clamp(min=-1)
                    gone = int(late.flatten(0, 1).any(dim=0).sum())
                slab.crop(gone)
        self.seen -= num_tokens
        self.token_ids = [self.ids[: self.seen]]

    def select_rows(self, rows: Tensor) -> None:
        """Take batch rows (beam search, repeats) of everything held."""
        for layer in self.layers:
            for slab in layer.slabs:
                slab.select_rows(rows)
        for state in self.states.values():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    state[key] = value.index_select(0, rows.to(value.device))
