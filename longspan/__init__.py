"""Give any Hugging Face language model a long context: longer, faster, smaller, and see what it costs in answers.

    import longspan

    model = longspan.load("reference", methods="snapkv(keep=0.25)")
    context = model.read(text)
    print(context.ask("Who keeps the lantern?").text)

Importing this package imports neither torch nor transformers; the functions below load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longspan.engine.api import applied, load, open_context
    from longspan.engine.shelf import ContextStore

__version__ = "0.1.0"
__all__ = ["ContextStore", "__version__", "applied", "load", "open_context"]

_LAZY = {
    "ContextStore": "longspan.engine.shelf",
    "applied": "longspan.engine.api",
    "load": "longspan.engine.api",
    "open_context": "longspan.engine.api",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'longspan' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
