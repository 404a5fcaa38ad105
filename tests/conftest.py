"""Shared by all tests: tests marked `gpu` are skipped, by name, where there is no CUDA device."""

from __future__ import annotations

import pytest


def pytest_configure() -> None:
    """One thread a process: small tensors, and two threads on a busy machine wait for each other."""
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
