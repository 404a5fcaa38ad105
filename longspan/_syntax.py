"""Syntax of method specs: text to calls and back. Knows nothing of methods; imported through `longspan.spec`.

spec  := [term ("+" term)*]
term  := NAME ["(" [KEY "=" value ("," KEY "=" value)*] ")"]
       | "on" "(" (SCOPE "=" value ",")* term ("," SCOPE "=" value)* ")"      SCOPE: layers, heads, phase
value := NUMBER | WORD | QUOTED | "[" [value ("," value)*] "]"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NoReturn, TypeAlias, cast

from longspan.errors import SpecError, did_you_mean

Value: TypeAlias = "int | float | bool | str | None | tuple[Value, ...]"
Phase: TypeAlias = Literal["prefill", "decode"]

_NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?=[\s,)\]]|$)", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,30}", re.ASCII)
_BARE = re.compile(r"[^\s,()\[\]=+'\"]+")
_RANGE = re.compile(r"(\d{1,6})-(\d{1,6})", re.ASCII)
_SAFE_WORD = re.compile(r"[A-Za-z_][\w./:-]*", re.ASCII)
_WORDS: dict[str, Value] = {
    "true": True,
    "false": False,
    "none": None,
    "inf": float("inf"),
    "-inf": float("-inf"),
}
_SCOPE_KEYS = ("layers", "heads", "phase")
_MAX_DEPTH = 8
_MAX_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Scope:
    """Where a method applies; None means everywhere.

    Args:
        layers: layer indices, ascending.
        heads: kv head indices, ascending.
        phase: "prefill" while a text is read, "decode" from the question on.
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    phase: Phase | None = None

    def __post_init__(self) -> None:
        for name, indices in (("layers", self.layers), ("heads", self.heads)):
            if indices is not None:
                object.__setattr__(self, name, expand_indices(tuple(indices), key=name))
        if self.phase not in (None, "prefill", "decode"):
            raise SpecError(f"phase takes prefill or decode, got {self.phase!r}; leave it out for both")


@dataclass(frozen=True)
class MethodCall:
    """One method of a spec as written: no check yet that the method or its keys exist. Lists are tuples."""

    name: str
    kwargs: Mapping[str, Value] = field(default_factory=dict, hash=False)
    scope: Scope = Scope()


def expand_indices(value: Value, *, key: str) -> tuple[int, ...]:
    """Indices meant by `3`, `0-15` or `[0, 2, 8-11]`, ascending and each once; SpecError for anything else."""
    found: set[int] = set()
    for item in value if isinstance(value, tuple) else (value,):
        match = _RANGE.fullmatch(item) if isinstance(item, str) else None
        if match is not None and int(match[1]) <= int(match[2]):
            found.update(range(int(match[1]), int(match[2]) + 1))
        elif type(item) is int and item >= 0:
            found.add(item)
        else:
            raise SpecError(
                f"{key} takes indices from 0 on, got {format_value(item)}; "
                f"write {key}=3, {key}=0-15 or {key}=[0, 2, 8-11]"
            )
    if not found:
        raise SpecError(
            f"{key} takes at least one index, got []; write {key}=0-15, or leave {key} out for all"
        )
    return tuple(sorted(found))


def format_indices(indices: tuple[int, ...]) -> str:
    """The shortest text that `expand_indices` reads back: `3`, `0-15` or `[0, 8-11]`."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return parts[0] if len(parts) == 1 else f"[{', '.join(parts)}]"


def format_value(value: object) -> str:
    """Text that the parser reads back as `value`; SpecError for what a spec cannot hold."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value == value):
        return repr(value)
    if isinstance(value, str):
        if _SAFE_WORD.fullmatch(value) and value.lower() not in _WORDS:
            return value
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(format_value(item) for item in value)}]"
    raise SpecError(
        f"a spec holds numbers, words, true, false, none and lists, got {value!r}; pass the method as an object"
    )


def format_call(name: str, kwargs: Mapping[str, object], scope: Scope) -> str:
    """One term of a spec."""
    settings = ", ".join(f"{key}={format_value(value)}" for key, value in kwargs.items())
    term = f"{name}({settings})" if settings else name
    limits = [f"layers={format_indices(scope.layers)}"] if scope.layers is not None else []
    limits += [f"heads={format_indices(scope.heads)}"] if scope.heads is not None else []
    limits += [f"phase={scope.phase}"] if scope.phase is not None else []
    return f"on({', '.join([*limits, term])})" if limits else term


class Parser:
    """Recursive descent over one spec text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0

    def parse(self) -> tuple[MethodCall, ...]:
        """All terms of the text; SpecError, with the place and the piece, where it is not a spec."""
        self._skip_space()
        if self.place == len(self.text):
            return ()
        calls = [self._term(scoped=False)]
        while self._take("+"):
            calls.append(self._term(scoped=False))
        if self.place < len(self.text):
            self._fail(
                "something that cannot be read",
                "join methods with '+' and write settings as name(key=value, ...)",
            )
        return tuple(calls)

    def _term(self, *, scoped: bool) -> MethodCall:
        name = self._name("a method name")
        if name != "on":
            return MethodCall(name, self._settings(name) if self._take("(") else {})
        if scoped:
            self._fail("an on(...) within on(...)", "write one on(...) with all its limits")
        if not self._take("("):
            self._fail("'on' without limits", "write on(layers=0-15, method)")
        return self._scoped()

    def _settings(self, name: str) -> dict[str, Value]:
        kwargs: dict[str, Value] = {}
        if self._take(")"):
            return kwargs
        while True:
            start = self.place
            key = self._name(f"a key of {name}", fix=f"write {name}(key=value)")
            if not self._take("="):
                self.place = start
                self._fail("a value without its key", f"write {name}(key=value)")
            if key in kwargs:
                self.place = start
                self._fail(f"the key '{key}' a second time", "give it once")
            kwargs[key] = self._value(key)
            if self._take(")"):
                return kwargs
            if not self._take(","):
                self._fail(f"no ',' or ')' after {key}", f"write {name}(key=value, key=value)")

    def _scoped(self) -> MethodCall:
        limits: dict[str, Value] = {}
        call: MethodCall | None = None
        while True:
            self._skip_space()
            start = self.place
            key = self._name("a limit or a method", fix="write on(layers=0-15, method)")
            if self._take("="):
                if key not in _SCOPE_KEYS or key in limits:
                    self.place = start
                    problem = (
                        "a second time" if key in limits else f"as a limit; {did_you_mean(key, _SCOPE_KEYS)}"
                    )
                    self._fail(
                        f"'{key}' {problem}", "on() takes layers, heads and phase once each, and a method"
                    )
                limits[key] = self._value(key)
            else:
                self.place = start
                if call is not None:
                    self._fail("a second method within on(...)", "write one on(...) for each method")
                call = self._term(scoped=True)
            if self._take(")"):
                break
            if not self._take(","):
                self._fail("no ',' or ')'", "write on(layers=0-15, method)")
        if call is None or not limits:
            self._fail("on() without a method or without a limit", "write on(layers=0-15, method)")
        return MethodCall(call.name, call.kwargs, self._scope(limits))

    def _scope(self, limits: dict[str, Value]) -> Scope:
        layers, heads = (
            expand_indices(limits[key], key=key) if limits.get(key) is not None else None
            for key in ("layers", "heads")
        )
        return Scope(layers, heads, cast("Phase | None", limits.get("phase")))

    def _value(self, key: str, depth: int = 0) -> Value:
        self._skip_space()
        if self._take("["):
            if depth >= _MAX_DEPTH:
                self._fail("too many '[' within each other", f"nest lists at most {_MAX_DEPTH} deep")
            return self._list(key, depth)
        if self.text[self.place : self.place + 1] in ("'", '"'):
            return self._quoted()
        match = _NUMBER.match(self.text, self.place) or _BARE.match(self.text, self.place)
        if match is None:
            self._fail(f"no value for '{key}'", f"write {key}=value")
        self.place = match.end()
        word = match.group()
        if match.re is not _NUMBER:
            return _WORDS.get(word.lower(), word)
        return int(word) if _WHOLE.fullmatch(word) else float(word)

    def _list(self, key: str, depth: int) -> tuple[Value, ...]:
        items: list[Value] = []
        if self._take("]"):
            return ()
        while True:
            items.append(self._value(key, depth + 1))
            if self._take("]"):
                return tuple(items)
            if not self._take(","):
                self._fail("no ',' or ']' in a list", f"write {key}=[1, 2, 3]")

    def _quoted(self) -> str:
        start = self.place
        quote = self.text[start]
        letters: list[str] = []
        place = start + 1
        while place < len(self.text) and self.text[place] != quote:
            place += self.text[place] == "\\" and self.text[place + 1 : place + 2] in ("\\", quote)
            letters.append(self.text[place : place + 1])
            place += 1
        if place >= len(self.text):
            self._fail("a quote that does not end", f"close it with {quote}")
        self.place = place + 1
        return "".join(letters)

    def _name(self, wanted: str, *, fix: str = "write name(key=value, ...), joined with '+'") -> str:
        self._skip_space()
        match = _NAME.match(self.text, self.place)
        if match is None:
            self._fail(f"no name where {wanted} belongs", fix)
        self.place = match.end()
        return match.group()

    def _take(self, symbol: str) -> bool:
        self._skip_space()
        if not self.text.startswith(symbol, self.place):
            return False
        self.place += len(symbol)
        self._skip_space()
        return True

    def _skip_space(self) -> None:
        while self.place < len(self.text) and self.text[self.place].isspace():
            self.place += 1

    def _fail(self, problem: str, fix: str) -> NoReturn:
        shown = (
            self.text
            if len(self.text) <= _MAX_SHOWN_CHARACTERS
            else f"{self.text[:_MAX_SHOWN_CHARACTERS]}..."
        )
        rest = self.text[self.place : self.place + 16]
        piece = f"{rest!r}" if rest else "its end"
        raise SpecError(f"method spec {shown!r} has {problem} at character {self.place + 1} ({piece}); {fix}")
