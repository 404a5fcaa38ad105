"""What a method made of a text once, such as clusters of its keys, is saved with the context and not made again.

The method here looks keys up by clusters, as Squeezed Attention does; it stands for any that keeps tensors in its state at the
end of a text.
"""

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
from tests.fake_methods import install
from tests.models import random_ids, random_model, word_tokenizer, words

CLUSTERED = '''\
"""Visits the tokens of the clusters of keys that are nearest to a query."""

from dataclasses import dataclass

import torch

from longspan.ops.estimate import centroids
from longspan.roles import Selection, Storage
from longspan.visit import Dense, Gather

CARD = {
    "title": "Clustered", "year": 2024, "paper_id": None, "family": "attention", "roles": ["Selection", "Storage"],
    "phase": "decode", "training": "none", "exact": False, "frees": "no", "needs": [], "claim": {}, "example": "dense",
    "identity": "dense", "tolerances": {},
}


@dataclass(frozen=True, kw_only=True)
class Clustered(Selection, Storage):
    """Settings."""

    num_centroids: int = 16
    visited: int = 3

    def compact(self, layer, store, state, *, event):
        if event == "read":
            made = centroids.k_means(store.keys, self.num_centroids)
            state.update(means=made.means_BKCD, order=made.order_BKS, starts=made.starts_BKC, clustered=store.num_tokens)
        return None

    def visit(self, step):
        if "means" not in step.state:
            return Dense()
        made = centroids.Centroids(
            means_BKCD=step.state["means"], order_BKS=step.state["order"], starts_BKC=step.state["starts"]
        )
        scores = centroids.centroid_scores(step.queries, made)
        best = scores.topk(self.visited, dim=-1).indices.int()
        known = step.state["clustered"]
        found = centroids.tokens_of(made, best, known).long()
        late = torch.arange(known, step.num_past).expand(*found.shape[:2], -1)
        index = torch.cat((torch.where(found < 0, known + step.num_past, found).sort(-1).values, late), -1)
        index = index.where(index < known + step.num_past, -1)
        return Gather(index=index[:, :, None])
'''


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many keys were clustered, call by call; the method is there."""
    (tmp_path / "methods").mkdir()
    install(tmp_path / "methods", monkeypatch, attention__clustered=CLUSTERED)
    found: list[int] = []
    real = centroids.k_means

    def counted(keys: torch.Tensor, *rest: Any, **more: Any) -> centroids.Centroids:
        found.append(keys.shape[2])
        return real(keys, *rest, **more)

    monkeypatch.setattr(centroids, "k_means", counted)
    return found


def make() -> SpanModel:
    return longspan.load(
        random_model(num_layers=2), "clustered", tokenizer=word_tokenizer(), chunk_tokens=100
    )


def answers(context: Context) -> list[tuple[int, ...]]:
    return [context.ask(words(random_ids(4, seed=seed)), max_new_tokens=8).token_ids for seed in range(3)]


@pytest.mark.parametrize("lazy", [False, True])
def test_opening_does_not_cluster_again(calls: list[int], tmp_path: Path, lazy: bool) -> None:
    model = make()
    context = model.read(random_ids(400))
    assert calls == [400, 400], "once a layer"
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
    assert (
        sum(name.startswith("state.") for name in names) == 2 * 3
    )  # layers, and means, order and starts of each


def test_a_store_does_not_cluster_again(calls: list[int], tmp_path: Path) -> None:
    model, store = make(), longspan.ContextStore(tmp_path / "store")
    expected = answers(store.read(model, random_ids(400)))
    assert calls == [400, 400]
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
