"""TokenSelect: the chosen places and a whole model against loops, the selection cache, padding, and wrong settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from longspan.card import read_card
from longspan.engine.api import applied, load
from longspan.engine.scored import ScoredSlab
from longspan.engine.store import Slab
from longspan.errors import SpecError
from longspan.methods.attention import tokenselect as module
from longspan.methods.attention.tokenselect import TokenSelect
from longspan.ops.attend import Problem, Rotary, attend, naive_attend
from longspan.ops.rotary_attention import naive as naive_module
from longspan.roles import LayerInfo, Rope, Step
from longspan.spec import resolve
from longspan.visit import Dense, Gather
from tests.methods.attention.stored import Store

HEAD_DIM = 16
FREQUENCIES = 10_000.0 ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
SMALL: dict[str, Any] = {"top_tokens": 11, "sink_tokens": 3, "window_tokens": 7, "vote_queries": 4}


@dataclass
class ToldStore(Store):
    """Stored keys that are told whether they hold padding, and do not look."""

    told: bool

    @property
    def filled(self) -> bool:
        return self.told


def told(step: Step, filled: bool) -> Step:
    return replace(step, store=ToldStore(step.store.keys, step.store.positions, filled))


def step_of(
    queries: Tensor,
    keys: Tensor,
    *,
    positions: Tensor | None = None,
    state: dict[str, Any] | None = None,
    phase: Any = "decode",
) -> Step:
    """The last T tokens of a text: queries `[B, H, T, D]`, keys `[B, K, S, D]`, positions `[B, S]`."""
    num_tokens, new = keys.shape[2], queries.shape[2]
    positions = torch.arange(num_tokens).expand(len(keys), -1) if positions is None else positions

    def logits(wanted: Tensor, at: Tensor, start: int, stop: int) -> Tensor:
        repeated = keys.repeat_interleave(wanted.shape[1] // keys.shape[1], 1)[:, :, start:stop]
        return wanted @ repeated.transpose(-1, -2) * HEAD_DIM**-0.5

    rope = Rope(
        inv_freq=FREQUENCIES.float().to(keys.device),
        scaling=1.0,
        theta=10_000.0,
        window_tokens=256,
        rotary_dims=HEAD_DIM,
    )
    layer = LayerInfo(
        index=0,
        num_heads=queries.shape[1],
        num_kv_heads=keys.shape[1],
        head_dim=HEAD_DIM,
        scale=HEAD_DIM**-0.5,
        rope=rope,
        sliding_window_tokens=None,
    )
    return Step(
        layer=layer,
        phase=phase,
        queries=queries,
        query_positions=positions[:, num_tokens - new :],
        store=Store(keys, positions[:, None] if positions.dim() == 2 else positions),
        num_new=new,
        state={} if state is None else state,
        logits=logits,
    )


def chosen_places(method: TokenSelect, step: Step) -> list[list[list[int]]]:
    """Used places of the visit, per row and head."""
    visit = method.visit(step)
    assert isinstance(visit, Gather) and visit.compact == (method.positions == "compact")
    assert visit.index.shape[2] == 1
    assert torch.equal(visit.index, visit.index.sort(-1).values)
    return [[[p for p in head[0] if p >= 0] for head in row] for row in visit.index.tolist()]


def turned(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding as a product of complex numbers; x `[..., T, D]`."""
    half = HEAD_DIM // 2
    angle = positions.double()[..., None] * FREQUENCIES
    z = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.cat((z.real, z.imag), -1)


def voted_places(queries: Tensor, keys: Tensor, method: TokenSelect) -> list[int]:
    """Places that T queries `[H, T, D]` choose among past keys `[K, P, D]`, vote by vote; keys as they are stored."""
    num_past, groups = keys.shape[1], len(queries) // len(keys)
    sink, window = method.sink_tokens, method.window_tokens
    if method.positions == "compact":
        queries = turned(queries, window + torch.arange(queries.shape[1]))
    if queries.shape[1] > method.vote_queries:
        queries = queries.mean(1, keepdim=True)
    far = list(range(sink, num_past - window))
    votes = dict.fromkeys(far, 0.0)
    for head in range(len(queries)):
        for query in queries[head].double():
            weights = (keys[head // groups, far].double() @ query * HEAD_DIM**-0.5).softmax(0)
            for place, weight in zip(far, weights.tolist(), strict=True):
                votes[place] += weight
    best = sorted(far, key=lambda place: -votes[place])[: method.top_tokens]
    return [*range(sink), *sorted(best), *range(num_past - window, num_past)]


def random_text(
    num_tokens: int, *, heads: int = 4, kv_heads: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(seed)
    queries = torch.randn(1, heads, num_tokens, HEAD_DIM, generator=make) * 2
    return queries, torch.randn(1, kv_heads, num_tokens, HEAD_DIM, generator=make) * 2


@pytest.mark.parametrize("positions", ["compact", "stored"])
@pytest.mark.parametrize("new", [1, 4, 5, 33])
@pytest.mark.parametrize(("num_tokens", "heads", "kv_heads"), [(63, 4, 2), (129, 6, 1), (100, 3, 3)])
def test_chooses_what_a_loop_over_votes_chooses(
    positions: Any, new: int, num_tokens: int, heads: int, kv_heads: int
) -> None:
    queries, keys = random_text(num_tokens, heads=heads, kv_heads=kv_heads)
    method = TokenSelect(**SMALL, positions=positions)
    queries = queries[:, :, -new:]
    wanted = voted_places(queries[0], keys[0, :, : num_tokens - new], method)
    assert len(wanted) == method.budget_tokens == 21
    assert chosen_places(method, step_of(queries, keys)) == [[wanted]]


def test_votes_in_slices_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = random_text(90)
    method = TokenSelect(**SMALL)
    whole = chosen_places(method, step_of(queries[:, :, -4:], keys))
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 4 * 86)
    assert chosen_places(method, step_of(queries[:, :, -4:], keys)) == whole


@pytest.mark.parametrize("num_tokens", [2, 20, 22])
def test_a_past_within_the_budget_is_visited_whole(num_tokens: int) -> None:
    queries, keys = random_text(num_tokens)
    assert TokenSelect(**SMALL).visit(step_of(queries[:, :, -1:], keys)) == Dense()


def test_without_a_sink_there_is_none() -> None:
    queries, keys = random_text(60)
    method = TokenSelect(top_tokens=11, sink_tokens=0, window_tokens=7)
    wanted = voted_places(queries[0, :, -1:], keys[0, :, :59], method)
    assert chosen_places(method, step_of(queries[:, :, -1:], keys)) == [[wanted]]


def test_a_loud_head_does_not_outvote_a_sure_one() -> None:
    """Summed logits would take only head 0's keys; a softmax per head gives head 1's needle a full vote."""
    queries = torch.zeros(1, 2, 1, HEAD_DIM)
    queries[..., 0] = 4.0
    keys = torch.zeros(1, 2, 80, HEAD_DIM)
    keys[0, 0, 20:60, 0] = 100.0
    keys[0, 1, 9, 0] = 12.0
    method = TokenSelect(**SMALL, positions="stored")
    assert 9 in chosen_places(method, step_of(queries, keys))[0][0]


@pytest.mark.parametrize("positions", ["compact", "stored"])
@pytest.mark.parametrize("new", [1, 3])
def test_rows_with_left_padding_choose_what_they_choose_alone(positions: Any, new: int) -> None:
    method = TokenSelect(**SMALL, positions=positions)
    texts = [random_text(length, seed=length) for length in (90, 55, 24, 15)]
    queries, keys = torch.randn(4, 4, new, HEAD_DIM), torch.randn(4, 2, 90, HEAD_DIM) * 9
    places = torch.full((4, 90), -1)
    for row, (q, k) in enumerate(texts):
        length = k.shape[2]
        queries[row], keys[row, :, 90 - length :] = q[0, :, -new:], k[0]
        places[row, 90 - length :] = torch.arange(length)
    together = chosen_places(method, step_of(queries, keys, positions=places))
    for row, (q, k) in enumerate(texts):
        past = k.shape[2] - new
        alone = (
            voted_places(q[0, :, -new:], k[0, :, :past], method)
            if past > method.budget_tokens
            else list(range(past))
        )
        assert [place - 90 + k.shape[2] for place in together[row][0]] == alone


def test_heads_that_store_different_tokens_vote_for_themselves() -> None:
    queries, keys = random_text(80)
    positions = torch.stack((torch.arange(80), torch.arange(80) + 5))[None]
    method = TokenSelect(**SMALL, positions="stored")
    step = step_of(queries[:, :, -1:], keys)
    step = Step(**{**vars(step), "store": Store(keys, positions)})
    got = chosen_places(method, step)[0]
    assert got == [
        voted_places(queries[0, 2 * k : 2 * k + 2, -1:], keys[0, k : k + 1, :79], method) for k in (0, 1)
    ]
    with pytest.raises(ValueError, match="needs the same stored tokens for every head.*set positions=stored"):
        TokenSelect(**SMALL).visit(step)


def two_texts(num_tokens: int, heads: int = 6) -> tuple[Tensor, Tensor]:
    texts = [random_text(num_tokens, heads=heads, seed=seed) for seed in (0, 1)]
    queries, keys = (torch.cat(x) for x in zip(*texts, strict=True))
    return queries, keys


@pytest.mark.parametrize(("positions", "apart"), [("compact", False), ("stored", False), ("stored", True)])
@pytest.mark.parametrize("new", [1, 3, 4, 5, 33])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("sink", [0, 3])
def test_a_store_without_padding_chooses_as_if_it_might_have_some(
    positions: Any, apart: bool, new: int, phase: str, sink: int
) -> None:
    queries, keys = two_texts(140)
    method = TokenSelect(**SMALL | {"sink_tokens": sink}, positions=positions)
    step = step_of(queries[:, :, -new:], keys, phase=phase)
    if apart:  # evicted per head, so that the kv heads hold different tokens
        at = torch.stack((torch.arange(140), torch.arange(140) + 5)).expand(2, -1, -1)
        step = replace(step, store=Store(keys, at))
    fast, general = (method.visit(told(replace(step, state={}), filled)) for filled in (True, False))
    assert isinstance(fast, Gather) and isinstance(general, Gather)
    assert torch.equal(fast.index, general.index) and fast.compact == general.compact
    assert fast.index.shape == (2, 2 if apart else 1, 1, method.budget_tokens)


def mixed_queries(num_tokens: int) -> Tensor:
    """Queries of two texts by turns like and unlike the one before, not in both at once."""
    queries, _ = two_texts(num_tokens)
    for i in range(1, num_tokens):
        for row in range(2):
            if (i + row) % 3:
                queries[row, :, i] = queries[row, :, i - 1] + 0.2 * queries[row, :, i]
    return queries


@pytest.mark.parametrize("positions", ["compact", "stored"])
def test_decoding_chooses_alike_with_and_without_padding_in_mind_and_as_on_a_gpu(
    positions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four runs: two ways to find places, and voting only where needed or always."""
    method, keys, queries = TokenSelect(**SMALL, positions=positions), two_texts(100)[1], mixed_queries(100)
    runs: list[list[Tensor]] = []
    for filled in (True, False):
        for gpu in (False, True):
            monkeypatch.setattr(module, "_waits", lambda x, gpu=gpu: gpu)
            state: dict[str, Any] = {}
            seen = []
            for i in range(70, 100):
                step = step_of(queries[:, :, i : i + 1], keys[:, :, : i + 1], state=state)
                visit = method.visit(told(step, filled))
                assert isinstance(visit, Gather)
                seen += [visit.index, state["chosen"], state["chosen_positions"], state["query"]]
            runs.append(seen)
    for other in runs[1:]:
        for got, wanted in zip(other, runs[0], strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
    kept = [torch.equal(a, b) for a, b in zip(runs[0][1::4], runs[0][5::4], strict=False)]
    assert True in kept and False in kept


class NoQuestions(TorchDispatchMode):
    """Refuses what would wait for a GPU: the value of a tensor, or a shape that depends on one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")
        assert not any(str(func).startswith(f"aten.{name}.") for name in waits), f"{func} waits"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("positions", ["compact", "stored"])
@pytest.mark.parametrize("filled", [True, False])
def test_a_gpu_is_asked_for_no_value(positions: Any, filled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    method, (queries, keys) = TokenSelect(**SMALL, positions=positions), random_text(90)
    state: dict[str, Any] = {}

    def decode() -> None:
        for new in (33, 4, 1, 1, 1):
            step = step_of(queries[:, :, -new:], keys, state=state)
            method.visit(told(step, filled))

    with pytest.raises(AssertionError, match="_local_scalar_dense.* waits"), NoQuestions():
        decode()  # the CPU asks whether it must vote
    state.clear()
    monkeypatch.setattr(module, "_waits", lambda x: True)
    with NoQuestions():
        decode()


def slab_step(queries: Tensor, keys: Tensor) -> Step:
    """A step over a slab of the engine with spare room, keys stored as they come."""
    num_tokens = keys.shape[2]
    at = torch.arange(num_tokens, device=keys.device)[None]
    slab = Slab(tuple(range(keys.shape[1])))
    slab.append(keys, keys, at, first=0, reserve_tokens=num_tokens + 50)
    step = replace(step_of(queries, keys, positions=at), store=slab)
    return replace(step, logits=ScoredSlab(slab, None, HEAD_DIM**-0.5).logits)


@pytest.mark.parametrize("positions", ["compact", "stored"])
@pytest.mark.parametrize("new", [1, 4, 33])
def test_on_cuda_keys_of_half_precision_are_multiplied_where_they_are(
    positions: Any, new: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA does it, with its product that comes out in float32 stood in for."""
    queries, keys = (x.bfloat16() for x in random_text(90))
    method, step = TokenSelect(**SMALL, positions=positions), slab_step(queries[:, :, -new:], keys)
    wanted = method.visit(step)
    operands = []

    def bmm(a: Tensor, b: Tensor, *, out_dtype: torch.dtype) -> Tensor:
        operands.append(b)
        assert a.dtype == b.dtype == torch.bfloat16
        return a.to(out_dtype) @ b.to(out_dtype)

    monkeypatch.setattr(naive_module, "_multiplies_as_is", lambda q, k: True)
    monkeypatch.setattr(torch, "bmm", bmm)
    got = method.visit(replace(step, state={}))
    assert isinstance(got, Gather) and isinstance(wanted, Gather) and torch.equal(got.index, wanted.index)
    far = step.store.keys[:, :, 3 : step.num_past - 7]
    assert [(b.data_ptr(), b.shape) for b in operands] == [(far.data_ptr(), far[0].mT.shape)]


@pytest.mark.gpu
@pytest.mark.parametrize("positions", ["compact", "stored"])
@torch.no_grad()
def test_a_gpu_neither_copies_the_keys_nor_waits(positions: Any) -> None:
    method = TokenSelect(**SMALL, positions=positions)
    queries, keys = (x.bfloat16().cuda() for x in random_text(2**17))
    for new in (32, 1):  # a mean of 32 is exact either way
        step, state = slab_step(queries[:, :, -new:], keys), {}
        method.visit(replace(step, state=state))  # compiles
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_sync_debug_mode("error")
        try:
            visit = method.visit(replace(step, state=state))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        logits = 4 * 4 * 2**17  # bytes of one voter's; a few tensors of that size, but no keys in float32
        assert torch.cuda.max_memory_allocated() - before < 4 * logits + 2**20 < 2 * keys.nbytes
        other = method.visit(told(step, False))
        assert isinstance(visit, Gather) and isinstance(other, Gather)
        assert torch.equal(visit.index, other.index)


class TestSelectionCache:
    """A selection serves again while the query is alike."""

    method = TokenSelect(**SMALL, positions="stored", reuse_similarity=0.9)

    def setup_method(self) -> None:
        self.queries, self.keys = random_text(90)
        self.state: dict[str, Any] = {}
        self.first = chosen_places(
            self.method, step_of(self.queries[:, :, 70:71], self.keys[:, :, :71], state=self.state)
        )

    def far_of(self, places: list[list[list[int]]], num_past: int) -> list[int]:
        return [p for p in places[0][0] if 3 <= p < num_past - 7]

    def next_places(self, query: Tensor, stop: int = 72) -> list[list[list[int]]]:
        return chosen_places(self.method, step_of(query, self.keys[:, :, :stop], state=self.state))

    def test_a_like_query_takes_the_cached_tokens_and_a_moved_window(self) -> None:
        like = self.queries[:, :, 70:71] + 0.2 * self.queries[:, :, 71:72]
        places = self.next_places(like)
        assert places != [[voted_places(like[0], self.keys[0, :, :71], self.method)]]
        assert self.far_of(places, 71) == self.far_of(self.first, 70)
        assert places[0][0][-7:] == list(range(64, 71))

    def test_an_unlike_query_chooses_anew(self) -> None:
        places = self.next_places(self.queries[:, :, 71:72])
        assert places == [[voted_places(self.queries[0, :, 71:72], self.keys[0, :, :71], self.method)]]
        assert self.far_of(places, 71) != self.far_of(self.first, 70)

    def test_the_threshold_decides(self) -> None:
        like = self.queries[:, :, 70:71] + 0.2 * self.queries[:, :, 71:72]
        strict = TokenSelect(**SMALL, positions="stored", reuse_similarity=0.999)
        anew = chosen_places(strict, step_of(like, self.keys[:, :, :72], state=self.state))
        assert anew == [[voted_places(like[0], self.keys[0, :, :71], self.method)]]

    def test_one_means_never(self) -> None:
        self.state["chosen"] = self.state["chosen"] * 0 + torch.arange(20, 31)
        self.state["chosen_positions"] = self.state["chosen"]
        again = self.queries[:, :, 70:71]
        never = TokenSelect(**SMALL, positions="stored", reuse_similarity=1.0)
        anew = chosen_places(never, step_of(again, self.keys[:, :, :72], state=self.state))
        assert anew == [[voted_places(again[0], self.keys[0, :, :71], self.method)]]

    def test_another_store_is_noticed(self) -> None:
        again, positions = self.queries[:, :, 70:71], torch.arange(72)[None] + 1
        moved = chosen_places(
            self.method, step_of(again, self.keys[:, :, 1:73], positions=positions, state=dict(self.state))
        )
        assert moved == [[voted_places(again[0], self.keys[0, :, 1:72], self.method)]]
        short = chosen_places(self.method, step_of(again, self.keys[:, :, :40], state=dict(self.state)))
        assert short == [[voted_places(again[0], self.keys[0, :, :39], self.method)]]

    def test_tokens_taken_back_are_not_visited_twice(self) -> None:
        """The window then reaches what was chosen before it."""
        again, stop = self.queries[:, :, 70:71], max(self.far_of(self.first, 70)) + 2
        places = self.next_places(again, stop=stop)
        assert places == [[voted_places(again[0], self.keys[0, :, : stop - 1], self.method)]]
        assert len(set(places[0][0])) == len(places[0][0])

    def test_each_row_of_a_batch_decides_for_itself(self) -> None:
        like, unlike = self.queries[:, :, 70:71] + 0.2 * self.queries[:, :, 71:72], self.queries[:, :, 71:72]
        alone = [self.next_places(like)[0], self.next_places(unlike)[0]]
        self.setup_method()
        for name, value in self.state.items():
            self.state[name] = value.repeat_interleave(2, 0)
        before = {name: value.clone() for name, value in self.state.items()}
        held = dict(self.state)
        both = step_of(
            torch.cat((like, unlike)), self.keys[:, :, :72].expand(2, -1, -1, -1), state=self.state
        )
        assert chosen_places(self.method, both) == alone
        assert torch.equal(self.state["query"][0], before["query"][0])
        assert not torch.equal(self.state["query"][1], before["query"][1])
        assert all(torch.equal(held[name], before[name]) for name in before)  # replaced, not written in place

    def test_reading_and_steps_of_many_tokens_do_not_use_it(self) -> None:
        text = step_of(self.queries[:, :, 70:71], self.keys[:, :, :71], phase="prefill")
        assert chosen_places(self.method, text) == self.first and text.state == {}
        pair = self.queries[:, :, 70:71].expand(-1, -1, 2, -1)
        places = self.next_places(pair, stop=80)
        assert places == [[voted_places(pair[0], self.keys[0, :, :78], self.method)]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("top_tokens=0", "got top_tokens=0; allowed is 1 or more"),
        ("sink_tokens=-1", "got sink_tokens=-1; allowed is 0 or more"),
        ("window_tokens=0", "got window_tokens=0; allowed is 1 or more"),
        ("block_tokens=0", "got block_tokens=0; allowed is 1 or more"),
        ("vote_queries=0", "got vote_queries=0; allowed is 1 or more"),
        ("reuse_similarity=2", "got reuse_similarity=2; allowed is a cosine from -1 to 1"),
        ("positions=dense", "positions takes compact or stored"),
    ],
)
def test_wrong_settings_are_refused(settings: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        resolve(f"tokenselect({settings})")


def test_padding_within_a_step_is_not_visited_under_compact_positions() -> None:
    make = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 4, 8, HEAD_DIM, generator=make)
    keys = torch.randn(2, 2, 48, HEAD_DIM, generator=make)
    positions = torch.arange(48).repeat(2, 1)
    positions[1] = (positions[1] - 43).clamp(min=-1)  # the second row's text begins within the step
    index = torch.tensor([[1, 4, 9, 30], [-1, -1, -1, -1]])[:, None, None]
    problem = Problem(
        queries=queries,
        keys=keys,
        values=keys,
        query_positions=positions[:, 40:],
        key_positions=positions[:, None],
        num_new=8,
        scale=0.25,
        visit=Gather(index=index, compact=True),
        rotary=Rotary(inv_freq=FREQUENCIES.float(), scaling=1.0),
    )
    got = attend(problem)
    torch.testing.assert_close(got, naive_attend(problem), atol=1e-5, rtol=1e-5)
    noise = torch.cat((keys[1:, :, :43] * 9, keys[1:, :, 43:]), 2)
    other = replace(problem, keys=torch.cat((keys[:1], noise)), values=torch.cat((keys[:1], noise)))
    torch.testing.assert_close(attend(other), got)


# a whole model


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        intermediate_size=96,
        vocab_size=500,
        max_position_embeddings=256,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            parameter.data *= 8
    return model


def some_ids(num_tokens: int, seed: int = 1) -> Tensor:
    """All different: in the first layer equal tokens have equal keys, and which of them is chosen is open."""
    return torch.randperm(499, generator=torch.Generator().manual_seed(seed))[:num_tokens] + 1


def steps_of(num_read: int, block: int, num_tokens: int) -> Iterator[slice]:
    """A text read in blocks, then single tokens."""
    for start in range(0, num_read, block):
        yield slice(start, min(start + block, num_read))
    for start in range(num_read, num_tokens):
        yield slice(start, start + 1)


@torch.no_grad()
def reference_logits(model: LlamaForCausalLM, ids: Tensor, method: TokenSelect, num_read: int) -> Tensor:
    """Logits `[S, V]` under TokenSelect, layer by layer and step by step in float64."""
    num_tokens, hidden = len(ids), model.model.embed_tokens(ids)
    at = torch.arange(num_tokens)
    for layer in model.model.layers:
        normed, attention = layer.input_layernorm(hidden), layer.self_attn
        q, k, v = (
            project(normed).view(num_tokens, -1, HEAD_DIM).transpose(0, 1).double()
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        outs = []
        for step in steps_of(num_read, method.block_tokens, num_tokens):
            past, new = step.start, step.stop - step.start
            places = list(range(past))
            stored = method.positions == "stored"
            if past > method.budget_tokens:
                scored = (turned(q, at), turned(k, at)) if stored else (q, k)
                places = voted_places(scored[0][:, step], scored[1][:, :past], method)
            near = torch.cat((torch.tensor(places, dtype=torch.long), at[step]))
            stand = near if stored else torch.arange(len(near))
            queries, keys = turned(q[:, step], stand[-new:]), turned(k[:, near], stand)
            logits = queries @ keys.repeat_interleave(2, 0).transpose(-1, -2) * HEAD_DIM**-0.5
            hide = near[None, :] > at[step][:, None]
            weights = logits.masked_fill(hide, -torch.inf).softmax(-1)
            outs.append(weights @ v[:, near].repeat_interleave(2, 0))
        mixed = torch.cat(outs, 1).transpose(0, 1).reshape(num_tokens, -1).float()
        hidden = hidden + attention.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden))


@pytest.mark.parametrize("positions", ["compact", "stored"])
@pytest.mark.parametrize(("block", "chunk_tokens"), [(16, 96), (37, 37), (50, 400)])
@torch.no_grad()
def test_a_model_equals_the_reference_far_beyond_its_window(
    positions: str, block: int, chunk_tokens: int
) -> None:
    model, ids, num_read = small_llama(), some_ids(420), 400
    spec = (
        f"tokenselect(top_tokens=30, sink_tokens=4, window_tokens=20, positions={positions}, "
        f"block_tokens={block}, vote_queries=20, reuse_similarity=1.0)"
    )
    span = load(model, spec, chunk_tokens=chunk_tokens)
    method = span.plan.methods[0].method
    assert isinstance(method, TokenSelect)
    wanted = reference_logits(model, ids, method, num_read)
    read = torch.cat([logits for _, logits in span.logits(ids[:num_read])])
    run = span.read(ids[:num_read]).run
    decoded = torch.cat([span.reader().advance(run, ids[i : i + 1]) for i in range(num_read, 420)])
    got = torch.cat((read, decoded))
    assert float((got - wanted).abs().max()) < 2e-4 * float(wanted.abs().max())
    dense = model(ids[None]).logits[0]
    assert float((dense - wanted).abs().max()) > 0.05 * float(wanted.abs().max())


def test_chunks_of_whole_blocks_read_alike() -> None:
    model = small_llama()
    span = load(model, "tokenselect(top_tokens=20, sink_tokens=4, window_tokens=8, block_tokens=32)")
    whole = torch.cat([logits for _, logits in span.logits(some_ids(300), chunk_tokens=512)])
    for chunk_tokens in (32, 64, 160):
        pieces = [logits for _, logits in span.logits(some_ids(300), chunk_tokens=chunk_tokens)]
        torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reuse", [1.0, 0.5])
def test_generate_with_left_padding_equals_single_runs(reuse: float) -> None:
    model = small_llama()
    texts = [some_ids(length, seed=length) for length in (200, 140)]
    ids, mask = torch.zeros(2, 200, dtype=torch.long), torch.zeros(2, 200, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, 200 - len(text) :], mask[row, 200 - len(text) :] = text, 1
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    settings["return_dict_in_generate"] = True
    spec = f"tokenselect(top_tokens=20, sink_tokens=4, window_tokens=8, block_tokens=200, reuse_similarity={reuse})"
    with applied(model, spec):
        together = model.generate(ids, attention_mask=mask, **settings)
        for row, text in enumerate(texts):
            alone = model.generate(text[None], **settings)
            assert torch.equal(together.sequences[row, 200:], alone.sequences[0, len(text) :])
            for both, one in zip(together.logits, alone.logits, strict=True):
                assert torch.allclose(both[row], one[0], atol=1e-4)


def test_a_question_leaves_the_context_as_it_was() -> None:
    span = load(small_llama(), "tokenselect(top_tokens=20, sink_tokens=4, window_tokens=8, block_tokens=32)")
    run, reader = span.read(some_ids(300)).run, span.reader()
    answers = []
    for _ in range(2):
        branch = reader.fork(run)
        rows = [reader.advance(branch, some_ids(50, seed=7))]
        rows += [reader.advance(branch, some_ids(1, seed=i)) for i in range(5)]
        answers.append(torch.cat(rows))
        branch.give_back(run)
    assert torch.equal(answers[0], answers[1])
    assert all("chosen" not in state for state in run.states.values())


def test_it_combines_with_methods_that_leave_tokens_where_they_are() -> None:
    model, ids = small_llama(), some_ids(400)
    small = "top_tokens=20, sink_tokens=4, window_tokens=8, block_tokens=64"
    for spec in (
        f"yarn(factor=4) + tokenselect({small}, positions=stored)",
        f"self_extend(group_size=8, window_tokens=64) + tokenselect({small}, positions=stored)",
        f"tokenselect({small}, positions=stored) + snapkv(keep=0.5)",
    ):
        span = load(model, spec)
        run = span.read(ids).run
        logits = torch.cat([span.reader().advance(run, ids[i : i + 1]) for i in range(5)])
        assert logits.shape == (5, 500) and bool(logits.isfinite().all())
        span.detach()
    with pytest.raises(ValueError, match="both express distance"):
        load(model, f"yarn(factor=4) + tokenselect({small})")


def test_a_budget_beyond_the_window_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match="puts 3200 tokens side by side .* was trained on 256; lower top_tokens, or set positions=stored",
    ):
        load(small_llama(), "tokenselect()")


def test_the_card_reads() -> None:
    card = read_card(module.__file__)
    assert (card.name, card.paper_id, card.roles) == ("tokenselect", 79, ("Selection", "Positions"))
    assert all(parameter.comment for parameter in card.parameters)
