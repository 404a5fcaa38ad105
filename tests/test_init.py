"""`import longspan` is light, and what it offers loads on use."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import longspan

_HEAVY = "{'torch', 'transformers', 'numpy', 'rich'}"


def _run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize("module", ["longspan", "longspan.spec", "longspan.card", "longspan.errors"])
def test_import_is_light(module: str) -> None:
    assert _run(f"import sys, {module}; print({_HEAVY} & set(sys.modules))") == "set()"


def test_import_takes_less_than_the_budget() -> None:
    def seconds(code: str) -> float:
        start = time.perf_counter()
        _run(code)
        return time.perf_counter() - start

    empty = min(seconds("pass") for _ in range(3))
    assert min(seconds("import longspan") for _ in range(3)) - empty < 0.3


def test_version_and_names() -> None:
    assert longspan.__version__.count(".") == 2
    assert {"load", "applied", "open_context", "__version__"} <= set(dir(longspan))
    with pytest.raises(AttributeError, match="no attribute 'loads'"):
        _ = longspan.loads


@pytest.mark.parametrize("name", ["load", "applied", "open_context"])
def test_names_come_from_the_engine(name: str) -> None:
    from longspan.engine import api

    assert getattr(longspan, name) is getattr(api, name)
