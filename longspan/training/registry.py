"""Schemes, found by their files, and scheme specs such as `full(positions="yarn(factor=4)")`, in the language of methods."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from longspan._source import read_source
from longspan._syntax import Scope, format_call
from longspan.errors import CardError, SpecError, did_you_mean
from longspan.spec import made, only_class, parse
from longspan.training.scheme import Scheme

SCHEMES_ROOT = Path(__file__).with_name("schemes")
SCHEMES_PACKAGE = "longspan.training.schemes"
_CARD_KEYS = ("title", "year", "paper_id", "trains")


@dataclass(frozen=True, kw_only=True)
class SchemeCard:
    """What a scheme's file says of itself. `trains`: what changes in training, in words; `idea`: its first sentence."""

    name: str
    title: str
    year: int | None
    paper_id: int | None
    trains: str
    idea: str


def scheme_files() -> dict[str, Path]:
    """The file of every scheme, by name: `schemes/<name>.py`; names that start with "_" are helpers. Imports nothing."""
    return {path.stem: path for path in sorted(SCHEMES_ROOT.glob("*.py")) if not path.stem.startswith("_")}


def read_scheme_cards() -> dict[str, SchemeCard]:
    """The cards of all schemes, by name, read from their source.

    Raises:
        CardError: a card is missing, or lacks a key, or has an unknown one.
    """
    cards = {}
    for name, path in scheme_files().items():
        source = read_source(path)
        raw = source.literal("CARD")
        if not isinstance(raw, dict) or set(raw) != set(_CARD_KEYS):
            raise CardError(f"{path}: CARD must be a dict with the keys {', '.join(_CARD_KEYS)}")
        idea = " ".join(source.docstring.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
        cards[name] = SchemeCard(name=name, idea=idea, **raw)
    return cards


def resolve_scheme(spec: str) -> Scheme:
    """The scheme that a spec means.

    Raises:
        SpecError: not one scheme, an unknown name or key, a value of a wrong type, or what the scheme itself refuses.
    """
    calls = parse(spec) if spec.strip() else ()
    if len(calls) != 1 or calls[0].scope != Scope():
        raise SpecError(
            f"got {spec!r} as the scheme; give one, such as 'full(positions=\"yarn(factor=4)\")' "
            "(`longspan train schemes` lists them)"
        )
    return made(calls[0], _scheme_class(calls[0].name))


def canonical_scheme(scheme: Scheme) -> str:
    """The one text of a scheme: settings in their declared order, defaults left out; `resolve_scheme` reads it back."""
    module = type(scheme).__module__
    name = module.rpartition(".")[2] if module.startswith(SCHEMES_PACKAGE) else type(scheme).__name__.lower()
    given = {
        entry.name.rstrip("_"): getattr(scheme, entry.name)
        for entry in fields(scheme)
        if entry.init and getattr(scheme, entry.name) != entry.default
    }
    return format_call(name, given, Scope())


def _scheme_class(name: str) -> type[Scheme]:
    known = scheme_files()
    if name not in known:
        raise SpecError(
            f"there is no scheme {name!r}; {did_you_mean(name, known)} (`longspan train schemes` lists them)"
        )
    rule = "a scheme's file defines one public class derived from Scheme"
    return only_class(f"{SCHEMES_PACKAGE}.{name}", Scheme, rule)
