"""xKV: decoded keys and values against singular value decompositions written out here, shared bytes, and settings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longspan.card import read_card
from longspan.engine.api import applied, load, open_context
from longspan.engine.model import SpanModel
from longspan.engine.store import spare_tokens
from longspan.errors import SpecError
from longspan.low_rank import right_factors
from longspan.methods.cache import xkv as module
from longspan.methods.cache.xkv import XKV
from longspan.roles import Coded, Held, LayerInfo
from longspan.spec import resolve
from tests.methods.cache import evicting
from tests.models import full_logits, random_ids, random_model, word_tokenizer

HEAD_DIM = 16


class Store(evicting.Store):
    """Stored keys and values without an engine."""

    def logits(self, queries: Tensor, query_positions: Tensor, start: int, stop: int) -> Tensor:
        raise AssertionError("xkv looks at no logits")


def held_layers(
    num_layers: int, num_tokens: int, *, kv_heads: int | tuple[int, ...] = 2, rows: int = 1, seed: int = 0
) -> list[Held]:
    """Layers whose keys and values have much in common: random mixes of 24 directions, and some noise."""
    make = torch.Generator().manual_seed(seed)
    heads = (kv_heads,) * num_layers if isinstance(kv_heads, int) else kv_heads
    common = torch.randn(rows, num_tokens, 24, generator=make) * torch.linspace(3, 0.2, 24)

    def tensor(k: int) -> Tensor:
        mixed = common @ torch.randn(24, k * HEAD_DIM, generator=make)
        mixed += 0.05 * torch.randn(mixed.shape, generator=make)
        return mixed.unflatten(2, (k, HEAD_DIM)).transpose(1, 2)

    held = []
    for index, k in enumerate(heads):
        info = LayerInfo(
            index=index,
            num_heads=2 * k,
            num_kv_heads=k,
            head_dim=HEAD_DIM,
            scale=0.25,
            rope=None,
            sliding_window_tokens=None,
        )
        at = torch.arange(num_tokens).expand(rows, 1, -1)
        held.append(Held(info, Store(tensor(k), tensor(k), at), {}))
    return held


def decoded(method: XKV, held: list[Held]) -> list[tuple[Tensor, Tensor] | None]:
    found = method.code(held, event="read")
    return [
        None if coded is None else method.decode(h.layer, coded.tokens, coded.shared)
        for h, coded in zip(held, found, strict=True)
    ]


def best_of_rank(layers: list[Tensor], rank: int) -> list[Tensor]:
    """The best approximation of rank `rank` of layers `[B, k, S, D]` side by side, row by row and term by term."""
    out = [torch.zeros_like(x) for x in layers]
    for row in range(len(layers[0])):
        flat = [torch.cat([x[row, head] for head in range(x.shape[1])], dim=1) for x in layers]
        u, s, vh = torch.linalg.svd(torch.cat(flat, dim=1).double(), full_matrices=False)
        total = sum(s[i] * torch.outer(u[:, i], vh[i]) for i in range(rank))
        assert isinstance(total, Tensor)
        at = 0
        for x, made in zip(layers, out, strict=True):
            for head in range(x.shape[1]):
                made[row, head] = total[:, at : at + HEAD_DIM]
                at += HEAD_DIM
    return out


@pytest.mark.parametrize(("num_layers", "group"), [(4, 4), (4, 2), (5, 2), (3, 1)])
@pytest.mark.parametrize(("num_tokens", "kv_heads", "rows"), [(129, 2, 1), (257, 1, 2), (301, 3, 1)])
def test_decoded_equals_the_best_approximation_of_each_group(
    num_layers: int, group: int, num_tokens: int, kv_heads: int, rows: int
) -> None:
    held = held_layers(num_layers, num_tokens, kv_heads=kv_heads, rows=rows)
    method = XKV(group_layers=group, key_rank=0.125, value_rank=0.25)
    made = decoded(method, held)
    for start in range(0, num_layers, group):
        part = slice(start, start + group)
        layers = [h.store for h in held[part]]
        channels = len(layers) * kv_heads * HEAD_DIM
        keys = best_of_rank([s.keys for s in layers], round(0.125 * channels))
        values = best_of_rank([s.values for s in layers], round(0.25 * channels))
        for pair, key, value in zip(made[part], keys, values, strict=True):
            assert pair is not None
            torch.testing.assert_close(pair[0], key, atol=2e-3, rtol=2e-3)
            torch.testing.assert_close(pair[1], value, atol=2e-3, rtol=2e-3)


def test_error_falls_with_rank_to_zero() -> None:
    x = torch.cat([h.store.keys.transpose(1, 2).flatten(2) for h in held_layers(4, 200)], dim=2)
    errors = []
    for rank in (1, 2, 4, 8, 16, 32, 64, 128):
        right = right_factors(x, rank)
        assert right.shape == (1, rank, 128)
        errors.append(float((x @ right.mT @ right - x).norm() / x.norm()))
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.5
    assert errors[-1] < 1e-5


@pytest.mark.parametrize("rank", [3, 16, 40])
def test_the_random_solver_is_as_good_within_a_percent(rank: int) -> None:
    x = torch.cat([h.store.keys.transpose(1, 2).flatten(2) for h in held_layers(4, 500)], dim=2)
    exact, random = (
        float((x @ right.mT @ right - x).norm())
        for right in (right_factors(x, rank), right_factors(x, rank, "random"))
    )
    assert exact * 0.999 < random < exact * 1.01
    right = right_factors(x, rank, "random")
    torch.testing.assert_close(right @ right.mT, torch.eye(rank)[None], atol=1e-5, rtol=1e-5)
    assert torch.equal(right, right_factors(x, rank, "random"))


def error(made: list[tuple[Tensor, Tensor] | None], held: list[Held]) -> float:
    pairs = [(pair[0], h.store.keys) for pair, h in zip(made, held, strict=True) if pair is not None]
    assert len(pairs) == len(held)
    off = sum(float((a - b).square().sum()) for a, b in pairs)
    return off / sum(float(b.square().sum()) for _, b in pairs)


def test_truncated_channels_or_a_decomposition_per_layer_would_not_do() -> None:
    """The same number of numbers per token, spent without the singular vectors or without the neighbours."""
    held = held_layers(4, 400)
    shared = error(decoded(XKV(group_layers=4, key_rank=16, value_rank=16), held), held)
    apart = error(decoded(XKV(group_layers=1, key_rank=4, value_rank=4), held), held)
    cut = [(torch.where(torch.arange(HEAD_DIM) < 2, h.store.keys, 0.0), h.store.values) for h in held]
    assert shared < 0.1
    assert apart > 3 * shared
    assert error(list(cut), held) > 3 * shared


def test_layers_of_a_group_hold_the_same_token_factors() -> None:
    held = held_layers(5, 200)
    found = [coded for coded in XKV(group_layers=2).code(held, event="read") if coded is not None]
    assert len(found) == 5
    for name in ("keys", "values"):
        first, second, third, fourth, last = (coded.tokens[name] for coded in found)
        assert first is second and third is fourth
        assert first is not third and third is not last


def test_unlike_layers_are_grouped_apart() -> None:
    held = held_layers(4, 300, kv_heads=(2, 1, 2, 1))
    found = XKV(group_layers=4, key_rank=0.25, value_rank=0.25).code(held, event="read")
    tokens = [coded.tokens["keys"] for coded in found if coded is not None]
    assert tokens[0] is tokens[2] and tokens[1] is tokens[3] and tokens[0] is not tokens[1]
    made = decoded(
        XKV(group_layers=4, key_rank=0.25, value_rank=0.25), held_layers(4, 300, kv_heads=(2, 1, 2, 1))
    )
    assert made[0] is not None and made[1] is not None
    torch.testing.assert_close(
        made[1][0], best_of_rank([h.store.keys for h in held[1::2]], 8)[0], atol=2e-3, rtol=2e-3
    )


def test_places_that_hold_nothing_leave_no_trace() -> None:
    held, padded = held_layers(2, 150), held_layers(2, 190, seed=4)
    for h, p in zip(held, padded, strict=True):
        assert isinstance(h.store, Store) and isinstance(p.store, Store)
        p.store.keys[:, :, 40:], p.store.values[:, :, 40:] = h.store.keys, h.store.values
        p.store.positions = torch.cat([torch.full((1, 1, 40), -1), h.store.positions], dim=2)
    method = XKV(group_layers=2, key_rank=8, value_rank=8)
    for alone, beside in zip(decoded(method, held), decoded(method, padded), strict=True):
        assert alone is not None and beside is not None
        torch.testing.assert_close(beside[0][:, :, 40:], alone[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("event", ["chunk", "token"])
def test_only_the_end_of_a_text_codes(event: str) -> None:
    assert XKV().code(held_layers(4, 200), event=event) == [None] * 4  # type: ignore[arg-type]


def test_a_text_too_short_to_gain_stays_as_it_is() -> None:
    def found(num_tokens: int) -> list[Coded | None]:
        return XKV(group_layers=2, key_rank=16, value_rank=16).code(held_layers(2, num_tokens), event="read")

    # 2 * n * 64 numbers as they are; 2 * 16 * (n + 64) as factors: fewer from n = 22 on
    assert found(21) == [None, None]
    assert all(coded is not None for coded in found(22))


# in a model


def read(spec: str, num_tokens: int = 300, *, num_layers: int = 4) -> tuple[SpanModel, object]:
    model = load(random_model(num_layers=num_layers), spec, tokenizer=word_tokenizer())
    return model, model.read(random_ids(num_tokens), progress=False)


def test_bytes_are_those_counted_by_hand() -> None:
    context = read("xkv(group_layers=4, key_rank=16, value_rank=24)")[1]
    factors = 300 * (16 + 24) + (16 + 24) * 4 * 2 * HEAD_DIM  # once for the group, and a part for each layer
    spare = 4 * spare_tokens(0) * 2 * 2 * HEAD_DIM
    positions = 4 * (300 + spare_tokens(0))
    assert context.kv_bytes == 4 * (factors + spare) + 8 * positions  # type: ignore[attr-defined]
    assert context.kept_tokens == 300  # type: ignore[attr-defined]


def test_a_model_attends_to_what_was_decoded() -> None:
    """A dense model whose stored keys and values are replaced by their best approximation gives the same answer."""
    ids, question = random_ids(200), random_ids(7, seed=5)
    model = load(random_model(num_layers=4), "xkv(group_layers=2, key_rank=16, value_rank=16)")
    branch = model.read(ids, progress=False).run.fork()
    got = model.reader().advance(branch, question)
    plain = load(
        random_model(num_layers=4), "self_extend(group_size=2, window_tokens=250)"
    )  # before rotation
    run = plain.read(ids, progress=False).run
    for start in (0, 2):
        slabs = [run.layers[start + n].slabs[0] for n in (0, 1)]
        for name in ("_keys", "_values"):
            made = best_of_rank([getattr(slab, name)[:, :, :200] for slab in slabs], 16)
            for slab, x in zip(slabs, made, strict=True):
                getattr(slab, name)[:, :, :200] = x
    torch.testing.assert_close(got, plain.reader().advance(run, question), atol=1e-3, rtol=1e-3)


def test_more_rank_is_nearer_to_dense() -> None:
    ids, question = random_ids(300), random_ids(7, seed=5)

    def logits(spec: str) -> Tensor:
        model = load(random_model(num_layers=4), spec)
        found = model.reader().advance(model.read(ids, progress=False).run.fork(), question)
        assert found is not None
        return found

    dense = logits("dense")
    off = [
        float((logits(f"xkv(key_rank={r}, value_rank={r})") - dense).norm()) for r in (0.05, 0.2, 0.4, 0.65)
    ]
    assert off == sorted(off, reverse=True) and off[-1] < off[0] / 3


def test_a_text_read_later_stays_in_full_precision() -> None:
    model, context = read("xkv(group_layers=4, key_rank=16, value_rank=16)")
    longer = context.read(random_ids(100, seed=9))  # type: ignore[attr-defined]
    for before, layer in zip(context.run.layers, longer.run.layers, strict=True):  # type: ignore[attr-defined]
        assert layer.slabs[0].coded_tokens == 300 and layer.slabs[0].raw_tokens == 100
        assert layer.slabs[0].coded.tokens["keys"] is before.slabs[0].coded.tokens["keys"]


def test_saving_keeps_what_is_decoded(tmp_path: object) -> None:
    model, context = read("xkv(group_layers=2, key_rank=16, value_rank=16)")
    context.save(f"{tmp_path}/book.span")  # type: ignore[attr-defined]
    back = open_context(f"{tmp_path}/book.span", model)
    for a, b in zip(context.run.layers, back.run.layers, strict=True):  # type: ignore[attr-defined]
        assert torch.equal(a.slabs[0].keys, b.slabs[0].keys)


def test_it_codes_what_a_storage_method_leaves() -> None:
    context = read("snapkv(keep=0.5, window_tokens=16) + xkv(group_layers=2, key_rank=16, value_rank=16)")[1]
    for layer in context.run.layers:  # type: ignore[attr-defined]
        assert layer.slabs[0].coded_tokens == 150


def test_sliding_windows_are_left_out() -> None:
    model = load(random_model("Gemma3", num_layers=4), "xkv(group_layers=2, key_rank=16, value_rank=16)")
    layers = model.read(random_ids(300), progress=False).run.layers
    assert [layer.slabs[0].coded is not None for layer in layers] == [False, True, False, True]
    first, second = (layer.slabs[0].coded for layer in layers[1::2])
    assert first is not None and second is not None and first.tokens["keys"] is second.tokens["keys"]


def test_generate_attends_in_full_while_the_prompt_is_read() -> None:
    ids = random_ids(200)
    model = random_model(num_layers=4)
    with torch.no_grad():
        stock = model(ids[None]).logits[0]
    with applied(model, "xkv(key_rank=0.1, value_rank=0.1)"):
        out = model.generate(ids[None], max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert out.shape == (1, 206) and int(out[0, 200]) == int(stock[-1].argmax())
    span = load(random_model(num_layers=4), "xkv(key_rank=0.1, value_rank=0.1)")
    torch.testing.assert_close(full_logits(span, ids), stock, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("group_layers=0", "got group_layers=0; allowed is 1 or more"),
        ("key_rank=0", "got key_rank=0; allowed is a share of the channels above 0"),
        ("value_rank=1.5", "got value_rank=1.5; allowed is a share"),
        ("solver=lanczos", "solver takes exact or random"),
    ],
)
def test_wrong_settings_are_refused(settings: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        resolve(f"xkv({settings})")


def test_the_card_reads() -> None:
    card = read_card(module.__file__)
    assert (card.name, card.roles, card.frees, card.paper_id) == ("xkv", ("Codec",), "frees", 109)
    assert [p.name for p in card.parameters] == ["group_layers", "key_rank", "value_rank", "solver"]
    assert all(parameter.comment for parameter in card.parameters)
