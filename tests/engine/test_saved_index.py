"""What a method made of a text once, here clusters of its keys, is saved with the context and not made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import longspan
from longspan.engine.context import Context
from longspan.engine.model import SpanModel
from longspan.engine.span_file import SpanFile
from longspan.errors import UserInputError
from longspan.ops.estimate import centroids
from longspan.storage.contexts import publish_context
from tests.models import random_ids, random_model, word_tokenizer, words

SPEC = "squeezed(visit_share=0.05, observation_tokens=20, coarse_share=0.01)"
CLUSTERED = [380, 19] * 2  # keys and their centroids, of each layer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many keys were clustered, call by call."""
    found: list[int] = []
    real = centroids.k_means

    def counted(keys: torch.Tensor, *rest: Any, **more: Any) -> centroids.Centroids:
        found.append(keys.shape[2])
        return real(keys, *rest, **more)

    monkeypatch.setattr(centroids, "k_means", counted)
    return found


def make() -> SpanModel:
    return longspan.load(random_model(num_layers=2), SPEC, tokenizer=word_tokenizer(), chunk_tokens=100)


def answers(context: Context) -> list[tuple[int, ...]]:
    return [context.ask(words(random_ids(4, seed=seed)), max_new_tokens=8).token_ids for seed in range(3)]


@pytest.mark.parametrize("lazy", [False, True])
def test_opening_does_not_cluster_again(calls: list[int], tmp_path: Path, lazy: bool) -> None:
    model = make()
    context = model.read(random_ids(400))
    assert calls == CLUSTERED
    expected = answers(context)
    dense = model.with_methods(None).read(random_ids(400))
    assert answers(dense) != expected, "it visits fewer keys"
    context.save(tmp_path / "a.span")
    calls.clear()
    back = longspan.open_context(tmp_path / "a.span", model, lazy=lazy)
    assert answers(back) == expected and answers(back.fork()) == expected
    assert calls == []
    for key, state in context.run.states.items():
        for name, value in state.items():
            other = back.run.states[key][name]
            same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
            assert same and type(value) is type(other)
    names = SpanFile(tmp_path / "a.span").names
    # of both layers: means, order, starts, threshold; coarse means, their clusters, coarse threshold
    assert sum(name.startswith("state.") for name in names) == 2 * 7


def test_a_store_does_not_cluster_again(calls: list[int], tmp_path: Path) -> None:
    model, store = make(), longspan.ContextStore(tmp_path / "store")
    expected = answers(store.read(model, random_ids(400)))
    assert calls == CLUSTERED
    calls.clear()
    again = store.read(model, random_ids(400))
    assert again.cached_tokens == 400 and answers(again) == expected and calls == []


def test_coarser_keys_keep_the_clusters_as_they_were(calls: list[int], tmp_path: Path) -> None:
    model = make()
    context = model.read(random_ids(400))
    context.save(tmp_path / "a.span", level=0)
    calls.clear()
    back = longspan.open_context(tmp_path / "a.span", model)
    assert calls == []
    for key, state in context.run.states.items():
        assert torch.equal(state["means"], back.run.states[key]["means"])


def test_what_remembers_is_not_published_in_chunks(calls: list[int], tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="drop, code or remember"):
        publish_context(make().read(random_ids(400)), tmp_path / "out")
