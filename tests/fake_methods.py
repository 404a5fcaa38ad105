"""Small method files, written to a folder that stands in for `longspan/methods`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import longspan.spec

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SQUEEZE = '''\
"""Keeps the keys that late queries look at most. A second sentence.

    score(k) = sum over queries of softmax(q k)

Paper: Squeeze (2024).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from longspan.roles import Storage

CARD = {
    "title": "Squeeze: a paper",
    "year": 2024,
    "paper_id": 17,
    "family": "cache",
    "roles": ["Storage"],
    "phase": "prefill",
    "training": "none",
    "exact": False,
    "frees": "frees",
    "needs": ["a question"],
    "claim": {
        "text": "keeps 90% at a quarter",
        "spec": "squeeze(keep=0.25)",
        "task": "niah_single_1",
        "length_tokens": 4096,
        "against": "dense",
        "at_least": 0.9,
    },
    "example": "dense",
    "identity": "dense",
    "tolerances": {"chunks": "differs by 0.01: windows move"},
}


@dataclass(frozen=True, kw_only=True)
class Squeeze(Storage):
    """Settings."""

    mode: ClassVar[str] = "x"
    keep: float = 0.25  # fraction of tokens kept (paper: 1024 tokens, \u00a74)
    window_tokens: int = 32
    pool: Literal["max", "mean"] = "max"  # pooling over neighbours
    layers: tuple[int, ...] | None = None  # None: all
    sizes: tuple[int, float] = field(default=(1, 2.0))
    label: str = ""
    strict: bool = False
    budget: float | int = 0.5

    def __post_init__(self) -> None:
        if self.window_tokens < 1:
            raise ValueError(f"window_tokens is {self.window_tokens}, allowed is 1 or more")


class _Helper(Storage):
    """Not the method."""


class Record:
    """Public, but no method."""
'''

DENSE = '''\
"""The model's own attention."""

from dataclasses import dataclass

from longspan.roles import Method

CARD = {
    "title": "Attention Is All You Need", "year": 2017, "paper_id": None, "family": "attention", "roles": [],
    "phase": "both", "training": "none", "exact": True, "frees": "no", "needs": [], "claim": {}, "example": "dense", "identity": "dense",
    "tolerances": {},
}


@dataclass(frozen=True, kw_only=True)
class Dense(Method):
    """Nothing to set."""
'''

STRETCH = '''\
"""Divides positions by a factor."""

from dataclasses import dataclass

from longspan.roles import Positions

CARD = {
    "title": "Stretch", "year": 2023, "paper_id": None, "family": "positions", "roles": ["Positions"],
    "phase": "both", "training": "none", "exact": False, "frees": "no", "needs": [], "claim": {}, "example": "dense", "identity": "dense",
    "tolerances": {},
}


@dataclass(frozen=True, kw_only=True)
class Stretch(Positions):
    """One required setting."""

    factor: float  # how much longer
'''


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **extra: str) -> Path:
    """Make `folder/fake_methods` the methods folder.

    Args:
        folder: an empty folder of this test.
        monkeypatch: undoes it.
        extra: further files, `<family>__<name>` to source.

    Returns:
        the methods folder.
    """
    package = f"fake_methods_{abs(hash(str(folder)))}"
    root = folder / package
    files = {"cache__squeeze": SQUEEZE, "attention__dense": DENSE, "positions__stretch": STRETCH, **extra}
    for key, source in files.items():
        family, name = key.split("__", 1)
        (root / family).mkdir(parents=True, exist_ok=True)
        (root / family / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(longspan.spec, "METHODS_ROOT", root)
    monkeypatch.setattr(longspan.spec, "METHODS_PACKAGE", package)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return root
