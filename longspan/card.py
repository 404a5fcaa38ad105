"""A method's card: what it is, what it needs, what it frees, and the claim that is put to the proof.

Every method file holds a literal `CARD = {...}`; it is read from the source, so that lists, docs and tables need no
import of torch. `docs/architecture.md` and CONTRIBUTING.md say how to write one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from longspan._source import Parameter, method_parameters, read_source
from longspan.errors import CardError, SpecError, did_you_mean
from longspan.spec import method_files, parse

__all__ = ["Card", "Parameter", "all_cards", "read_card"]

ROLES = (
    "Positions",
    "Selection",
    "Storage",
    "Codec",
    "Steering",
    "Reading",
    "Decoding",
    "Workflow",
    "Recipe",
)
PHASES = ("prefill", "decode", "both", "read")
TRAINING = ("none", "calibration", "required")
FREES = ("frees", "simulates", "no")


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a method file says of itself.

    Args:
        name: the method's name in specs; its file's name.
        path: its file.
        docstring: of its module: the idea, the equation, the paper, where it differs and where it fails.
        parameters: its settings with defaults and their sources.
        title: of the paper.
        year: of the paper; None where there is none.
        paper_id: row in the catalogue of papers; None where it is not listed.
        family: its folder.
        roles: what it changes, of `ROLES`.
        phase: when it acts, of `PHASES`.
        training: what it needs beforehand, of `TRAINING`.
        exact: True where answers equal dense attention's, False, or a note that says when.
        frees: "frees" bytes, "simulates" it, or "no".
        needs: what else it needs, in words.
        claim: the paper's claim as a check on the reference model: text, spec, task, length_tokens, against, and
            at_least (an accuracy) or margin (accuracy above `against`); empty where a method claims nothing.
        shares: where `keep` does not say it, a spec for each share of the cache's bytes; may be left out.
        example: a spec, with settings small enough to act on a text of 300 tokens; the laws are tested on it.
        identity: a spec at which the method must equal dense attention on such a text (full budget, factor 1).
        tolerances: laws that hold approximately: law to reason, with its number.
    """

    name: str
    path: Path
    docstring: str
    parameters: tuple[Parameter, ...]
    title: str
    year: int | None
    paper_id: int | None
    family: str
    roles: tuple[str, ...]
    phase: str
    training: str
    exact: bool | str
    frees: str
    needs: tuple[str, ...]
    claim: Mapping[str, Any]
    shares: Mapping[float, str]
    example: str
    identity: str
    tolerances: Mapping[str, str]

    @property
    def idea(self) -> str:
        """First sentence of the docstring, without its full stop."""
        paragraph = " ".join(self.docstring.split("\n\n")[0].split())
        return paragraph.split(". ")[0].rstrip(".")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; without the path."""
        plain = {key: value for key, value in vars(self).items() if key not in ("path", "parameters")}
        plain |= {key: dict(getattr(self, key)) for key in ("claim", "shares", "tolerances")}
        plain["idea"] = self.idea
        return plain | {"parameters": [asdict(parameter) for parameter in self.parameters]}


def all_cards() -> dict[str, Card]:
    """Cards of all methods, by name."""
    return {name: read_card(path) for name, path in method_files().items()}


def read_card(path: Path | str) -> Card:
    """The card of one method file, without importing it.

    Raises:
        CardError: a key is missing, unknown or malformed; the message names the file and the key.
    """
    path = Path(path)
    source = read_source(path)
    raw = source.literal("CARD")
    in_folder = path.name == "__init__.py"
    name = path.parent.name if in_folder else path.stem
    folder = path.parent.parent.name if in_folder else path.parent.name
    if not isinstance(raw, dict):
        raise CardError(
            f"{path}: CARD is a {type(raw).__name__}; write a dict with the keys {', '.join(_CHECKS)}"
        )
    for key in raw:
        if key not in _CHECKS:
            raise CardError(f"{path}: CARD has an unknown key {key!r}; {did_you_mean(str(key), _CHECKS)}")
    raw = {"shares": {}, **raw}
    for key, (allowed, fits) in _CHECKS.items():
        if key not in raw:
            raise CardError(f"{path}: CARD has no key {key!r}; add it, allowed is {allowed}")
        if not fits(raw[key]):
            raise CardError(f"{path}: CARD[{key!r}] is {raw[key]!r}, allowed is {allowed}")
    if raw["family"] != folder:
        raise CardError(
            f"{path}: CARD['family'] is {raw['family']!r}, allowed is the folder's name, {folder!r}"
        )
    if not source.docstring:
        raise CardError(f"{path} has no docstring; begin it with the idea of the method in one sentence")
    _check_claim(path, raw["claim"])
    for spec in raw["shares"].values():
        _check_spec(path, "shares", spec)
    values = dict(raw, roles=tuple(raw["roles"]), needs=tuple(raw["needs"]))
    values |= {key: MappingProxyType(dict(raw[key])) for key in ("claim", "shares", "tolerances")}
    return Card(
        name=name, path=path, docstring=source.docstring, parameters=method_parameters(path), **values
    )


def _check_claim(path: Path, claim: dict[str, Any]) -> None:
    if not claim:
        return
    problem = ""
    for key in claim:
        if key not in _CLAIM_CHECKS:
            problem = f"has an unknown key {key!r}; {did_you_mean(str(key), _CLAIM_CHECKS)}"
    for key, (allowed, required, fits) in _CLAIM_CHECKS.items():
        if required and key not in claim:
            problem = f"has no key {key!r}; add it, allowed is {allowed}"
        elif key in claim and not fits(claim[key]):
            problem = f"has {key!r} = {claim[key]!r}, allowed is {allowed}"
    if not problem and ("at_least" in claim) == ("margin" in claim):
        problem = "needs one of 'at_least' (an accuracy) and 'margin' (accuracy above 'against')"
    if problem:
        raise CardError(f"{path}: CARD['claim'] {problem}")
    for spec in (claim["spec"], claim["against"], *claim.get("reach", {}).values()):
        _check_spec(path, "claim", spec)


def _check_spec(path: Path, key: str, spec: str) -> None:
    try:
        parse(spec)
    except SpecError as error:
        raise CardError(f"{path}: CARD[{key!r}] has a spec that cannot be read: {error}") from error


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_difference(value: object) -> bool:
    return _is_share(value) or (isinstance(value, int | float) and -1 <= value < 0)


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(_is_text(item) for item in value)


def _is_reach(value: object) -> bool:
    return isinstance(value, dict) and all(_is_count(key) and _is_text(spec) for key, spec in value.items())


def _is_shares(value: object) -> bool:
    return isinstance(value, dict) and all(_is_share(key) and _is_text(spec) for key, spec in value.items())


def _is_list_of(choices: tuple[str, ...]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list | tuple) and all(item in choices for item in value)


_Check = tuple[str, Callable[[Any], bool]]
_CHECKS: dict[str, _Check] = {
    "title": ("the paper's title", _is_text),
    "year": ("the paper's year, or None", lambda value: value is None or _is_count(value)),
    "paper_id": ("a whole number, or None", lambda value: value is None or _is_count(value)),
    "family": ("the folder's name", _is_text),
    "roles": (f"a list of {', '.join(ROLES)}", _is_list_of(ROLES)),
    "phase": (f"one of {', '.join(PHASES)}", lambda value: value in PHASES),
    "training": (f"one of {', '.join(TRAINING)}", lambda value: value in TRAINING),
    "exact": ("True, False or a note", lambda value: isinstance(value, bool) or _is_text(value)),
    "frees": (f"one of {', '.join(FREES)}", lambda value: value in FREES),
    "needs": ("a list of strings", _is_texts),
    "claim": ("a dict", lambda value: isinstance(value, dict)),
    "shares": ("a dict of a share of the bytes to a method spec", _is_shares),
    "example": ("a spec that acts on a text of 300 tokens", _is_text),
    "identity": ("a spec at which the method equals dense attention", _is_text),
    "tolerances": (
        "a dict of law to reason",
        lambda value: isinstance(value, dict) and _is_texts([*value, *value.values()]),
    ),
}
_CLAIM_CHECKS: dict[str, tuple[str, bool, Callable[[Any], bool]]] = {
    "text": ("the claim in words", True, _is_text),
    "spec": ("a method spec", True, _is_text),
    "task": ("the name of a task", True, _is_text),
    "length_tokens": ("a number of tokens", True, _is_count),
    "against": ("a method spec", True, _is_text),
    "at_least": ("an accuracy from 0 to 1", False, _is_share),
    "margin": ("a difference of accuracies from -1 to 1", False, _is_difference),
    "samples": ("a number of samples", False, _is_count),
    "reach": ("a dict of a number of tokens to a method spec", False, _is_reach),
}
