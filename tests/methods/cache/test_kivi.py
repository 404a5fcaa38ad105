"""KIVI: codes against loops over numbers, bytes, chunks, growth, padding, the kernel's path, and wrong settings."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.card import read_card
from longspan.engine.api import applied, load
from longspan.engine.run import Run
from longspan.engine.store import Slab, spare_tokens
from longspan.errors import SpecError
from longspan.methods.cache import kivi as module
from longspan.methods.cache.kivi import Kivi
from longspan.ops import quantised_decode as op
from longspan.ops.attend import Problem, attend, naive_attend, quantised
from longspan.ops.backend import Choice
from longspan.roles import Coded, Held, LayerInfo
from longspan.spec import resolve
from tests.methods.cache import evicting
from tests.models import random_ids, random_model, word_tokenizer, words

LAYERS, KV_HEADS, HEAD_DIM = 2, 2, 16


class Store(evicting.Store):
    """Stored keys without an engine; a codec looks at no logits."""

    def logits(self, queries: Tensor, query_positions: Tensor, start: int, stop: int) -> Tensor:
        raise NotImplementedError


def layer_of(head_dim: int, kv_heads: int) -> LayerInfo:
    return LayerInfo(
        index=0,
        num_heads=kv_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=None,
        sliding_window_tokens=None,
    )


def random_store(num_tokens: int, *, rows: int = 1, kv_heads: int = 2, head_dim: int = 16) -> Store:
    """Normal numbers; one channel of the keys is large and far from 0."""
    draw = torch.Generator().manual_seed(num_tokens)
    keys, values = (torch.randn(rows, kv_heads, num_tokens, head_dim, generator=draw) for _ in range(2))
    keys[..., 1] = keys[..., 1] * 3 + 11
    return Store(keys, values, torch.arange(num_tokens).expand(rows, 1, -1))


def code(method: Kivi, store: Store, event: Any = "read") -> Coded | None:
    kv_heads, head_dim = store.keys.shape[1], store.keys.shape[3]
    return method.code([Held(layer_of(head_dim, kv_heads), store, {})], event=event)[0]


def decode(method: Kivi, coded: Coded, store: Store) -> tuple[Tensor, Tensor]:
    return method.decode(layer_of(store.keys.shape[3], store.keys.shape[1]), coded.tokens, coded.shared)


def grid_of_keys(scale: float, zero: float, bits: int) -> list[float]:
    return [(x + zero) * scale for x in range(2**bits)]


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize(("kv_heads", "head_dim", "group"), [(2, 16, 32), (1, 6, 64), (3, 64, 32)])
def test_every_number_is_the_nearest_that_its_scale_has(
    bits: Any, kv_heads: int, head_dim: int, group: Any
) -> None:
    """Token by token and channel by channel: within half a step wherever the scale's range goes, and nowhere beyond it."""
    method = Kivi(bits=bits, group_tokens=group, residual_tokens=5)
    store = random_store(2 * group + 9, kv_heads=kv_heads, head_dim=head_dim)
    coded = code(method, store)
    assert coded is not None and coded.num_tokens == 2 * group
    keys, values = decode(method, coded, store)
    pairs = coded.tokens["key_scales"].double()
    token_scales = coded.tokens["value_scales"].double()
    middle = {8: 128.0, 4: 8.0, 2: 1.5}[bits]
    clipped = 0
    for h in range(kv_heads):
        for token in range(0, 2 * group, 3):
            g, place = divmod(token, group)
            step = float(token_scales[0, h, g, place % (group // 2), place // (group // 2)])
            for c in range(head_dim):
                scale, zero = pairs[0, h, g, c].tolist()
                for x, made, levels, width in (
                    (store.keys, keys, grid_of_keys(scale, zero, bits), scale),
                    (store.values, values, [(q - middle) * step for q in range(2**bits)], step),
                ):
                    true, got = float(x[0, h, token, c]), float(made[0, h, token, c])
                    nearest = min(levels, key=lambda level: abs(level - true))
                    assert abs(abs(got - true) - abs(nearest - true)) < 1e-5
                    inside = levels[0] - width / 2 <= true <= levels[-1] + width / 2
                    assert not inside or abs(got - true) <= width / 2 + 1e-5
                    clipped += not inside
    assert clipped <= {8: 0.06, 4: 0.12, 2: 0.3}[bits] * 2 * keys[:, :, ::3].numel()


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_keys_lose_no_more_than_by_minimum_and_maximum(bits: Any) -> None:
    """The paper's rounding in plain loops: from the least to the greatest key of a channel in a group of 32 tokens."""
    store = random_store(64)
    coded = code(Kivi(bits=bits, residual_tokens=0), store)
    assert coded is not None
    keys, _ = decode(Kivi(bits=bits), coded, store)
    for h in range(2):
        for c in range(HEAD_DIM):
            for start in (0, 32):
                column = store.keys[0, h, start : start + 32, c].tolist()
                low, high = min(column), max(column)
                step = (high - low) / (2**bits - 1)
                plain = sum((low + round((x - low) / step) * step - x) ** 2 for x in column)
                ours = sum(
                    (x - y) ** 2
                    for x, y in zip(column, keys[0, h, start : start + 32, c].tolist(), strict=True)
                )
                assert ours <= plain * 1.1 + 32 * (abs(low) * 2**-8 + step * 2**-8) ** 2


def test_a_large_channel_costs_the_others_nothing() -> None:
    """By token instead of by channel, as a fake would do it, the channel of 11 would take all levels."""
    store = random_store(64)
    coded = code(Kivi(bits=4, residual_tokens=0), store)
    assert coded is not None
    keys, _ = decode(Kivi(bits=4), coded, store)
    rest = [c for c in range(HEAD_DIM) if c != 1]
    error = (keys - store.keys)[..., rest].square().mean().sqrt()
    by_token = (store.keys.amax(-1) - store.keys.amin(-1)).mean() / 15 / 12**0.5
    assert error < 0.09 < 0.2 < by_token


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize(("bits", "value_bits"), [(8, None), (4, None), (2, None), (4, 2), (2, 8)])
def test_codes_are_packed(bits: Any, value_bits: Any, head_dim: int) -> None:
    store = random_store(200, head_dim=head_dim)
    coded = code(Kivi(bits=bits, value_bits=value_bits, residual_tokens=64), store)
    assert coded is not None and coded.num_tokens == 128 and not coded.shared
    held = {name: x.numel() * x.element_size() for name, x in coded.tokens.items()}
    numbers = 2 * 128 * head_dim
    assert held == {
        "key_codes": numbers * bits // 8,
        "value_codes": numbers * (value_bits or bits) // 8,
        "key_scales": 2 * 4 * head_dim * 4,  # 4 groups, scale and zero point of 2 bytes
        "value_scales": 2 * 128 * 2,
    }


@pytest.mark.parametrize(
    ("num_tokens", "coded"), [(1, 0), (47, 0), (48, 32), (79, 32), (80, 64), (129, 96), (1000, 960)]
)
def test_whole_groups_before_the_latest_tokens_are_coded(num_tokens: int, coded: int) -> None:
    made = code(Kivi(residual_tokens=16), random_store(num_tokens))
    assert (0 if made is None else made.num_tokens) == coded


@pytest.mark.parametrize("pieces", [[7] * 43, [33] * 9 + [4], [256, 45], [1, 300]])
def test_groups_are_cut_alike_however_a_text_comes(pieces: list[int]) -> None:
    store, method = random_store(301), Kivi(bits=4, residual_tokens=20, when="chunk")
    whole = code(method, store)
    assert whole is not None
    slab, start = Slab((0, 1)), 0
    for n in pieces:
        cut = slice(start, start + n)
        slab.append(store.keys[:, :, cut], store.values[:, :, cut], store.positions[:, 0, cut], first=start)
        start += n
        made = code(method, Store(*slab.raw, slab.positions[:, :, slab.coded_tokens :]), "chunk")
        if made is not None:
            slab.code(made)
    assert slab.coded is not None and slab.coded.num_tokens == whole.num_tokens == 256
    for name, x in whole.tokens.items():
        assert torch.equal(slab.coded.tokens[name], x)


def test_padding_widens_no_range() -> None:
    store = random_store(96, rows=2)
    store.positions = store.positions.clone()
    store.positions[1, :, :40] = -1
    plain, method = code(Kivi(bits=2, residual_tokens=0), store), Kivi(bits=2, residual_tokens=0)
    store.keys[1, :, :40] = 1000.0
    coded = code(method, store)
    assert plain is not None and coded is not None
    assert torch.equal(coded.tokens["key_codes"][0], plain.tokens["key_codes"][0])
    keys, values = decode(method, coded, store)
    assert torch.isfinite(keys).all() and torch.isfinite(values).all()
    real = (keys - store.keys)[1, :, 40:]
    assert real.abs().max() < 8 and real[..., 2:].abs().max() < 2


# through a model


def slabs_of(run: Run) -> list[Slab]:
    return [slab for layer in run.layers for slab in layer.slabs]


def held_bytes(num_tokens: int, coded: int, bits: int, *, groups: int = 32, per_head: bool = False) -> int:
    """Bytes of all layers for so many tokens, counted by hand: float32 and int64 beside the codes."""
    room = spare_tokens(num_tokens - coded)
    raw = KV_HEADS * (num_tokens - coded + room) * 2 * HEAD_DIM * 4
    codes = KV_HEADS * coded * 2 * HEAD_DIM * bits // 8
    scales = KV_HEADS * (coded // groups * HEAD_DIM * 2 * 2 + coded * 2)
    positions = (KV_HEADS if per_head else 1) * (num_tokens + room) * 8
    return LAYERS * (raw + codes + scales + positions)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_bytes_are_freed(bits: int) -> None:
    model, ids = random_model(), random_ids(1000)
    context = load(model, f"kivi(bits={bits}, residual_tokens=100)").read(ids)
    dense = load(model).read(ids)
    assert context.kept_tokens == 1000
    assert [slab.coded_tokens for slab in slabs_of(context.run)] == [896, 896]
    assert context.kv_bytes == held_bytes(1000, 896, bits) < dense.kv_bytes / {8: 2, 4: 3, 2: 3.5}[bits]


@pytest.mark.parametrize("spread", ["uniform", "all"])
def test_snapkv_and_kivi_free_both(spread: str) -> None:
    model, ids = random_model(), random_ids(1000)
    spec = f"snapkv(keep=0.25, spread={spread}) + kivi(bits=4, residual_tokens=50)"
    context = load(model, spec).read(ids)
    slabs = slabs_of(context.run)
    if spread == "uniform":
        assert [(slab.num_tokens, slab.coded_tokens) for slab in slabs] == [(250, 192)] * 2
        assert context.kv_bytes == held_bytes(250, 192, 4, per_head=True)
    else:
        assert context.kept_tokens == 250 and len({slab.num_tokens for slab in slabs}) > 1
        assert all(slab.coded_tokens == (slab.num_tokens - 50) // 32 * 32 for slab in slabs)
    alone = load(model, f"snapkv(keep=0.25, spread={spread})").read(ids)
    assert context.kv_bytes < 0.62 * alone.kv_bytes
    for slab, other in zip(slabs, slabs_of(alone.run), strict=True):
        assert torch.equal(slab.positions, other.positions)
        assert (slab.values - other.values).abs().max() < 0.2 * other.values.abs().max()


def answers(spec: str, ids: Tensor, tokens: int) -> tuple[list[Tensor], Run]:
    """Logits behind each of a number of tokens that follow a text, and the run."""
    reader = load(random_model(), spec, chunk_tokens=64).reader()
    run = reader.prefill(reader.new_run(), [ids])
    found = []
    for token in random_ids(tokens, seed=9):
        logits = reader.advance(run, token[None])
        assert logits is not None
        found.append(logits[0])
    return found, run


def test_an_answer_is_coded_as_it_grows() -> None:
    ids = random_ids(130)
    found, run = answers("kivi(bits=8, residual_tokens=40)", ids, 70)
    assert [(slab.num_tokens, slab.coded_tokens) for slab in slabs_of(run)] == [(200, 160)] * 2
    dense, _ = answers("dense", ids, 70)
    errors = [float((a - b).abs().max()) for a, b in zip(found, dense, strict=True)]
    assert 1e-6 < max(errors) < 0.05


def test_fewer_bits_lose_more_and_later_chunks_may_see_coded_ones() -> None:
    ids = random_ids(300)
    dense, _ = answers("dense", ids, 3)

    def error(spec: str) -> float:
        found, _ = answers(spec, ids, 3)
        return sum(float((a - b).square().mean()) for a, b in zip(found, dense, strict=True)) ** 0.5

    by_bits = [error(f"kivi(bits={bits}, residual_tokens=16)") for bits in (8, 4, 2)]
    assert by_bits[0] * 4 < by_bits[1] < by_bits[2] / 1.5
    assert error("kivi(bits=4, residual_tokens=16, when=chunk)") > 0
    asked, run = answers("kivi(bits=4, residual_tokens=16, when=chunk)", ids, 3)
    once, _ = answers("kivi(bits=4, residual_tokens=16)", ids, 3)
    assert not torch.allclose(asked[0], once[0], atol=1e-5)
    assert all(slab.coded_tokens == 256 for slab in slabs_of(run))


def test_chunks_that_are_coded_as_they_come_need_less_memory() -> None:
    ids = random_ids(1000)
    peaks = {
        when: load(random_model(), f"kivi(bits=4, residual_tokens=16, when={when})", chunk_tokens=64)
        .read(ids)
        .run.peak_bytes
        for when in ("read", "chunk")
    }
    assert peaks["chunk"] < 0.45 * peaks["read"]


def test_generate_takes_padded_rows() -> None:
    """Rows of one length equal single runs; with padding errors stay those of 8 bits."""
    model = random_model()
    texts = [random_ids(length, seed=length) for length in (200, 140)]
    ids, mask = torch.zeros(2, 200, dtype=torch.long), torch.zeros(2, 200, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, 200 - len(text) :], mask[row, 200 - len(text) :] = text, 1
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    settings["return_dict_in_generate"] = True
    with applied(model, "kivi(bits=8, residual_tokens=32)"):
        together = model.generate(ids, attention_mask=mask, **settings)
        for row, text in enumerate(texts):
            alone = model.generate(text[None], **settings)
            assert torch.allclose(
                together.logits[0][row], alone.logits[0][0], atol=1e-4 if row == 0 else 0.05
            )
        beams = model.generate(texts[0][None], **settings, num_beams=3)
        assert beams.sequences.shape[1] > 200


# the kernel's path


def choices(run: Run) -> Counter[Choice]:
    return Counter({choice: n for choice, n in run.backends.items() if choice.op == "coded past"})


def test_on_the_cpu_a_slab_is_decoded_and_says_why() -> None:
    _, run = answers("kivi(bits=4, residual_tokens=16)", random_ids(100), 2)
    (choice,) = choices(run)
    assert choice.backend == "decoded"
    assert dict(choice.skipped) == {"quantised_decode": "the tensors are on cpu, not on a CUDA device"}


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_where_the_kernel_serves_nothing_is_decoded(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, spec = random_ids(200), f"kivi(bits={bits}, residual_tokens=16)"
    wanted, _ = answers(spec, ids, 40)

    def never(*_: object, **__: object) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr(quantised, "kernel_reason", lambda *_, **__: None)
    monkeypatch.setattr(Slab, "_whole", never)
    found, run = answers(spec, ids, 40)
    assert {choice.backend for choice in choices(run)} == {"quantised_decode"}
    assert [slab.coded_tokens for slab in slabs_of(run)] == [224 - 16 - 16 + 32] * 2
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_kernel_agrees(monkeypatch: pytest.MonkeyPatch, triton_device: str) -> None:
    """Triton, in its interpreter where there is no GPU, over what a slab holds; 5 queries as one step."""
    ids, question = random_ids(300), random_ids(5, seed=3)
    spec = "kivi(bits=8, group_tokens=64, residual_tokens=16)"
    model = load(random_model().to(triton_device), spec)
    run = model.reader().prefill(model.reader().new_run(), [ids])
    if triton_device == "cpu":
        wanted = model.reader().advance(run.fork(), question)
        monkeypatch.setattr(op, "triton_reason", lambda *_, **__: None)
    else:
        wanted = load(random_model(), spec)
        wanted = wanted.reader().advance(wanted.reader().prefill(wanted.reader().new_run(), [ids]), question)
    branch = run.fork()
    got = model.reader().advance(branch, question)
    assert got is not None and wanted is not None
    assert {choice.backend for choice in choices(branch)} == {"quantised_decode"}
    torch.testing.assert_close(got.cpu(), wanted.cpu(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("kivi(residual_tokens=16)", "bits of head_dim 16 need a group_tokens of 256"),
        (
            "kivi(bits=8, residual_tokens=16, group_tokens=64) + tokenselect(top_tokens=32, sink_tokens=4, "
            "window_tokens=16, positions=stored)",
            "some keys are not",
        ),
        ("kivi(bits=8, residual_tokens=16) + self_extend(window_tokens=64)", "keys are kept before rotation"),
        ("think(window_tokens=16)", "its codec has a form of its own"),
    ],
)
def test_what_the_kernel_cannot_serve_is_decoded(
    spec: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op, "triton_reason", lambda *_, **__: None)
    _, run = answers(spec, random_ids(200), 2)
    (choice,) = choices(run)
    assert choice.backend == "decoded" and reason in dict(choice.skipped)["quantised_decode"]


@pytest.mark.parametrize("queries", [1, 7, 16])
def test_a_problem_over_codes_is_the_one_over_what_they_decode_to(queries: int) -> None:
    store, draw = random_store(64 + 40, head_dim=64), torch.Generator().manual_seed(1)
    coded = code(Kivi(bits=4, residual_tokens=40), store)
    assert coded is not None
    asked = torch.randn(1, 6, queries, 64, generator=draw)
    problem = Problem(
        queries=asked,
        keys=store.keys[:, :, 64:],
        values=store.values[:, :, 64:],
        query_positions=torch.arange(104 - queries, 104)[None],
        key_positions=store.positions,
        num_new=queries,
        scale=0.125,
        contiguous_from=0,
        quantised=quantised.store_of(coded.tokens, torch.float32),
    )
    whole = problem.decoded()
    assert problem.num_tokens == whole.num_tokens == whole.keys.shape[2] == 104 and whole.quantised is None
    torch.testing.assert_close(attend(problem), attend(whole), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attend(problem), naive_attend(problem), atol=1e-5, rtol=1e-5)


def test_sources_of_an_answer_are_found_in_coded_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever traces a step sees keys and values."""
    monkeypatch.setattr(quantised, "kernel_reason", lambda *_, **__: None)
    model = load(random_model(), "kivi(bits=8, residual_tokens=16)", tokenizer=word_tokenizer())
    dense = load(random_model(), tokenizer=word_tokenizer())
    text = words(random_ids(200))
    asked = [m.read(text, progress=False).ask("w10 w11 w12", max_new_tokens=4) for m in (model, dense)]
    assert asked[0].text == asked[1].text
    assert [s.text for s in asked[0].sources][:1] == [s.text for s in asked[1].sources][:1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("bits=3", "bits takes 8, 4 or 2|bits takes 8 or 4 or 2"),
        ("value_bits=16", "value_bits takes"),
        ("group_tokens=48", "group_tokens takes 32"),
        ("residual_tokens=-1", "got residual_tokens=-1; allowed is 0 or more"),
        ("when=always", "when takes read or chunk"),
    ],
)
def test_wrong_settings_are_refused(settings: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        resolve(f"kivi({settings})")
    with pytest.raises(ValueError, match="got bits=3; allowed are 8, 4, 2"):
        Kivi(bits=3)  # type: ignore[arg-type]


def test_two_codecs_are_refused() -> None:
    with pytest.raises(ValueError, match="kivi and think both decide in what form it is held"):
        load(random_model(), "kivi + think")


def test_the_card_reads() -> None:
    card = read_card(module.__file__)
    assert (card.name, card.roles, card.frees, card.phase) == ("kivi", ("Codec",), "frees", "read")
    assert [p.name for p in card.parameters] == [
        "bits",
        "value_bits",
        "group_tokens",
        "residual_tokens",
        "when",
    ]
    assert all(p.comment for p in card.parameters)
