"""MInference: the estimate and the visits against brute force, planted patterns, the search, and a small model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from longspan.engine.api import load
from longspan.methods.attention.minference import MInference, read_patterns
from longspan.methods.attention.minference.index import (
    block_scores,
    estimate_vertical_slash,
    visit_patterns,
)
from longspan.methods.attention.minference.search import (
    equal_cost_patterns,
    search_patterns,
    write_patterns,
)
from longspan.ops.attend import Problem, attend, naive_attend, naive_logits
from longspan.ops.block_sparse import block_table_mask
from longspan.roles import Step
from longspan.visit import BlockTable, Dense, Gather, PerHead, Ranges

D = 16


def make_step(queries: Tensor, keys: Tensor, pads: Sequence[int] = (0,)) -> Step:
    """A step over stored keys `[B, K, S, D]` whose last T are the queries' own; row i begins with `pads[i]` padding."""
    S, T = keys.shape[2], queries.shape[2]
    positions = torch.stack([torch.where(torch.arange(S) < pad, -1, torch.arange(S) - pad) for pad in pads])
    store: Any = SimpleNamespace(
        keys=keys,
        values=keys.flip(-1),
        positions=positions[:, None],
        num_tokens=S,
        heads=tuple(range(keys.shape[1])),
        filled=not any(pads),
    )
    layer: Any = SimpleNamespace(num_groups=queries.shape[1] // keys.shape[1], scale=1.0)

    def logits(q: Tensor, at: Tensor, start: int, stop: int) -> Tensor:
        return naive_logits(q, keys[:, :, start:stop], at, positions[:, None, start:stop], None, 1.0)

    return Step(
        layer=layer,
        phase="prefill",
        queries=queries,
        query_positions=positions[:, -T:],
        store=store,
        num_new=T,
        state={},
        logits=logits,
    )


def random_step(
    B: int = 1, H: int = 4, K: int = 2, T: int = 70, S: int = 391, pads: Sequence[int] = (0,)
) -> Step:
    torch.manual_seed(S)
    return make_step(torch.randn(B, H, T, D), torch.randn(B, K, S, D), pads)


def last_weights(step: Step, b: int, h: int) -> Tensor:
    """softmax of the last 64 queries over all keys, `[t, S]`, pair by pair as the paper has it."""
    S, t = step.store.num_tokens, min(64, step.num_new)
    keys = step.store.keys[b, h // step.layer.num_groups]
    logits = step.queries[b, h, -t:] @ keys.T
    for r in range(t):
        logits[r, S - t + r + 1 :] = -torch.inf
    return torch.softmax(logits, dim=-1)


@pytest.mark.parametrize(("T", "S", "block"), [(70, 391, 16), (64, 200, 64), (33, 140, 8), (1, 50, 16)])
def test_estimate_equals_brute_force(T: int, S: int, block: int) -> None:
    step = random_step(T=T, S=S)
    columns, blocks = estimate_vertical_slash(step, block)
    t, past = min(64, T), S - T
    for h in range(4):
        weights = last_weights(step, 0, h)
        wanted = weights[:, 30:past].sum(0)
        assert torch.allclose(columns[0, h, 30:], wanted, atol=1e-5)
        assert torch.isinf(columns[0, h, :30]).all()
        # attention at a distance, where all t queries have a key so far back
        at = [sum(float(weights[r, S - t + r - d]) for r in range(t)) for d in range(S - t + 1)]
        for i in range(-(-T // block)):
            for n in range(-(-past // block)):
                far = (i + n + 1) * block
                pairs = [far + u - c for u in range(block) for c in range(block)]
                expected = sum(at[d] for d in pairs if d < len(at))
                assert float(blocks[0, h, i, n]) == pytest.approx(expected, abs=1e-3)


def test_block_scores_equal_brute_force() -> None:
    step = random_step(T=70, S=391)
    scores, past, block = block_scores(step, 16), 321, 16
    assert scores.shape == (1, 4, 5, 21)
    for h, i, n in [(0, 0, 0), (1, 4, 20), (3, 2, 7)]:
        query = step.queries[0, h, i * block : (i + 1) * block].mean(0)
        keys = step.store.keys[0, h // 2, max(0, past - (n + 1) * block) : past - n * block].mean(0)
        assert float(scores[0, h, i, n]) == pytest.approx(float(query @ keys), abs=1e-4)


def rows_of(visit: Gather, b: int, h: int, i: int) -> set[int]:
    row = visit.index[b, h, i]
    used = row[row >= 0].tolist()
    assert used == sorted(set(used)), "ascending and distinct"
    assert (row[len(used) :] == -1).all(), "unused slots come last"
    return set(used)


def offset_shares(weights: Tensor, block: int, phase: int) -> list[float]:
    """What the block m blocks behind its queries gets of each distance that all queries `[t, S]` have, for every m."""
    t, S = weights.shape
    distance = torch.arange(S - t + 1)
    at = sum(weights[r, S - t + r - distance] for r in range(t))
    centres = (torch.arange(-(-S // block)) * block + phase)[:, None]
    return ((1 - (distance - centres).abs() / block).clamp(min=0) @ at).tolist()


@pytest.mark.parametrize(
    ("T", "S", "block", "pads"),
    [
        (70, 391, 16, (0,)),
        (64, 264, 64, (0,)),
        (100, 300, 32, (0,)),
        (70, 391, 16, (0, 45)),
        (64, 264, 64, (70,)),
    ],
)
def test_table_holds_the_best_columns_and_blocks(T: int, S: int, block: int, pads: tuple[int, ...]) -> None:
    step, past = random_step(B=len(pads), T=T, S=S, pads=pads), S - T
    visit = visit_patterns(step, [("vertical_slash", 40, 2 * block - 1)] * 4, block)
    assert isinstance(visit, BlockTable) and visit.block_tokens == block and visit.columns is not None
    assert (visit.first_place is None) == (pads == (0,))
    mask = block_table_mask(step.queries, step.store.keys, visit)
    for row, h in ((row, h) for row in range(len(pads)) for h in range(4)):
        pad = pads[row]
        alone = make_step(step.queries[row : row + 1], step.store.keys[row : row + 1, :, pad:])
        weights = last_weights(alone, 0, h)
        got = torch.nn.functional.pad(weights[:, : past - pad].sum(0), (pad, 0))
        got[pad : pad + 30] = torch.inf
        verticals = got.topk(40).indices.sort().values
        assert visit.columns.shape[2] == 1, "one estimate serves the whole chunk"
        assert visit.columns[row, h, 0].tolist() == verticals.tolist()
        shares = offset_shares(weights, block, past % block)
        for i in range(-(-T // block)):
            stop = min(T, (i + 1) * block) + past
            own = list(range(past // block, (stop - 1) // block + 1))
            used = visit.index[row, h, i, : visit.counts[row, h, i]].tolist()
            assert used[: len(own)] == own
            assert bool(mask[row, h, stop - past - 1, past:stop].all()), "its own chunk is visited densely"
            before = range(pad // block, past // block)
            best = sorted(
                before,
                key=lambda j: -shares[past // block + i - j] if past // block + i - j < len(shares) else 0,
            )
            assert set(used[len(own) :]) == set(best[:2])


def without_table(why: str) -> tuple[Step, int]:
    """A step and a size of blocks that no table can serve."""
    if why == "before rotation":
        return replace(random_step(T=70, S=391), rotated=False), 16
    if why == "blocks of 8":
        return random_step(T=33, S=140), 8
    if why == "blocks of 256":
        return random_step(T=70, S=1391), 256
    step: Any = random_step(T=70, S=391)
    step.store.filled = False
    if why == "positions per head":
        step.store.positions = step.store.positions.repeat(1, 2, 1)
    else:
        step.store.positions[0, 0, 200] = -1
    return step, 16


@pytest.mark.parametrize(
    "why", ["before rotation", "blocks of 8", "blocks of 256", "positions per head", "a hole in the middle"]
)
def test_gathers_the_best_columns_and_blocks_where_no_table_can_serve(why: str) -> None:
    step, block = without_table(why)
    T, past = step.num_new, step.num_past
    visit = visit_patterns(step, [("vertical_slash", 40, 2 * block - 1)] * 4, block)
    assert isinstance(visit, Gather) and visit.query_block_tokens == block
    columns, blocks = estimate_vertical_slash(step, block)
    for h in range(4):
        verticals = set(sorted(range(past), key=lambda c: -float(columns[0, h, c]))[:40])
        for i in range(-(-T // block)):
            order = sorted(range(blocks.shape[3]), key=lambda n: -float(blocks[0, h, i, n]))[:2]
            slashes = {past - (n + 1) * block + c for n in order for c in range(block)}
            assert rows_of(visit, 0, h, i) == verticals | {c for c in slashes if c >= 0}


def test_finds_a_planted_column_and_a_planted_diagonal_far_from_both_ends() -> None:
    T, S, column, distance = 128, 1024, 417, 500
    torch.manual_seed(1)
    codes = torch.nn.functional.normalize(torch.randn(S, 256), dim=-1)
    queries, keys = torch.zeros(1, 2, T, 256), (codes * 30)[None, None].clone()
    queries[0, 0] = codes[column]  # head 0: every query looks at one token
    queries[0, 1] = codes[S - T - distance : S - distance]  # head 1: every query looks `distance` back
    step = make_step(queries, keys)
    visit = visit_patterns(step, [("vertical_slash", 40, 128)] * 2, 64)
    assert isinstance(visit, BlockTable)
    mask = block_table_mask(queries, keys, visit)[0]
    assert bool(mask[0, :, column].all())
    query = torch.arange(T)
    looked_at = S - T + query - distance
    assert bool(mask[1, query, looked_at].all())
    assert not bool(mask[0, query, looked_at].all()), "each head has an index of its own"
    assert int(mask[..., : S - T].sum(-1).max()) <= 40 + 128


def test_heads_with_different_budgets_get_tables_of_their_own() -> None:
    step = random_step(T=70, S=391)
    few, many = ("vertical_slash", 40, 16), ("vertical_slash", 60, 48)
    visit = visit_patterns(step, [few, many, many, few], 16)
    assert isinstance(visit, PerHead) and [heads for heads, _ in visit.parts] == [(0, 3), (1, 2)]
    for (heads, part), pattern in zip(visit.parts, (few, many), strict=True):
        whole = visit_patterns(step, [pattern] * 4, 16)
        assert isinstance(part, BlockTable) and isinstance(whole, BlockTable)
        assert part.columns is not None and whole.columns is not None
        assert part.columns.shape[1:] == (2, 1, pattern[1])
        assert torch.equal(part.columns, whole.columns[:, heads])
        assert torch.equal(part.index, whole.index[:, heads])
        assert torch.equal(part.counts, whole.counts[:, heads])


def test_padding_is_never_preferred_and_changes_no_choice() -> None:
    torch.manual_seed(3)
    queries, keys = torch.randn(1, 4, 70, D), torch.randn(1, 2, 391, D)
    pad = 37
    rubbish = torch.randn(1, 2, pad, D) * 9
    both = make_step(
        torch.cat([queries, queries]),
        torch.cat([torch.cat([rubbish, keys], 2), torch.randn(1, 2, 391 + pad, D)]),
        pads=(pad, 0),
    )
    alone = visit_patterns(make_step(queries, keys), [("block_sparse", 64, 0)] * 4, 16)
    padded = visit_patterns(both, [("block_sparse", 64, 0)] * 4, 16)
    assert isinstance(alone, Gather) and isinstance(padded, Gather)
    for h in range(4):
        for i in range(5):
            assert {c - pad for c in rows_of(padded, 0, h, i) if c >= pad} == rows_of(alone, 0, h, i)
    columns, blocks = estimate_vertical_slash(make_step(queries, keys), 16)
    padded_columns, padded_blocks = estimate_vertical_slash(both, 16)
    assert torch.allclose(padded_columns[:1, :, pad:], columns, atol=1e-6)
    assert float(padded_columns[0, :, :pad].max()) == 0
    known = (391 - 64) // 16 - 5  # blocks whose every distance all 64 queries reach
    assert torch.allclose(padded_blocks[:1, ..., :known], blocks[..., :known], atol=1e-5)


@pytest.mark.parametrize("pads", [(0, 0), (0, 45)])
@pytest.mark.parametrize(("T", "S"), [(70, 391), (129, 500), (1, 300)])
def test_mixed_patterns_attend_like_the_naive_twin(T: int, S: int, pads: tuple[int, int]) -> None:
    step = random_step(B=2, H=8, K=2, T=T, S=S, pads=pads)
    patterns: list[tuple[str, int, int]] = [
        ("vertical_slash", 40, 32),
        ("a_shape", 9, 80),
        ("block_sparse", 48, 0),
    ]
    visit = visit_patterns(step, [patterns[i] for i in (0, 1, 2, 0, 1, 1, 2, 0)], 16)
    assert isinstance(visit, PerHead)
    assert visit.parts[1] == ((1, 4, 5), Ranges(sink_tokens=9, window_tokens=80))
    problem = Problem(
        queries=step.queries,
        keys=step.store.keys,
        values=step.store.values,
        query_positions=step.query_positions,
        key_positions=step.store.positions,
        num_new=T,
        scale=0.25,
        visit=visit,
        contiguous_from=0 if pads == (0, 0) else None,
    )
    out = attend(problem)
    assert torch.allclose(out, naive_attend(problem), atol=1e-5)
    for (heads, _), pattern in zip(visit.parts, patterns, strict=True):
        alone = naive_attend(replace(problem, visit=visit_patterns(step, [pattern] * 8, 16)))
        assert torch.allclose(out[:, list(heads)], alone[:, list(heads)], atol=1e-5)


def test_dense_where_the_budget_covers_the_past() -> None:
    step = random_step(T=70, S=391)
    assert visit_patterns(step, [("vertical_slash", 300, 21)] * 4, 16) == Dense()
    assert isinstance(visit_patterns(step, [("vertical_slash", 300, 20)] * 4, 16), BlockTable)
    assert visit_patterns(step, [("a_shape", 191, 200)] * 4, 16) == Dense()
    assert visit_patterns(step, [("block_sparse", 321, 0)] * 4, 16) == Dense()


@pytest.mark.parametrize("settings", [{"vertical_tokens": 0}, {"slash_tokens": -1}, {"block_tokens": 0}])
def test_bad_settings(settings: dict[str, int]) -> None:
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=rf"got {name}={value}; allowed is \d or more"):
        MInference(**settings)  # type: ignore[arg-type]


def test_bad_patterns_files(tmp_path: Path) -> None:
    path = tmp_path / "patterns.json"
    with pytest.raises(ValueError, match="cannot read patterns=.*search_patterns"):
        MInference(patterns=str(path))
    path.write_text(json.dumps({"layers": [[["zigzag", 1, 2]]]}))
    with pytest.raises(ValueError, match=r"holds the pattern \['zigzag', 1, 2\]; allowed are"):
        MInference(patterns=str(path))


@pytest.fixture(scope="module")
def small_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=96,
        vocab_size=500,
        max_position_embeddings=1024,
    )
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weight.data *= 8
    loaded = load(model, chunk_tokens=64)
    yield loaded
    loaded.detach()


IDS = torch.randint(0, 500, (300,), generator=torch.Generator().manual_seed(5))


def logits_of(model: Any, spec: str) -> Tensor:
    return torch.cat([part for _, part in model.with_methods(spec).logits(IDS)])


def test_full_budget_equals_dense_and_more_budget_comes_closer(small_model: Any) -> None:
    dense = logits_of(small_model, "dense")
    assert torch.allclose(logits_of(small_model, "minference(vertical_tokens=4096)"), dense, atol=1e-5)
    errors = []
    for vertical, slash in ((8, 16), (40, 64), (110, 112)):
        spec = f"minference(vertical_tokens={vertical}, slash_tokens={slash}, block_tokens=16)"
        errors.append(float((logits_of(small_model, spec) - dense).square().mean()))
    assert errors[0] > errors[1] > errors[2] > 0


def test_catches_heavy_tokens_that_a_window_of_the_same_size_misses() -> None:
    step = random_step(T=70, S=791)
    heavy = torch.randperm(700, generator=torch.Generator().manual_seed(2))[:12] + 10
    step.store.keys[:, :, heavy] += (
        3 * step.queries.mean((1, 2), keepdim=True) / step.queries.mean((1, 2)).norm()
    )
    step.queries.add_(2 * step.queries.mean((1, 2), keepdim=True) / step.queries.mean((1, 2)).norm())
    dense = Problem(
        queries=step.queries,
        keys=step.store.keys,
        values=step.store.values,
        query_positions=step.query_positions,
        key_positions=step.store.positions,
        num_new=70,
        scale=1.0,
        contiguous_from=0,
    )
    exact = attend(dense)
    patterns = [("vertical_slash", 60, 16), ("a_shape", 30, 46 + 70), ("vertical_slash", 1, 76)]
    errors = []
    for pattern in patterns:
        visit = visit_patterns(step, [pattern] * 4, 16)
        errors.append(float((attend(replace(dense, visit=visit)) - exact).square().mean()))
    assert errors[0] < 0.4 * min(errors[1:])


def test_search_takes_the_candidate_with_the_least_error_per_head(small_model: Any, tmp_path: Path) -> None:
    candidates = equal_cost_patterns(64)
    assert {pattern[1] + pattern[2] for pattern in candidates} == {64}
    found = search_patterns(small_model, IDS, candidates=candidates, block_tokens=16)
    apart = [
        search_patterns(small_model, IDS, candidates=[one], block_tokens=16)["error"] for one in candidates
    ]
    for layer in range(2):
        for head in range(4):
            errors = [error[layer][head] for error in apart]
            assert found["error"][layer][head] == pytest.approx(min(errors), abs=1e-6)
            assert errors[candidates.index(tuple(found["layers"][layer][head]))] == min(errors)
    path = tmp_path / "patterns.json"
    write_patterns(found, path)
    assert read_patterns(str(path)) == tuple(tuple(map(tuple, layer)) for layer in found["layers"])
    assert list(tmp_path.iterdir()) == [path]
    dense = logits_of(small_model, "dense")
    changed = float(
        (logits_of(small_model, f"minference(patterns='{path}', block_tokens=16)") - dense).abs().max()
    )
    assert 0.001 < changed < 10


def test_search_refuses_what_it_cannot_tell(small_model: Any) -> None:
    with pytest.raises(ValueError, match="too short to compare patterns of 1200 tokens"):
        search_patterns(small_model, IDS)
    with pytest.raises(ValueError, match="patterns are searched under dense attention"):
        search_patterns(small_model.with_methods("minference()"), IDS)


def test_patterns_of_another_model_are_refused(small_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "patterns.json"
    write_patterns({"layers": [[["vertical_slash", 9, 9]] * 4]}, path)
    with pytest.raises(ValueError, match="for 1 layers of 4 heads, but .* has 2 of 4; search them again"):
        small_model.with_methods(f"minference(patterns='{path}')")


def test_questions_are_read_densely(small_model: Any) -> None:
    spec = "minference(vertical_tokens=8, slash_tokens=16, block_tokens=16)"
    reader = small_model.with_methods(spec).reader()
    run = reader.prefill(reader.new_run(), [IDS])
    visited: list[Any] = [plan.selections_for("decode") for plan in run.plan.layers]
    assert run.phase == "decode" and visited == [(), ()]
    assert [len(plan.selections_for("prefill")) for plan in run.plan.layers] == [1, 1]
