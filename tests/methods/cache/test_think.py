"""ThinK: the kept channels against loops over numbers, zero filling, bytes, chunks, padding, and wrong settings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longspan.card import read_card
from longspan.engine.api import applied, load
from longspan.engine.run import Run
from longspan.engine.store import Slab, spare_tokens
from longspan.errors import SpecError
from longspan.methods.cache import think as module
from longspan.methods.cache.think import ThinK
from longspan.roles import Coded, Held, LayerInfo, Step
from longspan.spec import resolve
from tests.methods.cache.test_kivi import LAYERS, Store, slabs_of
from tests.models import random_ids, random_model

KV_HEADS, HEAD_DIM = 2, 16


def layer_of(num_heads: int, num_kv_heads: int, head_dim: int = HEAD_DIM) -> LayerInfo:
    return LayerInfo(
        index=0,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=None,
        sliding_window_tokens=None,
    )


def random_text(num_tokens: int, heads: int, kv_heads: int, head_dim: int = HEAD_DIM) -> tuple[Tensor, Store]:
    """Queries and what is stored; channels differ in size."""
    draw = torch.Generator().manual_seed(num_tokens + heads)
    sizes = torch.rand(2, head_dim, generator=draw) + 0.2
    queries = torch.randn(1, heads, num_tokens, head_dim, generator=draw) * sizes[0]
    keys, values = (torch.randn(1, kv_heads, num_tokens, head_dim, generator=draw) for _ in range(2))
    return queries, Store(keys * sizes[1], values, torch.arange(num_tokens)[None, None])


def code(
    method: ThinK, queries: Tensor, store: Store, chunk: int | None = None
) -> tuple[Coded | None, dict[str, object]]:
    """What the method makes of a text that is read in chunks, and what it remembers then."""
    layer, state = layer_of(queries.shape[1], store.keys.shape[1], store.keys.shape[3]), {}
    for start in range(0, store.num_tokens, chunk or store.num_tokens):
        cut = slice(start, min(start + (chunk or store.num_tokens), store.num_tokens))
        held = Store(*(x[:, :, : cut.stop] for x in (store.keys, store.values, store.positions)))
        method.observe(
            Step(
                layer=layer,
                phase="prefill",
                queries=queries[:, :, cut],
                query_positions=store.positions[:, 0, cut],
                store=held,
                num_new=cut.stop - cut.start,
                state=state,
                logits=held.logits,
            )
        )
        assert method.code([Held(layer, held, state)], event="chunk") == [None]
    (made,) = method.code([Held(layer, store, state)], event="read")
    assert method.code([Held(layer, store, state)], event="token") == [None]
    return made, state


def kept_channels(queries: Tensor, keys: Tensor, *, window: int, kept: int) -> list[list[int]]:
    """Channels that stay for each kv head, number by number, as the norm of the product that each channel adds to logits."""
    num_heads, kv_heads = queries.shape[1], keys.shape[1]
    groups, found = num_heads // kv_heads, []
    for kv in range(kv_heads):
        scores = []
        for c in range(keys.shape[3]):
            total = 0.0
            column = keys[0, kv, :, c].tolist()
            for h in range(kv * groups, (kv + 1) * groups):
                for q in queries[0, h, -window:, c].tolist():
                    total += sum((q * k) ** 2 for k in column)
            scores.append(total)
        found.append(sorted(sorted(range(len(scores)), key=lambda c: -scores[c])[:kept]))
    return found


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (3, 3)])
@pytest.mark.parametrize(
    ("num_tokens", "window", "recent", "prune", "head_dim"),
    [(61, 5, 20, 0.5, 16), (64, 8, 1, 0.4, 16), (97, 32, 0, 0.9, 6), (33, 64, 32, 0.25, 10)],
)
def test_keeps_the_channels_that_a_loop_keeps(
    num_tokens: int, window: int, recent: int, prune: float, head_dim: int, heads: int, kv_heads: int
) -> None:
    queries, store = random_text(num_tokens, heads, kv_heads, head_dim)
    method = ThinK(prune=prune, window_tokens=window, recent_tokens=recent)
    made, state = code(method, queries, store)
    assert made is not None and set(state) == {"channels"}
    kept = head_dim - int(head_dim * prune)
    wanted = kept_channels(queries, store.keys, window=window, kept=kept)
    assert made.shared["channels"].tolist() == [wanted]
    old = num_tokens - recent
    assert made.num_tokens == old
    assert made.tokens["keys"].shape == (1, kv_heads, old, kept)
    keys, values = method.decode(layer_of(heads, kv_heads, head_dim), made.tokens, made.shared)
    for kv, channels in enumerate(wanted):
        for c in range(head_dim):
            column = store.keys[0, kv, :old, c] if c in channels else torch.zeros(old)
            assert torch.equal(keys[0, kv, :, c], column)
    assert torch.equal(values, store.values[:, :, :old])


@pytest.mark.parametrize("chunk", [1, 3, 20, 96])
def test_chunks_of_any_size_keep_the_same(chunk: int) -> None:
    queries, store = random_text(97, 4, 2)
    method = ThinK(window_tokens=9, recent_tokens=10)
    whole, parts = code(method, queries, store)[0], code(method, queries, store, chunk)[0]
    assert whole is not None and parts is not None
    assert torch.equal(whole.shared["channels"], parts.shared["channels"])


def test_queries_decide_not_the_size_of_keys() -> None:
    """A fake that keeps the largest key channels, or the first ones, keeps none of these."""
    queries, store = random_text(80, 4, 2)
    queries[..., :8], queries[..., 8:] = 0.0, 1.0
    store.keys[..., :8] *= 10
    made, _ = code(ThinK(prune=0.5, window_tokens=8), queries, store)
    assert made is not None and made.shared["channels"].tolist() == [[list(range(8, 16))] * 2]
    queries[:, :2, -8:, 3] = 5.0  # of the first kv head, in the window
    queries[:, 2:, :-8, 3] = 5.0  # of the second, before it
    made, _ = code(ThinK(prune=0.5, window_tokens=8), queries, store)
    assert made is not None
    first, second = made.shared["channels"][0].tolist()
    assert 3 in first and 3 not in second


def test_padding_does_not_count() -> None:
    queries, store = random_text(50, 4, 2)
    alone, _ = code(ThinK(window_tokens=45), queries[:, :, 10:], Store(*_from(store, 10)))
    store.keys[:, :, :10], queries[:, :, :10] = 100.0 * torch.rand(HEAD_DIM), torch.nan
    positions = torch.where(store.positions < 10, -1, store.positions - 10)
    padded, _ = code(ThinK(window_tokens=45), queries, Store(store.keys, store.values, positions))
    assert alone is not None and padded is not None
    assert torch.equal(padded.shared["channels"], alone.shared["channels"])


def _from(store: Store, start: int) -> tuple[Tensor, Tensor, Tensor]:
    return store.keys[:, :, start:], store.values[:, :, start:], store.positions[:, :, start:] - start


# through a model


def held_bytes(num_tokens: int, coded: int, kept: int, *, per_head: bool = False) -> int:
    """Bytes of all layers, counted by hand; channel numbers take 2 bytes."""
    room = spare_tokens(num_tokens - coded)
    raw = KV_HEADS * (num_tokens - coded + room) * 2 * HEAD_DIM * 4
    thin = KV_HEADS * coded * (kept + HEAD_DIM) * 4 + KV_HEADS * kept * 2
    positions = (KV_HEADS if per_head else 1) * (num_tokens + room) * 8
    return LAYERS * (raw + thin + positions)


def test_key_bytes_are_freed() -> None:
    model, ids = random_model(), random_ids(1000)
    context = load(model, "think(prune=0.5)").read(ids)
    assert context.kv_bytes == held_bytes(1000, 968, 8)
    assert context.kv_bytes < 0.8 * load(model).read(ids).kv_bytes


@pytest.mark.parametrize("spread", ["uniform", "heads"])
def test_snapkv_and_think_free_both(spread: str) -> None:
    model, ids = random_model(), random_ids(1000)
    spec = f"snapkv(keep=0.25, spread={spread})"
    context, alone = load(model, f"{spec} + think(prune=0.4)").read(ids), load(model, spec).read(ids)
    if spread == "uniform":
        assert context.kv_bytes == held_bytes(250, 218, 10, per_head=True)
    assert context.kept_tokens == alone.kept_tokens == 250
    assert context.kv_bytes < alone.kv_bytes
    for slab, other in zip(slabs_of(context.run), slabs_of(alone.run), strict=True):
        assert torch.equal(slab.positions, other.positions)
        zeros = (slab.keys == 0).all(2).sum(-1)
        assert slab.coded_tokens == slab.num_tokens - 32 and (zeros == 0).all()  # recent tokens are whole
        old = slab.keys[:, :, : slab.coded_tokens]
        assert ((old == 0).all(2).sum(-1) == 6).all()
        assert torch.equal(old[old != 0], other.keys[:, :, : slab.coded_tokens][old != 0])


def test_text_that_comes_later_loses_the_same_channels() -> None:
    model = load(random_model(), "think(prune=0.5, recent_tokens=10)", chunk_tokens=64)
    first, more = random_ids(150), random_ids(80, seed=4)
    reader = model.reader()
    run = reader.prefill(reader.new_run(), [first])
    channels = [_channels(slab) for slab in slabs_of(run)]
    longer = reader.prefill(run.fork(), [more])
    assert [slab.coded_tokens for slab in slabs_of(longer)] == [220, 220]
    assert [slab.coded_tokens for slab in slabs_of(run)] == [140, 140]
    for slab, before in zip(slabs_of(longer), channels, strict=True):
        assert torch.equal(_channels(slab), before)
        assert ((slab.keys[:, :, :220] == 0).all(2).sum(-1) == 8).all()


def _channels(slab: Slab) -> Tensor:
    assert slab.coded is not None
    return slab.coded.shared["channels"]


def error(spec: str) -> float:
    ids, question = random_ids(300), random_ids(5, seed=9)

    def ask(spec: str) -> Tensor:
        reader = load(random_model(), spec).reader()
        run: Run = reader.prefill(reader.new_run(), [ids])
        logits = reader.advance(run, question)
        assert logits is not None
        return logits

    return float((ask(spec) - ask("dense")).square().mean().sqrt())


def test_more_channels_lose_less() -> None:
    by_share = [error(f"think(prune={share})") for share in (0.1, 0.5, 0.9)]
    assert 0 < by_share[0] < by_share[1] < by_share[2]
    assert error("think(prune=0.0)") < 1e-6


def test_generate_with_left_padding_equals_single_runs() -> None:
    model = random_model()
    texts = [random_ids(length, seed=length) for length in (200, 140)]
    ids, mask = torch.zeros(2, 200, dtype=torch.long), torch.zeros(2, 200, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, 200 - len(text) :], mask[row, 200 - len(text) :] = text, 1
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with applied(model, "think(prune=0.5)"):
        together = model.generate(ids, attention_mask=mask, **settings)
        for row, text in enumerate(texts):
            alone = model.generate(text[None], **settings)
            assert torch.equal(together[row, 200:], alone[0, len(text) :])
        assert model.generate(texts[1][None], **settings, num_beams=3).shape == (1, 148)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("prune=1.0", "got prune=1; allowed is 0 to below 1"),
        ("prune=-0.1", "got prune=-0.1; allowed is 0"),
        ("window_tokens=0", "got window_tokens=0; allowed is 1 or more"),
        ("recent_tokens=-1", "got recent_tokens=-1; allowed is 0 or more"),
    ],
)
def test_wrong_settings_are_refused(settings: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        resolve(f"think({settings})")


def test_the_card_reads() -> None:
    card = read_card(module.__file__)
    assert (card.name, card.roles, card.frees, card.phase) == ("think", ("Codec",), "frees", "read")
    assert [p.name for p in card.parameters] == ["prune", "window_tokens", "recent_tokens"]
    assert all(p.comment for p in card.parameters)
