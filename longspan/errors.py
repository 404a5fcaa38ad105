"""Errors that a user can act on: one sentence that says what was got, what is allowed, and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MAX_LISTED = 12


class SpecError(ValueError):
    """A method spec that cannot be read, or that names a method, a key or a value that does not exist."""


class CardError(ValueError):
    """A method file whose card cannot be read."""


class UnsupportedLayerError(ValueError):
    """A layer of a model that longspan cannot serve; the message names it."""


class UserInputError(ValueError):
    """An argument of a command or a public function that cannot be used."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The end of an error sentence about an unknown name: its nearest names, or else what there is to choose from.

    Args:
        name: what was given.
        choices: what is allowed.

    Returns:
        "did you mean 'a' or 'b'?", "allowed are 'a', 'b', 'c'", "allowed are 120 names", or "none is allowed here".
    """
    known = sorted(set(choices))
    by_lower = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(repr(by_lower[match]) for match in near)}?"
    if not known:
        return "none is allowed here"
    if len(known) > _MAX_LISTED:
        return f"allowed are {len(known)} names"
    return f"allowed are {', '.join(repr(choice) for choice in known)}"


def first_sentence(error: Exception) -> str:
    """The first line of a library's message, without its end stop, cut where it goes on."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.split(". ")[0].rstrip(".: ")
