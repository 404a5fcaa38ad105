"""From methods to what each layer does: who plays which role where, and which combinations cannot be right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args, get_origin, get_type_hints

from longspan._syntax import format_indices, format_value
from longspan.engine.store import Slab
from longspan.model_info import LayerInfo, ModelInfo
from longspan.ops.attend import Rotary
from longspan.roles import Codec, Method, Phase, Positions, Reading, Selection, Steering, Storage
from longspan.spec import ScopedMethod, canonical
from longspan.visit import Band

EXCLUSIVE = {
    "Positions": "express distance",
    "Selection": "choose the keys that a query visits",
    "Storage": "decide what is kept",
    "Codec": "decide in what form it is held",
    "Reading": "decide how a text is read",
}


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """The roles of one layer. `info.rope` is the embedding in force, method applied; where it is `growing`, with the
    length of the text, the one that growth starts from."""

    info: LayerInfo
    positions: Positions | None = None
    new_rope: bool = False
    growing: bool = False
    bands: tuple[Band, ...] = ()
    pre_rotary: bool = False
    selections: tuple[ScopedMethod, ...] = ()
    storage: Storage | None = None
    codec: Codec | None = None
    steerings: tuple[Steering, ...] = ()

    @property
    def rotation(self) -> object:
        """What stands for the rotation of new tokens: equal where they are rotated alike. As long as the plan lives."""
        return "at attention" if self.pre_rotary else id(self.info.rope) if self.new_rope else "as trained"

    def rotary(self, slab: Slab) -> Rotary | None:
        """The rotation that attention does itself over what `slab` holds, where keys are kept before rotation."""
        if not self.pre_rotary:
            return None
        rope = self.info.rope
        assert rope is not None
        if self.growing:
            assert self.positions is not None
            rope = self.positions.rope_at(rope, slab.end)
            assert rope is not None
        return Rotary(inv_freq=rope.inv_freq, scaling=rope.scaling, bands=self.bands)

    def selections_for(self, phase: Phase) -> tuple[ScopedMethod, ...]:
        return tuple(
            s
            for s in self.selections
            if s.scope.phase in (None, phase) and phase in s.method.phases  # type: ignore[attr-defined]
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A spec compiled for one model."""

    spec: str
    methods: tuple[ScopedMethod, ...]
    layers: tuple[LayerPlan, ...]
    reading: Reading

    def number(self, method: object) -> int:
        """Place of a method in the spec; what a run remembers is kept by it."""
        return next(i for i, scoped in enumerate(self.methods) if scoped.method is method)

    @property
    def reading_name(self) -> str | None:
        """The method that reads a text in an order of its own, if any."""
        return next((scoped.name for scoped in self.methods if "Reading" in scoped.method.claims()), None)

    @property
    def pre_rotary(self) -> bool:
        return any(layer.pre_rotary for layer in self.layers)

    def sharing(self, role: Literal["storage", "codec"]) -> Iterator[tuple[Storage | Codec, list[int]]]:
        """The methods of a role whose decisions cover all their layers, each with these."""
        found: dict[int, tuple[Storage | Codec, list[int]]] = {}
        for layer in self.layers:
            method = getattr(layer, role)
            if method is not None and method.together() == "model":
                found.setdefault(id(method), (method, []))[1].append(layer.info.index)
        yield from found.values()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the spec leaves alone although it covers it, a sentence for each method."""
        closed = [layer.info.index for layer in self.layers if layer.info.sliding_window_tokens is not None]
        notes = []
        for scoped in self.methods:
            left = tuple(index for index in closed if _covers(scoped, index))
            if left and isinstance(scoped.method, Positions | Selection | Storage | Codec | Steering):
                one = len(left) == 1
                which = f"layer {left[0]} as it is" if one else f"layers {format_indices(left)} as they are"
                why = (
                    "it has a sliding window of its own" if one else "they have a sliding window of their own"
                )
                notes.append(f"{scoped.name} leaves {which}: {why}")
        return tuple(notes)


def build_plan(methods: Sequence[ScopedMethod], model: ModelInfo) -> Plan:
    """Compile methods for a model; ValueError where they cannot serve it or each other."""
    methods = tuple(methods)
    open_layers = {layer.index for layer in model.open_layers}
    for scoped in methods:
        _check_scope(scoped, model, open_layers)
        scoped.method.check(model)
    readings = [s for s in methods if "Reading" in s.method.claims()]
    if len(readings) > 1:
        raise _conflict(readings[0], readings[1], "Reading", None)
    steering = next((s for s in methods if isinstance(s.method, Steering)), None)
    if readings and steering and type(readings[0].method).combine is not Reading.combine:  # type: ignore[attr-defined]
        raise ValueError(
            f"{steering.name} measures a text that is read as one, but {readings[0].name} reads its parts side by side; "
            "keep one of them"
        )
    layers = tuple(
        _layer_plan(
            layer, [s for s in methods if _covers(s, layer.index)] if layer.index in open_layers else []
        )
        for layer in model.layers
    )
    reading = readings[0].method if readings else Reading()
    assert isinstance(reading, Reading)
    return Plan(spec=canonical(methods), methods=methods, layers=layers, reading=reading)


def _covers(scoped: ScopedMethod, layer: int) -> bool:
    return scoped.scope.layers is None or layer in scoped.scope.layers


def _check_scope(scoped: ScopedMethod, model: ModelInfo, open_layers: set[int]) -> None:
    name, scope, method = scoped.name, scoped.scope, scoped.method
    for layer in scope.layers or ():
        if layer >= model.num_layers:
            raise ValueError(
                f"{name}: got layer {layer}; {model.name} has layers 0 to {model.num_layers - 1}; "
                "name some of these in on(layers=...)"
            )
    plays_layers = isinstance(method, Positions | Selection | Storage | Codec | Steering)
    chosen = set(scope.layers) & open_layers if scope.layers is not None else open_layers
    if plays_layers and not chosen:
        raise ValueError(
            f"{name} would change nothing: every layer it covers has a sliding window of its own in {model.name}; "
            "use a model with full-attention layers, or name such layers in on(layers=...)"
        )
    if scope.heads is not None:
        num_kv_heads = model.layers[0].num_kv_heads
        if max(scope.heads) >= num_kv_heads:
            raise ValueError(
                f"{name}: got kv head {max(scope.heads)}; {model.name} has kv heads 0 to {num_kv_heads - 1}; "
                "name some of these in on(heads=...)"
            )
    if (scope.heads is not None or scope.phase is not None) and not _selects_only(method):
        raise ValueError(
            f"{name} cannot be scoped by heads or phase: only methods that do nothing but choose keys can; "
            "scope it by layers, or leave it whole"
        )
    if scope.layers is not None and isinstance(method, Reading):
        raise ValueError(
            f"{name} decides how a whole text is read and cannot be scoped by layers; write it without on(...)"
        )


def _layer_plan(layer: LayerInfo, methods: Sequence[ScopedMethod]) -> LayerPlan:
    for role in ("Positions", "Selection", "Storage", "Codec"):
        claimed = [s for s in methods if role in s.method.claims()]
        for i, first in enumerate(claimed):
            for second in claimed[i + 1 :]:
                if role != "Selection" or _overlap(first, second):
                    raise _conflict(first, second, role, layer)
    positions, name = next(
        (
            (s.method, s.name)
            for s in methods
            if isinstance(s.method, Positions) and "Positions" in s.method.claims()
        ),
        (None, ""),
    )
    selections = tuple(
        s for s in methods if isinstance(s.method, Selection) and "Selection" in s.method.claims()
    )
    storage = next(
        (s.method for s in methods if isinstance(s.method, Storage) and "Storage" in s.method.claims()), None
    )
    codec = next(
        (s.method for s in methods if isinstance(s.method, Codec) and "Codec" in s.method.claims()), None
    )
    rope = layer.rope
    bands: tuple[Band, ...] = ()
    new_rope = growing = False
    if positions is not None:
        if rope is None:
            raise ValueError(
                f"{name} changes rotary positions, but layer {layer.index} of this model has none; "
                "use a model with rotary embeddings, or leave the layer out with on(layers=..., method)"
            )
        wanted = positions.rope(rope)
        growing = positions.rope_at(wanted, rope.window_tokens) is not None
        new_rope = growing or wanted is not rope
        if new_rope and rope.rope_type != "default":
            raise ValueError(
                f"{name} sets new rotary frequencies, but this model already scales its own ({rope.rope_type}); "
                "use the model as it is, or a method that maps positions instead (self_extend, lm_infinite)"
            )
        rope = wanted
        bands = positions.bands(layer)
    compacting = any(s.method.needs_pre_rotary() for s in selections if isinstance(s.method, Selection))
    if rope is not None and rope.start_inv_freq is not None and compacting:
        raise ValueError(
            f"{name} turns the first {rope.start_tokens} positions apart, which keys kept before "
            "rotation cannot tell once they are renumbered; use start_tokens=0, or another selection"
        )
    coding = codec is not None and codec.needs_pre_rotary()
    if rope is not None and rope.start_inv_freq is not None and coding:
        coder = next(s.name for s in methods if s.method is codec)
        raise ValueError(
            f"{coder} codes keys before rotation, which then cannot tell the first {rope.start_tokens} positions that {name} turns "
            f"apart; keep one of them, or set start_tokens=0 in {name}"
        )
    return LayerPlan(
        info=replace(layer, rope=rope),
        positions=positions,
        new_rope=new_rope,
        growing=growing,
        bands=bands,
        pre_rotary=rope is not None and (growing or bool(bands) or compacting or coding),
        selections=selections,
        storage=storage,
        codec=codec,
        steerings=tuple(s.method for s in methods if isinstance(s.method, Steering)),
    )


def _overlap(a: ScopedMethod, b: ScopedMethod) -> bool:
    """Do two selections ever choose for the same head in the same phase?"""
    phases = _phases(a) & _phases(b)
    heads = a.scope.heads is None or b.scope.heads is None or set(a.scope.heads) & set(b.scope.heads)
    return bool(phases and heads)


def _phases(scoped: ScopedMethod) -> set[Phase]:
    method = scoped.method
    assert isinstance(method, Selection)
    return {phase for phase in method.phases if scoped.scope.phase in (None, phase)}


def _conflict(a: ScopedMethod, b: ScopedMethod, role: str, layer: LayerInfo | None) -> ValueError:
    where = f" on layer {layer.index}" if layer is not None else ""
    if isinstance(a.method, Reading) or isinstance(b.method, Reading):
        fix = "keep one of them"  # a Reading takes every layer
    elif role == "Selection" and _selects_only(a.method) and _selects_only(b.method):
        fix = "keep one of them, or give each its own layers, heads or phase with on(..., method)"
    else:
        fix = "keep one of them, or give each its own layers with on(layers=..., method)"
    for one, other in ((a, b), (b, a)):
        if setting := yielding_setting(one.method, other.method):
            fix += f", or set {setting[0]}={format_value(setting[1])} in {one.name}"
    return ValueError(
        f"{a.name} and {b.name} both {EXCLUSIVE[role]}{where}, which only one method can; {fix}"
    )


def yielding_setting(method: Method, other: Method) -> tuple[str, object] | None:
    """Name and value of the setting with which `method` leaves all exclusive roles to `other` that it takes; None where
    there is no such choice."""
    hints = get_type_hints(type(method))
    for entry in fields(method):
        hint = hints[entry.name]
        choices = (False, True) if hint is bool else get_args(hint) if get_origin(hint) is Literal else ()
        for choice in choices:
            try:
                changed = replace(method, **{entry.name: choice})
            except ValueError:
                continue  # not beside the other settings
            if not changed.claims() & other.claims():
                return entry.name, choice
    return None


def _selects_only(method: Method) -> bool:
    return method.claims() == frozenset({"Selection"}) and not isinstance(method, Steering)
