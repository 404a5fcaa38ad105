"""Prose that every Python carries: the language reference's topics from `pydoc_data`, about half a million characters.

The reference model has never seen this text. Nothing has to be downloaded for it.
"""

from importlib import import_module

from longspan.evaluation.haystacks import Haystack


def pydoc_text() -> str:
    """All topics, in alphabetical order of their names, one empty line between two."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def pydoc_haystack() -> Haystack:
    """The topics as a haystack."""
    return Haystack(pydoc_text())
