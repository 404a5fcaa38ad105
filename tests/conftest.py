"""Shared by all tests: tests marked `gpu` are skipped, by name, where there is no CUDA device."""

from __future__ import annotations

from pathlib import Path

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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Third-party texts and questions that stand beside the checkout, in `shared/data`; skips where there are none."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder shared/data beside the checkout")
    return folder
