"""The spec language: which methods, with which settings, on which layers and heads.

    snapkv(keep=0.25)
    yarn(factor=4) + minference() + snapkv(keep=0.25)
    on(layers=0-15, phase=prefill, minference) + on(layers=[16, 20-23], heads=0, snapkv(keep=1024))

A spec is methods joined with `+`. A method is its name, then `(key=value, ...)` where there are settings. A value is a
number, `true`, `false`, `none`, a quoted or bare word, or a list `[1, 2]`. `on(...)` limits one method to layers, kv
heads and a phase. None, "" and "dense" all mean the model's own attention.

`parse` reads syntax alone; `resolve` imports the modules of the methods that a spec names, and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, get_type_hints

from longspan._fields import Mismatch, coerce, describe
from longspan._syntax import MethodCall, Parser, Scope, Value, format_call, format_value
from longspan.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from longspan.roles import Method

__all__ = [
    "MethodCall",
    "Scope",
    "ScopedMethod",
    "canonical",
    "made",
    "method_files",
    "method_names",
    "only_class",
    "parse",
    "resolve",
]

METHODS_ROOT = Path(__file__).with_name("methods")
METHODS_PACKAGE = "longspan.methods"
_DENSE = "dense"
Kind = TypeVar("Kind")
_MAX_WHOLE = 2**31 - 1  # what torch takes everywhere, and far beyond any count of tokens


@dataclass(frozen=True)
class ScopedMethod:
    """A method ready for the engine: the frozen dataclass, where it applies, and its name in specs."""

    method: Method
    scope: Scope
    name: str


Spec: TypeAlias = (
    "str | Method | MethodCall | ScopedMethod | Sequence[str | Method | MethodCall | ScopedMethod] | None"
)


def method_files() -> dict[str, Path]:
    """The file of every method, by name: `methods/<family>/<name>.py`, or `<name>/__init__.py` for one with a folder.

    Names that start with "_" are not methods. Imports nothing.

    Raises:
        SpecError: two files of one name, or a name that the spec language keeps for itself.
    """
    found: dict[str, Path] = {}
    for family in sorted(METHODS_ROOT.iterdir()):
        if family.name.startswith(("_", ".")) or not family.is_dir():
            continue
        files = {path.stem: path for path in sorted(family.glob("*.py"))}
        files |= {path.parent.name: path for path in sorted(family.glob("*/__init__.py"))}
        for name, path in files.items():
            if name.startswith("_"):
                continue
            if name in found or name == "on":
                other = found.get(name, "the word on(...) of the spec language")
                raise SpecError(
                    f"the method file {path} has the name of {other}; a method's name is its own, rename one"
                )
            found[name] = path
    return dict(sorted(found.items()))


def method_names() -> dict[str, str]:
    """The module path of every method, by name."""
    names = {}
    for name, path in method_files().items():
        family = path.parent.parent.name if path.name == "__init__.py" else path.parent.name
        names[name] = f"{METHODS_PACKAGE}.{family}.{name}"
    return names


def parse(text: str) -> tuple[MethodCall, ...]:
    """The calls of a spec, by syntax alone; an empty text is a call of `dense`.

    Raises:
        SpecError: one sentence with the place, the piece, and what to write instead.
    """
    return Parser(text).parse() or (MethodCall(_DENSE),)


def resolve(spec: Spec) -> tuple[ScopedMethod, ...]:
    """The methods that a spec means, ready for the engine.

    Args:
        spec: text, a method object, a sequence of these, or None for the model's own attention.

    Raises:
        SpecError: unknown names or keys (with the nearest ones), values of a wrong type, and whatever a method itself
            refuses, prefixed with its name.
    """
    if spec is None:
        spec = ""
    if isinstance(spec, str):
        return tuple(_build(call) for call in parse(spec))
    if not isinstance(spec, Sequence):
        spec = (spec,)
    return tuple(scoped for item in spec for scoped in _resolve_item(item)) or resolve("")


def canonical(spec: Spec) -> str:
    """The one text of a spec: settings in their declared order, defaults left out; `parse` and `resolve` read it back.

    Calls that come from `parse` are written as they are, since their defaults are not known without an import.
    """
    if spec is None or isinstance(spec, str) or not isinstance(spec, Sequence):
        spec = resolve(spec)
    terms = []
    for item in spec or resolve(""):
        for part in (item,) if isinstance(item, MethodCall) else _resolve_item(item):
            kwargs = part.kwargs if isinstance(part, MethodCall) else _settings(part.method)
            terms.append(format_call(part.name, kwargs, part.scope))
    return " + ".join(terms)


def _resolve_item(item: object) -> tuple[ScopedMethod, ...]:
    from longspan.roles import Method

    if isinstance(item, str):
        return resolve(item)
    if isinstance(item, ScopedMethod):
        return (item,)
    if isinstance(item, MethodCall):
        return (_build(item),)
    if isinstance(item, Method):
        _check_object(item)
        return (ScopedMethod(item, Scope(), _name_of(item)),)
    raise SpecError(
        f'methods are spec texts or method objects, got {item!r}; write for example methods="snapkv(keep=0.25)"'
    )


def _build(call: MethodCall) -> ScopedMethod:
    return ScopedMethod(made(call, _method_class(call.name)), call.scope, call.name)


def made(call: MethodCall, kind: type[Kind]) -> Kind:
    """An object of a settings class as a call's keys and values say. A key is a field's name, without underscores behind it.

    Raises:
        SpecError: an unknown or missing key, a value of a wrong type, or what the class itself refuses.
    """
    allowed = {entry.name.rstrip("_"): entry for entry in fields(kind) if entry.init}  # type: ignore[arg-type]
    for key in call.kwargs:
        if key not in allowed:
            raise SpecError(f"{call.name} has no key {key!r}; {did_you_mean(key, allowed)}")
    missing = [key for key, entry in allowed.items() if _is_required(entry) and key not in call.kwargs]
    hints = get_type_hints(kind)
    if missing:
        wanted = f"{missing[0]} ({describe(hints[allowed[missing[0]].name])})"
        raise SpecError(f"{call.name} needs {wanted}; write {call.name}({missing[0]}=...)")
    kwargs = {
        allowed[key].name: _checked(call.name, allowed[key], value, hints[allowed[key].name])
        for key, value in call.kwargs.items()
    }
    try:
        return kind(**kwargs)
    except ValueError as error:
        raise SpecError(f"{call.name}: {error}") from error


def _check_object(method: Method) -> None:
    """Hold the settings of a method made in Python to the types that a spec's text is held to."""
    if not type(method).__module__.startswith(METHODS_PACKAGE):
        return
    hints = get_type_hints(type(method))
    for entry in fields(method):
        if entry.init:
            value = getattr(method, entry.name)
            given = tuple(value) if isinstance(value, list) else value
            _checked(_name_of(method), entry, given, hints[entry.name])


def _checked(name: str, entry: Field[Any], value: Value, hint: Any) -> Any:
    key = entry.name.rstrip("_")
    if type(value) is int and abs(value) > _MAX_WHOLE:
        raise SpecError(
            f"{name}: {key} takes whole numbers up to {_MAX_WHOLE}, got {value}; give a smaller one"
        )
    try:
        return coerce(value, hint)
    except Mismatch as error:
        example = "" if _is_required(entry) else f"; the default is {key}={format_value(_default(entry))}"
        raise SpecError(
            f"{name}: {key} takes {describe(hint)}, got {_shown(value)} ({type(value).__name__}){example}"
        ) from error


def _shown(value: object) -> str:
    try:
        return format_value(value)
    except SpecError:
        return repr(value)


def _method_class(name: str) -> type[Method]:
    from longspan.roles import Method

    modules = method_names()
    if name not in modules:
        raise SpecError(
            f"there is no method {name!r}; {did_you_mean(name, modules)} (`longspan methods` lists them)"
        )
    return only_class(modules[name], Method, "a method file defines one public class derived from a role")


def only_class(module_name: str, kind: type[Kind], rule: str) -> type[Kind]:
    """The one public class derived from `kind` that a module defines.

    Raises:
        SpecError: there is another number of them; the message ends in `rule`.
    """
    module = import_module(module_name)
    found = [
        value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, kind)
        and value.__module__ == module.__name__
        and not key.startswith("_")
    ]
    if len(found) != 1:
        listed = ", ".join(value.__name__ for value in found) or "none"
        raise SpecError(f"{module_name} defines {listed}; {rule}")
    return found[0]


def _name_of(method: Method) -> str:
    """File name of the method's class; its class name in lower case where it is defined outside the package."""
    defined_in = type(method).__module__
    for name, module in method_names().items():
        if module == defined_in:
            return name
    return type(method).__name__.lower()


def _settings(method: Method) -> dict[str, object]:
    settings = {}
    for entry in fields(method):
        if not entry.init:
            continue
        value = getattr(method, entry.name)
        default = MISSING if _is_required(entry) else _default(entry)
        if type(value) is not type(default) or value != default:
            settings[entry.name] = value
    return settings


def _is_required(entry: Field[Any]) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


def _default(entry: Field[Any]) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()
