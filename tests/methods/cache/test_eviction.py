"""What every evicting method shares: budgets and who shares them, when tokens go, ties, bytes, rows, and wrong settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.card import all_cards
from longspan.engine.api import load, open_context
from longspan.engine.run import Run
from longspan.errors import SpecError
from longspan.eviction import Eviction, WindowVotes
from longspan.roles import Held, LayerInfo, ScoredKeyView
from longspan.spec import resolve
from tests.methods.cache.evicting import (
    HEAD_DIM,
    SLACK_TOKENS,
    Store,
    best,
    bytes_of_slabs,
    generated,
    held_after,
    layer_of,
    padded,
    positions_of,
    random_text,
    read_words,
)
from tests.models import random_ids, random_model, word_tokenizer, words


@dataclass(frozen=True, kw_only=True)
class ByKey(Eviction):
    """A key scores what its first channel says."""

    first: int = 0
    latest: int = 0

    def always_kept(self) -> tuple[int, int]:
        return self.first, self.latest

    def score(self, layer: LayerInfo, store: ScoredKeyView, state: dict[str, Any]) -> Tensor:
        return store.keys[..., 0]


@dataclass(frozen=True, kw_only=True)
class Falling(ByKey):
    """Later layers keep less, as far as the first needs no more than its text."""

    def layer_weights(self, num_layers: int, most: float) -> Sequence[float]:
        return [min(1.5, most), 1.0, 2 - min(1.5, most)] if num_layers == 3 else [1.0] * num_layers


@dataclass(frozen=True, kw_only=True)
class HalfRecent(ByKey):
    """Half of a budget is for the latest, and each key carries where it stood."""

    def latest_share(self) -> float:
        return 0.5

    def by_token(self) -> tuple[str, ...]:
        return ("stood",)


def slabs_of(scores: Tensor, method: Eviction) -> list[Held]:
    """Scores `[L, K, S]` as what each slab of each layer holds."""
    held = []
    for index, of_layer in enumerate(scores):
        layer = layer_of(len(of_layer), len(of_layer), index)
        for heads in method.split(layer):
            keys = torch.zeros(1, len(heads), scores.shape[2], HEAD_DIM)
            keys[0, :, :, 0] = of_layer[list(heads)]
            positions = torch.arange(scores.shape[2])[None, None]
            held.append(Held(layer, Store(keys, keys, positions, heads), {}))
    return held


def kept_of(method: Eviction, held: list[Held]) -> list[list[int]]:
    """Places that each head keeps after a text, slab by slab."""
    kept = []
    for h, places in zip(held, method.compact_together(held, event="read"), strict=True):
        every = torch.arange(h.store.num_tokens).expand(1, len(h.store.heads), -1)
        rows = (every if places is None else places).expand(1, len(h.store.heads), -1)
        kept += [[place for place in head if place >= 0] for head in rows[0].tolist()]
    return kept


def shared_best(scores: list[list[float]], budgets: list[int], floor: float) -> list[list[int]]:
    """The best places of several heads together, each head's own floor first, by a loop over tokens."""
    owned = [
        best(dict(enumerate(head)), int(floor * budget)) for head, budget in zip(scores, budgets, strict=True)
    ]
    rest = [
        (-score, number, place)
        for number, head in enumerate(scores)
        for place, score in enumerate(head)
        if place not in owned[number]
    ]
    for _, number, place in sorted(rest)[: sum(budgets) - sum(map(len, owned))]:
        owned[number].append(place)
    return [sorted(head) for head in owned]


@pytest.mark.parametrize("floor", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(("num_tokens", "keep"), [(40, 9), (63, 0.25), (129, 0.5)])
@pytest.mark.parametrize("kv_heads", [1, 2, 5])
def test_heads_of_a_layer_share_exactly_the_total_and_keep_their_floor(
    floor: float, num_tokens: int, keep: float, kv_heads: int
) -> None:
    scores = torch.randn(3, kv_heads, num_tokens) * torch.arange(1, kv_heads + 1)[None, :, None]
    method = ByKey(keep=keep, spread="heads", floor=floor)
    assert method.together() == "layer"
    budget = int(keep) if keep > 1 else round(keep * num_tokens)
    for layer in range(3):
        held = [h for h in slabs_of(scores, method) if h.layer.index == layer]
        kept = kept_of(method, held)
        assert sum(map(len, kept)) == kv_heads * budget
        assert min(map(len, kept)) >= int(floor * budget)
        assert kept == shared_best(scores[layer].tolist(), [budget] * kv_heads, floor)


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_heads_of_all_layers_share_exactly_the_total(floor: float) -> None:
    scores = torch.randn(4, 2, 61) + torch.arange(4.0)[:, None, None]
    method = ByKey(keep=0.3, spread="all", floor=floor)
    assert method.together() == "model"
    kept = kept_of(method, slabs_of(scores, method))
    assert sum(map(len, kept)) == 4 * 2 * 18
    assert min(map(len, kept)) >= int(floor * 18)
    assert kept == shared_best(scores.flatten(0, 1).tolist(), [18] * 8, floor)
    assert len(kept[0]) < len(kept[-1])


@pytest.mark.parametrize("spread", ["uniform", "heads", "all"])
def test_the_earlier_of_equal_keys_stays(spread: Any) -> None:
    kept = kept_of(method := ByKey(keep=10, spread=spread), slabs_of(torch.zeros(2, 2, 50), method))
    if spread == "uniform":
        assert kept == [list(range(10))] * 4
    else:  # the floor, of 2 keys, and then the heads in their order
        shared = 4 if spread == "all" else 2
        assert kept == shared_best([[0.0] * 50] * shared, [10] * shared, 0.2) * (4 // shared)


def test_what_always_stays_stays_whatever_it_scores() -> None:
    scores = torch.full((1, 2, 50), 5.0)
    scores[..., :3], scores[..., -4:] = -1e30, float("nan")
    for spread in ("uniform", "heads"):
        method = ByKey(keep=10, spread=spread, first=3, latest=4, floor=0.0)
        for head in kept_of(method, slabs_of(scores, method)):
            assert head[:3] == [0, 1, 2] and head[-4:] == [46, 47, 48, 49]


def test_infinite_scores_rank_without_counting_as_padding() -> None:
    scores = torch.zeros(1, 1, 20)
    scores[..., 7], scores[..., 3] = torch.inf, -torch.inf
    kept = kept_of(method := ByKey(keep=19), slabs_of(scores, method))
    assert kept == [[place for place in range(20) if place != 3]]


@pytest.mark.parametrize(
    ("keep", "stays", "parts"),
    [(10, 0, [15, 10, 5]), (13, 4, [18, 12, 9]), (0.5, 2, [23, 16, 9]), (24, 0, [32, 24, 16])],
)
def test_layers_share_what_does_not_always_stay_and_the_parts_sum_up(
    keep: float, stays: int, parts: list[int]
) -> None:
    method = Falling(keep=keep, latest=stays)
    assert method.together() == "model"
    kept = kept_of(method, slabs_of(torch.randn(3, 1, 32), method))
    assert [len(head) for head in kept] == parts
    assert sum(parts) == 3 * (int(keep) if keep > 1 else 16)


@pytest.mark.parametrize("keep", [10, 11])
def test_half_of_a_budget_is_for_the_latest_and_what_a_key_carries_follows_it(keep: int) -> None:
    scores = -torch.arange(40.0).expand(1, 2, -1)
    held = slabs_of(scores, method := HalfRecent(keep=keep))
    held[0].state["stood"] = torch.stack([torch.arange(40), torch.arange(40) + 100])[None]
    kept = kept_of(method, held)
    wanted = [*range(keep - keep // 2), *range(40 - keep // 2, 40)]
    assert kept == [wanted] * 2
    assert held[0].state["stood"].tolist() == [[wanted, [place + 100 for place in wanted]]]


def test_a_text_within_the_budget_is_left_alone() -> None:
    for keep in (50, 1024, 1.0, "1MB"):
        held = slabs_of(torch.randn(1, 2, 50), method := ByKey(keep=keep))
        assert method.compact_together(held, event="read") == [None]


@pytest.mark.parametrize("when", ["read", "chunk", "always"])
def test_when_says_at_which_events_tokens_go(when: Any) -> None:
    queries, keys = random_text(200)
    method = ByKey(keep=20, when=when)
    lengths = [
        len(held_after(method, queries[:, :, :n], keys[:, :, :n], chunk=60)[0][0]) for n in (60, 120, 180)
    ]
    assert lengths == [20, 20, 20]
    lengths = [
        len(held_after(method, queries[:, :, : 100 + n], keys[:, :, : 100 + n], chunk=60, answer=n)[0][0])
        for n in (1, SLACK_TOKENS, SLACK_TOKENS + 1, SLACK_TOKENS + 2)
    ]
    top = 20 + SLACK_TOKENS
    assert lengths == ([21, top, 20, 21] if when == "always" else [21, top, top + 1, top + 2])


def sizes_while_reading(spec: Any, num_tokens: int, chunk_tokens: int) -> tuple[list[int], Run]:
    """Tokens of the longest slab after each chunk, and the run at the end."""
    model = load(random_model(), spec, tokenizer=word_tokenizer())
    reader = model.reader(chunk_tokens=chunk_tokens)
    run, sizes = reader.new_run(), []
    reader.on_progress = lambda _: sizes.append(
        max(slab.num_tokens for layer in run.layers for slab in layer.slabs)
    )
    reader.prefill(run, [random_ids(num_tokens)])
    return sizes, run


@pytest.mark.parametrize("spread", ["uniform", "heads"])
def test_chunk_holds_the_budget_after_every_chunk_however_long_the_text(spread: Any) -> None:
    method = ByKey(keep=40, when="chunk", spread=spread)
    shorter, run = sizes_while_reading(method, 256, 64)
    longer, longer_run = sizes_while_reading(method, 960, 64)
    assert max(shorter + longer) <= (40 if spread == "uniform" else 2 * 40)
    assert all(layer.kept_tokens == 40 for layer in longer_run.layers)
    held = 2 * 2 * (2 * HEAD_DIM * 4 + 8)
    assert longer_run.peak_bytes <= held * (2 * 40 + 64 + 256)
    assert longer_run.peak_bytes <= 1.1 * run.peak_bytes
    once, once_run = sizes_while_reading(ByKey(keep=40, spread=spread), 960, 64)
    assert max(once) == 960 and once_run.peak_bytes > 2 * longer_run.peak_bytes


def test_chunk_holds_a_share_of_what_has_been_read() -> None:
    sizes, _ = sizes_while_reading(ByKey(keep=0.25, when="chunk"), 320, 64)
    assert sizes == [16, 32, 48, 64, 80]


@pytest.mark.parametrize("spread", ["uniform", "heads", "all"])
def test_always_holds_the_budget_while_generating(spread: Any) -> None:
    _, run = generated(ByKey(keep=30, when="always", spread=spread), [random_ids(120)], 140)
    _, once = generated(ByKey(keep=30, spread=spread), [random_ids(120)], 140)
    targets = [state["target"] for state in run.states.values()]
    slabs = [slab for layer in run.layers for slab in layer.slabs]
    assert sum(t * len(s.heads) for t, s in zip(targets, slabs, strict=True)) == 4 * 30
    for target, slab in zip(targets, slabs, strict=True):
        assert target <= slab.num_tokens <= target + SLACK_TOKENS
    assert once.kept_tokens == 30 + 139
    assert run.kv_bytes < once.kv_bytes


@pytest.mark.parametrize("when", ["read", "chunk", "always"])
def test_a_text_that_ends_with_a_chunk_keeps_its_share_though_its_last_tokens_go(when: Any) -> None:
    queries, keys = random_text(128)
    keys[:, :, 100:, 0] -= 100.0
    held = held_after(ByKey(keep=0.25, when=when), queries, keys, chunk=64)[0]
    assert [len(head) for head in held] == [32, 32] and max(map(max, held)) < 100


def test_asking_leaves_a_context_of_a_standing_budget_as_it_is() -> None:
    context = read_words(ByKey(keep=30, when="always"), 120)
    before = positions_of(context.run)
    context.ask("w10 w11 w12", max_new_tokens=100, sources=False)
    assert positions_of(context.run) == before and context.kept_tokens == 30


@pytest.mark.parametrize("spread", ["uniform", "heads", "all"])
@pytest.mark.parametrize("kilobytes", [20, 47])
def test_a_budget_in_bytes_is_what_is_held(kilobytes: int, spread: Any) -> None:
    context = read_words(ByKey(keep=f"{kilobytes}KB", spread=spread))
    per_token = 2 * HEAD_DIM * 4 + 8
    tokens = sum(slab.num_tokens * len(slab.heads) for x in context.run.layers for slab in x.slabs)
    assert tokens * per_token <= kilobytes * 1000 < (tokens + 4) * per_token
    assert context.kv_bytes == bytes_of_slabs(context.run)


@pytest.mark.parametrize(
    "spec", ["adakv(keep=0.25, window_tokens=16)", ByKey(keep=60, spread="all", floor=0.1)]
)
def test_heads_that_keep_different_numbers_free_what_they_drop(spec: Any) -> None:
    context = read_words(spec)
    lengths = {slab.num_tokens for layer in context.run.layers for slab in layer.slabs}
    assert len(lengths) > 1
    assert context.kv_bytes == bytes_of_slabs(context.run)
    assert context.kept_tokens == (75 if isinstance(spec, str) else 60)
    assert context.kv_bytes < read_words(None).kv_bytes / 2


@pytest.mark.parametrize("spread", ["uniform", "heads"])
@pytest.mark.parametrize("keep", [20, 0.4])
def test_padded_rows_keep_what_they_keep_alone(keep: float, spread: Any) -> None:
    method = ByKey(keep=keep, spread=spread, latest=3)
    texts = [random_text(length, seed=length) for length in (90, 55, 30)]
    _, keys, positions = padded(texts)

    def kept(keys: Tensor, positions: Tensor) -> list[list[list[int]]]:
        layer = layer_of(2, 2)
        held = [
            Held(layer, Store(keys[:, list(heads)], keys[:, list(heads)], positions[:, None], heads), {})
            for heads in method.split(layer)
        ]
        found: list[list[list[int]]] = [[] for _ in keys]
        for h, places in zip(held, method.compact_together(held, event="read"), strict=True):
            every = torch.arange(h.store.num_tokens).expand(len(keys), len(h.store.heads), -1)
            for row, heads in enumerate((every if places is None else places).tolist()):
                at = [[int(positions[row, p]) for p in head if p >= 0] for head in heads]
                found[row] += [[p for p in head if p >= 0] for head in at]
        return found

    together = kept(keys, positions)
    for row, (_, k) in enumerate(texts):
        assert together[row] == kept(k, torch.arange(k.shape[2])[None])[0]


@pytest.mark.parametrize(
    "spec", ["h2o(keep=0.3)", "tova(keep=40)", "adakv(keep=0.4, window_tokens=8, when=always)"]
)
def test_padded_rows_generate_under_a_standing_budget_what_they_generate_alone(spec: str) -> None:
    rows = [random_ids(150, seed=3), random_ids(97, seed=4)]
    together, _ = generated(spec, rows, 80)
    for number, row in enumerate(rows):
        alone, _ = generated(spec, [row], 80)
        assert torch.equal(together[number], alone[0])


@pytest.mark.parametrize("spread", ["uniform", "heads", "all"])
def test_a_context_that_is_read_on_keeps_its_share_of_all_tokens(spread: Any) -> None:
    context = read_words(ByKey(keep=0.25, spread=spread), 200)
    longer = context.read(words(random_ids(120, seed=8)))
    assert (context.kept_tokens, longer.kept_tokens, longer.num_tokens) == (50, 80, 320)
    latest = max(place for layer in positions_of(longer.run) for head in layer for place in head)
    assert 200 <= latest < 320
    again = longer.read(words(random_ids(80, seed=9)))
    assert again.kept_tokens == 100


@pytest.mark.parametrize(
    "spec", ["adakv(keep=0.25, window_tokens=16)", "snapkv(keep=0.25, spread=all)", "h2o(spread=heads)"]
)
def test_slabs_of_different_lengths_are_saved_and_opened(spec: str, tmp_path: Path) -> None:
    context = read_words(spec)
    lengths = [[slab.num_tokens for slab in layer.slabs] for layer in context.run.layers]
    assert len({length for layer in lengths for length in layer}) > 1
    context.save(tmp_path / "book.span")
    back = open_context(tmp_path / "book.span", context.model)
    assert [[slab.num_tokens for slab in layer.slabs] for layer in back.run.layers] == lengths
    assert positions_of(back.run) == positions_of(context.run)
    assert back.kv_bytes == context.kv_bytes == bytes_of_slabs(context.run)
    more = words(random_ids(60, seed=8))
    assert positions_of(back.read(more).run) == positions_of(context.read(more).run)


def test_a_random_choice_would_be_seen() -> None:
    scores = torch.zeros(1, 2, 200)
    scores[0, 0, 20:30], scores[0, 1, 150:160] = 1.0, 1.0
    kept = kept_of(method := ByKey(keep=10), slabs_of(scores, method))
    assert kept == [list(range(20, 30)), list(range(150, 160))]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"keep": 0}, "got keep=0; allowed is a fraction above 0"),
        ({"keep": 1.5}, "whole number of tokens"),
        ({"keep": True}, "got keep=True; give a fraction"),
        ({"keep": "64"}, "or bytes of the whole cache such as keep=64MB"),
        ({"keep": "0MB"}, "allowed is more than 0 bytes"),
        ({"spread": "rows"}, "got spread='rows'; allowed are uniform, heads, all"),
        ({"when": "never"}, "got when='never'; allowed are read, chunk, always"),
        ({"floor": 1.2}, "got floor=1.2; allowed is 0 to 1"),
        ({"when": "chunk", "spread": "all"}, "got when=chunk with spread=all, which decides over all layers"),
        ({"when": "chunk", "keep": "1MB"}, "got when=chunk with keep=1MB"),
        ({"keep": 5, "first": 3, "latest": 4}, "got keep=5, less than the 7 tokens at both ends"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        ByKey(**settings)
    assert "\n" not in str(caught.value) and not str(caught.value).endswith(".")


def test_a_budget_that_differs_between_layers_cannot_hold_by_chunks() -> None:
    with pytest.raises(ValueError, match="got when=chunk with a budget that differs from layer to layer"):
        Falling(when="chunk")


def test_a_budget_too_small_for_what_always_stays_is_refused_once_the_text_is_known() -> None:
    with pytest.raises(ValueError, match=r"keep=0.1 of 50 tokens is 5, less than the 9 tokens at both ends"):
        kept_of(method := ByKey(keep=0.1, first=4, latest=5), slabs_of(torch.randn(1, 2, 50), method))
    with pytest.raises(
        ValueError, match=r"got keep=1KB, which is 3 tokens a kv head; .* need 0.00245MB or more"
    ):
        kept_of(method := ByKey(keep="1KB", first=4, latest=5), slabs_of(torch.randn(1, 2, 50), method))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"window_tokens": 0}, "got window_tokens=0; allowed is 1 or more"),
        ({"pool_tokens": 2}, "got pool_tokens=2; allowed is an odd number"),
        ({"pooling": "sum"}, "got pooling='sum'; allowed are 'max' and 'mean'"),
        ({"keep": 20}, "got keep=20, less than the 32 tokens of the window"),
    ],
)
def test_wrong_settings_of_a_window_that_votes_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        WindowVotes(**settings)


def test_a_spec_names_what_is_wrong() -> None:
    with pytest.raises(SpecError, match="spread takes uniform or heads or all, got rows"):
        resolve("adakv(spread=rows)")


@pytest.mark.parametrize("name", ["adakv", "h2o", "keydiff", "knorm", "pyramidkv", "streaming", "tova"])
def test_cards_say_what_is_shared_and_where_defaults_come_from(name: str) -> None:
    card = all_cards()[name]
    assert (card.roles, card.frees, card.training) == (("Storage",), "frees", "none")
    assert {"keep", "spread", "when", "floor"} <= {parameter.name for parameter in card.parameters}
    assert all(parameter.comment for parameter in card.parameters)
    assert ("chunked_reading" in card.tolerances) == (card.phase == "both")
