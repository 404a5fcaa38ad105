"""The contracts: what a published method can change, and what the engine hands it.

A method is one frozen dataclass in one file that derives from one or more roles. It holds settings only; whatever it
must remember while a text is read lives in the `state` dict that the engine keeps per run and layer (tensors in it are
replaced, never written in place, so that a run can be forked). The engine calls the roles in a fixed order,

    positions -> append -> selection.visit -> attend (with steering.bias) -> storage.compact -> codec.code

and no method knows another. Layers with the model's own sliding window keep it and are not offered to methods.

Axis legend: B batch, T query tokens, S stored tokens, H query heads, K kv heads, G = H/K, D head dim, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from longspan.model_info import LayerInfo, ModelInfo, Rope

if TYPE_CHECKING:
    from torch import Tensor

    from longspan.visit import Band, Visit

__all__ = [
    "Coded",
    "Codec",
    "Event",
    "Held",
    "KeyView",
    "LayerInfo",
    "Method",
    "ModelInfo",
    "Phase",
    "Positions",
    "Reader",
    "Reading",
    "Rope",
    "ScoredKeyView",
    "Selection",
    "Steering",
    "Step",
    "Storage",
]

Phase = Literal["prefill", "decode"]
Event = Literal[
    "chunk", "read", "token"
]  # after a chunk of a text, once after its end, after each later step


class KeyView(Protocol):
    """Stored keys of some kv heads of one layer, read-only.

    keys, values: `[B, k, S, D]`; positions: int64 `[B, 1 or k, S]`, -1 where a slot holds nothing (padding);
    heads: the kv heads it covers; num_tokens: S; filled: no slot is padding (False: some may be).
    """

    heads: tuple[int, ...]

    @property
    def keys(self) -> Tensor: ...
    @property
    def values(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def filled(self) -> bool: ...


class ScoredKeyView(KeyView, Protocol):
    """Stored keys that can be scored, as `Step.logits` does it, when no step is under way."""

    def logits(self, queries: Tensor, query_positions: Tensor, start: int, stop: int) -> Tensor:
        """Scaled attention logits `[B, h, t, stop-start]` under the positions in force, without any mask."""
        ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """One attention step: T new queries of one layer over one slab of stored keys (the new keys are its last T).

    Args:
        layer: the layer.
        phase: "prefill" while a text is read, "decode" from the question on.
        queries: `[B, h, T, D]` for the query heads of the slab's kv heads; rotated unless keys are kept pre-rotary.
        query_positions: int64 `[B, T]`, -1 for padding.
        store: the stored keys, new ones included.
        num_new: T.
        state: what this method remembers for this layer and slab.
        logits: `logits(queries, query_positions, start, stop) -> [B, h, t, stop-start]`: scaled attention logits of any
            queries against the stored keys `start:stop` under the positions in force, without any mask.
        rotated: queries and stored keys are rotated.
    """

    layer: LayerInfo
    phase: Phase
    queries: Tensor
    query_positions: Tensor
    store: KeyView
    num_new: int
    state: dict[str, Any]
    logits: Callable[[Tensor, Tensor, int, int], Tensor]
    rotated: bool = True

    @property
    def num_past(self) -> int:
        return self.store.num_tokens - self.num_new


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of every method. Settings are fields; wrong values raise ValueError in `__post_init__`."""

    def check(self, model: ModelInfo) -> None:
        """Raise ValueError, saying what to do, when this method cannot serve the model."""

    def claims(self) -> frozenset[str]:
        """Exclusive roles this instance takes; two methods claiming one role on one layer do not combine."""
        return frozenset(
            role.__name__
            for role in (Positions, Selection, Storage, Codec, Reading)
            if isinstance(self, role)
        )


@dataclass(frozen=True, kw_only=True)
class Positions(Method):
    """How is distance expressed? By new frequencies, a scale on the logits, or a map of positions."""

    def rope(self, rope: Rope) -> Rope:
        """New frequencies. Keys stay stored rotated, so this costs nothing."""
        return rope

    def rope_at(self, rope: Rope, num_tokens: int) -> Rope | None:
        """New frequencies once `num_tokens` have come, where they depend on that: keys are then stored pre-rotary, and
        each step rotates all of them with the frequencies of its own end. None: `rope` serves every length."""
        return None

    def logit_scale(self, positions: Tensor, layer: LayerInfo) -> Tensor | None:
        """Factor on the logits of queries at `positions` `[B, T]`, broadcast over heads and keys; None for 1."""
        return None

    def bands(self, layer: LayerInfo) -> tuple[Band, ...]:
        """Maps of positions; not empty means that keys are stored pre-rotary and rotated at attention."""
        return ()

    def places(self, positions: Tensor, window_tokens: int) -> Tensor | None:
        """Where the tokens at `positions` (int64) of a text beyond the window look up in an encoder's learned table of
        `window_tokens` rows, 0 for its first; between two rows it is interpolated. None: not expressed by such a table."""
        return None


@dataclass(frozen=True, kw_only=True)
class Selection(Method):
    """Which keys does a query visit?"""

    phases: ClassVar[frozenset[Phase]] = frozenset({"prefill", "decode"})

    def needs_pre_rotary(self) -> bool:
        """True when `visit` returns `Gather(compact=True)` or must see keys before rotation."""
        return False

    def max_step_tokens(self) -> int | None:
        """Most new tokens that `visit` may be asked about at once; longer steps are cut. None for any number."""
        return None

    def visit(self, step: Step) -> Visit:
        raise NotImplementedError


@dataclass(frozen=True)
class Held:
    """What one slab of a layer holds, and what a method remembers for it."""

    layer: LayerInfo
    store: ScoredKeyView
    state: dict[str, Any]


Together = Literal["slab", "layer", "model"]


@dataclass(frozen=True, kw_only=True)
class Storage(Method):
    """What is kept? Called after each step; what it drops is freed."""

    def split(self, layer: LayerInfo) -> tuple[tuple[int, ...], ...]:
        """Groups of kv heads that are stored apart because their lengths differ; one group by default."""
        return (tuple(range(layer.num_kv_heads)),)

    def together(self) -> Together:
        """What one decision covers: a slab, the slabs of a layer, or those of all layers. Of all layers it is made once, after
        a text ("read"), and later steps ("token") are decided layer by layer."""
        return "slab"

    def keeps_itself(self) -> bool:
        """True when it is a `Reading` too that decides by `Reader.keep` what stays of a text: coding waits for that."""
        return False

    def lower_tier(self) -> Literal["host", "disk"] | None:
        """Where what it drops of a text goes, so that a question brings it back and `compact` decides anew, the question's queries
        observed ("read" once more); None: dropped for good."""
        return None

    def observe(self, step: Step) -> None:
        """See a step's queries and keys right after attention, to remember what `compact` needs."""

    def compact(
        self, layer: LayerInfo, store: ScoredKeyView, state: dict[str, Any], *, event: Event
    ) -> Tensor | None:
        """Places to keep, int64 `[B, 1 or k, n]` ascending (-1 pads), or None to keep all.

        event: "chunk" after each chunk of a text, "read" once after its end, "token" after each later step.
        """
        return None

    def compact_together(self, held: Sequence[Held], *, event: Event) -> list[Tensor | None]:
        """`compact` for slabs that share one decision, see `together`."""
        return [self.compact(h.layer, h.store, h.state, event=event) for h in held]


@dataclass(frozen=True)
class Coded:
    """The first `num_tokens` of the tokens that a slab holds as they came, in another form.

    Args:
        num_tokens: how many tokens it stands for.
        tokens: tensors that grow with them, `[B, k or 1, n, ...]` with tokens, or groups of them, on dim 2.
        shared: tensors that serve all tokens of the slab (a basis, channel numbers), set once.
    """

    num_tokens: int
    tokens: Mapping[str, Tensor]
    shared: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Codec(Method):
    """In what form is it held? Tokens arrive in full precision; called when storage has dropped what it may."""

    def together(self) -> Together:
        """As `Storage.together`."""
        return "slab"

    def needs_pre_rotary(self) -> bool:
        """True when keys must be coded before rotation."""
        return False

    def observe(self, step: Step) -> None:
        """See a step's queries and keys right after attention."""

    def code(self, held: Sequence[Held], *, event: Event) -> list[Coded | None]:
        """For each slab the oldest of its tokens in full precision, coded, or None. `store` shows these only. Beside a
        storage method, chunks of a text are not coded before its end."""
        raise NotImplementedError

    def decode(
        self, layer: LayerInfo, tokens: Mapping[str, Tensor], shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, k, n, D]` of what was coded; the engine brings them to the dtype of the model."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Steering(Method):
    """How are attention logits adjusted?"""

    def prepare(self, reader: Reader, run: Any, question_ids: Tensor) -> dict[int, Any]:
        """Before a question is read into `run`: whatever must be measured first, per layer; `bias` finds it as
        `state["ask"]`. `run` stays as it is: measure on forks."""
        return {}

    def bias(self, step: Step) -> Tensor | None:
        """Added to the logits of every query of this step: `[B, h or 1, S]`, or None."""
        return None


class Reader(Protocol):
    """What a `Reading` may do with the model. Runs are the engine's; a method only passes them around."""

    info: ModelInfo

    def new_run(self, *, num_tokens: int | None = None) -> Any: ...

    def fork(self, run: Any) -> Any:
        """A run that goes on from here; `run` stays as it is."""
        ...

    def give_back(self, branch: Any, run: Any) -> None:
        """End of a fork that goes no further: the spare room it took over is `run`'s again."""
        ...

    def watch(self, run: Any, watcher: Callable[[int, Step], None]) -> None:
        """Call `watcher(layer, step)` after each attention step of the run, once per slab of kv heads."""
        ...

    def prefill(self, run: Any, ids: Iterable[Tensor], *, stop_after_layer: int | None = None) -> Any:
        """Read chunks `[T]` of token ids into the run, behind what it holds, methods applied; ends with the run marked as read."""
        ...

    def prefill_rows(self, run: Any, rows: Tensor) -> Any:
        """Read texts `[B, T]` side by side, as the rows of a batch, into a new run, methods applied; ends with the run marked as
        read. Each row is blind to the others; what follows is appended to all of them."""
        ...

    def put(self, run: Any, keys: Sequence[Tensor], values: Sequence[Tensor], positions: Tensor) -> None:
        """Append slots that stand for no token of their own: for each layer keys before rotation and values `[K, n, D]`, at
        `positions` int64 `[n]`. What is read next comes behind the last of them; `prefill(run, [])` marks the run as read."""
        ...

    def advance(self, run: Any, ids: Tensor, *, stop_after_layer: int | None = None) -> Tensor | None:
        """Append tokens `[T]` as a question would be; logits `[1, V]` of the last token, None when stopped early."""
        ...

    def held(self, run: Any, method: Method) -> list[Held]:
        """What every open layer holds, slab by slab, with what `method` remembers there."""
        ...

    def keep(
        self,
        run: Any,
        kept: Sequence[Tensor | None],
        blended: Sequence[tuple[Tensor, Tensor] | None] | None = None,
        *,
        last: bool = True,
    ) -> None:
        """Free all but these places of what `held` showed, as `Storage.compact` returns them. `blended`: keys and values
        `[B, k, n, D]` that stand at these places from now on, as `held` would show them; `last`: the text is over, so what is left
        is coded."""
        ...

    def layer_logits(self, run: Any, layer: int) -> Tensor:
        """Attention logits of the last token at `layer`, where `advance` stopped, over all tokens seen, under the run's
        positions: float32 `[H, tokens seen]`, -inf where a head holds nothing."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reading(Method):
    """In what order does a long input pass through the layers?"""

    def read(self, reader: Reader, ids: Iterable[Tensor], num_tokens: int | None) -> Any:
        """Read a text, given as chunks `[T]`, into a new run."""
        run = reader.new_run(num_tokens=num_tokens)
        return reader.prefill(run, ids)

    def extend(self, reader: Reader, run: Any, ids: Iterable[Tensor]) -> Any:
        """A run of the text followed by more, given as chunks `[T]`; `run` itself stays as it is."""
        return reader.prefill(reader.fork(run), ids)

    def ask(self, reader: Reader, run: Any, question_ids: Tensor) -> Any:
        """The run that the question `[T]` is then read into, without it; `run` itself stays as it is."""
        return reader.fork(run)

    def combine(self, logits: Tensor) -> Tensor:
        """Logits `[1, V]` of the next token, from those of each row `[B, V]` where `read` put several side by side."""
        return logits

    def encoder_window(self, window_tokens: int) -> int | None:
        """Tokens of the windows that an encoder trained on `window_tokens` encodes apart; None: not for encoders."""
        return None
