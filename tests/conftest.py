"""Shared by all tests: tests marked `gpu` are skipped, by name, where there is no CUDA device."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """One thread a process: small tensors, and two threads on a busy machine wait for each other. Without a GPU, Triton
    kernels run in its interpreter, which must be said before Triton is imported. Tables are as wide as in a pipe, where
    pytest's own workers would have them narrower."""
    import torch

    os.environ["COLUMNS"] = "100"
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def triton_device() -> str:
    """Where Triton kernels run: a GPU, or the CPU in Triton's interpreter (small shapes, never bfloat16)."""
    pytest.importorskip("triton")
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Third-party texts and questions that stand beside the checkout, in `shared/data`; skips where there are none."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder shared/data beside the checkout")
    return folder
