"""Squeezed Attention: what is clustered and visited against loops, the budget, a planted needle, contexts, wrong settings."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.engine.api import applied, load
from longspan.engine.model import SpanModel
from longspan.engine.run import Run
from longspan.errors import SpecError
from longspan.methods.attention.squeezed import SqueezedAttention
from longspan.ops.attend import Problem
from longspan.ops.estimate import centroids
from longspan.roles import Held, LayerInfo, Step
from longspan.spec import resolve
from longspan.visit import Dense, Gather
from tests.methods.attention.stored import Store
from tests.models import random_ids, random_model, word_tokenizer, words

K, G, D = 2, 3, 8
SCALE = 0.4
SMALL: dict[str, Any] = {"cluster_share": 0.1, "visit_share": 0.15, "observation_tokens": 13}


def step_of(keys: Tensor, queries: Tensor, state: dict[str, Any], phase: Any, positions: Tensor) -> Step:
    """The last tokens of a store, which the queries `[B, H, T, D]` belong to."""
    layer: Any = SimpleNamespace(scale=SCALE)
    new = queries.shape[2]
    return Step(
        layer=layer,
        phase=phase,
        queries=queries,
        query_positions=positions[:, -new:],
        store=Store(keys, positions[:, None]),
        num_new=new,
        state=state,
        logits=lambda *_: keys,
    )


def draw(num_tokens: int, num_heads: int, seed: int) -> Tensor:
    return torch.randn(1, num_heads, num_tokens, D, generator=torch.Generator().manual_seed(seed))


def read(method: SqueezedAttention, layers: list[tuple[Tensor, Tensor]]) -> list[dict[str, Any]]:
    """States of layers, given as keys and queries, at the end of a text that came in two chunks."""
    states: list[dict[str, Any]] = [{} for _ in layers]
    held = []
    for (keys, queries), state in zip(layers, states, strict=True):
        at = torch.arange(keys.shape[2])[None]
        for start, stop in ((0, keys.shape[2] - 5), (keys.shape[2] - 5, keys.shape[2])):
            step = step_of(keys[:, :, :stop], queries[:, :, start:stop], state, "prefill", at[:, :stop])
            method.observe(step)
        layer: Any = SimpleNamespace(scale=SCALE)
        store: Any = Store(keys, at[:, None])
        held.append(Held(layer, store, state))
    groups = [held] if method.together() == "model" else [[h] for h in held]
    for group in groups:
        assert method.compact_together(group, event="chunk") == [None] * len(group)
        assert method.compact_together(group, event="read") == [None] * len(group)
    return states


def ask(method: SqueezedAttention, keys: Tensor, queries: Tensor, state: dict[str, Any]) -> list[list[int]]:
    """Places that a question visits, by kv head; 4 tokens have come since the text ended."""
    new = queries.shape[2]
    grown = torch.cat((keys, draw(4 + new, K, 99)), 2)
    visit = method.visit(step_of(grown, queries, state, "decode", torch.arange(grown.shape[2])[None]))
    assert isinstance(visit, Gather) and visit.index.shape[1:3] == (K, 1)
    found = [[place for place in row[0] if place >= 0] for row in visit.index[0].tolist()]
    for row in found:
        assert row == sorted(set(row)) and row[-1] < grown.shape[2] - new
    return found


def clusters_of(state: dict[str, Any], head: int) -> list[list[int]]:
    order, starts = state["order"][0, head].tolist(), state["starts"][0, head].tolist()
    return [order[a:b] for a, b in zip(starts, starts[1:], strict=False)]


def weights_in_loops(queries: Tensor, means: Tensor, sizes: list[list[int]]) -> list[list[float]]:
    """S_i of every kv head and cluster; queries `[1, H, T, D]`, means `[1, K, C, D]`."""
    out = []
    for head in range(K):
        total = [0.0] * means.shape[2]
        rows = [q for g in range(G) for q in queries[0, head * G + g].tolist()]
        for q in rows:
            raw = [
                math.exp(SCALE * sum(a * b for a, b in zip(q, c, strict=True)))
                for c in means[0, head].tolist()
            ]
            below = sum(n * r for n, r in zip(sizes[head], raw, strict=True))
            total = [
                t + (r / below / len(rows) if n else 0.0)
                for t, r, n in zip(total, raw, sizes[head], strict=True)
            ]
        out.append(total)
    return out


def threshold_in_loops(weights: list[float], sizes: list[int], share: float) -> float:
    """The weight that the share of the keys exceeds."""
    each = sorted((w for w, n in zip(weights, sizes, strict=True) for _ in range(n)), reverse=True)
    return each[math.floor(share * len(each))]


@pytest.mark.parametrize("num_tokens", [63, 129, 331])
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("choose", ["threshold", "best"])
def test_visits_equal_loops(num_tokens: int, levels: int, choose: Any) -> None:
    more: dict[str, Any] = {"coarse_share": 0.04, "coarse_visit_share": 0.4} if levels == 2 else {}
    method = SqueezedAttention(choose=choose, **SMALL, **more)
    layers = [
        (draw(num_tokens, K, seed), (1 + seed % 3) * draw(num_tokens, K * G, seed + 10)) for seed in (1, 2)
    ]
    states, known = read(method, layers), num_tokens - 13
    sizes = [[[len(c) for c in clusters_of(state, head)] for head in range(K)] for state in states]
    coarse = [[[0] * int(0.04 * known) for _ in range(K)] for _ in states]
    for (keys, _), state, counts, sums in zip(layers, states, sizes, coarse, strict=True):
        assert set(state) - {"threshold", "coarse_threshold", "coarse_means", "coarse_of"} == {
            *("means", "order", "starts", "clustered")
        }
        for head in range(K):
            found = clusters_of(state, head)
            assert sorted(place for cluster in found for place in cluster) == list(range(known))
            assert len(found) == int(0.1 * known)
            for cluster, mean in zip(found, state["means"][0, head], strict=True):
                torch.testing.assert_close(mean, sum(keys[0, head, p] for p in cluster) / len(cluster))
            if levels == 2:
                of = state["coarse_of"][0, head].tolist()
                for cluster, n in zip(of, counts[head], strict=True):
                    sums[head][cluster] += n
                for c, mean in enumerate(state["coarse_means"][0, head]):
                    inside = [m for m, own in zip(state["means"][0, head], of, strict=True) if own == c]
                    torch.testing.assert_close(mean, sum(inside) / len(inside))

    def limit(weights: list[list[list[float]]], counted: list[list[list[int]]], share: float) -> float:
        flat_w = [w for layer in weights for head in layer for w in head]
        return threshold_in_loops(flat_w, [n for layer in counted for head in layer for n in head], share)

    def reached(queries: Tensor, number: int, line: float) -> list[list[int]]:
        """Sizes of the clusters of a layer, 0 where the coarse level does not look."""
        state, counts, out = states[number], sizes[number], []
        if levels == 1:
            return counts
        weights = weights_in_loops(queries, state["coarse_means"], coarse[number])
        for head, (w, n) in enumerate(zip(weights, coarse[number], strict=True)):
            inside, room = set(), 0.4 * known
            for c in sorted(range(len(w)), key=lambda c: -w[c]):
                if (choose == "threshold" and w[c] > line) or (choose == "best" and room > 0):
                    inside.add(c)
                    room -= n[c]
            of = state["coarse_of"][0, head].tolist()
            out.append([n if of[c] in inside else 0 for c, n in enumerate(counts[head])])
        return out

    coarse_line = line = -1.0
    if choose == "threshold":
        last = [queries[:, :, -13:] for _, queries in layers]
        if levels == 2:
            wide = [
                weights_in_loops(q, s["coarse_means"], n)
                for q, s, n in zip(last, states, coarse, strict=True)
            ]
            coarse_line = limit(wide, coarse, 0.4)
        fine = [
            weights_in_loops(q, state["means"], reached(q, number, coarse_line))
            for number, (q, state) in enumerate(zip(last, states, strict=True))
        ]
        line = limit(fine, sizes, 0.15)
        assert all(float(state["threshold"]) == pytest.approx(line, rel=1e-4) for state in states)
    for number, ((keys, _), state) in enumerate(zip(layers, states, strict=True)):
        question = 2 * draw(3, K * G, number + 50)
        counts = reached(question, number, coarse_line)
        weights = weights_in_loops(question, state["means"], counts)
        budget = int((0.6 if choose == "threshold" else 0.15) * known)
        for head, places in enumerate(ask(method, keys, question, state)):
            ranked = sorted(range(len(counts[head])), key=lambda c: -weights[head][c])
            important = [c for c in ranked if weights[head][c] > line and counts[head][c]]
            wanted = [p for c in important for p in clusters_of(state, head)[c]][:budget]
            assert places == sorted(wanted) + list(range(known, num_tokens + 4))


def test_clusters_are_of_directions() -> None:
    """Keys of one direction are one cluster however long they are."""
    long = torch.linspace(0.1, 30.0, 30)[:, None, None] * torch.eye(D)[:3]
    keys = long.flatten(0, 1)[None, None].expand(1, K, -1, -1)
    method = SqueezedAttention(cluster_share=1 / 30, observation_tokens=1, choose="best")
    keys = torch.cat((keys, draw(1, K, 0)), 2)
    (state,) = read(method, [(keys, draw(91, K * G, 1))])
    for head in range(K):
        assert sorted(sorted(c) for c in clusters_of(state, head)) == [
            list(range(i, 90, 3)) for i in range(3)
        ]


@pytest.mark.parametrize("fake", [None, "random clusters", "recent keys"])
def test_planted_needles_are_visited(fake: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that a question looks for, far apart; what a random index or the latest keys would find is not enough."""
    keys, needles = draw(413, K, 3), [31, 122, 207, 288]
    wanted = torch.nn.functional.normalize(draw(1, K, 4), dim=-1)
    keys[:, :, needles] = 5 * wanted + 0.1 * draw(4, K, 5)
    question = (6 * wanted).repeat_interleave(G, 1)
    if fake == "random clusters":
        real = centroids.k_means

        def shuffled(x: Tensor, *rest: Any, **more: Any) -> centroids.Centroids:
            made = real(x, *rest, **more)
            mixed = torch.randperm(x.shape[2], generator=torch.Generator().manual_seed(0))
            order = mixed[made.order_BKS.long()].int()
            return centroids.Centroids(
                means_BKCD=made.means_BKCD, order_BKS=order, starts_BKC=made.starts_BKC
            )

        monkeypatch.setattr(centroids, "k_means", shuffled)
    method = SqueezedAttention(visit_share=0.05, observation_tokens=13, choose="best")
    (state,) = read(method, [(keys, draw(413, K * G, 6))])
    for places in ask(method, keys, question, state):
        assert sum(place < 400 for place in places) == 20
        if fake == "recent keys":
            places = list(range(380, 417))
        assert (set(needles) <= set(places)) == (fake is None)


def test_a_head_that_looks_around_visits_more_than_one_that_does_not() -> None:
    """One threshold serves all heads; its share of the keys is met on the queries that set it."""
    num_tokens, known = 400, 387
    keys, queries = draw(num_tokens, K, 1), draw(num_tokens, K * G, 2)
    queries[:, :G], queries[:, G:] = 20 * queries[:, :1], 0.3 * queries[:, G:]
    queries[:, :, -13:] = queries[:, :, -1:]  # so that the text's last query is what the threshold was set on
    method = SqueezedAttention(most_share=1.0, **SMALL)
    (state,) = read(method, [(keys, queries)])
    counts = [sum(p < known for p in row) for row in ask(method, keys, queries[:, :, -1:], state)]
    assert 0.1 * 2 * known < sum(counts) <= 0.15 * 2 * known
    assert counts[1] > 2 * counts[0]
    (state,) = read(SqueezedAttention(**SMALL), [(keys, queries)])
    narrow = SqueezedAttention(most_share=0.15, **SMALL)
    assert max(sum(p < known for p in row) for row in ask(narrow, keys, queries[:, :, -1:], state)) == 58


def test_padding_is_neither_clustered_nor_visited_and_a_short_text_is_dense() -> None:
    method, keys, queries = SqueezedAttention(**SMALL), draw(150, K, 1), draw(150, K * G, 2)
    at = torch.arange(150)[None] - 31
    at = at.where(at >= 0, -1)
    states: list[dict[str, Any]] = []
    for first in (0, 31):
        state: dict[str, Any] = {}
        shown = keys[:, :, first:], queries[:, :, first:], at[:, first:]
        layer: Any = SimpleNamespace(scale=SCALE)
        store: Any = Store(shown[0], shown[2][:, None])
        method.observe(step_of(shown[0], shown[1], state, "prefill", shown[2]))
        method.compact_together([Held(layer, store, state)], event="read")
        states.append(state)
    padded, alone = states
    assert torch.equal(padded["means"], alone["means"]) and torch.equal(padded["order"], alone["order"] + 31)
    assert torch.equal(padded["threshold"], alone["threshold"])
    (short,) = read(method, [(keys[:, :, :13], queries[:, :, :13])])
    step = step_of(keys[:, :, :15], queries[:, :, :2], short, "decode", torch.arange(15)[None])
    assert short == {} and method.visit(step) == Dense()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("squeezed(visit_share=0)", "got visit_share=0; allowed is a share above 0"),
        ("squeezed(cluster_share=1.5)", "got cluster_share=1.5"),
        ("squeezed(observation_tokens=0)", "got observation_tokens=0; allowed is 1 or more"),
        ("squeezed(iterations=0)", "got iterations=0"),
        ("squeezed(choose=worst)", "choose"),
        ("squeezed(choose=best, most_share=0.5)", "leave most_share out"),
        ("squeezed(visit_share=0.2, most_share=0.1)", "allowed is visit_share=0.2 to 1"),
        ("squeezed(coarse_share=0.05)", "less than cluster_share=0.05, such as 0.01"),
        ("squeezed(coarse_visit_share=0.5)", "set coarse_share too"),
    ],
)
def test_wrong_settings_are_refused(spec: str, message: str) -> None:
    with pytest.raises((ValueError, SpecError), match=message):
        resolve(spec)


def make(spec: str) -> SpanModel:
    return load(random_model(), spec, tokenizer=word_tokenizer(), chunk_tokens=100)


def visited_share(model: SpanModel, run: Run, question: Tensor, known: int) -> Tensor:
    """Shares of the clustered keys that a question visits, of all layers and kv heads."""
    shares: list[Tensor] = []

    def look(layer: LayerInfo, problem: Problem) -> None:
        visit = problem.visit
        assert isinstance(visit, Gather)
        inside = (visit.index >= 0) & (visit.index < known)
        shares.append(inside.sum(-1).flatten() / known)

    branch = model.reader().open_question(run, question)
    branch.tracers.append(look)
    model.reader().advance(branch, question)
    branch.give_back(run)
    assert len(shares) == 2
    return torch.cat(shares)


@pytest.mark.parametrize("more", ["", ", coarse_share=0.04"])
def test_a_loaded_model_visits_its_budget(more: str) -> None:
    text = random_ids(400)
    best = make(f"squeezed(visit_share=0.1, choose=best, observation_tokens=20{more})")
    context = best.read(text)
    shares = visited_share(best, context.run, text[-20:], 380)
    assert torch.all(shares == 38 / 380) if not more else torch.all(shares <= 38 / 380)
    model = make(f"squeezed(visit_share=0.1, most_share=0.3, observation_tokens=20{more})")
    context = model.read(text)
    shares = visited_share(model, context.run, text[-20:], 380)
    assert 0.02 < float(shares.mean()) < 0.2 and float(shares.max()) <= 0.3
    assert context.kept_tokens == 400
    plain = make("dense").read(text)
    questions = [words(random_ids(4, seed=seed)) for seed in range(4)]
    got = [context.ask(q, max_new_tokens=8).token_ids for q in questions]
    assert got != [plain.ask(q, max_new_tokens=8).token_ids for q in questions]


def test_text_behind_a_text_is_clustered_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], centroids.k_means

    def counted(keys: Tensor, *rest: Any, **more: Any) -> centroids.Centroids:
        seen.append(keys.shape[2])
        return real(keys, *rest, **more)

    monkeypatch.setattr(centroids, "k_means", counted)
    model = make("squeezed(observation_tokens=20)")
    first = model.read(random_ids(300))
    before = {key: dict(state) for key, state in first.run.states.items()}
    longer = first.read(random_ids(50, seed=1))
    assert seen == [280, 280, 330, 330]
    assert all(state["clustered"] == 330 for state in longer.run.states.values())
    for key, state in first.run.states.items():
        assert all(state[name] is value for name, value in before[key].items())
    assert longer.ask("w10 w11", max_new_tokens=3).text


@pytest.mark.parametrize(
    "more", ["choose=best", "coarse_share=0.03", "coarse_share=0.03, choose=best", "observation_tokens=250"]
)
def test_rows_of_a_padded_batch_equal_single_ones(more: str) -> None:
    """Also where all that a row holds is its last tokens."""
    spec = f"squeezed(cluster_share=0.1, {more}{'' if 'observation' in more else ', observation_tokens=16'})"
    rows, model = [random_ids(210, seed=3), random_ids(300, seed=4)], random_model()
    batch = torch.zeros(2, 300, dtype=torch.long)
    for row, ids in zip(batch, rows, strict=True):
        row[-len(ids) :] = ids

    def decoded(ids: Tensor) -> Tensor:
        """Logits `[B, 3, V]` of tokens behind a prompt."""
        asked = {"max_new_tokens": 3, "do_sample": False, "output_logits": True}
        made = model.generate(
            ids, attention_mask=(ids > 0).long(), return_dict_in_generate=True, eos_token_id=None, **asked
        )
        return torch.stack(made.logits, 1)

    with applied(model, spec):
        together = decoded(batch)
        for number, ids in enumerate(rows):
            torch.testing.assert_close(together[number], decoded(ids[None])[0], atol=1e-4, rtol=1e-4)
