"""Values of a spec against the declared types of a method's fields; imported through `longspan.spec`."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from longspan._syntax import Value, expand_indices, format_value
from longspan.errors import SpecError

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", NoneType: "none"}


class Mismatch(Exception):
    """A value that does not fit its declared type."""


def coerce(value: Value, hint: Any, *, exact: bool = False) -> Any:
    """The value as its declared type.

    A whole number serves as a number, a single item as a list of one, and `0-15` as the list of its indices.

    Args:
        value: from the parser.
        hint: the resolved annotation: int, float, bool, str, None, a tuple, a Literal, or a union of these.
        exact: refuse those three conversions.

    Raises:
        Mismatch: where the value does not fit.
    """
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _coerce_union(value, get_args(hint), exact=exact)
    if origin is Literal:
        if any(type(choice) is type(value) and choice == value for choice in get_args(hint)):
            return value
        raise Mismatch
    if hint is tuple or origin is tuple:
        return _coerce_tuple(value, get_args(hint), exact=exact)
    if hint in (Any, object) or type(value) is hint or (value is None and hint is None):
        return value
    if hint is float and type(value) is int and not exact:
        return float(value)
    raise Mismatch


def _coerce_union(value: Value, options: tuple[Any, ...], *, exact: bool) -> Any:
    for only_exact in (True, False)[: 1 if exact else 2]:
        for option in options:
            try:
                return coerce(value, option, exact=only_exact)
            except Mismatch:
                continue
    raise Mismatch


def _coerce_tuple(value: Value, items: tuple[Any, ...], *, exact: bool) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        if exact:
            raise Mismatch
        value = (value,)
    if not items:
        return value
    if len(items) == 2 and items[1] is Ellipsis:
        if items[0] is int and not exact and any(isinstance(item, str) for item in value):
            try:
                return expand_indices(value, key="")
            except SpecError as error:
                raise Mismatch from error
        return tuple(coerce(item, items[0], exact=exact) for item in value)
    if len(value) != len(items):
        raise Mismatch
    return tuple(coerce(item, hint, exact=exact) for item, hint in zip(value, items, strict=True))


def describe(hint: Any) -> str:
    """What a declared type allows, in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(describe(option) for option in args)
    if origin is Literal:
        return " or ".join(format_value(choice) for choice in args)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return f"a list, each {describe(args[0])}"
    if origin is tuple:
        return f"[{', '.join(describe(item) for item in args)}]"
    if hint is None:
        return "none"
    return _KINDS.get(hint, "a list" if hint is tuple else "a value")
